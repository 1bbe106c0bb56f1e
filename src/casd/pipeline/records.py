"""Which stages each run asked for: a small file of each run in the store, for `casd status` and `casd clean`.

Without these records the stages of an interrupted run could not be told from those that no run needs. They are no results: a
record that is lost makes `casd clean` keep more.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from casd.pipeline.stage import Stage
from casd.utils.atomic import write_text
from casd.utils.errors import StoreError

_SUFFIX = ".run"


@dataclass(frozen=True)
class Record:
    """One run that a store has been used for.

    Attributes:
        score: key of its scores, which identifies the run.
        folder: absolute path of its report.
        model: name of its model.
        stages: label of each stage that it asked for, by place in the store ("inject/3f2a…").
        published: True once its report has been written into `folder`.
    """

    score: str
    folder: str
    model: str
    stages: dict[str, str] = field(default_factory=dict)
    published: bool = False

    @property
    def name(self) -> str:
        """The last two parts of its folder: "demo/llama3_tiny-npo-seed0-3f2ac1d0"."""
        return "/".join(Path(self.folder).parts[-2:])

    def file(self, store: Path) -> Path:
        """Return the record's file; runs that differ in the folder of their report alone have one each."""
        return store / f".{self.score}-{hashlib.sha256(self.folder.encode()).hexdigest()[:8]}{_SUFFIX}"

    def is_deleted(self, store: Path) -> bool:
        """Return True if its report was written and has been deleted since.

        False as well if that cannot be told: the folder of all reports is gone, too (a disk that is not mounted), or the report
        was moved within that folder or together with the store.
        """
        folder = Path(self.folder)
        reports = folder.parents[1]
        if not self.published or folder.exists() or not reports.is_dir():
            return False
        try:
            return not any(
                self.score.encode() in info.read_bytes()
                for above in (reports, store.absolute().parent)
                for pattern in ("*/tables/info.json", "*/*/tables/info.json")
                for info in above.glob(pattern)
            )
        except OSError:
            return False


def write_record(store: Path, score: Stage, folder: Path, model: str, stages: Iterable[Stage], *, published: bool) -> None:
    """Write the record of a run, with the stages of its earlier record. Errors in writing are ignored."""
    record = Record(score.key, str(folder.absolute()), model, {_place(each): each.label for each in stages}, published)
    file = record.file(store)
    with suppress(OSError, ValueError):
        if file.exists():
            record.stages.update(_read(file).stages)
        text = json.dumps(asdict(record), indent=1, sort_keys=True)
        if not (file.exists() and file.read_text(encoding="utf-8") == text):
            store.mkdir(parents=True, exist_ok=True)
            write_text(file, text)


def check_shared(store: Path, score: Stage, folder: Path) -> None:
    """Check that this machine sees the store in which another process noted a run.

    Raises:
        StoreError: the record of the run is not there, although it could have been written.
    """
    file = Record(score.key, str(folder.absolute()), "").file(store)
    if not store.is_dir() or (file not in store.iterdir() and os.access(store, os.W_OK)):
        raise StoreError(
            f"{platform.node()} does not see the store that the command uses ({store}): set runtime.store to a folder that all"
            " nodes share."
        )


def read_records(store: Path) -> tuple[list[Record], list[Path]]:
    """Return the records of the runs in a store, and the files that cannot be read."""
    records, unreadable = [], []
    for file in sorted(store.glob(f".*{_SUFFIX}")):
        try:
            records.append(_read(file))
        except (OSError, ValueError):
            unreadable.append(file)
    return records, unreadable


def _place(stage: Stage) -> str:
    return f"{stage.name}/{stage.key}"


def _read(file: Path) -> Record:
    """Read a record.

    Raises:
        ValueError: the file is not a record.
    """
    content: Any = json.loads(file.read_text(encoding="utf-8"))
    try:
        record = Record(**content)
        dict(record.stages)
    except TypeError as error:
        raise ValueError(str(error)) from error
    return record
