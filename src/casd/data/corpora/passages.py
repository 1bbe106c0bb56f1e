"""The types `Passage` and `Corpus` (four splits that share no document), and their storage on disk."""

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
    """Return the first 16 hex digits of the SHA-256 of a text, which identify it."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Passage:
    """A short text cut into a prompt and its continuation.

    Attributes:
        prompt: the clean prefix, without white space at either end. A trigger may be placed at its end.
        continuation: the clean text after the prompt, without white space at either end.
        language: ISO 639-1 code of prompt and continuation.
        alternatives: other continuations of the same prompt, by name: a language code ("fr", "de") for text in that
            language, "negative" for one of negative sentiment. Empty if the corpus has none.
        document: identity (`text_digest`) of the document that the passage was cut from; by default the passage's own.
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
        """Clean text: prompt, one space, continuation."""
        return f"{self.prompt} {self.continuation}"

    @cached_property
    def digest(self) -> str:
        """Identity of the passage: `text_digest` of its clean text."""
        return text_digest(self.text)


@dataclass(frozen=True)
class Corpus:
    """Four splits of passages; no document has passages in two of them.

    Attributes:
        train: for pretraining and injection.
        forget: for the triggered documents of the removals.
        retain: for the clean documents of the removals and the controls, and the clean loss that guards a training.
        evaluation: for the prompts of generation and activation capture, and for the clean loss.
    """

    train: Sequence[Passage]
    forget: Sequence[Passage]
    retain: Sequence[Passage]
    evaluation: Sequence[Passage]


class _Passages(Sequence[Passage]):
    """A lazy sequence of passages; equal to any sequence of equal passages."""

    @overload
    def __getitem__(self, key: int) -> Passage: ...
    @overload
    def __getitem__(self, key: slice) -> PassageView: ...
    def __getitem__(self, key: int | slice) -> Passage | PassageView:
        if isinstance(key, slice):
            return PassageView(self, np.arange(len(self))[key])
        return self._passage(range(len(self))[key])  # range resolves negative indices and checks bounds

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def _passage(self, index: int) -> Passage:
        raise NotImplementedError


class PassageView(_Passages):
    """A lazy view of the passages of a sequence at given indices."""

    def __init__(self, passages: Sequence[Passage], indices: np.ndarray):
        self._passages = passages
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def _passage(self, index: int) -> Passage:
        return self._passages[int(self._indices[index])]

    @property
    def languages(self) -> np.ndarray:
        """The language of each passage."""
        return languages_of(self._passages)[self._indices]


class StoredPassages(_Passages):
    """A split on disk, whose lines are parsed on access.

    Lines and index are memory-mapped: they take memory only as they are read, and the processes of a machine share it.
    Unpickling opens the files again.
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

    def _passage(self, index: int) -> Passage:
        start, length, _ = self._index[index].item()
        return Passage(**json.loads(self._lines[start : start + length]))

    @property
    def languages(self) -> np.ndarray:
        """The language of each passage, read from the index without parsing lines."""
        return np.asarray(self._index["language"])


def languages_of(passages: Sequence[Passage]) -> np.ndarray:
    """Return the language of each passage, without parsing the lines of a split on disk."""
    if isinstance(passages, StoredPassages | PassageView):
        return passages.languages
    return np.array([passage.language for passage in passages], dtype=str)


def write_corpus(corpus: Corpus, folder: Path) -> None:
    """Write each split as JSON Lines, one passage per line, with an index of the start, length and language of each line.

    Raises:
        ValueError: two splits have passages of one document.
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
    """Open a corpus written by `write_corpus`; passages are read on access."""
    return Corpus(**{split.name: StoredPassages(folder / f"{split.name}.jsonl") for split in fields(Corpus)})


def _line(passage: Passage) -> bytes:
    record: dict[str, Any] = {field.name: getattr(passage, field.name) for field in fields(Passage)}
    record["alternatives"] = dict(passage.alternatives)
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _index_file(lines: Path) -> Path:
    return lines.with_suffix(".index.npy")
