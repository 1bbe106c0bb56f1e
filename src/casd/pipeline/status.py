"""What is in a store, as a table for people."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from casd.utils.disk import readable_size, told
from casd.utils.errors import StoreError
from casd.utils.sealed import check_size, stage_manifest


def status(root: Path) -> str:
    """A table of the stages in the store below `root`: what is finished, since when, how large; what is begun or damaged.

    Manifests are checked, and the sizes of the files; what is in them is checked when they are read.

    Raises:
        StoreError: there is no such folder, or it cannot be read.
    """
    if not root.is_dir():
        raise StoreError(f"No store in {root}. Name the folder that runtime.store named, or start a run.")
    finished, damaged = _stages(root)
    lines, total = [f"{'stage':<12} {'of':<36} {'key':<20} {'size':>10} {'seconds':>8}  made (UTC)"], 0
    for made in sorted(finished, key=lambda manifest: str(manifest["created"])):
        size = sum(entry["bytes"] for entry in made["files"].values())
        total += size
        row = f"{made['stage']:<12} {made['label']:<36} {made['key']} {readable_size(size):>10} {made['seconds']:>8.1f}"
        lines.append(f"{row}  {made['created'][:19]}")
    begun = sorted({path.name.split(".")[1] for kind in ("partial", "checkpoint") for path in root.glob(f"*/.*.{kind}")})
    lines.append(
        f"{len(finished)} finished stages, {readable_size(total)}; begun and not finished: {', '.join(begun) or 'none'}"
    )
    return "\n".join([*lines, *damaged])


def _stages(root: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The manifests of the finished stages, and a line for each stage that is damaged or cannot be read."""
    finished, damaged = [], []
    try:
        kinds = sorted(path for path in root.iterdir() if path.is_dir())
        folders = [path for kind in kinds for path in sorted(kind.iterdir()) if re.fullmatch(r"[0-9a-f]{20}", path.name)]
    except OSError as error:
        raise StoreError(told(error, reading=True)) from error
    for folder in folders:
        try:
            manifest = stage_manifest(folder)
            for name, entry in manifest["files"].items():
                check_size(folder, name, entry)
        except StoreError as error:
            what = str(error)
            damaged.append(what if str(folder) in what else f"The stage in {folder} is damaged: {what}. Delete that folder.")
        else:
            finished.append(manifest)
    return finished, damaged
