"""`casd status`: the contents of a store as a table, by run or by stage."""

from __future__ import annotations

import csv
import datetime
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casd.pipeline.records import Record, read_records, read_waiting
from casd.utils.atomic import holder, is_locked
from casd.utils.disk import readable_size, told
from casd.utils.errors import StoreError
from casd.utils.sealed import check_size, stage_manifest

KEY = r"[0-9a-f]{20}"
Manifests = dict[str, dict[str, Any]]
"""The manifests of finished stages by place in the store ("inject/3f2a…")."""
_ENDS = ("tokens", "weights")
"""Stages of a run that its scores are not made from."""


def find_store(folder: Path) -> Path:
    """Return `folder` if it is a store, else the store in it or one level below.

    Raises:
        StoreError: the folder does not exist, or there is no store in it, or there are several.
    """
    if not folder.is_dir():
        raise StoreError(f"No store in {folder}. Give the folder of runtime.store, or start a run.")
    for depth in ("", "*", "*/*"):
        if stores := [path for path in ([folder] if not depth else sorted(folder.glob(depth))) if _is_store(path)]:
            if len(stores) > 1:
                raise StoreError(f"There are several stores below {folder}: {', '.join(map(str, stores))}. Name one of them.")
            return stores[0]
    raise StoreError(f"No store in {folder}, nor below it. Give the folder of runtime.store, or start a run.")


def status(root: Path) -> str:
    """Format a table of the finished stages in the store `root`, followed by the interrupted and the damaged ones.

    Manifests and the sizes of files are checked; the files' contents are checked when they are read.

    Raises:
        StoreError: the store cannot be read.
    """
    finished, damaged = finished_stages(root)
    lines, total = [f"{'stage':<12} {'of':<36} {'key':<20} {'size':>10} {'seconds':>8}  made (UTC)"], 0
    for manifest in sorted(finished.values(), key=lambda manifest: str(manifest["created"])):
        size = size_of(manifest)
        total += size
        row = f"{manifest['stage']:<12} {manifest['label']:<36} {manifest['key']} {readable_size(size):>10}"
        lines.append(f"{row} {manifest['seconds']:>8.1f}  {manifest['created'][:19]}")
    interrupted = ", ".join(sorted({path.name.split(".")[1] for path in unfinished(root)})) or "none"
    lines.append(f"{len(finished)} finished stages, {readable_size(total)}; not finished: {interrupted}")
    return "\n".join([*lines, *damaged])


@dataclass(frozen=True)
class StoredRun:
    """A run with stages in a store: its name, its model, and the places of all its stages."""

    name: str
    model: str
    stages: frozenset[str]
    record: Record | None = None


def status_of_runs(root: Path) -> str:
    """Format a table of the runs in the store `root`, followed by what no run is known to have asked for.

    Raises:
        StoreError: the store cannot be read.
    """
    finished, damaged = finished_stages(root)
    runs, by_process = stored_runs(root, finished), read_waiting(root)
    rows = [("run", "model", "stages", "size", "age", "state")]
    for run in sorted(runs, key=lambda run: _made(run, finished, root)):
        done = run.stages & finished.keys()
        size = readable_size(sum(size_of(finished[place]) for place in done))
        age = readable_age(_now() - _made(run, finished, root))
        state = _state(run, finished, root, by_process)
        rows.append((run.name, run.model, f"{len(done)}/{len(run.stages)}", size, age, state))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    known = frozenset[str]().union(*(run.stages for run in runs))
    total = readable_size(sum(map(size_of, finished.values())))
    whole = sum(run.stages <= finished.keys() for run in runs)
    counts = f"{counted(len(runs), 'run')}, {whole} finished; {counted(len(finished), 'stage')}, {total}"
    lines.append(f"{counts} (runs share stages)")
    if others := finished.keys() - known:
        size = readable_size(sum(size_of(finished[place]) for place in others))
        which = "of runs that are not known, such as interrupted ones of earlier versions"
        lines.append(f"{counted(len(others), 'stage')}, {size}, {which}")
    if left := {".".join(path.name.split(".")[1:2]) for path in unfinished(root)}:
        lines.append(f"{counted(len(left), 'stage')} begun and not finished; `casd clean` shows what can be removed")
    return "\n".join([*lines, *damaged])


def stored_runs(root: Path, finished: Manifests) -> list[StoredRun]:
    """Return the runs that have a record, and the scored ones without (of earlier versions, or copied into the store)."""
    records, _ = read_records(root)
    runs = [StoredRun(each.name, each.model, frozenset(each.stages), each) for each in records]
    recorded = {each.score for each in records}
    reports = {source["key"]: place for place, manifest in finished.items() for source in manifest["inputs"]}
    for place, manifest in finished.items():
        if manifest["stage"] == "score" and manifest["key"] not in recorded:
            report = reports.get(manifest["key"])
            stages = needed({place, *([report] if report else [])}, finished)
            stages |= {other for other, each in finished.items() if each["stage"] in _ENDS and _inputs(each) <= stages}
            model, _, objective = manifest["label"].partition(", ")
            folder = finished[report]["config"].get("name", "run") if report else "run"
            name = f"{folder}/{model}-{objective}-seed{manifest['config'].get('seed')}-{manifest['key'][:8]}"
            runs.append(StoredRun(name, model, stages))
    return runs


def needed(places: set[str], finished: Manifests) -> frozenset[str]:
    """Return stages with all that they were made from, as far as their manifests are in the store."""
    found: set[str] = set()
    waiting = list(places)
    while waiting:
        if (place := waiting.pop()) not in found:
            found.add(place)
            waiting += _inputs(finished[place]) if place in finished else ()
    return frozenset(found)


def _inputs(manifest: Mapping[str, Any]) -> set[str]:
    return {f"{each['stage']}/{each['key']}" for each in manifest["inputs"]}


def finished_stages(root: Path) -> tuple[Manifests, list[str]]:
    """Return the manifests of the finished stages, and a line for each stage that is damaged or cannot be read.

    Raises:
        StoreError: the store cannot be read.
    """
    finished: Manifests = {}
    damaged = []
    try:
        kinds = sorted(path for path in root.iterdir() if path.is_dir())
        folders = [path for kind in kinds for path in sorted(kind.iterdir()) if re.fullmatch(KEY, path.name)]
    except OSError as error:
        raise StoreError(told(error, reading=True)) from error
    for folder in folders:
        try:
            manifest = stage_manifest(folder)
            for name, entry in manifest["files"].items():
                check_size(folder, name, entry)
        except StoreError as error:
            line = str(error)
            damaged.append(line if str(folder) in line else f"The stage in {folder} is damaged: {line}. Delete that folder.")
        else:
            finished[f"{folder.parent.name}/{folder.name}"] = manifest
    return finished, damaged


def unfinished(root: Path) -> list[Path]:
    """Return the folders of stages that are being made or were interrupted, and those of checkpoints."""
    return sorted(path for kind in ("partial", "checkpoint") for path in root.glob(f"*/.*.{kind}"))


def size_of(manifest: Mapping[str, Any]) -> int:
    """Return the bytes of a finished stage's files."""
    return sum(entry["bytes"] for entry in manifest["files"].values())


def readable_age(seconds: float) -> str:
    """Format a time span in its largest unit: "3 d", "5 h", "12 min"."""
    for unit, length in (("d", 86400), ("h", 3600)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0) / 60:.0f} min"


def counted(number: int, noun: str) -> str:
    """Return "1 stage", "2 stages"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _is_store(folder: Path) -> bool:
    return any(re.fullmatch(rf"\.?{KEY}(\..+)?", path.name) for path in folder.glob("*/*"))


def _now() -> float:
    return datetime.datetime.now(datetime.UTC).timestamp()


def _made(run: StoredRun, finished: Manifests, root: Path) -> float:
    """Return when the newest stage of a run was made, or else when it began."""
    times = [datetime.datetime.fromisoformat(finished[place]["created"]).timestamp() for place in run.stages & finished.keys()]
    if not times and run.record:
        with suppress(OSError):
            times = [run.record.file(root).stat().st_mtime]
    return max(times, default=_now())


def _state(run: StoredRun, finished: Manifests, root: Path, waiting: Mapping[str, tuple[str, float]]) -> str:
    """Say whether a run is finished, running, waiting or interrupted, and what is known to have gone wrong."""
    missing = run.stages - finished.keys()
    locks = [root / f"{kind}/.{key}.lock" for kind, _, key in (place.partition("/") for place in missing)]
    if locked := [lock for lock in locks if is_locked(lock)]:
        where = sorted({holder(lock) for lock in locked} - {""})
        return f"running on {'; '.join(where)}" if where else "running"
    if missing:
        if run.record:
            folder = Path(run.record.folder)
            log = folder.parent / "failed" / f"{folder.name}.log"
            failed = log.is_file()
            process, since = waiting.get(run.record.file(root).name, ("", 0.0))
            if process and not (failed and log.stat().st_mtime > since):  # it may have failed in an earlier sweep
                return f"waiting for its turn on {process}"
            return f"failed: {log}" if failed else "interrupted"
        return "interrupted"
    if run.record and run.record.is_deleted(root):
        return "report deleted"
    collapsed = _collapsed(run, root)
    return f"finished, {collapsed}" if collapsed else "finished"


def _collapsed(run: StoredRun, root: Path) -> str:
    """Return "2 of 8 removals collapsed"; "" if none has, or the run is not scored."""
    for place in (each for each in run.stages if each.startswith("score/")):
        with suppress(OSError, KeyError), (root / place / "tables" / "states.csv").open(encoding="utf-8", newline="") as file:
            removals = [row for row in csv.DictReader(file) if row["kind"] == "removal"]
            if count := sum(row["collapsed"] == "True" for row in removals):
                return f"{count} of {len(removals)} removals collapsed"
    return ""
