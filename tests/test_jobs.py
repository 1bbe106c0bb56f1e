"""Many runs: in order, each once, also when some fail; and several at once in processes of their own.

Run: python -m pytest tests/test_jobs.py
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from casd.compose import load_config
from casd.config import Config
from casd.errors import CasdError, ConfigError
from casd.jobs import Outcome, _injections_first, run_all


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(["experiment=smoke", "runtime.progress=off"])


def make(config: Config) -> Outcome:
    """Says where it was made, and fails with the seed 1."""
    if config.seed == 1:
        return Outcome(None, "seed 1 is no good")
    return Outcome(Path(f"{config.seed}-{config.runtime.threads}-{os.environ.get('OMP_NUM_THREADS')}-{os.getpid()}"), "", 2, 3)


def be_killed(config: Config) -> Outcome:
    os._exit(9)


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
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    outcomes = run_all(seeds(config, 3, 1, 0), make, jobs=2, description="")
    assert [each.error for each in outcomes] == ["", "seed 1 is no good", ""]
    parts = [str(each.folder).split("-") for each in outcomes if each.folder]
    assert [part[0] for part in parts] == ["3", "0"]
    assert {part[1] for part in parts} == {part[2] for part in parts} == {"3"}
    assert str(os.getpid()) not in {part[3] for part in parts}
    assert "OMP_NUM_THREADS" not in os.environ


def test_runs_that_share_an_injection_do_not_stand_beside_each_other(config: Config) -> None:
    runs = [replace(each, name=name) for each in seeds(config, 0, 5) for name in ("a", "b")]
    assert [(each.seed, each.name) for each in _injections_first(runs)] == [(0, "a"), (5, "a"), (0, "b"), (5, "b")]


def test_a_process_that_is_killed_is_told(config: Config) -> None:
    with pytest.raises(CasdError, match="was killed, perhaps because memory ran out"):
        run_all(seeds(config, 0, 2), be_killed, jobs=2, description="")


def test_not_under_a_launcher(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"runtime\.jobs=1"):
        run_all([config], make, jobs=2, description="")
