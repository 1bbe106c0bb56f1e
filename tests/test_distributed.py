"""Two processes against one, on the CPU through gloo: the same losses, rates and statistics; and launches that are refused.

Run: python -m pytest tests/test_distributed.py
     python -m pytest tests/test_distributed.py -m slow   for the whole `casd run` of every launcher
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tests import two_processes

from casd.analysis.results import RunTables
from casd.cli import sweep
from casd.cli.main import main
from casd.config.compose import load_config
from casd.pipeline.run import Run
from casd.training.checkpoints import TrainingLog
from casd.utils import distributed
from casd.utils.errors import CasdError, ConfigError
from casd.utils.progress import set_progress
from casd.utils.runtime import Runtime
from tiny import SMALLER, tiny

ROOT = Path(__file__).parent.parent
PATHS = os.pathsep.join(map(str, (ROOT, ROOT / "src")))  # the code beside these tests, wherever another is installed


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "--module")
ACCELERATE = ("accelerate.commands.launch", "--num_processes=2", "--main_process_port=0")


def started(launcher: tuple[str, ...], *arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What became of `python -m` with a launcher, if any, and a module and its arguments."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS, **environment}
    command = [sys.executable, "-m", *launcher, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400, check=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    found = {}
    for name, processes, micro_batch_size in (("one", 1, 0), ("replicated", 2, 2), ("sharded", 2, 3)):
        out = folder / f"{name}.json"
        if processes == 1:
            two_processes.main(out, micro_batch_size)
        else:
            arguments = ("tests.two_processes", str(out), str(micro_batch_size))
            sharding = str(name == "sharded").lower()
            done = started(TORCHRUN, *arguments, folder=folder, ACCELERATE_USE_FSDP=sharding)
            assert done.returncode == 0, done.stderr
        found[name] = json.loads(out.read_text())
        assert (found[name]["processes"], found[name]["sharded"]) == (processes, name == "sharded")
    found["sketch"] = json.loads((folder / "sharded.sketch").read_text())
    set_progress("auto")
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


@pytest.mark.parametrize("way", ["one", "replicated", "sharded"])
def test_all_weights_are_restored_after_a_forward_pass(results: dict[str, dict[str, Any]], way: str) -> None:
    before, after = results[way]["copied"]
    assert after == before
    assert before == pytest.approx(results["one"]["copied"][0], abs=1e-4)


def test_processes_draw_different_dropout_masks(results: dict[str, dict[str, Any]]) -> None:
    [first], [second] = results["replicated"]["dropped"]
    assert first != second
    assert first == pytest.approx(second, rel=0.2)


def test_a_sharded_model_has_the_sketch_of_a_whole_one(results: dict[str, dict[str, Any]]) -> None:
    """Two processes, each with half of every parameter; full weights and an adapter."""
    found = results["sketch"]
    assert found["sharded"] == {"full": True, "lora": True}
    for kind in ("full", "lora"):
        expected = torch.tensor(found["whole"][kind])
        assert expected.norm() > 1
        for rank in range(2):
            torch.testing.assert_close(torch.tensor(found["divided"][rank][kind]), expected, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- whole runs

WHOLE = ["backdoor=[french_a,refusal]", "model.vocab_size=400", *SMALLER]


def compare(one: Run, two: Run) -> None:
    """Hold two runs of the same stages against each other: training curves, and every table of the score."""
    for stage in (one.graph.inject, *one.graph.unlearn.values()):  # `two` has them under the same keys
        expected, found = (TrainingLog.read(run.store.file(stage, "log.json")) for run in (one, two))
        for kind in ("steps", "guard"):
            for record, other in zip(getattr(expected, kind), getattr(found, kind), strict=True):
                assert other == pytest.approx(record, abs=1e-4, rel=1e-4)
    expected, found = (RunTables.read(run.store.folder(run.graph.score, verify=True)) for run in (one, two))
    for name in ("asr", "states", "transfer", "casd", "casd_layers", "baselines", "samples", "curves"):
        tables = [getattr(each, name).drop(columns="train_seconds", errors="ignore") for each in (expected, found)]
        pd.testing.assert_frame_equal(*tables, check_exact=False, atol=1e-4, rtol=1e-3, obj=name)


def executed(run: Run, end: str) -> list[str]:
    run.run_to(end)
    return [str(event.stage) for event in run.store.events if event.outcome == "executed"]


@pytest.mark.slow
@pytest.mark.usefixtures("process_settings")
def test_a_run_in_two_processes_leaves_the_store_of_one(tmp_path: Path) -> None:
    one, two = (Run(load_config(tiny(tmp_path / name, *WHOLE))) for name in ("one", "two"))
    done = started(TORCHRUN, "casd", "score", *tiny(tmp_path / "two", *WHOLE), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(executed(one, "score")) == 19
    assert executed(two, "score") == []  # one process goes on from it
    compare(one, two)


@pytest.mark.slow
@pytest.mark.usefixtures("process_settings")
@pytest.mark.parametrize(
    ("launcher", "environment"),
    [
        (TORCHRUN, {}),
        (TORCHRUN, {"ACCELERATE_USE_FSDP": "true"}),
        ((*ACCELERATE, "--multi_gpu", "-m"), {}),
        ((*ACCELERATE, "--use_fsdp", "-m"), {}),
    ],
    ids=["torchrun", "torchrun-fsdp", "accelerate", "accelerate-fsdp"],
)
def test_every_launcher_makes_the_run_of_one_process(
    tmp_path: Path, launcher: tuple[str, ...], environment: dict[str, str]
) -> None:
    """With all controls of the smallest run, up to the report; the removed models are kept and read again."""
    overrides = ["runtime.save_models=[injected,removed]"]
    one, two = (Run(load_config(tiny(tmp_path / name, *overrides))) for name in ("one", "two"))
    done = started(launcher, "casd", "run", *tiny(tmp_path / "two", *overrides), folder=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert (two.folder / "report.html").is_file()
    assert len(executed(one, "report")) == 32
    assert executed(two, "report") == []
    compare(one, two)
    saved = "model/model.safetensors"
    assert two.store.file(two.graph.inject, saved).stat().st_size == one.store.file(one.graph.inject, saved).stat().st_size


@pytest.mark.slow
def test_out_of_memory_in_one_of_two_processes_is_said(tmp_path: Path) -> None:
    done = started(TORCHRUN, "tests.two_processes_memory", *tiny(tmp_path, *WHOLE), folder=tmp_path)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("casd: ")]
    assert said[0].startswith("casd: process 1: Out of memory in inject llama3_tiny, seed 0 with 6 texts at once: CUDA out of")
    assert "Set runtime.micro_batch_size=3 or less" in said[0]
    assert not [path for path in (tmp_path / "store" / "inject").iterdir() if not path.name.startswith(".")]


# ---------------------------------------------------------------- launches that are refused

LAUNCHED = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the variables of a launcher, and no others of its kind."""
    for name in [*LAUNCHED, *(name for name in os.environ if name.startswith(("ACCELERATE_", "PMI_", "OMPI_", "MV2_")))]:
        monkeypatch.delenv(name, raising=False)

    def set_all(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        # as `accelerate launch --num_processes 2` leaves them on a machine without GPUs
        (
            {"ACCELERATE_USE_CPU": "False", "ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
            "to start several processes and started one",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE is 2 and WORLD_SIZE is not set"),
        ({"PMI_SIZE": "4"}, "PMI_SIZE is 4 and WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({**LAUNCHED, "ACCELERATE_MIXED_PRECISION": "bf16"}, "--mixed_precision no"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "--mixed_precision no"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "runtime.compile=true"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "runtime.micro_batch_size"),
        ({"NVIDIA_TF32_OVERRIDE": "1"}, "multiplies float32 matrices in full precision"),
        ({"DNNL_DEFAULT_FPMATH_MODE": "BF16"}, "DNNL_DEFAULT_FPMATH_MODE is 'BF16'"),
        ({**LAUNCHED, "ACCELERATE_USE_DEEPSPEED": "true"}, "--use_fsdp"),
    ],
)
def test_a_launch_that_cannot_make_one_run_is_refused_before_the_store_is_touched(
    launch: Any, variables: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(**variables)
    with pytest.raises(SystemExit) as end:
        main(["run", *tiny(tmp_path / "output")])
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("casd: ")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        LAUNCHED,
        # of accelerate launch with one process
        {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"},
        {**LAUNCHED, "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"},
        {**LAUNCHED, "OMPI_COMM_WORLD_SIZE": "2"},
        {"MASTER_ADDR": "node1", "MASTER_PORT": "29500", "PMI_SIZE": "1"},  # of a cluster's job script
        {**LAUNCHED, "WORLD_SIZE": "1"},
    ],
)
def test_other_launches_are_not_refused(launch: Any, variables: dict[str, str]) -> None:
    launch(**variables)
    distributed.check_launch()


def test_accelerate_that_was_set_up_for_one_process_is_refused(launch: Any) -> None:
    from accelerate import PartialState

    PartialState()
    launch(**LAUNCHED)
    with pytest.raises(ConfigError, match=r"2 processes were started .* set up before for 1 on cpu"):
        _ = Runtime("cpu").torch_device


@pytest.mark.parametrize("device", ["mps", "cuda:0"])
def test_one_device_for_two_processes_is_refused(launch: Any, device: str) -> None:
    launch(**LAUNCHED)
    with pytest.raises(ConfigError, match="use auto, cuda or cpu"):
        distributed.join(device)


def test_processes_that_have_not_joined_make_no_stage(launch: Any, tmp_path: Path) -> None:
    launch(**LAUNCHED)

    def make(*_: Any) -> None:
        (tmp_path / "made").touch()

    for attempt in (
        lambda: distributed.make_alone(make),
        lambda: distributed.make_together(make, make),
        lambda: distributed.broadcast(1),
        lambda: distributed.gather_each(1),
    ):
        with pytest.raises(CasdError, match="have not joined"):
            attempt()
    assert not (tmp_path / "made").exists()


def test_a_rank_without_other_processes_is_that_of_the_main_one(launch: Any) -> None:
    launch(RANK="3")
    assert distributed.is_main()


def test_an_error_ends_a_sweep_of_several_processes(launch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process goes on with the next run; several would exchange what belongs to different runs."""

    def failing(*_: Any) -> None:
        raise ConfigError("it fails")

    config = load_config(tiny(tmp_path))
    launch()
    monkeypatch.setattr("casd.cli.sweep.execute", failing)
    assert sweep._try_run(config).error == "it fails"
    launch(**LAUNCHED)
    with pytest.raises(ConfigError, match="it fails"):
        sweep._try_run(config)


@pytest.mark.parametrize(
    "message",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242",
        "Application timeout caused pair closure in gloo",
    ],
)
def test_an_exchange_with_a_process_that_has_ended_is_told_in_a_line(launch: Any, message: str) -> None:
    launch(**LAUNCHED)
    with pytest.raises(CasdError, match="Process 0 of 2 cannot communicate") as error, distributed.explaining_lost_processes():
        raise RuntimeError(message)
    assert "\n" not in str(error.value)
    with pytest.raises(RuntimeError, match="shapes"), distributed.explaining_lost_processes():
        raise RuntimeError("shapes do not match")
