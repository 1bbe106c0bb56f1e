"""Ctrl-C and SIGTERM: an orderly end of the process, whatever a library makes of the exception that they raise.

Libraries written in other languages turn KeyboardInterrupt into errors of their own, and Python itself drops it in some places
(a `__del__` method, for one). So the signal is remembered, and looked at where a stage or a run of a sweep begins or fails.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from casd.utils.distributed import is_main, processes

_received = 0


@contextmanager
def orderly_end() -> Iterator[None]:
    """Inside the block, Ctrl-C and SIGTERM raise KeyboardInterrupt; after it the process exits with 128 + the signal's number.

    A second signal of the kind ends the process at once. A signal that is ignored, or that the program handles already, is left
    alone; so is SIGTERM under a launcher of several processes, which may wait for each other.

    Raises:
        SystemExit: with 130 or 143, in place of whatever else comes out of the block, where there was a signal.
    """
    global _received
    _received = 0
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        usual = {signal.SIGINT: signal.default_int_handler} | ({signal.SIGTERM: signal.SIG_DFL} if processes() == 1 else {})
        before = {number: handler for number, handler in usual.items() if signal.getsignal(number) is handler}
    for number in before:
        signal.signal(number, _receive)
    ended_by = 0
    try:
        yield
    except BaseException as error:
        if not _received and not isinstance(error, KeyboardInterrupt):
            raise
        ended_by = signal.SIGINT
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        ended_by, _received = _received or ended_by, 0
    if ended_by:
        if is_main():
            what = "interrupted" if ended_by == signal.SIGINT else "terminated"
            print(
                f"casd: {what}; finished stages are kept, and the same command goes on from there.", file=sys.stderr, flush=True
            )
        sys.exit(128 + ended_by)


def check() -> None:
    """Raise KeyboardInterrupt if a signal was received in the block of `orderly_end` and something swallowed its exception."""
    if _received:
        raise KeyboardInterrupt


def _receive(number: int, frame: FrameType | None) -> None:
    global _received
    _received = number
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt
