"""Write files and folders atomically: other processes see them complete or not at all.

Everything is written under a unique temporary name and then renamed into place. Locks only avoid duplicate work; correctness
does not depend on them, because not every shared file system has them. A lock's file names the process that last held it.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import glob
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from casd.utils.progress import say

WAIT_NOTICE_S = 3.0
"""Seconds to wait for another process's lock before saying so."""
ABANDONED_S: Final = 7 * 24 * 3600.0
"""Age in seconds after which a temporary file of another host counts as abandoned."""
_POLL_S: Final = (0.1, 2.0)
"""Shortest and longest time between two attempts to take a lock; on a network file system each asks the server."""
_SUFFIX: Final = ".partial"


def temporary_beside(path: Path) -> Path:
    """Return a unique hidden name beside `path`: `.NAME.HOST-PID-RANDOM.partial`."""
    return path.with_name(f"{_prefix(path)}{_host()}-{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}")


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files and folders beside `path` whose processes are dead.

    Processes of other hosts cannot be checked: their files are removed when they are a week old.
    """
    for each in path.parent.glob(f"{glob.escape(_prefix(path))}*{_SUFFIX.removeprefix('.')}"):
        if is_leftover(each, path):
            remove(each)


def is_leftover(temporary: Path, path: Path) -> bool:
    """Return True if the process that made a temporary file or folder for `path` is dead; see `remove_leftovers`."""
    owner = temporary.name.removeprefix(_prefix(path)).removesuffix(_SUFFIX.removeprefix(".")).removesuffix(".")
    return _is_leftover(temporary, owner)


def remove(path: Path) -> None:
    """Remove a file or a folder with its contents, and ignore errors."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def unfinished_beside(folder: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside `folder`, to be filled and renamed; what is left of it is removed after the block."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    begun = temporary_beside(folder)
    begun.mkdir()
    try:
        yield begun
    finally:
        remove(begun)


@contextmanager
def locked(file: Path, waiting_for: str) -> Iterator[None]:
    """Hold a lock on `file` in the block. The operating system releases it when the process dies.

    If the file system has no locks, or the file cannot be opened, the block runs without one.

    Args:
        file: the lock, a file that is not removed.
        waiting_for: what another process is doing, printed after WAIT_NOTICE_S ("stage inject, which … is making").
    """
    with ExitStack() as opened:
        with suppress(OSError):
            lock = opened.enter_context(file.open("ab", buffering=0))
            _wait_for(lock, waiting_for)
            lock.truncate(0)
            lock.write(f"{platform.node()}, pid {os.getpid()}".encode())
        yield


@contextmanager
def held(file: Path) -> Iterator[bool]:
    """Hold a lock on `file` in the block, without waiting. Yield False if another process has it, or there are no locks."""
    with ExitStack() as opened:
        try:
            fcntl.flock(opened.enter_context(file.open("ab")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def is_locked(file: Path) -> bool:
    """Return True if a process holds the lock `file`; False if that is not known."""
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def holder(file: Path) -> str:
    """Return who holds a lock, as "HOST, pid PID"; "" if that is not known. If nobody holds it: who did last."""
    with suppress(OSError):
        return file.read_text(encoding="utf-8", errors="replace")
    return ""


def _wait_for(file: IO[bytes], waiting_for: str) -> None:
    """Wait until this process holds the lock. Closing the file releases it."""
    notice: float | None = time.monotonic() + WAIT_NOTICE_S
    pause, longest = _POLL_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if notice is not None and time.monotonic() >= notice:
                by = holder(Path(file.name))
                say(f"Waiting for {waiting_for}{f': {by}' if by else ''}.")
                notice = None
            time.sleep(pause)
            pause = min(1.2 * pause, longest)
        else:
            return


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) under a temporary name, then rename it."""
    temporary = temporary_beside(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        remove(temporary)
        raise


def flush(path: Path) -> None:
    """Flush a file's contents, or a folder's list of names, to the disk; some network file systems cannot flush folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


def flush_all(folder: Path) -> None:
    """`flush` a folder and everything in it."""
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)


def give_default_rights(folder: Path, like: Path) -> None:
    """Give the files in `folder` the permissions of the file `like`, which was created by `open` and so follows the umask.

    Some libraries (safetensors) create files that only their owner can read.
    """
    mode = like.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)


def _prefix(path: Path) -> str:
    return f".{path.name[:120]}."  # a file's name has at most 255 bytes


@functools.cache
def _host() -> str:
    """Name what this process's number is unique in: the host since it was started, or the container.

    Hosts may have the same name, and so may containers, whose processes do not see each other.
    """
    facts = [platform.node()]
    with suppress(OSError):  # Linux
        facts += [Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").readlink())]
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9]', '_', platform.node())[:32]}_{digest}"


def _is_leftover(path: Path, owner: str) -> bool:
    """Return True if the process that made a temporary file is dead. `owner` is the part HOST-PID-RANDOM of its name."""
    if not owner:  # written by an earlier version, whose process would hold the lock
        return True
    parts = re.fullmatch(r"(\w+)-(\d+)-[0-9a-f]{8}", owner)
    if parts is None:
        return False
    if parts[1] == _host():
        return not _is_alive(int(parts[2]))
    try:
        newest = max(each.stat().st_mtime for each in (path, *path.rglob("*")))
    except OSError:
        return False
    return time.time() - newest > ABANDONED_S


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # the process belongs to another user
        return True
    return True
