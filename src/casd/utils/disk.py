"""Report errors of the operating system (disk space, permissions, memory, open files) in one line."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from casd.utils.errors import StoreError, first_line

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_REFUSED: Final = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
_LIMITS: Final = {
    errno.EMFILE: "this process may not have more files open; raise the limit (ulimit -n 4096)",
    errno.ENFILE: "the system may not have more files open; close other programs",
    errno.ENOMEM: "there is not enough memory; close other programs, raise a limit on memory (ulimit -v), or use smaller"
    " batches (casd plan says what a run needs)",
    errno.EFBIG: "a file would be larger than this process or the file system allows; raise the limit (ulimit -f unlimited)",
    errno.EAGAIN: "this user may not have more processes or threads; raise the limit (ulimit -u)",
}
"""Limits other than disk space, and what to do about them."""
_PHRASES: Final = {"can't start new thread": errno.EAGAIN, "failed to map segment": errno.ENOMEM}
"""How libraries report a limit in their own words."""
_FEW_INODES: Final = 100
"""Fewer free inodes than this count as none: removing the unfinished files has already freed some."""


@contextmanager
def explaining_disk_errors(what: str, folder: Path) -> Iterator[None]:
    """Turn errors of the operating system while `what` ("stage inject") is written below `folder` into one line.

    The message says that no partial files were left: the block has to remove them before it raises.

    Raises:
        StoreError: the disk is full, a quota or another limit is exhausted, or something below `folder` cannot be read or
            written. Other errors pass.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        code = _limit(error)
        if code in _FULL:
            raise StoreError(f"{os.strerror(code)}: {_no_room(code, what, folder)}") from error
        if code:
            raise StoreError(
                f"{os.strerror(code)} while {what} was written to {folder}: {_LIMITS[code]}, and run again. Nothing"
                " half-written was left and what was finished is kept."
            ) from error
        if refused := _refused(error, folder):
            path = _named(refused) or folder
            if _is_unreadable(path):
                raise StoreError(told(refused, path, reading=True)) from error
            raise StoreError(
                f"Cannot write {what} to {folder}: {os.strerror(refused.errno or 0)} ({path}). Choose a folder that can be"
                " written to."
            ) from error
        raise


def told(error: BaseException, path: Path | None = None, *, reading: bool = False) -> str:
    """Return one line about an error of the operating system: what failed, why, and what to do; "" for other errors.

    Args:
        error: an OSError or MemoryError, or a library's error that reports one in its message.
        path: the file, if the error does not name it.
        reading: True if the file was being read; otherwise this is inferred.
    """
    code = _limit(error)
    path = path or (_named(error) if isinstance(error, OSError) else None)
    if code in _FULL:
        return f"{os.strerror(code)}: {_no_room(code, str(path or 'a file'), path or Path.cwd())}"
    if code:
        return f"{os.strerror(code)}: {_LIMITS[code]}, and run again. What was finished is kept."
    if not isinstance(error, OSError):
        return ""
    reason = os.strerror(error.errno) if error.errno else first_line(error)
    if path is None:
        return f"The operating system reported an error: {reason}."
    if error.errno in (errno.EACCES, errno.EPERM):
        if reading or _is_unreadable(path):
            return f"Cannot read {path}: {reason}. Ask its owner for permission to read it (chmod a+rX)."
        return f"Cannot write {path}: {reason}. Ask its owner for permission to write there, or choose another folder."
    if error.errno == errno.EROFS:
        return f"Cannot write {path}: {reason}. Choose a folder that can be written to."
    return f"Cannot {'read' if reading else 'open'} {path}: {reason}."


def readable_size(n_bytes: int) -> str:
    """Format a number of bytes as "1.2 GiB" or "0.35 MiB"."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.2f} MiB"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        each = todo.pop()
        if each is not None and each not in seen:
            seen.append(each)
            todo += [each.__context__, each.__cause__]
            yield each


def _limit(error: BaseException) -> int:
    """Return the errno of a full disk, a quota or another limit if it caused `error`; else 0.

    Libraries written in Rust or C++ (safetensors, pyarrow, torch) report it only in the message of their own error.
    """
    causes = list(_causes(error))
    for code in (*_FULL, *_LIMITS):
        if any(isinstance(each, OSError) and each.errno == code for each in causes):
            return code
        if code != errno.EAGAIN and any(os.strerror(code) in str(each) for each in causes):
            return code
    if any(isinstance(each, MemoryError) for each in causes):
        return errno.ENOMEM
    return next((code for phrase, code in _PHRASES.items() if any(phrase in str(each) for each in causes)), 0)


def _no_room(code: int, what: str, folder: Path) -> str:
    """Say what is exhausted on the disk of `folder`, and what to do."""
    kept = "Nothing half-written was left and what was finished is kept"
    while not folder.exists():
        folder = folder.parent
    free = readable_size(shutil.disk_usage(folder).free)
    disk = os.statvfs(folder)
    if code == errno.ENOSPC and disk.f_files and disk.f_favail < _FEW_INODES:
        return (
            f"{what} needs more files than the disk of {folder} can have ({disk.f_favail} inodes are left, {free} are free)."
            f" {kept}: delete some files there and run again."
        )
    return f"{what} needs more than the {free} free on the disk of {folder}. {kept}: make room and run again."


def _refused(error: BaseException, root: Path) -> OSError | None:
    """Return the system's refusal to read or write something below `root`, if that caused `error`."""
    for each in _causes(error):
        if isinstance(each, OSError) and each.errno in _REFUSED:
            path = _named(each) or root
            if path == root or root in path.parents or path in root.parents:
                return each
    return None


def _named(error: OSError) -> Path | None:
    """Return the file that an error names."""
    return Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes | os.PathLike) else None


def _is_unreadable(path: Path) -> bool:
    """Return True if `path` is not readable; if it is, access must have been denied for writing."""
    try:
        return path.exists() and not os.access(path, os.R_OK)
    except OSError:  # a folder above it cannot be entered
        return True
