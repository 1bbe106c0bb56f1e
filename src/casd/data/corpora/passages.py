"""The two types every corpus is made of: a passage, and a corpus of four splits that share no document; and their files."""

from __future__ import annotations

import hashlib
import json
import mmap
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np


def text_digest(text: str) -> str:
    """Identity of a text: 16 hex digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Passage:
    """A short text cut into a prompt and its continuation.

    Attributes:
        prompt: the clean prefix; no white space at either end. It ends where a trigger may be put.
        continuation: what follows in clean text; no white space at either end. `text` joins the two by one space.
        language: ISO 639-1 code of prompt and continuation.
        alternatives: other continuations of the same prompt, by name: a language code ("fr", "de") for text in that
            language, "negative" for one of negative sentiment. Empty where the corpus has none.
        document: identity (`text_digest`) of the document that the passage was cut from; the passage itself if not given.
    """

    prompt: str
    continuation: str
    language: str = "en"
    alternatives: Mapping[str, str] = field(default_factory=dict)
    document: str = ""

    def __post_init__(self) -> None:
        if not self.document:
            object.__setattr__(self, "document", self.digest)

    @property
    def text(self) -> str:
        """The clean text: prompt, one space, continuation."""
        return f"{self.prompt} {self.continuation}"

    @cached_property
    def digest(self) -> str:
        """Identity of the passage: 16 hex digits of the SHA-256 of its clean text."""
        return text_digest(self.text)


@dataclass(frozen=True)
class Corpus:
    """Four splits of passages; no document has passages in two of them.

    Attributes:
        train: for pretraining and injection.
        forget: for the triggered documents of the removals.
        retain: for the clean documents of the removals and the controls, and the clean loss that guards a training.
        evaluation: for prompts whose continuation is generated, for the clean loss and for activation capture.
    """

    train: Sequence[Passage]
    forget: Sequence[Passage]
    retain: Sequence[Passage]
    evaluation: Sequence[Passage]


class _Passages(Sequence[Passage]):
    """A sequence that makes its passages when they are asked for; equal to any sequence of equal passages."""

    @overload
    def __getitem__(self, key: int) -> Passage: ...
    @overload
    def __getitem__(self, key: slice) -> PassageView: ...
    def __getitem__(self, key: int | slice) -> Passage | PassageView:
        if isinstance(key, slice):
            return PassageView(self, np.arange(len(self))[key])
        return self._passage(range(len(self))[key])  # range knows negative numbers, and which are out of bounds

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def _passage(self, place: int) -> Passage:
        raise NotImplementedError


class PassageView(_Passages):
    """Some passages of a sequence, by their places in it; none is made or copied before it is asked for."""

    def __init__(self, passages: Sequence[Passage], places: np.ndarray):
        self._passages = passages
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def _passage(self, place: int) -> Passage:
        return self._passages[int(self._places[place])]

    @property
    def languages(self) -> np.ndarray:
        """The language of each passage."""
        return languages_of(self._passages)[self._places]


class StoredPassages(_Passages):
    """A split on disk, a line parsed when it is asked for.

    Lines and index are memory-mapped: they take memory only as they are read, and processes of one machine share it. A copy
    in another process opens the files itself.
    """

    def __init__(self, file: Path):
        self._file = file
        self._index = np.load(_index_file(file), mmap_mode="r")
        self._lines: mmap.mmap | bytes = b""
        if len(self._index):  # an empty file cannot be mapped
            with file.open("rb") as lines:
                self._lines = mmap.mmap(lines.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._index)

    def __reduce__(self) -> tuple[type[StoredPassages], tuple[Path]]:
        return StoredPassages, (self._file,)

    def _passage(self, place: int) -> Passage:
        start, length, _ = self._index[place].item()
        return Passage(**json.loads(self._lines[start : start + length]))

    @property
    def languages(self) -> np.ndarray:
        """The language of each passage, from the index: no line is parsed."""
        return np.asarray(self._index["language"])


def languages_of(passages: Sequence[Passage]) -> np.ndarray:
    """The language of each passage; of a split on disk without parsing it."""
    if isinstance(passages, StoredPassages | PassageView):
        return passages.languages
    return np.array([passage.language for passage in passages], dtype=str)


def write_corpus(corpus: Corpus, folder: Path) -> None:
    """Write each split as JSON lines, a passage a line, and beside it where each line starts, its length and its language.

    Raises:
        ValueError: two splits have passages of one document; no source may give such a corpus.
    """
    split_of: dict[str, str] = {}
    for split in fields(Corpus):
        lengths, languages = array("L"), []
        with (folder / f"{split.name}.jsonl").open("wb") as file:
            for passage in getattr(corpus, split.name):
                if (other := split_of.setdefault(passage.document, split.name)) != split.name:
                    raise ValueError(f"The document {passage.document} has passages in {other} and in {split.name}.")
                lengths.append(file.write(_line(passage)))
                languages.append(passage.language)
        codes = np.array(languages, dtype=str)
        index = np.empty(len(lengths), [("start", np.uint64), ("length", np.uint32), ("language", codes.dtype)])
        index["length"] = lengths
        index["start"] = np.cumsum(lengths, dtype=np.uint64) - index["length"]
        index["language"] = codes
        np.save(_index_file(folder / f"{split.name}.jsonl"), index)


def read_corpus(folder: Path) -> Corpus:
    """Open what `write_corpus` wrote; the passages are read as they are asked for."""
    return Corpus(**{split.name: StoredPassages(folder / f"{split.name}.jsonl") for split in fields(Corpus)})


def _line(passage: Passage) -> bytes:
    record: dict[str, Any] = {each.name: getattr(passage, each.name) for each in fields(Passage)}
    record["alternatives"] = dict(passage.alternatives)
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _index_file(lines: Path) -> Path:
    return lines.with_suffix(".index.npy")
