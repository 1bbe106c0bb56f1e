"""Finished stages on disk, addressed by what they were made from.

A stage is one box of the pipeline ("inject", "evaluate", …). Its key is a hash of its own configuration, its version
and the keys of the stages it reads. So the same stage is never made twice, and a changed field leads to new keys for
the stages downstream of it and for no others. A stage exists whole or not at all: it is made in a hidden folder beside
its place, checksummed, flushed to the disk, and only then renamed into place. Below the store's root:

    inject/3f2a…c1/            a finished stage: its files and manifest.json
    inject/.3f2a…c1.partial/   being made, or left by a process that was killed
    inject/.3f2a…c1.checkpoint/  what an interrupted stage goes on from
    inject/.3f2a…c1.lock       held (flock) by the process that makes it; an empty file that stays

Nothing here, and nothing that stages write, is ever unpickled.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from casd.disk import explaining_disk_errors, readable_size
from casd.errors import ConfigError, StoreError
from casd.progress import say

MANIFEST = "manifest.json"
WAIT_NOTICE_S = 3.0
"""Seconds to wait for another process's stage before saying so."""


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage, described well enough to know whether it was made before.

    `config` is copied and brought to canonical form: tuples become lists, and a float without a fraction becomes an
    integer, because `1` and `1.0` mean the same where a number is expected and YAML lets people write either.
    (`true` and `1` stay different.)

    Raises:
        ConfigError: a number in `config` is NaN or infinite.
        TypeError: `config` has something that JSON has not.
    """

    name: str
    """What kind of stage; also the folder below the store's root."""
    version: int
    """STAGE_VERSION of the code that makes it: raise it when the same configuration comes to mean another result."""
    config: Mapping[str, Any]
    """The stage's own settings that can change its result. Neither device nor folders nor logging."""
    inputs: tuple[Stage, ...] = ()
    """The stages that it reads, in order."""
    label: str = ""
    """Which one, for people ("french_a"). Not part of the key."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"A stage's name is also a folder's: letters, digits and underscores, not {self.name!r}.")
        object.__setattr__(self, "config", _canonical(self.config))

    @cached_property
    def key(self) -> str:
        """20 hexadecimal digits (80 bits) of the SHA-256 of name, version, configuration and the inputs' keys."""
        parts = [self.name, self.version, self.config, [stage.key for stage in self.inputs]]
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def __str__(self) -> str:
        return f"{self.name} ({self.label})" if self.label else self.name


@dataclass(frozen=True)
class Event:
    """What became of a stage in this process. `seconds` is the time it took to make it; 0 when it was reused."""

    stage: Stage
    outcome: Literal["executed", "reused"]
    seconds: float


class StageStore:
    """The stages below one folder, which any number of processes and cluster jobs may share."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()
        self._events: dict[str, Event] = {}
        self._verified: set[tuple[Path, int, int]] = set()

    def is_done(self, stage: Stage) -> bool:
        """Whether the stage is finished. Cheap: reads the manifest and the sizes of the files, not what is in them.

        Raises:
            StoreError: the stage's folder is there but damaged; it never gets there by halves.
        """
        if not self._place(stage).exists():
            return False
        for name, entry in self.manifest(stage)["files"].items():
            self._check_size(stage, name, entry["bytes"])
        return True

    def manifest(self, stage: Stage) -> dict[str, Any]:
        """The finished stage's manifest: what it was made from, when, by which versions, and its files' checksums.

        Raises:
            StoreError: the stage is not done, or its manifest is missing, unreadable or that of another stage.
        """
        place = self._place(stage)
        if not place.exists():
            raise StoreError(f"Stage {stage} is not in {self.root} (looked for {place}); run it first.")
        try:
            manifest = read_json(place / MANIFEST)
        except FileNotFoundError:
            raise self._damaged(stage, f"{MANIFEST} is missing") from None
        except OSError as error:
            raise StoreError(f"Stage {stage}: cannot read {place / MANIFEST}: {error.strerror}.") from error
        except StoreError as error:
            raise self._damaged(stage, f"{MANIFEST} is not valid JSON ({error.__cause__})") from error
        key = manifest.get("key") if isinstance(manifest, dict) else None
        if key != stage.key:
            raise self._damaged(stage, f"{MANIFEST} has the key {key!r}, expected {stage.key!r}")
        if not _lists_files(manifest.get("files")):
            raise self._damaged(stage, f"{MANIFEST} has no valid list of files")
        return manifest

    def folder(self, stage: Stage, *, verify: bool = False) -> Path:
        """The finished stage's folder; with `verify` after checking all its files, for loaders that take a folder.

        Raises:
            StoreError: the stage is not done, or damaged.
        """
        manifest = self.manifest(stage)
        if verify:
            for name, entry in manifest["files"].items():
                self._verify(stage, name, entry)
        return self._place(stage)

    def file(self, stage: Stage, name: str) -> Path:
        """The path of the finished stage's file `name` ("model/config.json"), after checking its size and SHA-256.

        A file is read for that once per process, and again only if its size or time of change differ.

        Raises:
            StoreError: the stage is not done or has no such file, or the file is missing, truncated or altered.
        """
        files = self.manifest(stage)["files"]
        if name not in files:
            raise StoreError(f"Stage {stage} in {self._place(stage)} has no file {name!r}; it has {', '.join(files)}.")
        self._verify(stage, name, files[name])
        return self._place(stage) / name

    def run(self, stage: Stage, produce: Callable[[Path], None]) -> Path:
        """Make the stage unless it is there, and return its folder.

        `produce` is given an empty folder on the store's file system and writes the stage's files there. If it raises,
        is killed, or the disk is full, no stage appears; what it keeps in `checkpoint_folder` stays for the next try.
        When another process is making the same stage, this one waits for it and uses its result.

        Raises:
            StoreError: the stage on disk is damaged, the disk is full, or the store cannot be written to.
        """
        with explaining_disk_errors(f"stage {stage}", self.root):
            if not self.is_done(stage):
                self._place(stage).parent.mkdir(parents=True, exist_ok=True)
                with self._lock(stage):
                    if not self.is_done(stage):
                        self._make(stage, produce)
        self._record(stage, "reused", 0.0)  # keeps "executed" where it was made above
        # Here also for the process that was killed after the stage was finished and before this was done.
        shutil.rmtree(self._beside(stage, "checkpoint"), ignore_errors=True)
        return self._place(stage)

    def checkpoint_folder(self, stage: Stage) -> Path:
        """The folder (made if need be) for what `produce` wants to find after a kill; gone once the stage is done.

        The store does not look inside: a checkpoint that must not be seen half-written is written under another name
        and renamed.
        """
        folder = self._beside(stage, "checkpoint")
        with explaining_disk_errors(f"stage {stage}", self.root):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def events(self) -> tuple[Event, ...]:
        """The stages that were run through this store, in order, each once: executed if it was made here."""
        return tuple(self._events.values())

    def summary(self) -> str:
        """One line: "3 stages executed in 41.2 s, 5 reused"."""
        executed = [event for event in self.events if event.outcome == "executed"]
        seconds = sum(event.seconds for event in executed)
        noun = "stage" if len(executed) == 1 else "stages"
        took = f" in {seconds:.1f} s" if executed else ""
        return f"{len(executed)} {noun} executed{took}, {len(self.events) - len(executed)} reused"

    def _place(self, stage: Stage) -> Path:
        return self.root / stage.name / stage.key

    def _beside(self, stage: Stage, kind: Literal["partial", "checkpoint", "lock"]) -> Path:
        return self.root / stage.name / f".{stage.key}.{kind}"

    def _record(self, stage: Stage, outcome: Literal["executed", "reused"], seconds: float) -> None:
        self._events.setdefault(stage.key, Event(stage, outcome, seconds))

    def _make(self, stage: Stage, produce: Callable[[Path], None]) -> None:
        """Produce, seal and rename into place, and record it; the caller holds the lock."""
        place, partial = self._place(stage), self._beside(stage, "partial")
        if partial.exists():  # left by a process that was killed: whoever holds the lock is the only writer
            shutil.rmtree(partial)
        partial.mkdir()
        start = time.perf_counter()
        try:
            produce(partial)
            seconds = time.perf_counter() - start
            files = _checksums(partial)
            write_json(partial / MANIFEST, _manifest(stage, files, seconds))
            for path in partial.rglob("*"):
                _flush(path)
            _flush(partial)
            partial.rename(place)
            _flush(place.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self._verified.update(_identity(place / name) for name in files)
        self._record(stage, "executed", seconds)

    @contextmanager
    def _lock(self, stage: Stage) -> Iterator[None]:
        """Hold the stage's lock. The operating system frees it when its holder dies: a left lock file is harmless."""
        from filelock import FileLock, Timeout  # here: 0.1 s that `casd --help` need not wait for

        lock = FileLock(self._beside(stage, "lock"), poll_interval=0.1)
        try:
            lock.acquire(timeout=WAIT_NOTICE_S)
        except Timeout:
            say(f"Waiting for stage {stage}, which another process is making ({self._place(stage)}).")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _verify(self, stage: Stage, name: str, entry: Mapping[str, Any]) -> None:
        self._check_size(stage, name, entry["bytes"])
        identity = _identity(path := self._place(stage) / name)
        if identity in self._verified:
            return
        if (found := _sha256(path)) != entry["sha256"]:
            raise self._damaged(stage, f"{name} has the SHA-256 {found[:12]}…, expected {entry['sha256'][:12]}…")
        self._verified.add(identity)

    def _check_size(self, stage: Stage, name: str, expected: int) -> None:
        try:
            found = (self._place(stage) / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            raise self._damaged(stage, f"{name} is missing, expected {expected} bytes") from None
        if found != expected:
            raise self._damaged(stage, f"{name} has {found} bytes, expected {expected}")

    def _damaged(self, stage: Stage, what: str) -> StoreError:
        return StoreError(
            f"Stage {stage} is damaged: {what}. Delete the folder {self._place(stage)} and run again; "
            "only this stage is made anew."
        )


def status(root: Path) -> str:
    """A table of the stages in the store below `root`, for people: what is finished, since when, how large; what is begun.

    Raises:
        StoreError: there is no such folder.
    """
    if not root.is_dir():
        raise StoreError(f"No store in {root}. Name the folder that runtime.store named, or start a run.")
    lines, total = [f"{'stage':<12} {'of':<36} {'key':<20} {'size':>10} {'seconds':>8}  made (UTC)"], 0
    manifests = [(path, read_json(path)) for path in root.glob(f"*/[!.]*/{MANIFEST}")]
    for path, made in sorted(manifests, key=lambda item: item[1]["created"]):
        size = sum(entry["bytes"] for entry in made["files"].values())
        total += size
        row = f"{made['stage']:<12} {made['label']:<36} {path.parent.name} {readable_size(size):>10} {made['seconds']:>8.1f}"
        lines.append(f"{row}  {made['created'][:19]}")
    begun = sorted({path.name.split(".")[1] for kind in ("partial", "checkpoint") for path in root.glob(f"*/.*.{kind}")})
    lines.append(
        f"{len(lines) - 1} finished stages, {readable_size(total)}; begun and not finished: {', '.join(begun) or 'none'}"
    )
    return "\n".join(lines)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as UTF-8 JSON in one canonical form: sorted keys, an indent of two, a newline at the end.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have; write None.
    """
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StoreError: it is not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise StoreError(f"{path} is not valid JSON: {error}.") from error


def _canonical(value: Any) -> Any:
    match value:
        case None | bool() | str():
            return value
        case int():
            return int(value)
        case float():
            if not math.isfinite(value):
                raise ConfigError(f"A number of the configuration is {value}; expected a finite one.")
            return int(value) if value.is_integer() else float(value)
        case Mapping():
            if strange := [name for name in value if not isinstance(name, str)]:
                raise TypeError(f"A stage's configuration has the key {strange[0]!r}, which is not a string.")
            return {name: _canonical(item) for name, item in value.items()}
        case list() | tuple():
            return [_canonical(item) for item in value]
    raise TypeError(f"A stage's configuration has a {type(value).__name__}, which JSON does not: {value!r}.")


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
        "made_with": _versions(),
    }


def _versions() -> dict[str, str]:
    """The versions that could matter to a result, read from the installed packages' metadata without importing them."""
    from importlib import metadata

    versions = {"python": platform.python_version()}
    for package in ("casd", "torch", "transformers", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _lists_files(files: Any) -> bool:
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)
        for entry in files.values()
    )


def _checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below `folder`, by its path relative to it."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or name == MANIFEST:
            raise ValueError(f"A stage writes plain files, none of them a link or called {MANIFEST}: {name}.")
        if path.is_file():
            files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    return files


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path, status.st_size, status.st_mtime_ns


def _flush(path: Path) -> None:
    """Have a file's contents, or a folder's list of names, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
