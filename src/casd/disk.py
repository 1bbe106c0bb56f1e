"""What can go wrong with a disk, told to the user in a line."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from casd.errors import StoreError


@contextmanager
def explaining_disk_errors(what: str, folder: Path) -> Iterator[None]:
    """Turn errors of the disk, while `what` ("stage inject") is written below `folder`, into a line for the user.

    The message promises that nothing half-written was left: the block removes what it had begun before the error leaves it.

    Raises:
        StoreError: the disk is full, a quota is exhausted, or `folder` cannot be written to. Other errors pass.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        if reason := _no_room(error):
            raise StoreError(
                f"{reason}: {what} needs more than the {_free_space(folder)} free on the disk of {folder}. "
                "Nothing half-written was left and what was finished is kept: make room and run again."
            ) from error
        if reason := _not_writable(error, folder):
            raise StoreError(f"Cannot write {what} to {folder}: {reason}. Choose a folder that can be written to.") from error
        raise


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        each = todo.pop()
        if each is not None and each not in seen:
            seen.append(each)
            todo += [each.__context__, each.__cause__]
            yield each


def _no_room(error: BaseException) -> str:
    """The system's name for a full disk or quota, if one is behind `error`; else "".

    Libraries written in Rust or C++ (safetensors, pyarrow) report it in the message of an error of their own.
    """
    for code in (errno.ENOSPC, errno.EDQUOT):
        reason = os.strerror(code)
        if any(getattr(each, "errno", None) == code or reason in str(each) for each in _causes(error)):
            return reason
    return ""


def _not_writable(error: BaseException, root: Path) -> str:
    """The system's reason why something below `root` could not be written, if that is behind `error`; else ""."""
    for each in _causes(error):
        if isinstance(each, OSError) and each.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR):
            path = Path(os.fsdecode(each.filename)) if isinstance(each.filename, str | bytes | os.PathLike) else root
            if path == root or root in path.parents or path in root.parents:
                return f"{os.strerror(each.errno)} ({path})"
    return ""


def _free_space(path: Path) -> str:
    while not path.exists():
        path = path.parent
    return readable_size(shutil.disk_usage(path).free)


def readable_size(n_bytes: int) -> str:
    """A number of bytes as "1.2 GiB" or "0.35 MiB"."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.2f} MiB"
