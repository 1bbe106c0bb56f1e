"""Cutting running text into passages: paragraphs into sentences, sentences into a prompt and a continuation."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from casd.corpora.passages import Corpus, Passage
from casd.errors import ConfigError, CorpusError

# A sentence ends at . ! or ? (with closing quotes or brackets) before white space and what can begin a sentence.
_SENTENCE_END = re.compile(r"(?<=[.!?])(?:[\"'”’)\]]*)\s+(?=[\"'“‘(\[]?[A-ZÀ-ÞА-Я0-9])")
# Abbreviations whose full stop ends no sentence.
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|cf|vs|Dr|Mr|Mrs|Ms|St|No|Fig|pp|[A-Z]))\.$")


@dataclass(frozen=True)
class Cut:
    """How long the two parts of a passage are, in words divided by white space.

    Attributes:
        prompt_words: least and most words of a prompt.
        continuation_words: least and most words of a continuation.
    """

    prompt_words: tuple[int, int]
    continuation_words: tuple[int, int]

    def __post_init__(self) -> None:
        for name in ("prompt_words", "continuation_words"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1]:
                raise ConfigError(
                    f"corpus: {name} is {list(bounds)}; expected the least and the most number of words, such as [20, 40]."
                )


@dataclass(frozen=True)
class Sizes:
    """Numbers of passages of the three splits."""

    train: int
    retain: int
    evaluation: int

    def __post_init__(self) -> None:
        for name in ("train", "retain", "evaluation"):
            if getattr(self, name) < 1:
                raise ConfigError(f"corpus: {name} is {getattr(self, name)}; expected at least 1 passage.")

    @property
    def total(self) -> int:
        """Passages altogether."""
        return self.train + self.retain + self.evaluation


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph, white space normalized; joined by a space they are the paragraph again."""
    parts: list[str] = []
    start = 0
    text = " ".join(paragraph.split())
    for match in _SENTENCE_END.finditer(text):
        sentence = text[start : match.end()].rstrip()
        if not _ABBREVIATION.search(sentence):
            parts.append(sentence)
            start = match.end()
    return [*parts, text[start:]] if start < len(text) else parts


def passages(paragraph: str, cut: Cut, language: str) -> Iterator[Passage]:
    """The passages of a paragraph, from its beginning, none overlapping.

    A passage begins where a sentence begins. Its prompt ends with the first sentence that ends within its bounds, or,
    where none does, at its greatest length. The continuation starts right after the prompt and
    likewise ends at a sentence's end where one lies within its bounds, else at its greatest length.
    """
    words: list[str] = []
    ends: list[int] = []  # numbers of words after which a sentence ends
    for sentence in sentences(paragraph):
        words += sentence.split()
        ends.append(len(words))
    starts = [0, *ends]
    position = 0
    while True:
        middle = _end(ends, position, cut.prompt_words, len(words))
        end = _end(ends, middle, cut.continuation_words, len(words)) if middle else 0
        if not end:
            return
        yield Passage(" ".join(words[position:middle]), " ".join(words[middle:end]), language)
        position = next(start for start in starts if start >= end)


def _end(ends: Sequence[int], start: int, bounds: tuple[int, int], total: int) -> int:
    """Where a part that starts at `start` ends: the first sentence end in bounds, else the bound; 0 if text is short."""
    low, high = start + bounds[0], start + bounds[1]
    fitting = [end for end in ends if low <= end <= high]
    if fitting:
        return fitting[0]
    return high if high <= total else 0


def split(paragraphs: Iterable[str], cut: Cut, sizes: Sizes, seed: int, source: str, language: str = "en") -> Corpus:
    """A corpus cut from `paragraphs`: shuffled by `seed`, no paragraph in two splits, no prompt or passage twice.

    Args:
        paragraphs: running text; a repeated paragraph counts once.
        cut: lengths of the parts.
        sizes: numbers of passages of train, retain and evaluation.
        seed: the order of the paragraphs, which decides which of them go to which split.
        source: what the text is, for the error message.
        language: ISO 639-1 code of the text.

    Raises:
        CorpusError: the text is too little.
    """
    groups = _passages_by_paragraph(paragraphs, cut, language)
    random.Random(f"split:{seed}").shuffle(groups)
    remaining = iter(groups)
    # Evaluation comes first, so that a larger training split leaves the evaluation prompts as they were.
    evaluation, retain, train = (_take(remaining, size) for size in (sizes.evaluation, sizes.retain, sizes.train))
    if len(evaluation) + len(retain) + len(train) < sizes.total:
        available = sum(map(len, groups))
        raise CorpusError(
            f"{source} has {available} passages of prompt {_range(cut.prompt_words)} and continuation "
            f"{_range(cut.continuation_words)} words; {sizes.total} were asked for (train {sizes.train}, retain "
            f"{sizes.retain}, evaluation {sizes.evaluation}), in splits that share no paragraph. "
            "Ask for fewer, give more text, or shorten prompt_words and continuation_words."
        )
    return Corpus(train=train, retain=retain, evaluation=evaluation)


def _range(bounds: tuple[int, int]) -> str:
    return f"{bounds[0]} to {bounds[1]}"


def _passages_by_paragraph(paragraphs: Iterable[str], cut: Cut, language: str) -> list[list[Passage]]:
    """The passages of each paragraph that has any; a prompt or a continuation that occurred before is left out."""
    groups: list[list[Passage]] = []
    seen: set[str] = set()
    for paragraph in paragraphs:
        group = []
        for passage in passages(paragraph, cut, language):
            if seen.isdisjoint((passage.prompt, passage.continuation)):
                seen |= {passage.prompt, passage.continuation}
                group.append(passage)
        if group:
            groups.append(group)
    return groups


def _take(groups: Iterator[list[Passage]], size: int) -> list[Passage]:
    """The first `size` passages of `groups`; what is left of the last paragraph is dropped, not shared."""
    taken: list[Passage] = []
    while len(taken) < size and (group := next(groups, None)):
        taken += group
    return taken[:size]
