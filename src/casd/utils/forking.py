"""Work that need not be waited for, in a copy of this process; and how many threads there are in each process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")

Begin = Callable[..., Callable[[], Any]]
"""Takes a function and its arguments, and gives what to call for its result: `begin`, or `functools.partial`, which waits."""


def begin(function: Callable[..., T], *arguments: Any) -> Callable[[], T]:
    """Begin work in a fork of this process, which has all that was imported and read; to call what this gives waits for it.

    Where there is no safe fork to be had, or it was killed, as it is when memory runs out, the work is done in that call.
    It pays where there is one thread in each process: with more they wait for each other.

    Args:
        function: what it returns, or raises, has to be one that can be pickled.
        arguments: of the function.
    """
    here = partial(function, *arguments)
    if not _can_fork():
        return here
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    copy = context.Process(target=_work, args=(here, sender), daemon=True)  # which an error here takes with it
    try:
        copy.start()
    except OSError:  # too many processes, or too little memory
        return here
    sender.close()  # the copy alone has it now: its end is that of the pipe

    def wait() -> T:
        try:
            result, error = receiver.recv()
        except (EOFError, OSError):  # OSError: it was killed while it told
            return here()
        if error is not None:
            raise error
        return result

    return wait


def _can_fork() -> bool:
    """Only on Linux do the system's libraries bear it; and another thread may hold a lock, which the copy would wait for."""
    return sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1 and threading.active_count() == 1


def end_with_parent() -> None:
    """In a child process: end at once on Ctrl-C or SIGTERM, and when the parent has ended, even if it was killed.

    What the child had begun is left as a killed process leaves it, from where the next run goes on.
    """
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):  # see `casd.pipeline.sweep`: Ctrl-C was held back until this process is ready for it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(function: Callable[[], object], sender: Connection) -> None:
    """In the copy: tell what comes of the work."""
    end_with_parent()
    try:
        outcome: tuple[object, Exception | None] = function(), None
    except Exception as error:
        outcome = None, error
    sender.send(outcome)


@contextmanager
def threads_of_libraries(threads: int) -> Iterator[None]:
    """What is imported, and the processes that are started, in the block take so many threads.

    Their environment says so: some libraries look only there, and only once. What it said before stands.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = before or str(threads)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
