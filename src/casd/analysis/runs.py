"""Find finished runs below folders and in stores, and label them by the settings in which they differ."""

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
"""A number that is not part of a name such as "llama3"."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run on disk.

    Attributes:
        folder: folder of the run, which contains `tables/`.
        info: `info` as in `casd.analysis.results.RunTables`, with "run" (a name, unique among the runs found together),
            "folder" (its path) and "setting" (the settings in which its condition differs from the others, for display).
    """

    folder: Path
    info: dict[str, Any]


def find_runs(paths: str | Path | Iterable[str | Path]) -> list[FinishedRun]:
    """Return the finished runs at or below the paths, sorted by model, objective, setting, seed and name.

    Args:
        paths: as for `load_results`. In a store, scored runs of this version are found; runs of other versions are skipped
            with a message.

    Raises:
        StoreError: no path is given, a path does not exist, there is no finished run below it, or a run is unfinished or
            damaged.
    """
    roots = [paths] if isinstance(paths, str | Path) else list(paths)
    if not roots:
        raise StoreError("There is no run to collect: name at least one folder of a finished run.")
    unique: dict[str, tuple[Path, dict[str, Any]]] = {}
    for folder in (folder for root in roots for folder in _folders(Path(root).resolve())):
        info = read_info(folder)
        unique.setdefault(_key(folder, info), (folder, info))
    names = _distinct_names([_display_path(folder, info) for folder, info in unique.values()])
    settings = label_settings([info for _, info in unique.values()])
    runs = [
        FinishedRun(folder, info | {"run": name, "folder": str(folder), "setting": setting})
        for (folder, info), name, setting in zip(unique.values(), names, settings, strict=True)
    ]
    return sorted(runs, key=_sort_key)


def _folders(path: Path) -> Iterator[Path]:
    """Yield the folders of the runs at or below a path."""
    if not path.is_dir():
        raise StoreError(f"{path} is not the folder of a finished run: there is no such folder.")
    if (path / "tables").is_dir():
        yield path
        return
    if _is_store(path):
        folders = _scored(path)
    elif not (folders := list(_below(path))):
        stores = [child for child in sorted(path.iterdir()) if child.is_dir() and _is_store(child)]
        hint = f" There is a store in {stores[0]}: name that." if stores else " Name a folder of `casd run`, or a store."
        raise StoreError(f"{path} is not the folder of a finished run, and there is none below it.{hint}")
    yield from folders


def _below(folder: Path) -> Iterator[Path]:
    """Yield the runs below a folder; skips reports of sweeps, stores, links and hidden folders."""
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
    """Return, for every run that this version scored into a store, the folder of its newest report, else of its scores."""
    reports: dict[str, tuple[int, Path]] = {}
    for path in store.glob(f"report/[!.]*/{MANIFEST}"):
        manifest = stage_manifest(path.parent)
        for source in manifest["inputs"]:
            reports[source["key"]] = max(reports.get(source["key"], (0, path)), (manifest["version"], path.parent))
    scored = sorted(store.glob(f"score/[!.]*/{MANIFEST}"))
    current = [path.parent for path in scored if stage_manifest(path.parent)["version"] == TABLES_VERSION]
    count = len(scored) - len(current)
    others = f"{count} {'run' if count == 1 else 'runs'}"
    if not current:
        what = f"{others} scored by other versions of casd" if count else "no scored run"
        raise StoreError(f"The store {store} has {what}. Run `casd score` or `casd report` with the overrides of the run.")
    if count:
        say(f"Skipped {others} in {store} scored by other versions of casd. Run their commands again to score them.")
    return [reports[folder.name][1] if folder.name in reports else folder for folder in current]


def _key(folder: Path, info: dict[str, Any]) -> str:
    """Return an identity that copies of one run share: the key of its scores, if it has one, else its folder."""
    stages = (info.get("provenance") or {}).get("stages") or {}
    return str(stages.get("score") or (folder.name if (folder / MANIFEST).is_file() else folder))


def _display_path(folder: Path, info: dict[str, Any]) -> Path:
    """Return the folder, with the key that is the name of a stage's folder replaced by a readable name."""
    if not (folder / MANIFEST).is_file():
        return folder
    name = f"{info['model']}-{info['objective']}-seed{info['seed']}-{folder.name[:8]}"
    return folder.with_name(str(info.get("run") or name))


def by_size(label: str) -> list[str | float]:
    """Return the sort key of a text in which numbers are compared as numbers."""
    parts = re.split(_NUMBER, label)  # text and numbers alternate
    return [float(part) if index % 2 else part for index, part in enumerate(parts)]


def _sort_key(run: FinishedRun) -> tuple[str, list[str | float], float, str, str]:
    """Return the sort key of a run; seeds, and numbers in a setting, are compared as numbers."""
    seed = run.info["seed"]
    number = float(seed) if isinstance(seed, int | float) else float("inf")
    return str(run.info["model"]), by_size(condition_label(run.info)), number, str(seed), str(run.info["run"])


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the last part of each path, with as many parents as are needed to make equal ones distinct."""
    names = [path.name for path in paths]
    depth = 1
    while any(count > 1 for count in Counter(names).values()):
        depth += 1
        counts = Counter(names)
        names = ["/".join(path.parts[-depth:]) if counts[name] > 1 else name for path, name in zip(paths, names, strict=True)]
    return names
