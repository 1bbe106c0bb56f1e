"""Documents of a dataset of the Hugging Face hub, or of a folder that `datasets` can read, streamed."""

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

from casd.data.corpora.files import as_text, check_budget, file_sha256, no_field
from casd.utils.errors import CasdError, ConfigError, CorpusError
from casd.utils.registry import MAX_LISTED, unknown


@dataclass(frozen=True)
class HubDataset:
    """Text of a dataset, one document a row. No code of a dataset is run.

    Attributes:
        dataset: id on the hub ("HuggingFaceFW/fineweb-edu"), or a folder of files that `datasets` can read.
        config: the dataset's configuration ("sample-10BT"); None for the only one or the default.
        split: the dataset's split.
        revision: branch, tag or commit (40 hexadecimal digits) on the hub; None for the main branch. What it means is the
            commit, which is known without a network if it is given or was looked up on this machine before.
        text_field: the column that holds the text.
        max_documents: reading stops after so many documents; None for no limit.
        max_words: reading stops with the document that brings the words to so many; None for no limit.
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    text_field: str = "text"
    max_documents: int | None = None
    max_words: int | None = None

    def __post_init__(self) -> None:
        if not self.dataset.strip():
            raise ConfigError("corpus prose: dataset is empty; expected an id of the Hugging Face hub, or a folder.")
        if self.revision and self._folder:
            raise ConfigError(f"corpus prose: {self.dataset} is a folder and has no revision; leave revision out.")
        check_budget(self.max_documents, self.max_words)

    def __str__(self) -> str:
        return f"the dataset {self.dataset}"

    def documents(self) -> Iterator[str]:
        """The documents in the order of the dataset, without blank ones; no more is fetched than is asked for.

        Raises:
            CorpusError: the dataset cannot be found, reached or read, or has no text in that field.
            ConfigError: it has no such configuration or split.
        """
        from datasets import load_dataset
        from huggingface_hub import HfApi

        path = str(self._folder.absolute() if self._folder else self.dataset)
        usable = False
        with _quiet(), self._explaining():
            commit = None if self._folder else _commit(self.dataset, self.revision)
            if commit:  # asked for here because `datasets`, where it finds no hub, reads whatever its cache holds
                HfApi().dataset_info(self.dataset, revision=commit, timeout=30)
            rows = load_dataset(path, self.config, split=self.split, revision=commit, streaming=True)
            for number, row in enumerate(rows, start=1):
                where = f"The dataset {self.dataset}, row {number}"
                if self.text_field not in row:
                    raise no_field(where, self.text_field, list(row))
                if text := as_text(row[self.text_field], where, self.text_field).strip():
                    usable = True
                    yield text
        if not usable:
            raise self._empty()

    def fingerprint(self) -> dict[str, Any]:
        """The commit of the hub, or the SHA-256 of the folder's files; and what is read of it. `datasets` is not loaded for it.

        Raises:
            CorpusError: the dataset cannot be found, or the hub not be reached to know which commit `revision` is.
        """
        if self._folder:
            identity = {"sha256": self._folder_sha256()}
        else:
            with self._explaining():
                identity = {"dataset": self.dataset, "commit": _commit(self.dataset, self.revision)}
        names = ("config", "split", "text_field", "max_documents", "max_words")
        return identity | {name: getattr(self, name) for name in names}

    @functools.cached_property
    def _folder(self) -> Path | None:
        """The folder that `dataset` names; None for an id of the hub.

        Raises:
            CorpusError: it names a folder that is not there, or a file.
        """
        path = Path(self.dataset).expanduser()
        if path.is_dir():
            return path
        if path.is_file():
            raise CorpusError(f"{path} is a file, and dataset names a folder or an id of the hub; name files in paths.")
        if self.dataset.startswith(("/", ".", "~")) or self.dataset.count("/") > 1:
            raise CorpusError(f"There is no folder {path}; relative paths start at {Path.cwd()}. Check the corpus's dataset.")
        return None

    def _folder_sha256(self) -> str:
        """One digest over the names and contents of all files in the folder; hidden ones are none of the dataset's."""
        assert self._folder is not None
        digest = hashlib.sha256()
        for file in sorted(self._folder.rglob("*")):
            name = file.relative_to(self._folder)
            if file.is_file() and not any(part.startswith(".") for part in name.parts):
                digest.update(f"{name.as_posix()}\n{file_sha256(file)}\n".encode())
        return digest.hexdigest()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Turn what `datasets` and the hub raise, of many kinds, into a line for the user."""
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
        if isinstance(error, StopIteration):  # what `datasets` raises for files without a row
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
        for pattern, what in (
            (r"(?s)BuilderConfig .* not found\. Available: (\[.*?\])", "config"),
            (r"(?s)Config name is missing.*available configs: (\[.*?\])", "config"),
            (r"(?s)Bad split: .* Available splits: (\[.*?\])", "split"),
        ):
            if found := re.search(pattern, text):
                choices = ast.literal_eval(found[1])
                if value := getattr(self, what):
                    return unknown(f"{what} of the dataset {name}:", value, choices)
                return ConfigError(f"The dataset {name} needs a {what}; choices: {', '.join(choices[:MAX_LISTED])}.")
        reason = f"{type(error).__name__}: {text.strip().partition(chr(10))[0]}"
        http_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]  # that of the hub's HTTP library
        unreachable = (ConnectionError, TimeoutError, errors.RevisionResolutionError, http_error)
        if isinstance(error, unreachable):
            return CorpusError(
                f"The Hugging Face hub cannot be reached for the dataset {name} ({reason}). Check the network. A run on text "
                "that was read before needs none if the source's revision is its commit (the corpus stage's manifest has it)."
            )
        return CorpusError(f"The dataset {name} cannot be read ({reason}).")


@functools.cache
def _commit(dataset: str, revision: str | None) -> str:
    """The commit that a revision means. A process asks once, so that all its stages mean the same text.

    A commit is taken as it is; where the hub cannot be reached, what was looked up before on this machine counts.
    """
    from huggingface_hub import HfApi

    return HfApi().resolve_revision(dataset, repo_type="dataset", revision=revision).resolved


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and log lines of `datasets`: what they say of an error is in ours."""
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
