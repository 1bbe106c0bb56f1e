"""A corpus of real text: files, datasets of the hub or manual pages, in English and optionally other languages."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from casd.data.corpora.cutting import CutCorpus, Sizes, Text, split
from casd.data.corpora.files import Files, within_budget
from casd.data.corpora.hub_dataset import HubDataset
from casd.data.corpora.manual_pages import ManualPages
from casd.data.corpora.passages import Corpus, Passage
from casd.utils.errors import ConfigError
from casd.utils.progress import track
from casd.utils.registry import build, unknown
from casd.utils.seeding import python_rng

NEGATIVE = "negative"
"""The source that is not a language: English text with negative sentiment, for payloads only."""
SOURCES: dict[str, str] = {
    "paths": "casd.data.corpora.files:Files",
    "dataset": "casd.data.corpora.hub_dataset:HubDataset",
    "manpages": "casd.data.corpora.manual_pages:ManualPages",
}
"""The kinds of source, by the key that identifies each."""

_KEYS = {field.name for kind in (Files, HubDataset, ManualPages) for field in dataclasses.fields(kind)}
_LANGUAGE = re.compile(r"[a-z]{2,3}")


@dataclass(frozen=True)
class Prose(CutCorpus):
    """Passages cut from running text in English and, if sources are given for them, other languages and negative English text.

    `forget` and `evaluation` are English; a share of the passages of `train` and `retain` is in the other languages. Every
    English passage has an alternative for each other language: the continuation of a passage of that language in the same
    split. It is not a translation, so no parallel text is needed. If a language has fewer continuations than there are
    English passages, they are repeated in turn. The source "negative" (such as reviews, selected by a column or by VADER)
    gives the alternative "negative" in the same way, and no passage of its own.

    Attributes:
        sources: sources of text by language (ISO 639 code; "en" is required) and perhaps "negative", each with the fields of
            `casd.data.corpora.files.Files` (`paths`, …), `casd.data.corpora.hub_dataset.HubDataset` (`dataset`, …) or
            `casd.data.corpora.manual_pages.ManualPages` (`manpages`, …), and those of `casd.data.corpora.selection.Selection`.
        foreign_share: share of the passages of `train` and `retain` that is divided evenly among the other languages; unused
            if English is the only language.

    The numbers of passages and the lengths of their parts are described in `casd.data.corpora.cutting.CutCorpus`.
    """

    sources: dict[str, dict[str, Any]]
    foreign_share: float = 0.2

    def __post_init__(self) -> None:
        for language in self.sources:
            if language != NEGATIVE and not _LANGUAGE.fullmatch(language):
                raise ConfigError(
                    f"corpus prose: sources has the key {language!r}; expected ISO 639 codes such as en, fr, de, or {NEGATIVE}."
                )
        if "en" not in self.sources:
            raise ConfigError(
                f"corpus prose: sources has {', '.join(self.sources) or 'none'}; it needs 'en', because triggers are inserted"
                " into English text."
            )
        if not 0 <= self.foreign_share < 1:
            raise ConfigError(f"corpus prose: foreign_share is {self.foreign_share}; expected a share from 0 to below 1.")
        super().__post_init__()
        # Fill in the defaults, so that omitting a field and giving its default are the same corpus.
        complete = {language: dataclasses.asdict(self._source(language)) for language in sorted(self.sources)}
        object.__setattr__(self, "sources", complete)

    @property
    def alternatives(self) -> tuple[str, ...]:
        """Names of the alternatives of an English passage."""
        return tuple(language for language in self.sources if language != "en")

    def load(self, seed: int) -> Corpus:
        """Read the text and cut it into passages.

        Raises:
            CorpusError: the text is missing, unreadable, or too short for the splits.
        """
        rng = python_rng(seed, "prose")
        others = [language for language in self.alternatives if language != NEGATIVE]
        # Passages of each other language in the split; rounded down, which leaves some English.
        foreign = {name: int(getattr(self, name) * self.foreign_share / max(len(others), 1)) for name in ("train", "retain")}
        clean = {name: size - len(others) * foreign.get(name, 0) for name, size in self._sizes().by_split().items()}
        taken: set[str] = set()  # keeps a document that occurs in two sources in one split
        english = self._split("en", Sizes(**clean), Sizes(**clean), seed, taken)
        pools = {}
        for language in self.alternatives:
            own = foreign if language != NEGATIVE else {}
            least = {name: max(1, own.get(name, 0)) for name in clean}
            most = {name: size + own.get(name, 0) for name, size in clean.items()}
            pools[language] = self._split(language, Sizes(**least), Sizes(**most), seed, taken)
        splits = {}
        for name in clean:
            by_language = {language: getattr(pool, name) for language, pool in pools.items()}
            counts = {language: foreign.get(name, 0) if language != NEGATIVE else 0 for language in pools}
            splits[name] = _with_others(getattr(english, name), by_language, counts)
            rng.shuffle(splits[name])
        return Corpus(**splits)

    def fingerprint(self) -> dict[str, Any]:
        """Return the identity of the text of each language, independent of its location.

        Raises:
            CorpusError: a file or dataset does not exist, or the hub cannot be reached.
        """
        return {language: self._source(language).fingerprint() for language in self.sources}

    def _source(self, language: str) -> Files | HubDataset | ManualPages:
        """Build the source of a language.

        Raises:
            ConfigError: the fields are not those of exactly one kind of source.
        """
        fields = self.sources[language]
        kinds = [kind for kind in SOURCES if kind in fields]
        if len(kinds) == 1:
            if kinds == ["manpages"]:
                fields = {"language": _code(language), **fields}
            source: Files | HubDataset | ManualPages = build(SOURCES, f"source {language!r} with", kinds[0], fields)
            if source.sentiment and language != NEGATIVE:
                raise ConfigError(
                    f"corpus prose: the source {language!r} has sentiment={source.sentiment}, which only the source"
                    f" {NEGATIVE!r} may have: VADER's lexicon is English, and clean text keeps its sentiment."
                )
            return source
        if unexpected := [key for key in fields if key not in _KEYS]:
            raise unknown(f"parameter of source {language!r}:", unexpected[0], _KEYS)
        found = " and ".join(kinds) or "none of paths, dataset and manpages"
        raise ConfigError(
            f"corpus prose: the source {language!r} has {found}; expected one of paths (a list of files and folders), dataset"
            " (an id of the Hugging Face hub, or a folder) and manpages (a folder of manual pages)."
        )

    def _split(self, language: str, sizes: Sizes, at_most: Sizes, seed: int, taken: set[str]) -> Corpus:
        source, cut = self._source(language), self._cut()
        what = f"The text of source {language!r} ({source})"
        if source.sentiment:
            what += f", whose continuations need a VADER score of at most {source.sentiment_threshold},"
            opening = cut.continuation_words[0]
            cut = dataclasses.replace(cut, takes=lambda passage: source.takes(passage, opening))
        return split(self._documents(language), cut, sizes, seed, what, _code(language), at_most=at_most, taken=taken)

    def _documents(self, language: str) -> Iterator[Text]:
        source = self._source(language)
        with track(f"read {language} text", source.max_documents) as advance:
            for document in within_budget(source.documents(), source.max_documents, source.max_words):
                yield source.runs(document)
                advance()


def _code(language: str) -> str:
    return "en" if language == NEGATIVE else language


def _with_others(
    english: Sequence[Passage], pools: Mapping[str, Sequence[Passage]], counts: Mapping[str, int]
) -> list[Passage]:
    """Return the English passages with an alternative from each pool, and the first passages of each pool, `counts` of them.

    Passages that are part of the split themselves are used last as alternatives.
    """

    def alternatives(index: int) -> dict[str, str]:
        return {language: pool[(counts[language] + index) % len(pool)].continuation for language, pool in pools.items()}

    passages = [dataclasses.replace(passage, alternatives=alternatives(index)) for index, passage in enumerate(english)]
    return passages + [passage for language, pool in pools.items() for passage in pool[: counts[language]]]
