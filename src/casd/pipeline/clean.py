"""`casd clean`: remove from a store what no run needs any more.

Removed are, unless a process is making them:

- folders of stages that were left by a process that is dead, and checkpoints of finished stages;
- checkpoints of interrupted trainings that nothing was written to for a day;
- finished stages that only runs with a deleted report asked for (`casd.pipeline.records`).

Everything else stays: whatever another run or another stage was made from, and all stages of which no record says who asked
for them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from casd.pipeline.records import Record, read_records
from casd.pipeline.status import KEY, counted, finished_stages, needed, readable_age, size_of, stored_runs, unfinished
from casd.utils.atomic import held, is_leftover, is_locked, remove, temporary_beside
from casd.utils.disk import readable_size

ABANDONED_S = 24 * 3600.0
"""Seconds after which the checkpoint of an interrupted training counts as abandoned."""
_KINDS = {".partial": "unfinished stage", ".checkpoint": "checkpoint"}
_NOT_ABANDONED = {
    ".partial": "its process lives, or was on another machine less than a week ago",
    ".checkpoint": "the same command goes on from it",
}


@dataclass(frozen=True)
class Item:
    """A folder that can be removed: what it is, its size in bytes, and the lock of its stage."""

    path: Path
    what: str
    size: int

    @property
    def lock(self) -> Path:
        """The lock of the stage to which it belongs."""
        [key] = re.findall(KEY, self.path.name)[:1]
        return self.path.with_name(f".{key}.lock")


@dataclass
class Leftovers:
    """What can be removed from a store, what stays although it looks alike, and the records of runs with a deleted report."""

    items: list[Item] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all items."""
        return sum(item.size for item in self.items)

    def __str__(self) -> str:
        lines = [f"  {item.what:<60} {readable_size(item.size):>10}" for item in self.items]
        if lines:
            lines = ["Not needed any more:", *lines, f"  {counted(len(lines), 'folder'):<60} {readable_size(self.size):>10}"]
        return "\n".join([*(lines or ["There is nothing to remove."]), *(f"Kept: {line}" for line in self.kept)])


def leftovers(root: Path) -> Leftovers:
    """Return what can be removed from the store `root`. Nothing is changed.

    Raises:
        StoreError: the store cannot be read.
    """
    found = Leftovers()
    finished, damaged = finished_stages(root)
    records, unreadable = read_records(root)
    labels = {place: label for record in records for place, label in record.stages.items()}
    for path in unfinished(root):
        place = f"{path.parent.name}/{path.name.split('.')[1]}"
        what = f"{path.parent.name} ({labels[place]})" if labels.get(place) else place[: len(path.parent.name) + 9]
        age, size = _age_and_size(path)
        item = Item(path, f"{_KINDS[path.suffix]} of {what}, {readable_age(age)} old", size)
        if is_locked(item.lock):
            found.kept.append(f"{item.what}: a process is making it.")
        elif not _is_abandoned(path, place in finished, age):
            found.kept.append(f"{item.what}: {_NOT_ABANDONED[path.suffix]}.")
        else:
            found.items.append(item)
    found.records = [record for record in records if record.is_deleted(root)]
    others = [run for run in stored_runs(root, finished) if run.record not in found.records]
    if (damaged or unreadable) and found.records:
        names = ", ".join(map(str, unreadable)) or counted(len(damaged), "damaged stage")
        found.kept.append(f"the stages of deleted runs, since it is not known what {names} would need.")
        found.records = []
    asked = {place for record in found.records for place in record.stages} & finished.keys()
    unknown = finished.keys() - asked  # of runs without a record
    still = needed(set(unknown).union(*(run.stages for run in others)), finished)
    for place in sorted(asked - still):
        label = f" ({finished[place]['label']})" if finished[place]["label"] else ""
        found.items.append(Item(root / place, f"{finished[place]['stage']}{label} of a deleted run", size_of(finished[place])))
    stay = counted(len(finished.keys() & still), "finished stage")
    found.kept.append(f"{stay}, of {counted(len(others), 'run')} or of runs that are not known.")
    return found


def clean(root: Path, shown: Leftovers) -> Iterator[str]:
    """Remove what was `shown` and is still not needed, and yield a line for each folder that had to stay.

    Raises:
        StoreError: the store cannot be read.
    """
    now = leftovers(root)
    paths = {item.path for item in shown.items}
    removed_all = True
    for item in (item for item in now.items if item.path in paths):
        with held(item.lock) as is_ours:
            if is_ours:
                _remove(item.path)
        if item.path.exists():
            removed_all = False
            why = "it could not be deleted" if is_ours else "its lock is held by a process, or the file system has no locks"
            yield f"Kept: {item.what}: {why}."
    if removed_all:
        for record in now.records:
            if record in shown.records:
                remove(record.file(root))


def _is_abandoned(path: Path, is_finished: bool, age: float) -> bool:
    if path.suffix == ".partial":
        [key] = re.findall(KEY, path.name)[:1]
        return is_leftover(path, path.with_name(key))
    return is_finished or age > ABANDONED_S


def _remove(path: Path) -> None:
    """Remove a folder. A finished stage is renamed first: nobody sees half of it."""
    with suppress(OSError):  # `clean` says what could not be removed
        remove(path if path.name.startswith(".") else path.rename(temporary_beside(path)))


def _age_and_size(path: Path) -> tuple[float, int]:
    """Return the seconds since anything in a folder was written, and the bytes of its files."""
    newest, size = 0.0, 0
    for each in (path, *path.rglob("*")):
        with suppress(OSError):  # removed since, by the process that makes it
            status = each.lstat()
            newest = max(newest, status.st_mtime)
            size += status.st_size if each.is_file() else 0
    return time.time() - newest, size
