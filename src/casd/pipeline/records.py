"""Which stages each run asked for, and which runs wait for their turn: small files in the store.

They are for `casd status` and `casd clean`: without the records the stages of an interrupted run could not be told from those
that no run needs. They are no results: a record that is lost makes `casd clean` keep more.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from casd.pipeline.stage import Stage
from casd.utils.atomic import is_locked, locked, remove, remove_leftovers, temporary_beside, write_text
from casd.utils.errors import StoreError

_SUFFIX = ".run"
_LIST = "waiting"
"""Lists of runs are `.waiting.HOST-PID-RANDOM.partial`, and locked by the process that gives these runs their turn."""


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
        return record_file(store, self.score, Path(self.folder))

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


def record_file(store: Path, score: str, folder: Path) -> Path:
    """Return the record's file of the run with a key of its scores and a folder of its report."""
    return store / f".{score}-{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:8]}{_SUFFIX}"


@contextmanager
def waiting(store: Path, records: Iterable[Path]) -> Iterator[None]:
    """In the block, list the runs with these records as waiting for their turn by this process. Errors are ignored."""
    file = temporary_beside(store / _LIST)
    with ExitStack() as opened:
        with suppress(OSError):
            remove_leftovers(store / _LIST)
            opened.callback(remove, file)
            opened.enter_context(locked(file, "its own list"))  # names this process in it
            with file.open("a", encoding="utf-8") as text:
                text.writelines(f"\n{record.name}" for record in records)
        yield


def read_waiting(store: Path) -> dict[str, tuple[str, float]]:
    """Return for the records' names of the runs that wait: the process that lives, "HOST, pid PID", and since when."""
    found: dict[str, tuple[str, float]] = {}
    for file in store.glob(f".{_LIST}.*"):
        with suppress(OSError, ValueError):
            where, *names = file.read_text(encoding="utf-8").splitlines()
            if is_locked(file):
                found |= dict.fromkeys(names, (where, file.stat().st_mtime))
    return found


def write_record(store: Path, score: Stage, folder: Path, model: str, stages: Iterable[Stage], *, published: bool) -> None:
    """Write the record of a run, with the stages of its earlier record, for a published run only those that were made.

    Errors in writing are ignored.
    """
    record = Record(score.key, str(folder.absolute()), model, {_place(each): each.label for each in stages}, published)
    file = record.file(store)
    with suppress(OSError, ValueError):
        if file.exists():
            earlier = _read(file).stages.items()
            record.stages.update({place: label for place, label in earlier if not published or (store / place).is_dir()})
        text = json.dumps(asdict(record), indent=1, sort_keys=True)
        if not (file.exists() and file.read_text(encoding="utf-8") == text):
            store.mkdir(parents=True, exist_ok=True)
            write_text(file, text)


def check_shared(store: Path, score: Stage, folder: Path) -> None:
    """Check that this machine sees the store in which another process noted a run.

    Raises:
        StoreError: the record of the run is not there, although it could have been written.
    """
    file = record_file(store, score.key, folder)
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
