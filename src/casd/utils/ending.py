"""Exit cleanly on Ctrl-C, SIGTERM and SIGUSR1, even if a library swallows KeyboardInterrupt.

Libraries written in other languages turn KeyboardInterrupt into errors of their own, and Python itself drops it in some places
(such as a `__del__` method). The signal is therefore recorded, and `check` is called where a stage or run begins or fails.

Schedulers of clusters send SIGTERM or SIGUSR1 before a job's time is over. A training first writes a checkpoint (`saving`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from casd.utils.distributed import is_main, processes
from casd.utils.progress import stop_bars

WARNINGS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Signals that leave time to save work."""

_received = 0
_saving = 0
"""Number of open blocks of `saving`."""


@contextmanager
def orderly_end() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C, SIGTERM and SIGUSR1 in the block, and exit with 128 + the signal's number after it.

    A second signal of the same kind ends the process at once. Signals that are ignored or that the program already handles are
    left alone, as are WARNINGS under a launcher of several processes, which may wait for each other.

    Raises:
        SystemExit: 130, 143 or 138 after a signal, in place of any other exception of the block.
    """
    global _received
    _received = 0
    replaced: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        default_handlers: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
        if processes() == 1:
            default_handlers |= dict.fromkeys(WARNINGS, signal.SIG_DFL)
        replaced = {number: handler for number, handler in default_handlers.items() if signal.getsignal(number) is handler}
    for number in replaced:
        signal.signal(number, _receive)
    ended_by = 0
    try:
        yield
    except BaseException as error:
        if not _received and not isinstance(error, KeyboardInterrupt):
            raise
        ended_by = signal.SIGINT
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
        ended_by, _received = _received or ended_by, 0
    if ended_by:
        if is_main():
            what = "interrupted" if ended_by == signal.SIGINT else "terminated"
            print(
                f"casd: {what}; finished stages are kept, and the same command resumes from there.", file=sys.stderr, flush=True
            )
        sys.exit(128 + ended_by)


def check() -> None:
    """Raise KeyboardInterrupt if `orderly_end` received a signal whose exception was swallowed."""
    if _received:
        raise KeyboardInterrupt


def ask(question: str) -> str:
    """After Ctrl-C in `orderly_end`, print a question to stderr, and return the line that is typed in reply.

    Returns "" without asking if another signal was received or there is no terminal, and after a second Ctrl-C.
    """
    if _received != signal.SIGINT or not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return ""
    stop_bars()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            print(f"\n{question}", end=" ", file=sys.stderr, flush=True)
            return sys.stdin.readline().strip()
        return ""
    finally:
        signal.signal(signal.SIGINT, handler)


def _receive(number: int, frame: FrameType | None) -> None:
    global _received
    _received = number
    signal.signal(number, signal.SIG_DFL)
    if not (_saving and number in WARNINGS):
        raise KeyboardInterrupt


def receive_in_worker(number: int, frame: FrameType | None = None) -> None:
    """Handle one of WARNINGS in a worker of an engine: exit, in a block of `saving` after its work is saved."""
    global _received
    _received = number
    if not _saving:
        os._exit(128 + number)


@contextmanager
def saving() -> Iterator[None]:
    """In the block, WARNINGS raise nothing: it calls `requested`, saves its work, and calls `check`."""
    global _saving
    _saving += 1
    try:
        yield
    finally:
        _saving -= 1


def requested() -> bool:
    """Return True if a signal was received."""
    return bool(_received)
