"""Work in a copy of the process: its results and errors come back, and where there is no copy it is done all the same.

Run: pytest tests/test_forking.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from casd.utils import forking
from casd.utils.errors import StoreError
from casd.utils.forking import begin

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are made on Linux alone")


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process of its own: the test runner may have threads, which the work here does not share a lock with."""
    monkeypatch.setattr(forking, "_can_fork", lambda: True)


def whoami(*values: object) -> tuple[int, tuple[object, ...]]:
    return os.getpid(), values


def refuse() -> None:
    raise StoreError("The disk is full.")


def die_in(parent: int) -> int:
    if os.getpid() != parent:
        os._exit(9)
    return parent


@pytest.mark.usefixtures("forks")
def test_results_come_from_a_copy() -> None:
    frame = pd.DataFrame({"name": ["a", "b"] * 50_000, "value": 0.5})  # more than a pipe holds at once
    waiting = [begin(whoami, number, frame) for number in range(3)]
    found = [wait() for wait in waiting]
    assert os.getpid() not in {process for process, _ in found}
    for number, (_, (first, second)) in enumerate(found):
        assert first == number
        pd.testing.assert_frame_equal(second, frame)  # type: ignore[arg-type]


@pytest.mark.usefixtures("forks")
def test_errors_come_from_a_copy() -> None:
    with pytest.raises(StoreError, match="The disk is full"):
        begin(refuse)()


@pytest.mark.usefixtures("forks")
def test_work_of_a_copy_that_was_killed_is_done_here() -> None:
    assert begin(die_in, os.getpid())() == os.getpid()


def test_nothing_is_begun_where_forks_are_not_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    assert forking._can_fork()
    for where, name, value in (
        (os, "sched_getaffinity", lambda _: {0}),
        (threading, "active_count", lambda: 2),
        (sys, "platform", "darwin"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, value)
            assert begin(whoami)() == (os.getpid(), ())


def test_an_error_does_not_wait_for_the_copy(tmp_path: Path) -> None:
    """Nor is the copy left behind."""
    pid = tmp_path / "pid"
    program = (
        "import os, time\n"
        "from casd.utils import forking\n"
        "forking._can_fork = lambda: True\n"
        "def work():\n"
        f"    open({str(pid)!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "forking.begin(work)\n"
        f"while not os.path.exists({str(pid)!r}) or not os.path.getsize({str(pid)!r}):\n"
        "    time.sleep(0.01)\n"
        "raise SystemExit(3)\n"
    )
    started = time.monotonic()
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 3
    assert time.monotonic() - started < 30
    assert not Path("/proc", pid.read_text()).exists()
