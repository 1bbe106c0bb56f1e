"""Read documents from files: plain text, JSON Lines and Parquet."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from casd.data.corpora.selection import Rows, Selection
from casd.utils.errors import ConfigError, CorpusError

_SUFFIXES = (".txt", ".jsonl", ".parquet")
Document = TypeVar("Document")


@dataclass(frozen=True)
class Files(Selection):
    """Text in files.

    A document is a block of lines between blank lines in a .txt file, a line in a .jsonl file, and a row in a .parquet file.
    Text is UTF-8.

    Attributes:
        paths: files, or folders in which every .txt, .jsonl and .parquet file is read at any depth. Links to folders are
            followed; hidden files and folders are skipped.
        text_field: the field (.jsonl) or column (.parquet) that holds the text.
    """

    paths: tuple[str, ...]
    text_field: str = "text"

    def __post_init__(self) -> None:
        if not self.paths:
            raise ConfigError("corpus prose: paths is empty; expected at least one file or folder.")
        super().__post_init__()

    def __str__(self) -> str:
        return ", ".join(self.paths)

    def documents(self) -> Iterator[str]:
        """Iterate over the documents, file by file.

        Raises:
            CorpusError: a file is missing, empty or unreadable.
        """
        return self._read(self._files())

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Iterate over the chosen rows with their fields, file by file, each after its place for messages.

        Raises:
            CorpusError: as `documents`; or a file of plain text.
        """
        rows = Rows(self.where, str(self))
        for file in self._files():
            yield from read_records(file, rows)
        rows.check()

    def fingerprint(self) -> dict[str, Any]:
        """Return the SHA-256 of each file in the order of reading, and the fields that select text; paths do not matter.

        Raises:
            CorpusError: a file is missing.
        """
        return {
            "sha256": [file_sha256(file) for file in self._files()],
            "text_field": self.text_field,
            "max_documents": self.max_documents,
            "max_words": self.max_words,
            **self.selection(),
        }

    def _read(self, files: Sequence[Path]) -> Iterator[str]:
        rows = Rows(self.where, str(self))
        for file in files:
            yield from read_documents(file, self.text_field, rows)
        rows.check()

    def _files(self) -> list[Path]:
        """Resolve `paths` to files, each once, the files of a folder sorted by name."""
        files: list[Path] = []
        for name in self.paths:
            path = Path(name).expanduser()
            if path.is_dir():
                below = sorted(_files_below(path))
                if not below:
                    raise CorpusError(f"The folder {path} has no {', '.join(_SUFFIXES)} file.")
                files += below
            elif not path.is_file():
                raise CorpusError(
                    f"There is no file or folder {path}; relative paths start at {Path.cwd()}. Check corpus paths."
                )
            elif path.suffix not in _SUFFIXES:
                raise CorpusError(f"{path} has the suffix {path.suffix!r}; expected one of {', '.join(_SUFFIXES)}.")
            else:
                files.append(path)
        if unreadable := next((file for file in files if not os.access(file, os.R_OK)), None):
            raise CorpusError(
                f"{unreadable} cannot be read: permission denied. Change its permissions, or remove it from corpus paths."
            )
        return list(dict.fromkeys(files))


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the readable files in a folder. Each folder is visited once, even if links lead to it repeatedly or in a loop.

    Raises:
        CorpusError: a folder cannot be read, or a link is broken.
    """

    def refuse(error: OSError) -> None:
        raise CorpusError(f"{error.filename} cannot be read ({error.strerror}). Change its permissions.") from error

    seen: set[str] = set()
    roots = [folder]
    for root in roots:  # extended below: links to folders are followed after the folder itself
        for current, folders, names in os.walk(root, onerror=refuse):
            if (real := os.path.realpath(current)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            roots += [path for path in (Path(current, name) for name in folders) if path.is_symlink()]
            for file in (Path(current, name) for name in names if not name.startswith(".")):
                if file.suffix in _SUFFIXES and file.is_file():
                    yield file
                elif file.suffix in _SUFFIXES and not file.exists():
                    raise CorpusError(f"{file} is a link to a file that does not exist. Fix or remove it.")


def within_budget(
    documents: Iterable[Document], max_documents: int | None, max_words: int | None, text: Callable[[Document], str] = str
) -> Iterator[Document]:
    """Yield documents, of which `text` returns the text, until a limit is reached, without reading beyond the last of them."""
    words = 0
    for number, document in enumerate(documents, start=1):
        yield document
        words += len(text(document).split())
        if number == max_documents or (max_words is not None and words >= max_words):
            return


def read_documents(file: Path, text_field: str, rows: Rows) -> Iterator[str]:
    """Yield the documents of a file that `rows` takes, read according to its suffix, without blank ones.

    Raises:
        CorpusError: the file is empty or not of the format of its suffix; the message gives the line, if there is one.
    """
    _check_not_empty(file)
    if file.suffix == ".parquet":
        columns = list(dict.fromkeys([text_field, *rows.columns]))
        documents: Iterable[str | None] = _table_documents(_parquet_records(file, columns), text_field, rows)
    elif file.suffix == ".jsonl":
        documents = _table_documents(_jsonl_records(file), text_field, rows)
    else:
        rows.check_columns([], f"{file}, a text file")
        documents = _paragraphs(_plain_lines(file))
    usable = False
    for document in documents:
        usable = usable or document is None  # left out by `rows`
        if document and document.strip():
            usable = True
            yield document
    if not usable:
        raise CorpusError(f"{file} has no usable text: every document in it is blank.")


def _utf8_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line numbers, from 1, and lines, without a byte order mark."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise CorpusError(
                    f"{file}, line {number}: not valid UTF-8 at byte {error.start} of the line. Convert the file to UTF-8."
                ) from error


def _plain_lines(file: Path) -> Iterator[str]:
    """Yield the lines of a text file; refuse rows of JSON, which would be taken for text."""
    begun = False
    for _, line in _utf8_lines(file):
        if not begun and line.startswith("{"):
            try:
                json.loads(line)
            except (ValueError, RecursionError):
                pass  # text that begins with a brace
            else:
                raise CorpusError(f"{file} has the suffix of plain text, but rows of JSON: call it {file.stem}.jsonl.")
        begun = begun or bool(line.strip())
        yield line


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Yield the documents that blank lines separate."""
    document: list[str] = []
    for line in lines:
        if line.strip():
            document.append(line.strip())
        elif document:
            yield " ".join(document)
            document = []
    if document:
        yield " ".join(document)


def _table_documents(records: Iterable[tuple[str, dict[str, Any]]], text_field: str, rows: Rows) -> Iterator[str | None]:
    """Yield the text of each row; None for one that `rows` leaves out."""
    for where, record in records:
        if text_field not in record:
            raise no_field(where, text_field, list(record))
        yield as_text(record[text_field], where, text_field) if rows.take(record, where) else None


def read_records(file: Path, rows: Rows) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield those objects of a .jsonl file, or rows of a .parquet file, that `rows` takes, each after its place for messages.

    Raises:
        CorpusError: a file of another format, or one that is empty or damaged.
    """
    if file.suffix == ".txt":
        raise CorpusError(f"{file} is plain text; expected rows with fields, in a .jsonl or .parquet file.")
    _check_not_empty(file)
    records = _jsonl_records(file) if file.suffix == ".jsonl" else _parquet_records(file)
    return ((where, record) for where, record in records if rows.take(record, where))


def _check_not_empty(file: Path) -> None:
    if file.stat().st_size == 0:
        raise CorpusError(f"{file} is empty. Add text to it, or remove it from corpus paths.")


def _jsonl_records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in _utf8_lines(file):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", str(error))
            raise CorpusError(f"{where}: not valid JSON ({reason}); expected one object per line.") from error
        if not isinstance(record, dict):
            raise CorpusError(f"{where}: expected a JSON object, found {type(record).__name__}.")
        yield where, record


def _parquet_records(file: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a .parquet file, with the given columns; with all if none is given, or if one of them is missing."""
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            chosen = list(columns) if columns and set(columns) <= set(parquet.schema_arrow.names) else None
            row = 0
            for batch in parquet.iter_batches(columns=chosen):
                for record in batch.to_pylist():
                    row += 1
                    yield f"{file}, row {row}", record
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"{file}: not a valid Parquet file ({str(error).partition(chr(10))[0]}).") from error


def as_text(value: Any, where: str, text_field: str) -> str:
    """Return `value` as text: a missing value becomes "", and half a surrogate pair a question mark.

    Raises:
        CorpusError: the value is not text.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError(f"{where}: the field {text_field!r} is {type(value).__name__}; expected text.")
    return value.encode(errors="replace").decode()


def no_field(where: str, text_field: str, has: Sequence[str]) -> CorpusError:
    """Return the error for a record without the field `text_field`."""
    return CorpusError(
        f"{where}: no field {text_field!r}; the fields are: {', '.join(map(str, has)) or 'none'}. "
        "Set text_field of the corpus's source to one of them."
    )


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file, cached in the process until the file's size or modification time changes."""
    status = file.stat()
    return _sha256(file.absolute(), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=100_000)
def _sha256(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
