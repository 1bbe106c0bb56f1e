"""The engine ray, on this machine.

Run: python -m pytest tests/test_ray.py   (skipped without ray)
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests import calls
from tests.sweep_to_scores import ended, results, start_sweep

from casd.engines import make_engine
from casd.utils.errors import ConfigError

pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
RAY = {"name": "ray", "gpus_per_unit": 0}


def test_a_sweep_ends_as_without_ray(tmp_path: Path) -> None:
    for name, engine in (("ray", "ray"), ("local", "local")):
        sweep = start_sweep(tmp_path / name, f"engine={engine}", "engine.workers=2")
        said, errors = sweep.communicate(timeout=600)
        assert said == "all runs are finished\n", errors
        made = [key for keys in ended(tmp_path / name) for key in keys]
        assert len(made) == len(set(made))
    assert results(tmp_path / "ray") == results(tmp_path / "local")


def test_calls_run_in_actors_and_one_that_is_lost_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with make_engine(RAY | {"workers": 2}).open(tmp_path) as executor:
        seen = [future.result(300) for future in [executor.submit(calls.where, 0.5) for _ in range(4)]]
        assert len({each["process"] for each in seen}) == 2
        with pytest.raises(ValueError, match="of the call"):
            executor.submit(calls.fail).result(300)
        assert "killed twice" in str(executor.submit(calls.die).exception(300))
        flag = tmp_path / "flag"
        assert executor.submit(calls.die_with_parent_once, str(flag)).result(300) == "alive"
        assert executor.submit(calls.where, 0).result(300)
    assert capsys.readouterr().err.count("Ray: a worker was lost; another takes its place.") == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workers": 1000}, r"engine\.workers=1000 with engine\.cpus=1 needs 1000 CPUs; Ray has \d+\.$"),
        (
            {"gpus_per_unit": 9},
            r"engine\.workers=1 with engine\.gpus_per_unit=9 needs 9 GPUs; Ray has \d+, unless runtime\.device=cpu",
        ),
        ({"address": "auto"}, r"Ray does not answer at engine\.address=auto: "),
    ],
    ids=["workers", "GPUs", "address"],
)
def test_what_ray_does_not_have_is_told_in_a_line(options: dict[str, object], says: str, tmp_path: Path) -> None:
    engine = make_engine(RAY | options)
    with pytest.raises(ConfigError, match=says) as caught, engine.open(tmp_path):
        pass
    assert "\n" not in str(caught.value)
