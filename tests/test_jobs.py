"""Many runs: in order, each once, also when some fail; and their units, in the workers of an engine.

Run: python -m pytest tests/test_jobs.py
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from tests.jobs_made import own_device, perform, save_when_told

from casd.analysis.tables import SCHEMAS, read_table
from casd.cli import sweep
from casd.cli.main import main
from casd.config import Config
from casd.config.compose import load_config
from casd.engines.base import Engine
from casd.engines.local import Local, visible_devices
from casd.pipeline import worker
from casd.pipeline.graph import run_folder, stage_graph
from casd.pipeline.records import read_waiting
from casd.pipeline.run import note
from casd.pipeline.schedule import KILLED, seconds_left
from casd.pipeline.sweep import Outcome, engine_of, failure_of, run_all, run_units
from casd.pipeline.units import Needs, Unit, UnitReport, units_of
from casd.utils.errors import CasdError
from casd.utils.sealed import read_json
from tiny import tiny


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    output = tmp_path_factory.mktemp("output")
    return load_config(["experiment=smoke", "runtime.progress=off", f"runtime.output={output}"])


def seeds(config: Config, *values: int) -> list[Config]:
    return [replace(config, seed=seed) for seed in values]


def needs_of(*configs: Config, end: str = "report") -> Needs:
    return units_of([(config, stage_graph(config)) for config in configs], end)


def names(needs: Needs) -> dict[str, set[str]]:
    """The units of one run by their part or state, and those that each waits for."""
    return {unit.state or unit.kind: {each.state or each.kind for each in needs[unit]} for unit in needs}


# ---------------------------------------------------------------- units


def test_the_units_of_a_run_wait_for_the_stages_that_they_read() -> None:
    run = load_config(["experiment=smoke", "backdoor=[refusal,capitals]", "unlearning.controls.repeats=1"])
    controls = [name for name in names(needs_of(run)) if name.startswith("control:")]
    states = ["injected", "refusal", "capitals", *controls]
    expected = {"base": set(), "inject": {"base"}, "finish": {"base", "inject", *states}}
    assert names(needs_of(run)) == expected | {state: {"inject"} for state in states}
    watched = replace(run.unlearning.stopping, target_asr=0.1)
    tuned = replace(run.unlearning, stopping=watched, tuning=replace(run.unlearning.tuning, enabled=True))
    found = names(needs_of(replace(run, unlearning=tuned)))
    assert found["tune"] == {"inject"}
    assert found["refusal"] == {"inject", "tune"}
    for control in controls:
        trained_as_long = set() if "repeat" in control else {"refusal", "capitals"}
        assert found[control] == {"inject", "tune"} | trained_as_long, control
    assert set(names(needs_of(run, end="inject"))) == {"base", "inject", "finish"}


def test_what_runs_share_is_one_unit(config: Config) -> None:
    """Two objectives of a seed share the injected model, two poison rates the base model, two metrics all but the end."""
    other = replace(config, unlearning=load_config(["experiment=smoke", "unlearning=clean_target"]).unlearning)
    score = replace(config, metric=replace(config.metric, permutations=99))
    weaker = replace(config, injection=replace(config.injection, decoy_rate=0.05))
    needs = needs_of(config, other, score, weaker)
    kinds = Counter(unit.kind for unit in needs)
    states = len(stage_graph(config).states)
    # The injected model is measured for each injection, everything else for each objective, too.
    assert kinds == {"base": 1, "inject": 2, "finish": 4, "state": states + (states - 1) + states}
    made = [key for unit in needs for key in unit.stages]
    assert len(made) == len(set(made)), "a stage is made twice"


def test_a_model_of_any_path_is_called_by_it_in_messages_and_not_in_folders(config: Config) -> None:
    run = load_config(["experiment=smoke", "model=hub", "model.path=organisation/victim", "injection=continual"])
    assert str(Unit("inject", run)) == "victim, gradient_difference, seed 0: inject"
    assert run_folder(run, stage_graph(config)).name.startswith("hub-gradient_difference-seed0-")


def test_runs_of_one_model_objective_and_seed_are_told_apart_by_what_differs(config: Config) -> None:
    longer = replace(config, unlearning=replace(config.unlearning, training=replace(config.unlearning.training, steps=99)))
    steps = config.unlearning.training.steps
    needs = units_of([(each, stage_graph(each)) for each in (config, longer, replace(longer, seed=1))])
    names = {str(unit).partition(": ")[0] for unit in needs}
    model = f"{config.model.label}, {config.unlearning.objective.name}"
    assert names == {f"{model}, steps={steps}, seed 0", f"{model}, steps=99, seed 0", f"{model}, steps=99, seed 1"}


def test_a_stage_of_two_units_is_made_by_the_first(config: Config) -> None:
    """The removals are the same; how they are measured is not."""
    measured = replace(config, evaluation=replace(config.evaluation, max_new_tokens=5))
    needs = needs_of(config, measured)
    first, second = [unit for unit in needs if unit.state == "german"]
    assert first in needs[second]
    assert set(first.stages) & set(second.stages)


class Here(Executor):
    """Performs units in this process, when they are submitted."""

    def submit(self, function: Any, *arguments: Any, **_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future


class OneAtATime(Engine):
    """An engine whose worker is this process."""

    @contextmanager
    def open(self, folder: Path) -> Iterator[Executor]:
        yield Here()


def test_what_much_waits_for_comes_first(config: Config) -> None:
    """Both injections before any removal, and reports last."""
    order: list[str] = []

    def note(unit: Unit) -> UnitReport:
        order.append(unit.kind)
        return UnitReport()

    run_units(seeds(config, 0, 1), note, OneAtATime(), description="")
    assert order == sorted(order, key=["base", "inject", "state", "finish"].index)


def test_a_run_that_is_refused_takes_no_other_with_it(config: Config) -> None:
    """It comes first, and so makes what they share; the other is made without it."""
    alike = replace(config, unlearning=load_config(["experiment=smoke", "unlearning=clean_target"]).unlearning)
    other = load_config(["experiment=smoke", "weights=lora_removals", f"runtime.output={config.runtime.output}"])
    refused: list[str] = []
    made: list[str] = []

    def perform(unit: Unit) -> UnitReport:
        if unit.config in (config, alike):
            refused.append(unit.kind)
            return UnitReport("too little memory", refused=True)
        made.append(unit.kind)
        return UnitReport(executed=frozenset(unit.stages))

    outcomes = run_units([config, alike, other], perform, OneAtATime(), description="")
    assert [each.error for each in outcomes] == ["too little memory", "too little memory", ""]
    assert made[:2] == ["base", "inject"] and made[-1] == "finish"
    assert refused == ["base"], "what trains alike is not tried again"

    def fail(unit: Unit) -> UnitReport:
        made.append(unit.kind)
        return UnitReport("the loss is not finite")

    made.clear()
    outcomes = run_units([config, other], fail, OneAtATime(), description="")
    assert [each.error for each in outcomes] == ["the loss is not finite"] * 2
    assert made == ["base"], "what failed while it was made is not made again for the other"


def test_the_time_left_is_that_of_the_kinds_that_are_left(config: Config) -> None:
    """One injection of ten minutes, then eight states of one minute each for two workers: no hour is left after it."""
    first, *states = Unit("inject", config), *(Unit("state", config) for _ in range(8))
    finishes = [Unit("finish", config) for _ in range(9)]
    needs = {first: frozenset[Unit](), **dict.fromkeys([*states, *finishes], frozenset({first}))}
    made = frozenset({"key"})
    reports = {first: UnitReport(seconds=600, executed=made)}
    assert math.isnan(seconds_left(needs, reports, 2))
    reports |= {states[0]: UnitReport(seconds=50, executed=made), states[1]: UnitReport(seconds=70, executed=made)}
    reports[states[2]] = UnitReport(seconds=0.1)  # was there already
    assert seconds_left(needs, reports, 2) == pytest.approx(5 * 60 / 2)
    assert seconds_left(needs, reports, 8) == pytest.approx(60)
    reports |= dict.fromkeys(states, UnitReport(seconds=60, executed=made))
    assert seconds_left(needs, reports, 2) == 0


def test_the_runs_of_a_sweep_are_listed_as_waiting_while_it_lives(config: Config) -> None:
    seen: list[set[str]] = []
    store = Path(config.runtime.store)

    def look(_: object) -> Any:
        seen.append(set(read_waiting(store)))
        return UnitReport()

    run_units(seeds(config, 0, 1), look, OneAtATime(), description="")
    run_all(seeds(config, 0, 1), look, description="")
    records = {path.name for path in store.glob(".*.run")}
    assert all(len(each) == 2 and each <= records for each in seen)
    assert not read_waiting(store)


# ---------------------------------------------------------------- in this process


def make(config: Config) -> Outcome:
    return Outcome(None, "seed 1 is no good") if config.seed == 1 else Outcome(Path(str(config.seed)), "", 2, 3)


def test_runs_come_back_in_order_equal_ones_once_and_errors_with_them(config: Config) -> None:
    made: list[int] = []

    def counting(each: Config) -> Outcome:
        made.append(each.seed)
        return make(each)

    outcomes = run_all(seeds(config, 2, 1, 0, 2), counting, description="")
    assert made == [2, 1, 0]
    assert [str(each.folder)[0] for each in outcomes] == ["2", "N", "0", "2"]
    assert outcomes[1].error == "seed 1 is no good"


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
    outcomes = run_all(seeds(config, 0, 1, 2), sweep._try_run, description="")
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
        run_all(seeds(config, 0, 1), sweep._try_run, description="")


def test_what_failed_is_listed_with_the_command_that_makes_it_again() -> None:
    good = (("seed=0",), Outcome(Path("0")))
    bad = [((f"seed={seed}", "a=[b, c]"), Outcome(None, f"no {seed}")) for seed in (1, 2)]
    assert failure_of([good]) is None
    assert str(failure_of([good, *bad])).splitlines() == [
        "2 of 3 runs failed; the others are finished, and the same command reuses them. Nothing is published of an incomplete"
        " sweep.",
        "  casd run seed=1 'a=[b, c]': no 1",
        "  casd run seed=2 'a=[b, c]': no 2",
    ]
    assert str(failure_of([bad[0], bad[0]])) == "no 1"


def test_a_sweep_reports_what_is_finished_and_publishes_nothing_if_a_run_fails(
    tiny_output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_output / "store", tmp_path / "store")
    execute = sweep.execute

    def make(config: Config) -> Any:
        if config.seed == 1:
            raise CasdError("seed 1 is no good")
        return execute(config)

    monkeypatch.setattr(sweep, "execute", make)
    with pytest.raises(SystemExit):
        main(["sweep", *tiny(tmp_path, "seed=0,1"), "--publish", str(tmp_path / "page")])
    said = capfd.readouterr()
    assert "1 of 2 runs failed" in said.err and "seed 1 is no good" in said.err
    assert "report.html" in said.out
    assert not (tmp_path / "page").exists()


# ---------------------------------------------------------------- in the workers of an engine


def test_a_unit_that_fails_or_is_killed_fails_its_runs_alone(
    config: Config, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Three seeds, one with two objectives: two runs of the killed injection, one whose removal fails, one that is made."""
    monkeypatch.setattr("casd.engines.local.available_cpus", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    clean = replace(config, unlearning=load_config(["experiment=smoke", "unlearning=clean_target"]).unlearning)
    configs = [*seeds(config, 3, 1, 5, 3), replace(clean, seed=5)]
    outcomes = run_units(configs, perform, Local(workers=2), description="")
    assert [each.error for each in outcomes] == ["", "seed 1 is no good", KILLED, "", KILLED]
    stages = [*vars(stage_graph(config)).values()]
    number = sum(len(each) if isinstance(each, dict) else each is not None for each in stages)
    assert (outcomes[0].executed, outcomes[0].reused) == (number - len(stage_graph(config).weights), 0)
    assert outcomes[0].folder == outcomes[3].folder
    assert "OMP_NUM_THREADS" not in os.environ
    said = capfd.readouterr().err.splitlines()
    assert f"{config.model.name}, gradient_difference, seed 3: base: 3" in said, "of 6 CPUs, 2 workers use 3 each"
    assert (
        sum(line.startswith(f"{config.model.name}, gradient_difference, seed 3: ") and line[-3:] == ": 3" for line in said) == 1
    )
    name = f"{config.model.name}, gradient_difference, seed"
    failed = [line for line in said if " failed on " in line]
    assert f"{name} 1: german failed on here, process 4711, job 17, log the.log: seed 1 is no good" in failed
    assert any(line.startswith(f"{name} 5: inject failed on ") and line.endswith(KILLED) for line in failed)
    assert len(failed) == 2
    assert sum("continuing with one at a time" in line for line in said) == 1


def test_two_workers_make_the_tables_of_one_process(
    tiny_output: Path, tmp_path: Path, process_settings: None, capfd: pytest.CaptureFixture[str]
) -> None:
    store, graph = tmp_path / "store", stage_graph(load_config(tiny(tiny_output)))
    shutil.copytree(tiny_output / "store", store)
    states = ["refusal", "control:clean"]
    lost = [stages[state] for state in states for stages in (graph.unlearn, graph.evaluate, graph.activations)]
    for stage in (*lost, graph.score, graph.report):
        shutil.rmtree(store / stage.name / stage.key)
    main(["score", *tiny(tmp_path, "engine.workers=2", "runtime.progress=auto")])
    said = capfd.readouterr().err
    for name in SCHEMAS:
        made, wanted = (
            read_table(each / "score" / graph.score.key, name).drop(columns="train_seconds", errors="ignore")
            for each in (store, tiny_output / "store")
        )
        pd.testing.assert_frame_equal(made, wanted, check_exact=True, obj=name)
    lines = [line for line in said.splitlines() if ", seed 0: " in line]
    done = {line.split(": ", 1)[1].rpartition(":")[0]: line.rpartition(" ")[2] for line in lines}
    assert set(done) == {*states, "finish"} and list(done)[-1] == "finish", "a line for what was in the store"
    assert len({done[state] for state in states}) == 2, "one worker made both"
    assert said.count("Starting 2 workers") == 1
    assert len(list((tmp_path / "logs").iterdir())) == 2
    assert f"{len(lost) + 1} stages executed" in said


def test_a_worker_takes_over_the_injected_model_and_no_removal(
    tiny_output: Path, tmp_path: Path, process_settings: None
) -> None:
    """A second objective measures a state of the same name, whose weights are not stored."""

    def removal(store: Path, objective: str) -> Unit:
        config = load_config(tiny(tmp_path, f"runtime.store={store}", f"unlearning={objective}"))
        note(config, stage_graph(config), "report")
        return next(unit for unit in needs_of(config) if unit.state == "refusal")

    def performed(unit: Unit) -> Any:
        report = worker.perform(unit, lambda run, end: None)
        assert not report.error
        assert worker._last is not None
        return worker._last.inputs.one_model

    here, alone = tmp_path / "here", tmp_path / "alone"
    for store in (here, alone):
        shutil.copytree(tiny_output / "store", store)
    worker.forget()
    performed(removal(alone, "clean_target"))
    worker.forget()
    graphs = [stage_graph(removal(here, objective).config) for objective in ("gradient_difference", "clean_target")]
    shutil.rmtree(here / "evaluate" / graphs[0].evaluate["refusal"].key)
    place = Path("unlearn", graphs[1].unlearn["refusal"].key)
    shutil.copytree(alone / place, here / place)
    model = performed(removal(here, "gradient_difference"))
    assert performed(removal(here, "clean_target")) is model
    place = Path("activations", graphs[1].activations["refusal"].key, "statistics.safetensors")
    assert (here / place).read_bytes() == (alone / place).read_bytes()
    worker.forget()


def test_the_command_imports_no_more_than_it_needs_to_give_out_units() -> None:
    """Its workers start after that. Those that wait for their first unit import meanwhile what loading a model needs."""
    heavy = ["matplotlib", "scipy.stats", "sympy", "torch._dynamo", "torch.distributed.tensor", "transformers.modeling_utils"]
    program = f"import sys, casd.cli.worker; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("devices", ["0,1,2", "MIG-0a,MIG-1a,MIG-2a"])
def test_each_worker_sees_a_device_of_its_own(devices: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    (tmp_path / "begun").mkdir()
    with Local(workers=3).open(tmp_path / "logs") as executor:
        found = [executor.submit(own_device, str(tmp_path / "begun"), 3) for _ in range(3)]
        assert sorted(each.result() for each in found) == devices.split(",")


def test_the_devices_of_an_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    for named, found in {"": [], "NoDevFiles": [], "-1,0": [], "3, GPU-8a,MIG-1,3,x,1": ["3", "GPU-8a", "MIG-1"]}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert visible_devices() == found
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert visible_devices() == ["0", "1"]


@pytest.mark.parametrize(
    ("overrides", "environment", "expected"),
    [
        (
            ["engine.workers=9"],
            {"CUDA_VISIBLE_DEVICES": "0,1"},
            "needs 9 GPUs, and there are 2 (CUDA_VISIBLE_DEVICES=0,1): set",
        ),
        (
            ["engine.gpus_per_unit=2"],
            {"CUDA_VISIBLE_DEVICES": ""},
            "engine.workers=1 with engine.gpus_per_unit=2 needs 2 GPUs, and there are 0 (CUDA_VISIBLE_DEVICES=): set"
            " engine.gpus_per_unit=1.",
        ),
        (
            ["engine.workers=9", "engine.workers_per_gpu=4"],
            {"CUDA_VISIBLE_DEVICES": "0,1"},
            "engine.workers=9 with engine.workers_per_gpu=4 needs 3 GPUs, and there are 2 (CUDA_VISIBLE_DEVICES=0,1): set"
            " engine.workers=8, or runtime.device=cpu.",
        ),
        (
            ["engine.workers_per_gpu=4", "engine.gpus_per_unit=2"],
            {},
            "engine.workers_per_gpu=4 is for units of one GPU, and engine.gpus_per_unit=2: set one of the two to 1.",
        ),
        (["engine.workers_per_gpu=0"], {}, "engine.workers_per_gpu is 0; it must be greater than 0"),
        (["engine.workers=0"], {}, "engine.workers is 0; it must be greater than 0"),
        (["engine.workers=two"], {}, "Parameter 'workers' of engine 'local' is 'two'; expected int."),
        (["engine.worker=2"], {}, "Unknown option of an engine: 'worker'. Did you mean 'workers'?"),
        (["engine=lokal"], {}, "Unknown option of engine: 'lokal'. Did you mean 'local'"),
        (
            ["engine.workers=2", "runtime.device=cuda:1"],
            {},
            "each worker of an engine gets its own GPU: set runtime.device=cuda",
        ),
        (["engine.workers=2"], {"WORLD_SIZE": "2"}, "under accelerate launch set engine=local engine.workers=1"),
        (["runtime.jobs=2"], {}, "The key runtime.jobs is now called engine.workers."),
        (["hydra/launcher=joblib"], {}, "use an engine, such as engine=local engine.workers=N"),
    ],
    ids=str,
)
def test_an_engine_that_cannot_work_is_told_in_a_line(
    overrides: list[str],
    environment: dict[str, str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main(["sweep", "experiment=smoke", f"runtime.output={tmp_path}", *overrides])
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1


def test_workers_share_a_gpu_once_each_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert Local(workers=2, workers_per_gpu=3)._devices() == ["4", "5"]
    assert Local(workers=5, workers_per_gpu=3)._devices() == ["4", "5", "4", "5", "4"]


def test_runs_on_the_cpu_need_no_gpus(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    config = replace(config, engine={"name": "local", "workers": 4}, runtime=replace(config.runtime, device="cpu"))
    engine = engine_of([config])
    assert isinstance(engine, Local)
    assert engine._devices() == []


def test_several_processes_of_a_unit_on_the_cpu_are_called_slow(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(config, runtime=replace(config.runtime, device="cpu"))
    engine_of([replace(config, engine={"name": "local", "workers": 2})])
    assert not capsys.readouterr().err
    engine_of([replace(config, engine={"name": "local", "gpus_per_unit": 2})])
    assert capsys.readouterr().err == (
        "engine.gpus_per_unit=2 makes each unit 2 processes, which share the cpu: slower than engine.gpus_per_unit=1.\n"
    )


@pytest.mark.slow
def test_a_unit_of_two_processes_makes_the_stages_of_one(tiny_output: Path, tmp_path: Path, process_settings: None) -> None:
    main(["inject", *tiny(tmp_path, "engine.gpus_per_unit=2", "runtime.device=cpu")])
    inject = stage_graph(load_config(tiny(tmp_path))).inject
    logs = [read_json(each / "store" / "inject" / inject.key / "log.json") for each in (tmp_path, tiny_output)]
    losses = [[step["loss"] for step in log["steps"]] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] != losses[1], "one process made it: two round otherwise"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("ended_by", ["a signal", "an error beside it"])
def test_a_worker_saves_its_work_before_it_ends(ended_by: str, tmp_path: Path) -> None:
    file = tmp_path / "process"
    with pytest.raises(RuntimeError, match="beside it"), Local(workers=1).open(tmp_path / "logs") as executor:
        executor.submit(save_when_told, str(file))
        until(lambda: file.is_file() and file.read_text().isdecimal())
        process = int(file.read_text())
        if ended_by == "a signal":
            os.kill(process, signal.SIGUSR1)
            until(lambda: file.read_text() == "saved")
        raise RuntimeError("beside it")
    until(lambda: not is_running(process))
    assert file.read_text() == "saved"


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from tqdm.auto import tqdm
from casd.cli import main as cli
from casd.config.compose import load_config
from casd.engines.local import Local
from casd.pipeline.schedule import perform_all
from casd.pipeline.units import Unit

def sleep(unit):
    tqdm(disable=True)  # as libraries make them
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(100)

def work(options):
    config = load_config(["experiment=smoke", "runtime.progress=off"])
    units = {Unit("base", config): frozenset() for _ in range(4)}
    list(perform_all(units, sleep, Local(workers=2), Path(sys.argv[1], "..", "logs")))

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
        assert "leaked" not in said
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
