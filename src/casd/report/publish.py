"""Reports in their places: written whole beside them, sealed with checksums, and never over a file that is not theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from casd.utils.atomic import locked, remove, remove_leftovers, temporary_beside
from casd.utils.disk import explaining_disk_errors
from casd.utils.errors import ConfigError, StoreError
from casd.utils.progress import say
from casd.utils.sealed import CHECKSUMS, Entries, checksums, is_whole, read_manifest, write_manifest


@contextmanager
def publishing(target: Path, what: str) -> Iterator[Path]:
    """Give a new, empty folder to write a report in; at the end of the block it takes the place of the report in `target`.

    Until then `target` stays as it is. Files in it that are not of the report stay, too. `checksums.json` lists the files
    of the report: what was not replaced when the process was killed does not match it, which readers say.

    Args:
        target: the folder of the report; there may be none yet.
        what: it is, for errors ("the report").

    Raises:
        StoreError: it cannot be written, or would overwrite a file that is not of the report.
    """
    target = target.resolve()
    with explaining_disk_errors(what, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        begun = temporary_beside(target)
        begun.mkdir()
        try:
            yield begun
            write_manifest(begun / CHECKSUMS, {"files": checksums(begun)})
            with locked(target.with_name(f".{target.name}.lock"), f"{what} in {target}, which another process is writing"):
                _put(begun, target)
        finally:
            remove(begun)


def is_published(folder: Path, files: Entries | None = None) -> bool:
    """Whether a report is whole, and has these files and no others of its own if they are given. Reads all its files."""
    sealed = _sealed(folder)
    return sealed is not None and files in (None, sealed) and is_whole(folder, sealed)


def check_output(folder: Path, marker: str) -> None:
    """Check that a report may be written to a folder that the user named.

    Args:
        folder: that does not exist, or is empty, or has an earlier report.
        marker: the file in `tables` by which such a report is known.

    Raises:
        ConfigError: it is a file, or has something else in it.
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
    """Move a finished report into its place, where there may be an earlier one."""
    if not target.exists():
        try:
            begun.rename(target)
        except OSError:
            if not target.is_dir():  # another process may have been first where there are no locks
                raise
        else:
            return
    new, old = read_manifest(begun / CHECKSUMS)["files"], _sealed(target)
    differing = [name for name, entry in new.items() if not is_whole(target, {name: entry})]
    if old == new and not differing:
        return
    if old is not None and (foreign := [name for name in differing if name not in old and (target / name).exists()]):
        raise StoreError(f"{target / foreign[0]} would be overwritten and is not of the report; move it to another folder.")
    # First, so that whatever was not replaced yet when this process is killed does not match.
    (begun / CHECKSUMS).replace(target / CHECKSUMS)
    for name in differing:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (begun / name).replace(target / name)
    for name in set(old or ()) - set(new):
        (target / name).unlink(missing_ok=True)
    if old == new:
        say(f"Replaced in {target}: {len(differing)} files that were damaged, changed or missing, such as {differing[0]}.")


def _sealed(folder: Path) -> Entries | None:
    """The files of the report in a folder; None if that is not known."""
    try:
        return read_manifest(folder / CHECKSUMS)["files"]
    except (StoreError, OSError):
        return None
