"""Child processes: how they end with their parent, and how many threads their libraries use."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def end_with_parent() -> None:
    """In a child process, exit at once on Ctrl-C, on SIGTERM, and when the parent has ended, even if it was killed.

    Interrupted stages of the child resume on the next run, as after a kill.
    """
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):  # `casd.pipeline.sweep` blocked Ctrl-C until this process can handle it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def threads_of_libraries(threads: int) -> Iterator[None]:
    """Set OMP_NUM_THREADS, unless it is already set, for libraries imported and processes started in the block.

    Some libraries read it only once, when they are imported.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = before or str(threads)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
