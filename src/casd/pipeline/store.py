"""Finished stages on disk, addressed by a hash of their inputs.

A stage is one step of the pipeline ("inject", "evaluate", …). Its key is a hash of its own configuration, its version and the
keys of the stages it reads: no stage is made twice, and a changed field changes the keys of the stages downstream only. Stages
are atomic: a stage is made in a hidden folder beside its final one, checksummed, flushed to the disk, and then renamed. Below
the store's root:

    inject/3f2a…c1/              a finished stage: its files and manifest.json
    inject/.3f2a…c1.….partial/   being made by one process, or left by a process that was killed
    inject/.3f2a…c1.checkpoint/  from which an interrupted stage resumes
    inject/.3f2a…c1.lock         locked (flock) by the process that makes it, which it names; not removed
    .77d0…3b-….run               which stages a run asked for (casd.pipeline.records)

The lock only saves work. On a file system without locks several processes, also of different nodes, may make the same stage:
the first to finish is kept, and the others use it. Stages of one key are equal in meaning, so it does not matter which is kept.

Nothing in a store is ever unpickled.
"""

from __future__ import annotations

import datetime
import errno
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from casd.pipeline.stage import Stage
from casd.utils.atomic import flush, flush_all, give_default_rights, locked, remove, remove_leftovers, temporary_beside
from casd.utils.disk import explaining_disk_errors
from casd.utils.errors import StoreError
from casd.utils.sealed import (
    MANIFEST,
    Damage,
    check_file,
    check_size,
    checksums,
    how_to_repair,
    read_stage_manifest,
    unreadable,
    write_manifest,
)
from casd.utils.versions import software_versions


@dataclass(frozen=True)
class Event:
    """A stage that was executed or reused in this process. `seconds` is the time it took to make it; 0 if reused."""

    stage: Stage
    outcome: Literal["executed", "reused"]
    seconds: float


class StageStore:
    """The stages below a folder, which any number of processes and cluster jobs may share."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()
        self._events: dict[str, Event] = {}
        self._verified: set[tuple[Path, int, int]] = set()

    def is_done(self, stage: Stage) -> bool:
        """Return True if the stage is finished. Only the manifest and the sizes of the files are read.

        Raises:
            StoreError: the stage's folder is damaged.
        """
        if not _is_there(self._place(stage)):
            return False
        for name, entry in self.manifest(stage)["files"].items():
            with self._naming(stage):
                check_size(self._place(stage), name, entry)
        return True

    def manifest(self, stage: Stage) -> dict[str, Any]:
        """Read the finished stage's manifest: its configuration, inputs, date, versions, and the checksums of its files.

        Raises:
            StoreError: the stage is not finished, or its manifest is missing, unreadable or that of another stage.
        """
        place = self._place(stage)
        if not _is_there(place):
            raise StoreError(f"Stage {stage} is not in {self.root} (looked for {place}); run it first.")
        with self._naming(stage):
            manifest = read_stage_manifest(place)
            if manifest["key"] != stage.key:
                raise Damage(f"{MANIFEST} has the key {manifest['key']!r}, expected {stage.key!r}")
        return manifest

    def folder(self, stage: Stage, *, verify: bool = False) -> Path:
        """Return the finished stage's folder, with `verify` after checking the contents of all its files.

        Raises:
            StoreError: the stage is not finished, or damaged.
        """
        manifest = self.manifest(stage)
        if verify:
            for name, entry in manifest["files"].items():
                self._verify(stage, name, entry)
        return self._place(stage)

    def file(self, stage: Stage, name: str) -> Path:
        """Return the path of the file `name` ("model/config.json") of a finished stage after checking its size and SHA-256.

        A file is hashed once per process, and again only if its size or its time of change (ctime) has changed.

        Raises:
            StoreError: the stage is not finished or has no such file, or the file is missing, truncated or altered.
        """
        files = self.manifest(stage)["files"]
        if name not in files:
            raise StoreError(f"Stage {stage} in {self._place(stage)} has no file {name!r}; it has {', '.join(files)}.")
        self._verify(stage, name, files[name])
        return self._place(stage) / name

    def run(self, stage: Stage, produce: Callable[[Path], None]) -> Path:
        """Make the stage unless it is finished, and return its folder.

        `produce` gets an empty folder on the store's file system and writes the stage's files there. If it raises, is killed,
        or the disk is full, no stage is added; the files in `checkpoint_folder` are kept for the next attempt. If another
        process is making the same stage, this one waits for its result. On a file system without locks both make it, and
        the first result is used.

        Raises:
            StoreError: the stage on disk is damaged, the disk is full, or the store cannot be read or written.
        """
        with explaining_disk_errors(f"stage {stage}", self.root):
            if not self.is_done(stage):
                self._place(stage).parent.mkdir(parents=True, exist_ok=True)
                making = f"stage {stage}, which another process is making ({self._place(stage)})"
                with locked(self._beside(stage, "lock"), making):
                    if not self.is_done(stage):
                        self._make(stage, produce)
        self._record(stage, "reused", 0.0)  # keeps "executed" if it was made above
        # In all cases: a process may have been killed after the stage was finished and before its checkpoint was removed.
        shutil.rmtree(self._beside(stage, "checkpoint"), ignore_errors=True)
        return self._place(stage)

    def checkpoint_folder(self, stage: Stage) -> Path:
        """Create and return the folder of the stage's checkpoints, which is removed when the stage is finished.

        The store does not check its contents: write a checkpoint under a temporary name and rename it.
        """
        folder = self._beside(stage, "checkpoint")
        with explaining_disk_errors(f"stage {stage}", self.root):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def events(self) -> tuple[Event, ...]:
        """The stages that this object made or reused, in order, each once."""
        return tuple(self._events.values())

    @property
    def executed(self) -> list[Event]:
        """The stages that this object made, in order."""
        return [event for event in self.events if event.outcome == "executed"]

    def summary(self) -> str:
        """The number of stages executed, with their time, and reused: "3 stages executed in 41.2 s, 5 reused"."""
        executed = self.executed
        seconds = sum(event.seconds for event in executed)
        noun = "stage" if len(executed) == 1 else "stages"
        took = f" in {seconds:.1f} s" if executed else ""
        return f"{len(executed)} {noun} executed{took}, {len(self.events) - len(executed)} reused"

    def _place(self, stage: Stage) -> Path:
        return self.root / stage.name / stage.key

    def _beside(self, stage: Stage, kind: Literal["checkpoint", "lock"]) -> Path:
        return self.root / stage.name / f".{stage.key}.{kind}"

    def _record(self, stage: Stage, outcome: Literal["executed", "reused"], seconds: float) -> None:
        self._events.setdefault(stage.key, Event(stage, outcome, seconds))

    def _make(self, stage: Stage, produce: Callable[[Path], None]) -> None:
        """Produce a stage, write its manifest, rename it into place, and record it."""
        place = self._place(stage)
        remove_leftovers(place)
        partial = temporary_beside(place)
        partial.mkdir()
        start = time.perf_counter()
        try:
            produce(partial)
            seconds = time.perf_counter() - start
            _check_plain(partial)
            files = checksums(partial)
            write_manifest(partial / MANIFEST, _manifest(stage, files, seconds))
            give_default_rights(partial, partial / MANIFEST)
            flush_all(partial)
            partial.rename(place)
        except Exception:
            # Without locks another process may have finished the stage first: its folder is in the way, and the checkpoints
            # that both wrote are removed.
            if not self.is_done(stage):
                raise
            return
        else:
            flush(place.parent)
        finally:
            remove(partial)
        self._verified.update(_identity(place / name) for name in files)
        self._record(stage, "executed", seconds)

    def _verify(self, stage: Stage, name: str, entry: Mapping[str, Any]) -> None:
        """Check a file, unless it was checked before and its size and time of change are unchanged."""
        place = self._place(stage)
        with self._naming(stage):
            check_size(place, name, entry)
            if (identity := _identity(place / name)) not in self._verified:
                check_file(place, name, entry)
        self._verified.add(identity)

    @contextmanager
    def _naming(self, stage: Stage) -> Iterator[None]:
        """Name the damaged stage in errors, and say what to do."""
        try:
            yield
        except Damage as damage:
            raise StoreError(f"Stage {stage} is damaged: {damage}. {how_to_repair(self._place(stage))}") from damage


def _is_there(path: Path) -> bool:
    """Return True if a stage's folder exists.

    A network file system may remember for a minute that it did not, after another node has made it; a listing is up to date.
    """
    try:
        return path.exists() or (path.parent.is_dir() and path in path.parent.iterdir())
    except OSError as error:  # a folder above it cannot be entered
        if error.errno in (errno.EACCES, errno.EPERM):
            raise unreadable(path, error) from error
        raise


def _check_plain(folder: Path) -> None:
    """Raise ValueError if `produce` wrote links, which checksums do not follow, or the manifest, which the store writes."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or name == MANIFEST:
            raise ValueError(f"A stage may write neither links nor {MANIFEST}; it wrote {name}.")


def _manifest(stage: Stage, files: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "label": stage.label,
        "key": stage.key,
        "version": stage.version,
        "config": stage.config,
        "inputs": [{"stage": each.name, "label": each.label, "key": each.key} for each in stage.inputs],
        "files": files,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "made_with": software_versions(),
    }


def _identity(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path, status.st_size, status.st_ctime_ns
