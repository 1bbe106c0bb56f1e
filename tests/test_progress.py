"""Progress: bars on a terminal, sparse lines in a log, nothing when off; stdout is never touched.

Run: pytest tests/test_progress.py
"""

from __future__ import annotations

import math
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

import casd.utils.progress
from casd.utils.errors import ConfigError
from casd.utils.progress import say, set_progress, track


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(casd.utils.progress, "time", clock)
    set_progress("auto")  # whatever runs in this process set before
    yield clock
    set_progress("auto")


def test_plain_lines_are_sparse_and_tell_what_how_far_how_long(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with track("run", total=3) as outer:
        clock.now += 4
        outer()
        with track("inject", total=100) as inner:
            for step in range(1, 101):
                clock.now += 0.25
                inner(note=f"loss {step}")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "run 1/3 (33%), 0:10 elapsed, 0:02 left | inject 24/100 (24%), 0:06 elapsed, 0:19 left, loss 24",
        "run 1/3 (33%), 0:20 elapsed, 0:00 left | inject 64/100 (64%), 0:16 elapsed, 0:09 left, loss 64",
    ]


def test_short_work_prints_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(20):
        with track("evaluate", total=9) as advance:
            clock.now += 9
            advance(9)
    assert capsys.readouterr().err == ""


def test_steps_of_an_earlier_run_do_not_enter_the_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with track("inject", total=300, done=280) as advance:
        clock.now += 10
        advance(10)
    assert capsys.readouterr().err == "inject 290/300 (97%), 0:10 elapsed, 0:10 left\n"


def test_reused_steps_do_not_enter_the_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with track("sweep", total=6) as advance:
        for _ in range(3):
            advance(reused=True)
        clock.now += 10
        advance()
    assert capsys.readouterr().err == "sweep 4/6 (67%), 0:10 elapsed, 0:20 left\n"


def test_an_estimate_replaces_the_mean_time_of_uneven_steps(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with track("sweep", total=6) as advance:
        for estimate in (math.nan, 75.0):
            clock.now += 10
            advance(seconds_left=estimate)
    assert capsys.readouterr().err.splitlines() == [
        "sweep 1/6 (17%), 0:10 elapsed, -:-- left",
        "sweep 2/6 (33%), 0:20 elapsed, 1:15 left",
    ]


def test_unknown_total(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with track("read", total=None) as advance:
        clock.now += 3700
        advance(5)
    assert capsys.readouterr().err == "read 5, 1:01:40 elapsed\n"


def test_off_silences_progress_but_not_messages(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    set_progress("off")
    with track("inject", total=3) as advance:
        clock.now += 100
        advance()
        say("waiting")
        say("12.3 s", progress=True)
    assert capsys.readouterr().err == "waiting\n"


def test_unknown_mode() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'plain'"):
        set_progress("plan")


SCRIPT = """
import sys, time
from casd.utils.progress import say, track
with track("run [all]", total=2) as outer:
    for name in ("inject", "evaluate"):
        with track(name, total=4) as inner:
            for step in range(4):
                time.sleep(0.1)
                inner(note=f"loss [{step}]")
                print("result", step)
        say(f"done [b]{name}[/b]")
        outer()
if "fail" in sys.argv:
    with track("broken", total=2):
        raise SystemExit(3)
"""


LONG_NAMES = """
from casd.utils.progress import track
with track("a_model_with_a_very_long_name_of_its_own, gradient_difference, seed 0", total=300) as outer:
    with track("removal of a backdoor with a very long name", total=300) as inner:
        inner(300, note="a note that has more than thirty characters")
        with track("evaluate", total=1):  # draws all
            pass
    outer(300)
"""


def on_a_terminal(*arguments: str, script: str = SCRIPT, columns: int = 120) -> tuple[int, str, str]:
    """Run a script with stderr on a pseudo-terminal and stdout on a pipe: exit code, stdout, what the terminal got."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=slave, text=True, env=environment
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(master)
    stdout = process.communicate()[0]
    return process.returncode, stdout, shown.decode()


def test_nested_bars_on_a_terminal() -> None:
    code, stdout, shown = on_a_terminal()
    assert code == 0
    assert stdout == "".join(f"result {step}\n" for step in range(4)) * 2
    for text in ("run [all]", "inject", "evaluate", "3/4 (75%)", "2/2 (100%)", "loss [2]", "done [b]inject[/b]", "left"):
        assert text in shown, text


@pytest.mark.parametrize("columns", [80, 120])
def test_long_names_are_shortened_in_the_middle_and_nothing_else_is_cut(columns: int) -> None:
    _, _, shown = on_a_terminal(script=LONG_NAMES, columns=columns)
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown))
    assert max(map(len, lines)) <= columns
    nested = [line for line in lines if line.startswith("remov")]
    assert any(re.match(r"remov.*….*name +\S+ +300/300 \(100%\) 0:0\d 0:00 left a note .*…", line) for line in nested)
    assert re.match(r"a_model.*….*seed 0 +\S+ +300/300 \(100%\) 0:0\d 0:00 left", [line for line in lines if line.strip()][-1])


def test_terminal_is_restored_when_the_work_fails() -> None:
    code, _, shown = on_a_terminal("fail")
    assert code == 3
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")  # the cursor is visible again
