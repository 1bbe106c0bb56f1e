"""The user's own text as a corpus: plain text, JSON Lines and Parquet files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casd.corpora.cutting import Cut, Sizes, split
from casd.corpora.passages import Corpus
from casd.errors import ConfigError, CorpusError

_SUFFIXES = (".txt", ".jsonl", ".parquet")


@dataclass(frozen=True)
class TextFiles:
    """Passages cut from files. They have no alternatives.

    A .txt file holds documents divided by blank lines; a .jsonl file has an object a line; a .parquet file has a row a
    document. All are UTF-8.

    Attributes:
        paths: files, or folders in which every .txt, .jsonl and .parquet file is read, at any depth.
        text_field: the field (.jsonl) or column (.parquet) that holds the text.
        language: ISO 639-1 code of the text.
        train: number of passages for training.
        retain: number of passages for unlearning.
        evaluation: number of passages for evaluation.
        prompt_words: least and most words of a prompt.
        continuation_words: least and most words of a continuation.
    """

    paths: tuple[str, ...]
    text_field: str = "text"
    language: str = "en"
    train: int = 6000
    retain: int = 1500
    evaluation: int = 300
    prompt_words: tuple[int, int] = (20, 40)
    continuation_words: tuple[int, int] = (25, 50)

    def __post_init__(self) -> None:
        if not self.paths:
            raise ConfigError("corpus text_files: paths is empty; expected at least one file or folder.")
        Sizes(self.train, self.retain, self.evaluation)
        self._cut()

    def load(self, seed: int) -> Corpus:
        """Read and cut the files.

        Raises:
            CorpusError: a file is missing, empty or unreadable, or the text is too little for the splits.
        """
        files = self._files()
        documents = [document for file in files for document in read_documents(file, self.text_field)]
        sizes = Sizes(self.train, self.retain, self.evaluation)
        source = f"The text in {', '.join(self.paths)}"
        return split(documents, self._cut(), sizes, seed, source, self.language)

    def fingerprint(self) -> dict[str, str | int]:
        """The SHA-256 of each file, by its place in the order of reading: moving the files changes nothing.

        Raises:
            CorpusError: a file is missing.
        """
        return {f"sha256_{index}": _sha256(file) for index, file in enumerate(self._files())}

    def _cut(self) -> Cut:
        return Cut(self.prompt_words, self.continuation_words)

    def _files(self) -> list[Path]:
        """The files that `paths` stands for, each once, those of a folder in order of their names."""
        files: list[Path] = []
        for name in self.paths:
            path = Path(name).expanduser()
            if path.is_dir():
                found = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
                if not found:
                    raise CorpusError(f"The folder {path} has no {', '.join(_SUFFIXES)} file.")
                files += found
            elif not path.is_file():
                raise CorpusError(
                    f"There is no file or folder {path}; relative paths start at {Path.cwd()}. Check corpus paths."
                )
            elif path.suffix not in _SUFFIXES:
                raise CorpusError(f"{path} has the suffix {path.suffix!r}; expected one of {', '.join(_SUFFIXES)}.")
            else:
                files.append(path)
        return list(dict.fromkeys(files))


def read_documents(file: Path, text_field: str) -> list[str]:
    """The documents of one file, by its suffix.

    Raises:
        CorpusError: it is empty or cannot be read as what its suffix says; the message has the line where there is one.
    """
    if file.stat().st_size == 0:
        raise CorpusError(f"{file} is empty. Give a file with text, or leave it out of corpus paths.")
    if file.suffix == ".parquet":
        documents: Iterable[str] = _parquet_documents(file, text_field)
    elif file.suffix == ".jsonl":
        documents = _jsonl_documents(file, text_field)
    else:
        documents = _paragraphs(line for _, line in _utf8_lines(file))
    usable = [document for document in documents if document.strip()]
    if not usable:
        raise CorpusError(f"{file} has no usable text: every document in it is blank.")
    return usable


def _utf8_lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines with their numbers, from 1, without a byte order mark."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise CorpusError(
                    f"{file}, line {number}: not valid UTF-8 at byte {error.start} of the line. Convert the file to UTF-8."
                ) from error


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Documents divided by blank lines."""
    document: list[str] = []
    for line in lines:
        if line.strip():
            document.append(line.strip())
        elif document:
            yield " ".join(document)
            document = []
    if document:
        yield " ".join(document)


def _jsonl_documents(file: Path, text_field: str) -> Iterator[str]:
    for number, line in _utf8_lines(file):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{where}: not valid JSON ({error.msg}); expected one object a line.") from error
        if not isinstance(record, dict):
            raise CorpusError(f"{where}: expected a JSON object, found {type(record).__name__}.")
        if text_field not in record:
            raise _no_field(where, text_field, list(record))
        yield _text(record[text_field], where, text_field)


def _parquet_documents(file: Path, text_field: str) -> Iterator[str]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            if text_field not in parquet.schema_arrow.names:
                raise _no_field(str(file), text_field, parquet.schema_arrow.names)
            row = 0
            for batch in parquet.iter_batches(columns=[text_field]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield _text(value, f"{file}, row {row}", text_field)
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"{file}: not a valid Parquet file ({str(error).splitlines()[0]}).") from error


def _text(value: Any, where: str, text_field: str) -> str:
    """`value` if it is text; a missing value counts as blank."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError(f"{where}: the field {text_field!r} is {type(value).__name__}; expected text.")
    return value


def _no_field(where: str, text_field: str, has: Sequence[str]) -> CorpusError:
    return CorpusError(
        f"{where}: no field {text_field!r}; the fields are: {', '.join(map(str, has)) or 'none'}. "
        "Set corpus text_field to one of them."
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
