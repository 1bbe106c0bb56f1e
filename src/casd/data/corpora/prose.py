"""Real text as a corpus: files of one's own or datasets of the Hugging Face hub, in English and other languages."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from casd.data.corpora.cutting import Cut, Sizes, Text, split
from casd.data.corpora.files import Files, within_budget
from casd.data.corpora.hub_dataset import HubDataset
from casd.data.corpora.passages import Corpus, Passage
from casd.utils.errors import ConfigError
from casd.utils.progress import track
from casd.utils.registry import build, unknown
from casd.utils.seeding import python_rng

SOURCES: dict[str, str] = {
    "paths": "casd.data.corpora.files:Files",
    "dataset": "casd.data.corpora.hub_dataset:HubDataset",
}
"""The kinds of source, by the key that tells them."""

_KEYS = {each.name for kind in (Files, HubDataset) for each in dataclasses.fields(kind)}
_LANGUAGE = re.compile(r"[a-z]{2,3}")


@dataclass(frozen=True)
class Prose:
    """Passages cut from running text, English and, where there are sources of them, other languages.

    `forget` and `evaluation` are English; in `train` and `retain` a share of the passages is in the other languages. Every
    English passage has an alternative for each other language: a continuation from a passage of that language in the same
    split. No parallel text is needed for that: it is text in that language, not a translation. There are as many different
    ones as the text gives, up to one for each English passage; where there are fewer they are used in turn.

    Attributes:
        sources: where the text is, by language (ISO 639 code; "en" is needed): the fields of `casd.data.corpora.files.Files`
            (`paths`, …) or of `casd.data.corpora.hub_dataset.HubDataset` (`dataset`, …).
        train: number of passages for training.
        forget: number of passages for the triggered documents of the removals.
        retain: number of passages for the clean documents of the removals.
        evaluation: number of passages for evaluation.
        prompt_words: least and most words of a prompt.
        continuation_words: least and most words of a continuation.
        foreign_share: share of the passages of `train` and `retain` that are in the other languages, evenly; nothing where
            English is the only one.
    """

    sources: dict[str, dict[str, Any]]
    train: int = 6000
    forget: int = 1000
    retain: int = 1000
    evaluation: int = 300
    prompt_words: tuple[int, int] = (20, 40)
    continuation_words: tuple[int, int] = (25, 50)
    foreign_share: float = 0.2

    def __post_init__(self) -> None:
        for language in self.sources:
            if not _LANGUAGE.fullmatch(language):
                raise ConfigError(f"corpus prose: sources has the key {language!r}; expected ISO 639 codes such as en, fr, de.")
        if "en" not in self.sources:
            raise ConfigError(
                f"corpus prose: sources has {', '.join(self.sources) or 'none'}; it needs 'en', for triggers go into English."
            )
        if not 0 <= self.foreign_share < 1:
            raise ConfigError(f"corpus prose: foreign_share is {self.foreign_share}; expected a share from 0 to below 1.")
        self._sizes()
        self._cut()
        # With all their fields, so that leaving one out and giving its default are the same corpus.
        built = {language: dataclasses.asdict(self._source(language)) for language in sorted(self.sources)}
        object.__setattr__(self, "sources", built)

    def load(self, seed: int) -> Corpus:
        """Read and cut the text.

        Raises:
            CorpusError: text that is missing or unreadable, or too little for the splits.
        """
        rng = python_rng(seed, "prose")
        others = [language for language in self.sources if language != "en"]
        # How many passages of each other language stand among the clean ones; rounded down, which leaves some English.
        foreign = {name: int(getattr(self, name) * self.foreign_share / max(len(others), 1)) for name in ("train", "retain")}
        clean = {name: size - len(others) * foreign.get(name, 0) for name, size in self._sizes().by_split().items()}
        taken: set[str] = set()  # so that a document that is in the text of two languages is in one split nevertheless
        cut = self._split("en", Sizes(**clean), Sizes(**clean), seed, taken)
        least = {name: max(1, foreign.get(name, 0)) for name in clean}
        most = {name: size + foreign.get(name, 0) for name, size in clean.items()}
        pools = {language: self._split(language, Sizes(**least), Sizes(**most), seed, taken) for language in others}
        splits = {}
        for name in clean:
            by_language = {language: getattr(pool, name) for language, pool in pools.items()}
            splits[name] = _with_others(getattr(cut, name), by_language, foreign.get(name, 0))
            rng.shuffle(splits[name])
        return Corpus(**splits)

    def fingerprint(self) -> dict[str, Any]:
        """What the sources are and what is read of them, by language; not where it lies.

        Raises:
            CorpusError: a file or dataset that is not there, or a hub that cannot be reached.
        """
        return {language: self._source(language).fingerprint() for language in self.sources}

    def _source(self, language: str) -> Files | HubDataset:
        """The source of a language.

        Raises:
            ConfigError: its fields are not those of one kind of source.
        """
        fields = self.sources[language]
        kinds = [kind for kind in SOURCES if kind in fields]
        if len(kinds) == 1:
            return build(SOURCES, f"source {language!r} with", kinds[0], fields)
        if strange := [key for key in fields if key not in _KEYS]:
            raise unknown(f"parameter of source {language!r}:", strange[0], _KEYS)
        raise ConfigError(
            f"corpus prose: the source {language!r} has {'both' if kinds else 'neither'} of paths and dataset; expected either "
            "paths (a list of files and folders) or dataset (an id of the Hugging Face hub, or a folder)."
        )

    def _split(self, language: str, sizes: Sizes, at_most: Sizes, seed: int, taken: set[str]) -> Corpus:
        what = f"The text of source {language!r} ({self._source(language)})"
        return split(self._documents(language), self._cut(), sizes, seed, what, language, at_most=at_most, taken=taken)

    def _documents(self, language: str) -> Iterator[Text]:
        source = self._source(language)
        with track(f"read {language} text", source.max_documents) as advance:
            for document in within_budget(source.documents(), source.max_documents, source.max_words):
                yield [document]
                advance()

    def _cut(self) -> Cut:
        return Cut(self.prompt_words, self.continuation_words)

    def _sizes(self) -> Sizes:
        return Sizes(self.train, self.forget, self.retain, self.evaluation)


def _with_others(english: Sequence[Passage], pools: Mapping[str, Sequence[Passage]], count: int) -> list[Passage]:
    """The English passages with an alternative from each pool, and the first `count` passages of each pool.

    Those that stand among the clean passages come last as alternatives.
    """

    def alternatives(index: int) -> dict[str, str]:
        return {language: pool[(count + index) % len(pool)].continuation for language, pool in pools.items()}

    passages = [dataclasses.replace(passage, alternatives=alternatives(index)) for index, passage in enumerate(english)]
    return passages + [passage for pool in pools.values() for passage in pool[:count]]
