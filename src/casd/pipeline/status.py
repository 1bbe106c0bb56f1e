"""`casd status`: the contents of a store as a table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from casd.utils.disk import readable_size, told
from casd.utils.errors import StoreError
from casd.utils.sealed import check_size, stage_manifest


def status(root: Path) -> str:
    """Format a table of the finished stages in the store `root`, followed by the interrupted and the damaged ones.

    Manifests and the sizes of files are checked; the files' contents are checked when they are read.

    Raises:
        StoreError: the folder does not exist, or cannot be read.
    """
    if not root.is_dir():
        raise StoreError(f"No store in {root}. Give the folder of runtime.store, or start a run.")
    finished, damaged = _stages(root)
    lines, total = [f"{'stage':<12} {'of':<36} {'key':<20} {'size':>10} {'seconds':>8}  made (UTC)"], 0
    for manifest in sorted(finished, key=lambda manifest: str(manifest["created"])):
        size = sum(entry["bytes"] for entry in manifest["files"].values())
        total += size
        row = f"{manifest['stage']:<12} {manifest['label']:<36} {manifest['key']} {readable_size(size):>10}"
        lines.append(f"{row} {manifest['seconds']:>8.1f}  {manifest['created'][:19]}")
    interrupted = sorted({path.name.split(".")[1] for kind in ("partial", "checkpoint") for path in root.glob(f"*/.*.{kind}")})
    lines.append(f"{len(finished)} finished stages, {readable_size(total)}; not finished: {', '.join(interrupted) or 'none'}")
    return "\n".join([*lines, *damaged])


def _stages(root: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the manifests of the finished stages, and a line for each stage that is damaged or cannot be read."""
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
            line = str(error)
            damaged.append(line if str(folder) in line else f"The stage in {folder} is damaged: {line}. Delete that folder.")
        else:
            finished.append(manifest)
    return finished, damaged
