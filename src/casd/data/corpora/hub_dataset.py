"""Stream documents from a dataset of the Hugging Face hub, or from a folder that `datasets` can read."""

from __future__ import annotations

import ast
import functools
import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casd.data.corpora.files import as_text, file_sha256, no_field
from casd.data.corpora.selection import Rows, Selection
from casd.utils.errors import CasdError, ConfigError, CorpusError
from casd.utils.registry import MAX_LISTED, unknown


@dataclass(frozen=True)
class HubDataset(Selection):
    """Text of a dataset, one document per row. Code of a dataset is never executed.

    Attributes:
        dataset: id on the hub ("HuggingFaceFW/fineweb-edu"), or a folder of files that `datasets` can read.
        config: the dataset's configuration ("sample-10BT"); None for the default, or the only one.
        split: the dataset's split.
        revision: branch, tag or commit (40 hexadecimal digits) on the hub; None for the main branch. It is resolved to a
            commit, which needs no network if a commit is given or the revision was resolved on this machine before.
        text_field: the column that holds the text.
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    text_field: str = "text"

    def __post_init__(self) -> None:
        if not self.dataset.strip():
            raise ConfigError("corpus prose: dataset is empty; expected an id of the Hugging Face hub, or a folder.")
        if self.revision and self._folder:
            raise ConfigError(f"corpus prose: {self.dataset} is a folder and has no revision; leave revision out.")
        super().__post_init__()

    def __str__(self) -> str:
        return f"the dataset {self.dataset}"

    def documents(self) -> Iterator[str]:
        """Yield the documents in the order of the dataset, without blank ones, fetching rows as they are needed.

        Raises:
            CorpusError: the dataset cannot be found, reached or read, or has no text in `text_field`.
            ConfigError: the dataset has no such configuration or split.
        """
        usable = False
        for where, row in self.records():
            if self.text_field not in row:
                raise no_field(where, self.text_field, list(row))
            if text := as_text(row[self.text_field], where, self.text_field).strip():
                usable = True
                yield text
        if not usable:
            raise self._empty()

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the chosen rows with all their columns, each after its place for messages.

        Raises:
            CorpusError: the dataset cannot be found, reached or read.
            ConfigError: the dataset has no such configuration or split.
        """
        from datasets import load_dataset
        from huggingface_hub import HfApi

        path = str(self._folder.absolute() if self._folder else self.dataset)
        selected = Rows(self.where, f"The dataset {self.dataset}")
        with _quiet(), self._explaining():
            commit = None if self._folder else _commit(self.dataset, self.revision)
            if commit:  # raises if the hub cannot be reached, where `datasets` would read any cached version
                HfApi().dataset_info(self.dataset, revision=commit, timeout=30)
            rows = load_dataset(path, self.config, split=self.split, revision=commit, streaming=True)
            for number, row in enumerate(rows, start=1):
                where = f"The dataset {self.dataset}, row {number}"
                if selected.take(row, where):
                    yield where, row
        selected.check()

    def fingerprint(self) -> dict[str, Any]:
        """Return the commit on the hub or the SHA-256 of the folder, and the fields that select text.

        Does not import `datasets`.

        Raises:
            CorpusError: the dataset cannot be found, or the hub cannot be reached to resolve `revision`.
        """
        if self._folder:
            identity = {"sha256": self._folder_sha256()}
        else:
            with self._explaining():
                identity = {"dataset": self.dataset, "commit": _commit(self.dataset, self.revision)}
        names = ("config", "split", "text_field", "max_documents", "max_words")
        return identity | {name: getattr(self, name) for name in names} | self.selection()

    @functools.cached_property
    def _folder(self) -> Path | None:
        """Return the folder that `dataset` names; None for an id of the hub.

        Raises:
            CorpusError: `dataset` is a path that does not exist, or a file.
        """
        path = Path(self.dataset).expanduser()
        if path.is_dir():
            return path
        if path.is_file():
            raise CorpusError(f"{path} is a file; dataset expects a folder or an id of the hub. List files in paths instead.")
        if self.dataset.startswith(("/", ".", "~")) or self.dataset.count("/") > 1:
            raise CorpusError(f"There is no folder {path}; relative paths start at {Path.cwd()}. Check the corpus's dataset.")
        return None

    def _folder_sha256(self) -> str:
        """Return one digest over the names and contents of all files in the folder except hidden ones."""
        assert self._folder is not None
        digest = hashlib.sha256()
        for file in sorted(self._folder.rglob("*")):
            name = file.relative_to(self._folder)
            if file.is_file() and not any(part.startswith(".") for part in name.parts):
                digest.update(f"{name.as_posix()}\n{file_sha256(file)}\n".encode())
        return digest.hexdigest()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Convert the many kinds of error of `datasets` and the hub into one-line errors for the user."""
        try:
            yield
        except CasdError:
            raise
        except Exception as error:
            raise self._explained(error) from error

    def _empty(self) -> CorpusError:
        return CorpusError(f"The dataset {self.dataset} has no text in its split {self.split!r}: it is empty, or all blank.")

    def _explained(self, error: Exception) -> CasdError:
        from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
        from huggingface_hub import errors

        name, text = self.dataset, str(error)
        if isinstance(error, StopIteration):  # `datasets` raises it for files without rows
            return self._empty()
        if isinstance(error, errors.GatedRepoError) or (isinstance(error, DatasetNotFoundError) and "gated" in text):
            return CorpusError(
                f"The dataset {name} is gated: accept its terms on https://huggingface.co/datasets/{name} and log in with "
                "`hf auth login`."
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return CorpusError(f"The dataset {name} has no revision {self.revision!r}; expected a branch, a tag or a commit.")
        if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError | DatasetNotFoundError):
            return CorpusError(
                f"There is no dataset {name} on the Hugging Face hub, and no such folder here. Check the corpus's dataset; "
                "a private one needs `hf auth login`."
            )
        if isinstance(error, DataFilesNotFoundError) or "doesn't contain any data files" in text:
            return CorpusError(f"The dataset {name} has no data files; expected .parquet, .jsonl, .csv, .txt or the like.")
        for pattern, parameter in (
            (r"(?s)BuilderConfig .* not found\. Available: (\[.*?\])", "config"),
            (r"(?s)Config name is missing.*available configs: (\[.*?\])", "config"),
            (r"(?s)Bad split: .* Available splits: (\[.*?\])", "split"),
        ):
            if match := re.search(pattern, text):
                choices = ast.literal_eval(match[1])
                if value := getattr(self, parameter):
                    return unknown(f"{parameter} of the dataset {name}:", value, choices)
                return ConfigError(f"The dataset {name} needs a {parameter}; choices: {', '.join(choices[:MAX_LISTED])}.")
        reason = f"{type(error).__name__}: {text.strip().partition(chr(10))[0]}"
        http_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]  # of the HTTP library of huggingface_hub
        unreachable = (ConnectionError, TimeoutError, errors.RevisionResolutionError, http_error)
        if isinstance(error, unreachable):
            return CorpusError(
                f"The Hugging Face hub cannot be reached for the dataset {name} ({reason}). Check the network. A run on text "
                "that was read before needs none if the source's revision is its commit (see the manifest of the corpus stage)."
            )
        return CorpusError(f"The dataset {name} cannot be read ({reason}).")


@functools.cache
def _commit(dataset: str, revision: str | None) -> str:
    """Resolve a revision to a commit, once per process, so that all stages of a run use the same text.

    A commit is returned unchanged. If the hub cannot be reached, the last resolution on this machine is used.
    """
    from huggingface_hub import HfApi

    return HfApi().resolve_revision(dataset, repo_type="dataset", revision=revision).resolved


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the progress bars and log of `datasets`; our errors contain what it logs."""
    import datasets

    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()
