"""`casd clean`: say what can be removed from a store, ask, and remove it."""

from __future__ import annotations

import sys
from pathlib import Path

from casd.pipeline.clean import clean as remove
from casd.pipeline.clean import leftovers
from casd.pipeline.status import counted, find_store
from casd.utils.disk import readable_size
from casd.utils.text import printable


def clean(folder: Path, *, yes: bool) -> None:
    """Say what can be removed from the store in `folder`, and remove it with `yes`, or after "y" on a terminal.

    Raises:
        StoreError: there is no store, or it cannot be read.
    """
    store = find_store(folder)
    found = leftovers(store)
    print(printable(f"{store}\n{found}"))
    if not found.items:
        return
    if not yes:
        if not sys.stdin.isatty():
            print("Nothing was removed; --yes removes it.")
            return
        print("Remove it? [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("Nothing was removed.")
            return
    kept = list(remove(store, found))
    for line in kept:
        print(printable(line))
    left = sum(item.size for item in found.items if item.path.exists())
    print(printable(f"Removed {counted(len(found.items) - len(kept), 'folder')}, {readable_size(found.size - left)}."))
