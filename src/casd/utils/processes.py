"""Child processes: how they end with their parent, and how many threads their libraries use."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from casd.utils import ending


def end_with_parent() -> None:
    """In a child process, exit on Ctrl-C, on SIGTERM or SIGUSR1, and when the parent has ended, even if it was killed.

    After SIGTERM and SIGUSR1 a training first writes a checkpoint (`casd.utils.ending.saving`). Interrupted stages of the child
    resume on the next run, as after a kill.
    """
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    for number in ending.WARNINGS:
        signal.signal(number, ending.receive_in_worker)
    if hasattr(signal, "pthread_sigmask"):  # `interrupts_blocked` blocked Ctrl-C until this process can handle it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with_this_thread() -> None:
    """In a new process, before it executes a program: have it receive SIGTERM when the thread that starts it ends (Linux)."""
    if prctl := getattr(ctypes.CDLL(None), "prctl", None):
        prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextmanager
def threads_of_libraries(threads: int) -> Iterator[None]:
    """Set OMP_NUM_THREADS, unless it is lower already, for libraries imported and processes started in the block.

    Some libraries read it only once, when they are imported.
    """
    before = os.environ.get("OMP_NUM_THREADS", "")
    os.environ["OMP_NUM_THREADS"] = str(min(threads, int(before)) if before.isdecimal() else threads)
    try:
        yield
    finally:
        if before:
            os.environ["OMP_NUM_THREADS"] = before
        else:
            del os.environ["OMP_NUM_THREADS"]


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block, and in processes started in it until they can handle it (`end_with_parent`)."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def available_cpus() -> int:
    """Return the number of CPUs that this process may use: those of its job on a cluster, not all of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
