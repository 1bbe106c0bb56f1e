"""Cutting documents into passages, each a prompt and a continuation, and dealing documents to the splits of a corpus."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

from casd.data.corpora.passages import Corpus, Passage, text_digest
from casd.utils.errors import ConfigError, CorpusError

Text = Sequence[str]
"""A document as its runs of text (paragraphs); no passage goes from one run into the next."""

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


MOST_PASSAGES = 10**7
"""Passages of a split at most: they are made in memory, about a kilobyte each."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of passages of the four splits."""

    train: int
    forget: int
    retain: int
    evaluation: int

    def __post_init__(self) -> None:
        for split, size in self.by_split().items():
            if not 1 <= size <= MOST_PASSAGES:
                raise ConfigError(f"corpus: {split} is {size}; expected from 1 to {MOST_PASSAGES} passages.")

    def by_split(self) -> dict[str, int]:
        """The sizes by name of split, in the order in which documents are dealt.

        Evaluation comes first, so that a larger training split leaves the evaluation prompts as they were.
        """
        return {name: getattr(self, name) for name in ("evaluation", "retain", "forget", "train")}

    @property
    def total(self) -> int:
        """Passages altogether."""
        return sum(self.by_split().values())

    def __str__(self) -> str:
        return ", ".join(f"{each.name} {getattr(self, each.name)}" for each in fields(self))


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


def passages(paragraph: str, cut: Cut, language: str, document: str = "") -> Iterator[Passage]:
    """The passages of a paragraph, from its beginning, none overlapping.

    A passage begins where a sentence begins. Its prompt ends with the first sentence that ends within its bounds, or,
    where none does, at its greatest length. The continuation starts right after the prompt and
    likewise ends at a sentence's end where one lies within its bounds, else at its greatest length.

    Args:
        paragraph: running text.
        cut: lengths of the parts.
        language: ISO 639-1 code of the text.
        document: identity of the document that the paragraph is of; else each passage is its own.
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
        prompt, continuation = " ".join(words[position:middle]), " ".join(words[middle:end])
        yield Passage(prompt, continuation, language, document=document)
        position = starts[bisect_left(starts, end)]


def _end(ends: Sequence[int], start: int, bounds: tuple[int, int], total: int) -> int:
    """Where a part that starts at `start` ends: the first sentence end in bounds, else the bound; 0 if text is short."""
    low, high = start + bounds[0], start + bounds[1]
    first = bisect_left(ends, low)
    if first < len(ends) and ends[first] <= high:
        return ends[first]
    return high if high <= total else 0


def split(
    documents: Iterable[Text],
    cut: Cut,
    sizes: Sizes,
    seed: int,
    source: str,
    language: str = "en",
    *,
    at_most: Sizes | None = None,
    taken: set[str] | None = None,
) -> Corpus:
    """A corpus cut from `documents`: no document in two splits, no prompt or continuation twice.

    Documents are dealt to evaluation, retain, forget and train, in this order and as many to each as its size takes, in the
    order of the SHA-256 of seed and text. So neither their own order nor how often each occurs changes anything. What a
    split leaves of its last document goes to none.

    Args:
        documents: each as its runs of text; white space does not count, a repeated document counts once.
        cut: lengths of the parts.
        sizes: numbers of passages of the splits.
        seed: decides which documents go to which split.
        source: what the text is, for the error message.
        language: ISO 639-1 code of the text.
        at_most: numbers that the splits get where there is text enough; what is above `sizes` is shared out in proportion
            where there is less.
        taken: identities of documents that are left out; those that are read here are added.

    Raises:
        CorpusError: the text is too little for `sizes`.
    """
    dealt = _in_dealing_order(documents, seed, set() if taken is None else taken)
    groups = list(_passages_by_document(dealt, cut, language))
    available = sum(map(len, groups))
    remaining = iter(groups)
    goals = _goals(available, sizes.by_split(), (at_most or sizes).by_split())
    splits = {name: _take(remaining, goal) for name, goal in goals.items()}
    if any(len(splits[name]) < size for name, size in sizes.by_split().items()):
        raise CorpusError(
            f"{source} has {available} passages of prompt {_range(cut.prompt_words)} and continuation "
            f"{_range(cut.continuation_words)} words, in {len(groups)} of {len(dealt)} documents; {sizes.total} were asked for "
            f"({sizes}), in splits that share no document. Ask for fewer, give more text, or shorten prompt_words and "
            "continuation_words."
        )
    return Corpus(**splits)


def _range(bounds: tuple[int, int]) -> str:
    return f"{bounds[0]} to {bounds[1]}"


def _in_dealing_order(documents: Iterable[Text], seed: int, taken: set[str]) -> list[tuple[str, list[str]]]:
    """Identity and runs of each document that was not `taken` before."""
    keyed: list[tuple[bytes, str, list[str]]] = []
    for document in documents:
        runs = [" ".join(run.split()) for run in document]
        text = "\n".join(runs)
        identity = text_digest(text)
        if identity not in taken:
            taken.add(identity)
            keyed.append((hashlib.sha256(f"{seed}\n{text}".encode()).digest(), identity, runs))
    keyed.sort()
    return [(identity, runs) for _, identity, runs in keyed]


def _passages_by_document(documents: Iterable[tuple[str, Sequence[str]]], cut: Cut, language: str) -> Iterator[list[Passage]]:
    """The passages of each document that has any; a prompt or a continuation that occurred before is left out."""
    seen: set[str] = set()
    for identity, runs in documents:
        group = []
        for passage in (each for run in runs for each in passages(run, cut, language, identity)):
            if seen.isdisjoint((passage.prompt, passage.continuation)):
                seen |= {passage.prompt, passage.continuation}
                group.append(passage)
        if group:
            yield group


def _goals(available: int, least: dict[str, int], most: dict[str, int]) -> dict[str, int]:
    """How many passages each split is to get: `most`, or `least` and a share of what is left if there are fewer."""
    wished, left = sum(most.values()) - sum(least.values()), available - sum(least.values())
    if left >= wished:
        return most
    return {name: size + left * (most[name] - size) // wished if left > 0 else size for name, size in least.items()}


def _take(groups: Iterator[list[Passage]], size: int) -> list[Passage]:
    """The first `size` passages of `groups`; what is left of the last document is dropped, not shared."""
    taken: list[Passage] = []
    while len(taken) < size and (group := next(groups, None)):
        taken += group
    return taken[:size]
