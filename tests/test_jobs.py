"""Many runs: in order, each once, also when some fail; and several at once in processes of their own.

Run: python -m pytest tests/test_jobs.py
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from tests.jobs_made import make

from casd.cli import sweep
from casd.config import Config
from casd.config.compose import load_config
from casd.pipeline.sweep import KILLED, Outcome, _injections_first, run_all, tell_failures
from casd.utils.errors import CasdError, ConfigError


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(["experiment=smoke", "runtime.progress=off"])


def seeds(config: Config, *values: int) -> list[Config]:
    return [replace(config, seed=seed) for seed in values]


def test_runs_come_back_in_order_equal_ones_once_and_errors_with_them(config: Config) -> None:
    made: list[int] = []

    def counting(each: Config) -> Outcome:
        made.append(each.seed)
        return make(each)

    outcomes = run_all(seeds(config, 2, 1, 0, 2), counting, jobs=1, description="")
    assert made == [2, 1, 0]
    assert [str(each.folder)[0] for each in outcomes] == ["2", "N", "0", "2"]
    assert outcomes[1].error == "seed 1 is no good"


def test_several_at_once_are_in_other_processes_with_their_share_of_the_threads(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them is killed, and the others are made."""
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    outcomes = run_all(seeds(config, 3, 1, 5, 0), make, jobs=2, description="")
    assert [each.error for each in outcomes] == ["", "seed 1 is no good", KILLED, ""]
    parts = [str(each.folder).split("-") for each in outcomes if each.folder]
    assert [part[0] for part in parts] == ["3", "0"]
    assert {part[1] for part in parts} == {part[2] for part in parts} == {"3"}
    assert str(os.getpid()) not in {part[3] for part in parts}
    assert "OMP_NUM_THREADS" not in os.environ


def test_runs_that_share_an_injection_do_not_stand_beside_each_other(config: Config) -> None:
    runs = [replace(each, name=name) for each in seeds(config, 0, 5) for name in ("a", "b")]
    assert [(each.seed, each.name) for each in _injections_first(runs)] == [(0, "a"), (5, "a"), (0, "b"), (5, "b")]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("a\nbug"), SystemExit(3), torch.OutOfMemoryError("no room")])
def test_a_run_that_raises_anything_is_recorded_and_the_others_are_made(
    error: BaseException, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, runtime=replace(config.runtime, output=str(tmp_path)))

    def make(config: Config) -> Any:
        if config.seed == 1:
            raise error
        return SimpleNamespace(folder=Path(str(config.seed)), store=SimpleNamespace(events=()))

    monkeypatch.setattr(sweep, "execute", make)
    outcomes = run_all(seeds(config, 0, 1, 2), sweep._try_run, jobs=1, description="")
    assert [each.folder is None for each in outcomes] == [False, True, False]
    [log] = (tmp_path / "smoke" / "failed").iterdir()
    assert outcomes[1].error.startswith(f"{type(error).__name__}: {' '.join(str(error).split())}")
    assert str(log) in outcomes[1].error
    assert "\n" not in outcomes[1].error
    assert "in make\n    raise error" in log.read_text()


def test_ctrl_c_is_no_failed_run(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(config: Config) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "execute", make)
    with pytest.raises(KeyboardInterrupt):
        run_all(seeds(config, 0, 1), sweep._try_run, jobs=1, description="")


def test_what_failed_is_listed_with_the_command_that_makes_it_again() -> None:
    good = (("seed=0",), Outcome(Path("0")))
    bad = [((f"seed={seed}", "a=[b, c]"), Outcome(None, f"no {seed}")) for seed in (1, 2)]
    tell_failures([good])
    with pytest.raises(CasdError) as error:
        tell_failures([good, *bad])
    assert str(error.value).splitlines() == [
        "2 of 3 runs failed; the others are finished, and the same command reuses them.",
        "  casd run seed=1 'a=[b, c]': no 1",
        "  casd run seed=2 'a=[b, c]': no 2",
    ]
    with pytest.raises(CasdError, match=r"^no 1$"):
        tell_failures([bad[0], bad[0]])


PROGRAM = """
import os, signal, sys, time
from dataclasses import replace
from pathlib import Path
from casd.cli import main as cli
from casd.config.compose import load_config
from casd.pipeline.sweep import Outcome, run_all

def sleep(config):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(100)
    return Outcome(None, "slept")

def work(options):
    config = load_config(["experiment=smoke", "runtime.progress=off"])
    run_all([replace(config, seed=seed) for seed in range(4)], sleep, jobs=2, description="")

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cli._dispatch = work
    cli.main(["list"])
"""


def is_running(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_no_process_outlives_its_parent(number: int, code: int, tmp_path: Path) -> None:
    """The signal is sent to the parent alone: from a terminal Ctrl-C reaches all processes, from elsewhere it does not."""
    program, begun = tmp_path / "program.py", tmp_path / "begun"
    program.write_text(PROGRAM)
    begun.mkdir()
    with subprocess.Popen([sys.executable, program, begun], stderr=subprocess.PIPE, text=True) as parent:
        until(lambda: len(list(begun.iterdir())) == 2 or parent.poll() is not None)
        parent.send_signal(number)
        said = parent.communicate(timeout=60)[1]
    assert parent.returncode == code
    assert "Traceback" not in said
    if code > 0:
        assert said.count("casd: ") == 1
        assert "the same command resumes from there" in said
    children = [int(path.name) for path in begun.iterdir()]
    assert len(children) == 2
    until(lambda: not any(map(is_running, children)))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.05)


def test_not_under_a_launcher(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"runtime\.jobs=1"):
        run_all([config], make, jobs=2, description="")
