"""Cut documents into passages, each a prompt and a continuation, and distribute the documents over the splits of a corpus."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from casd.data.corpora.passages import Corpus, Passage, text_digest
from casd.utils.errors import ConfigError, CorpusError

Text = Sequence[str]
"""A document as a list of runs of text (paragraphs); no passage spans two runs."""

# A sentence ends at . ! or ? (with closing quotes or brackets) before white space and a character that can begin a sentence.
_SENTENCE_END = re.compile(r"(?<=[.!?])(?:[\"'”’)\]]*)\s+(?=[\"'“‘(\[]?[A-ZÀ-ÞА-Я0-9])")
# Abbreviations whose full stop does not end a sentence.
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|cf|vs|Dr|Mr|Mrs|Ms|St|No|Fig|pp|[A-Z]))\.$")


@dataclass(frozen=True)
class Cut:
    """Lengths of the two parts of a passage, in words separated by white space.

    Attributes:
        prompt_words: minimum and maximum length of a prompt.
        continuation_words: minimum and maximum length of a continuation.
        takes: whether a passage of this length is used; None for all.
    """

    prompt_words: tuple[int, int]
    continuation_words: tuple[int, int]
    takes: Callable[[Passage], bool] | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_words", "continuation_words"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1]:
                raise ConfigError(
                    f"corpus: {name} is {list(bounds)}; expected the minimum and maximum number of words, such as [20, 40]."
                )


MOST_PASSAGES = 10**7
"""Maximum size of a split: passages are made in memory, about a kilobyte each."""


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
        """Return the sizes by name of split, in the order in which documents are assigned.

        Evaluation comes first, so that enlarging the training split does not change the evaluation prompts.
        """
        return {name: getattr(self, name) for name in ("evaluation", "retain", "forget", "train")}

    @property
    def total(self) -> int:
        """Total number of passages."""
        return sum(self.by_split().values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {size}" for name, size in dataclasses.asdict(self).items())


@dataclass(frozen=True, kw_only=True)
class CutCorpus:
    """The fields of a corpus that is cut from running text.

    Attributes:
        train: number of passages for training.
        forget: number of passages for the triggered documents of the removals.
        retain: number of passages for the clean documents of the removals.
        evaluation: number of passages for evaluation.
        prompt_words: minimum and maximum number of words of a prompt.
        continuation_words: minimum and maximum number of words of a continuation.
    """

    train: int = 6000
    forget: int = 1000
    retain: int = 1000
    evaluation: int = 300
    prompt_words: tuple[int, int] = (20, 40)
    continuation_words: tuple[int, int] = (25, 50)

    def __post_init__(self) -> None:
        self._sizes()
        self._cut()

    def _sizes(self) -> Sizes:
        return Sizes(self.train, self.forget, self.retain, self.evaluation)

    def _cut(self) -> Cut:
        return Cut(self.prompt_words, self.continuation_words)


def sentences(paragraph: str) -> list[str]:
    """Split a paragraph into sentences, with white space normalized; joining them by spaces restores the paragraph."""
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
    """Cut a paragraph into consecutive passages that do not overlap.

    A passage begins at the start of a sentence. Its prompt ends at the first end of a sentence within the bounds on its
    length, or at the maximum length if there is none. The continuation starts right after the prompt and ends by the same
    rule.

    Args:
        paragraph: running text.
        cut: lengths of the parts.
        language: ISO 639-1 code of the text.
        document: identity of the paragraph's document; if empty, each passage is a document of its own.
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
        passage = Passage(prompt, continuation, language, document=document)
        if not cut.takes or cut.takes(passage):
            yield passage
        position = starts[bisect_left(starts, end)]


def _end(ends: Sequence[int], start: int, bounds: tuple[int, int], total: int) -> int:
    """Return the end of a part: the first sentence end in bounds, else the upper bound; 0 if the text is too short."""
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
    """Cut a corpus from documents: no document is in two splits, and no prompt or continuation occurs twice.

    Documents are sorted by the SHA-256 of seed and text and assigned to evaluation, retain, forget and train, in this order,
    until each has its size. The order and the repetition of documents therefore change nothing. Passages left over from the
    last document of a split are dropped.

    Args:
        documents: documents as runs of text; white space is normalized, and a repeated document counts once.
        cut: lengths of the parts.
        sizes: minimum numbers of passages of the splits.
        seed: decides which documents go to which split.
        source: name of the text, for the error message.
        language: ISO 639-1 code of the text.
        at_most: numbers of passages of the splits if the text suffices (`sizes` if None); if it does not, what exceeds `sizes`
            is shared in proportion.
        taken: identities of documents to leave out; updated with those of `documents`.

    Raises:
        CorpusError: the text is too short for `sizes`.
    """
    ordered = _shuffled(documents, seed, set() if taken is None else taken)
    groups = list(_passages_by_document(ordered, cut, language))
    if not (corpus := distribute(groups, sizes, at_most)):
        raise CorpusError(
            f"{source} has {sum(map(len, groups))} passages of prompt {cut.prompt_words[0]} to {cut.prompt_words[1]} and "
            "continuation "
            f"{cut.continuation_words[0]} to {cut.continuation_words[1]} words, in {len(groups)} of {len(ordered)} documents; "
            f"{sizes.total} were requested ({sizes}), in splits that share no document. Request fewer, add text, or lower "
            "prompt_words and continuation_words."
        )
    return corpus


def distribute(groups: Sequence[list[Passage]], sizes: Sizes, at_most: Sizes | None = None) -> Corpus | None:
    """Distribute documents, each a list of passages, over the splits in the order of `Sizes.by_split`; None if too few.

    For the arguments, see `split`.
    """
    remaining = iter(groups)
    goals = _goals(sum(map(len, groups)), sizes.by_split(), (at_most or sizes).by_split())
    splits = {name: _take(remaining, goal) for name, goal in goals.items()}
    enough = all(len(splits[name]) >= size for name, size in sizes.by_split().items())
    return Corpus(**splits) if enough else None


def _shuffled(documents: Iterable[Text], seed: int, taken: set[str]) -> list[tuple[str, list[str]]]:
    """Return identity and runs of each new document, sorted by a hash of seed and text; add the identities to `taken`."""
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
    """Yield the passages of each document that has any, without those whose prompt or continuation occurred before."""
    seen: set[str] = set()
    for identity, runs in documents:
        group = []
        for passage in (passage for run in runs for passage in passages(run, cut, language, identity)):
            if seen.isdisjoint((passage.prompt, passage.continuation)):
                seen |= {passage.prompt, passage.continuation}
                group.append(passage)
        if group:
            yield group


def _goals(available: int, least: dict[str, int], most: dict[str, int]) -> dict[str, int]:
    """Return the number of passages of each split: `most`, or `least` and a share of the rest if fewer are available."""
    wanted, extra = sum(most.values()) - sum(least.values()), available - sum(least.values())
    if extra >= wanted:
        return most
    return {name: size + extra * (most[name] - size) // wanted if extra > 0 else size for name, size in least.items()}


def _take(groups: Iterator[list[Passage]], size: int) -> list[Passage]:
    """Take the first `size` passages of `groups`; the rest of the last document is dropped."""
    taken: list[Passage] = []
    while len(taken) < size and (group := next(groups, None)):
        taken += group
    return taken[:size]
