"""Ctrl-C and SIGTERM end the process with their codes, also where a library has swallowed the exception.

Run: python -m pytest tests/test_ending.py
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from casd.utils import ending
from casd.utils.ending import orderly_end
from casd.utils.errors import ModelError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """Of a program started from a terminal: a script's background commands ignore Ctrl-C, and so may these tests."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def passed_on(number: int) -> None:
    os.kill(os.getpid(), number)


def turned_into_an_error(number: int) -> None:
    try:
        os.kill(os.getpid(), number)
    except BaseException as error:
        raise ModelError("cannot be read: KeyboardInterrupt") from error


def swallowed(number: int) -> None:
    with contextlib.suppress(BaseException):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("end", [passed_on, turned_into_an_error, swallowed])
@pytest.mark.parametrize(("number", "code", "what"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_a_signal_ends_the_process(
    end: Callable[[int], None], number: int, code: int, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as exit_, orderly_end():
        end(number)
    assert exit_.value.code == code
    assert capsys.readouterr().err == f"casd: {what}; finished stages are kept, and the same command resumes from there.\n"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    ending.check()  # what comes after it in the same process is not ended


def test_what_was_swallowed_is_raised_where_the_next_stage_begins() -> None:
    with pytest.raises(SystemExit), orderly_end():
        ending.check()
        swallowed(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            ending.check()


def test_nothing_is_made_of_other_errors() -> None:
    with pytest.raises(ModelError), orderly_end():
        raise ModelError("no model")
    with orderly_end():
        pass
    ending.check()


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As of a command that a script runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with orderly_end():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
