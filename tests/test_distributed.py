"""Two processes against one, on the CPU through gloo, the same losses, rates and statistics.

Run: python -m pytest tests/test_distributed.py
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PATHS = os.pathsep.join(map(str, (ROOT, ROOT / "src")))  # the code beside these tests, wherever another is installed


def launched(processes: int, *arguments: str, folder: Path, sharded: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--module"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS, "ACCELERATE_USE_FSDP": str(sharded).lower()}
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    found = {}
    for name, processes, micro_batch_size in (("one", 1, 0), ("replicated", 2, 2), ("sharded", 2, 3)):
        out = folder / f"{name}.json"
        arguments = ("tests.two_processes", str(out), str(micro_batch_size))
        done = launched(processes, *arguments, folder=folder, sharded=name == "sharded")
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(out.read_text())
        assert (found[name]["processes"], found[name]["sharded"]) == (processes, name == "sharded")
    return found


@pytest.mark.parametrize("run", ["injection", "removal"])
@pytest.mark.parametrize("way", ["replicated", "sharded"])
def test_the_loss_curves_agree(results: dict[str, dict[str, Any]], way: str, run: str) -> None:
    """Full weights (injection) and an adapter (removal), the first term's own gradient norm included."""
    one, two = results["one"][run], results[way][run]
    assert len(one) == len(two) > 5
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("way", ["replicated", "sharded"])
def test_measurements_agree(results: dict[str, dict[str, Any]], way: str) -> None:
    one, two = results["one"], results[way]
    assert two["guard"] == pytest.approx(one["guard"], abs=1e-4)
    assert (two["asr"], two["generated"]) == (one["asr"], one["generated"])
    assert two["probability"] == pytest.approx(one["probability"], abs=1e-4)
    assert two["clean_loss"] == pytest.approx(one["clean_loss"], abs=1e-4)
    assert two["statistics"].keys() == one["statistics"].keys()
    for name, values in one["statistics"].items():
        assert two["statistics"][name] == pytest.approx(values, abs=1e-3, rel=1e-3), name


def test_a_comparison_with_the_model_before_agrees(results: dict[str, dict[str, Any]]) -> None:
    """NPO and the KL in bfloat16: before the first step the ratio is 1 and the KL 0 in both, whatever the rounding."""
    one, two = results["one"], results["replicated"]
    assert one["refused"] == two["refused"] == ""
    assert len(one["reference"]) == len(two["reference"]) == 4
    for expected, found in zip(one["reference"], two["reference"], strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    for way in (one, two):
        start = way["reference"][0]
        assert start["loss/forget"] == pytest.approx(2 / 0.01 * math.log(2), rel=1e-6)
        assert start["loss/retain"] == pytest.approx(0, abs=1e-6)
        assert start["gradient_norm"] > 1
    assert two["kept_step"] == one["kept_step"]
    assert [record["step"] for record in two["validation"]] == [0, 3, 4]
    for expected, found in zip(one["validation"], two["validation"], strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_comparison_with_the_model_before_needs_it_whole(results: dict[str, dict[str, Any]]) -> None:
    assert "choose an objective without a reference" in results["sharded"]["refused"]
    assert results["sharded"]["reference"] == []


@pytest.mark.parametrize("way", ["one", "replicated", "sharded"])
def test_a_removal_is_taken_back_and_read_again(results: dict[str, dict[str, Any]], way: str) -> None:
    removed, restored, again = results[way]["clean_loss"]
    assert again == pytest.approx(removed, abs=1e-6)
    assert abs(restored - removed) > 1e-4
