"""Finished runs on the disk: found below any folder, each once, told apart by what was set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from casd.analysis.conditions import condition_label, label_settings
from casd.analysis.tables import SWEEP_INFO, TABLES_VERSION, read_info
from casd.utils.errors import StoreError
from casd.utils.progress import say
from casd.utils.sealed import MANIFEST, stage_manifest

_NUMBER: Final = r"(?<![\w.])(\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w.])"
"""A number by itself: not that of a name such as "llama3"."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: of the run; has `tables/`.
        info: as in `casd.analysis.results.RunTables`, and beside that "run" (a name that no other of the runs found with it
            has), "folder" (its path) and "setting" (what sets its condition apart from theirs, for display).
    """

    folder: Path
    info: dict[str, Any]


def find_runs(paths: str | Path | Iterable[str | Path]) -> list[FinishedRun]:
    """The finished runs at or below the paths, by model, objective, setting, seed and name whatever the order of `paths`.

    Args:
        paths: as for `load_results`. In a store the scored runs of this version are found; older ones are left out, and
            that is said.

    Raises:
        StoreError: no path, none of them there, no finished run below one, or an unfinished or damaged one.
    """
    each = [paths] if isinstance(paths, str | Path) else list(paths)
    if not each:
        raise StoreError("There is no run to collect: name at least one folder of a finished run.")
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for folder in (folder for path in each for folder in _folders(Path(path).resolve())):
        info = read_info(folder)
        found.setdefault(_key(folder, info), (folder, info))
    folders = [folder for folder, _ in found.values()]
    infos = [info for _, info in found.values()]
    names = _distinct_names([_named(folder, info) for folder, info in found.values()])
    settings = label_settings(infos)
    runs = [
        FinishedRun(folder, info | {"run": name, "folder": str(folder), "setting": setting})
        for folder, info, name, setting in zip(folders, infos, names, settings, strict=True)
    ]
    return sorted(runs, key=_order)


def _folders(path: Path) -> Iterator[Path]:
    """The folders of the runs at or below a path."""
    if not path.is_dir():
        raise StoreError(f"{path} is not the folder of a finished run: there is no such folder.")
    if (path / "tables").is_dir():
        yield path
        return
    if _is_store(path):
        found = _scored(path)
    elif not (found := list(_below(path))):
        stores = [child for child in sorted(path.iterdir()) if child.is_dir() and _is_store(child)]
        hint = f" There is a store in {stores[0]}: name that." if stores else " Name a folder of `casd run`, or a store."
        raise StoreError(f"{path} is not the folder of a finished run, and there is none below it.{hint}")
    yield from found


def _below(folder: Path) -> Iterator[Path]:
    """The runs below a folder; the reports of sweeps, stores, links and hidden folders are passed over."""
    for child in sorted(folder.iterdir()):
        if child.name.startswith(".") or child.is_symlink() or not child.is_dir():
            continue
        if (child / "tables").is_dir():
            if not (child / "tables" / SWEEP_INFO).is_file():
                yield child
        elif not _is_store(child):
            yield from _below(child)


def _is_store(folder: Path) -> bool:
    return any(folder.glob(f"*/[!.]*/{MANIFEST}"))


def _scored(store: Path) -> list[Path]:
    """Of every run that was scored into a store by this version its report, or without one its scores."""
    reports: dict[str, tuple[int, Path]] = {}
    for path in store.glob(f"report/[!.]*/{MANIFEST}"):
        manifest = stage_manifest(path.parent)
        for source in manifest["inputs"]:
            reports[source["key"]] = max(reports.get(source["key"], (0, path)), (manifest["version"], path.parent))
    scored = sorted(store.glob(f"score/[!.]*/{MANIFEST}"))
    found = [path.parent for path in scored if stage_manifest(path.parent)["version"] == TABLES_VERSION]
    count = len(scored) - len(found)
    older = f"{count} {'run' if count == 1 else 'runs'}"
    if not found:
        what = f"{older} scored by other versions of casd" if count else "no scored run"
        raise StoreError(f"The store {store} has {what}. Run `casd score` or `casd report` with the overrides of the run.")
    if count:
        say(f"Left out: {older} in {store} that other versions of casd scored. Their commands make them again.")
    return [reports[folder.name][1] if folder.name in reports else folder for folder in found]


def _key(folder: Path, info: dict[str, Any]) -> str:
    """What is the same for one run in two places: the key of its scores, where it has one."""
    stages = (info.get("provenance") or {}).get("stages") or {}
    return str(stages.get("score") or (folder.name if (folder / MANIFEST).is_file() else folder))


def _named(folder: Path, info: dict[str, Any]) -> Path:
    """The folder by the name that a run's folder has; a stage's folder is called by its key."""
    if not (folder / MANIFEST).is_file():
        return folder
    name = f"{info['model']}-{info['objective']}-seed{info['seed']}-{folder.name[:8]}"
    return folder.with_name(str(info.get("run") or name))


def _order(run: FinishedRun) -> tuple[str, list[str | float], float, str, str]:
    """Sort key of a run; seeds go by number where they are numbers, and so do the numbers in a setting."""
    seed = run.info["seed"]
    number = float(seed) if isinstance(seed, int | float) else float("inf")
    parts = re.split(_NUMBER, condition_label(run.info))  # by turns text and number
    setting = [float(part) if place % 2 else part for place, part in enumerate(parts)]
    return str(run.info["model"]), setting, number, str(seed), str(run.info["run"])


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many parents as it takes to tell equal ones apart."""
    names = [path.name for path in paths]
    depth = 1
    while any(count > 1 for count in Counter(names).values()):
        depth += 1
        counts = Counter(names)
        names = ["/".join(path.parts[-depth:]) if counts[name] > 1 else name for path, name in zip(paths, names, strict=True)]
    return names
