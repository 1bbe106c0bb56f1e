"""Put reports in place atomically, with checksums, and without overwriting files that are not part of a report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from casd.utils.atomic import locked, unfinished_beside
from casd.utils.disk import explaining_disk_errors
from casd.utils.errors import ConfigError, StoreError
from casd.utils.progress import say
from casd.utils.sealed import CHECKSUMS, Entries, checksums, is_whole, read_manifest, write_manifest


@contextmanager
def publishing(target: Path, what: str) -> Iterator[Path]:
    """Yield a new, empty folder for a report; at the end of the block it replaces the report in `target`.

    Until then `target` is unchanged. Other files in `target` are kept. `checksums.json` lists the files of the report: files
    that were not yet replaced when the process was killed do not match it, and readers report that.

    Args:
        target: the folder of the report; it may not exist yet.
        what: its name in errors ("the report").

    Raises:
        StoreError: the report cannot be written, or would overwrite a file that is not part of it.
    """
    target = target.resolve()
    with explaining_disk_errors(what, target), unfinished_beside(target) as begun:
        yield begun
        write_manifest(begun / CHECKSUMS, {"files": checksums(begun)})
        with locked(target.with_name(f".{target.name}.lock"), f"{what} in {target}, which another process is writing"):
            _put(begun, target)


def is_published(folder: Path, files: Entries | None = None) -> bool:
    """Whether a report is complete and, if `files` are given, consists of exactly these. Reads all its files."""
    sealed = _sealed(folder)
    return sealed is not None and files in (None, sealed) and is_whole(folder, sealed)


def check_output(folder: Path, marker: str) -> None:
    """Check that a report may be written to a folder that the user named.

    Args:
        folder: must not exist, or be empty, or hold an earlier report.
        marker: the file in `tables` that identifies such a report.

    Raises:
        ConfigError: `folder` is a file, or holds something else.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a new folder for the report: --output FOLDER.")
    if any(folder.iterdir()) and not (folder / "tables" / marker).is_file():
        raise ConfigError(
            f"{folder} is not empty and has no report over several runs, which alone is written over; name a new or an empty"
            " folder: --output FOLDER."
        )


def _put(begun: Path, target: Path) -> None:
    """Move a finished report to `target`, which may hold an earlier one."""
    if not target.exists():
        try:
            begun.rename(target)
        except OSError:
            if not target.is_dir():  # without locks another process may have been first
                raise
        else:
            return
    new, old = read_manifest(begun / CHECKSUMS)["files"], _sealed(target)
    differing = [name for name, entry in new.items() if not is_whole(target, {name: entry})]
    if old == new and not differing:
        return
    if old is not None and (foreign := [name for name in differing if name not in old and (target / name).exists()]):
        raise StoreError(f"{target / foreign[0]} would be overwritten and is not of the report; move it to another folder.")
    # First, so that files not yet replaced when this process is killed do not match.
    (begun / CHECKSUMS).replace(target / CHECKSUMS)
    for name in differing:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (begun / name).replace(target / name)
    for name in set(old or ()) - set(new):
        (target / name).unlink(missing_ok=True)
    if old == new:
        say(f"Replaced in {target}: {len(differing)} files that were damaged, changed or missing, such as {differing[0]}.")


def _sealed(folder: Path) -> Entries | None:
    """The files of the report in a folder; None if there is no readable list of them."""
    try:
        return read_manifest(folder / CHECKSUMS)["files"]
    except (StoreError, OSError):
        return None
