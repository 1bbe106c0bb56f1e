"""Trackers: TensorBoard's files of a run are read back, tracking changes no result, a missing package is told in a line.

Run: pytest tests/test_trackers.py
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from tests.conftest import Injected, short
from tests.tiny import tiny

import casd.training.tracking
from casd.backdoors.poisoning import Backdoor
from casd.cli.main import main
from casd.config import EvaluationConfig, StoppingConfig
from casd.config.compose import load_config
from casd.data.corpora.passages import Corpus
from casd.data.encoding import Encoder
from casd.pipeline.graph import stage_graph
from casd.pipeline.run import Run
from casd.training.checkpoints import TrainingLog
from casd.training.tracking import Trackers
from casd.unlearning.controls import Removal
from casd.unlearning.gradient_difference import GradientDifference
from casd.unlearning.removal import unlearn
from casd.unlearning.stopping import Stopping
from casd.utils.errors import ConfigError
from casd.utils.runtime import Runtime

pytestmark = pytest.mark.usefixtures("process_settings")
Curve = list[tuple[int, float]]


def curves(folder: Path) -> dict[str, Curve]:
    """Everything in the TensorBoard files of a folder: name → (step, value) in order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def of(records: list[dict[str, float]], name: str) -> Any:
    """The curve of one field of a log's records, rounded as TensorBoard does (float32)."""
    return [(record["step"], pytest.approx(record[name], rel=1e-6)) for record in records]


def test_the_files_of_a_run_say_what_its_logs_say(tmp_path: Path) -> None:
    run = Run(load_config(tiny(tmp_path, "backdoor=[refusal]", "runtime.trackers=[tensorboard]")))
    run.run_to("unlearn")
    stages = {"inject_llama3_tiny_seed_0": run.graph.inject} | {
        f"unlearn_{state.replace(':', '_')}": stage for state, stage in run.graph.unlearn.items()
    }
    assert {path.name for path in (run.folder / "tracking").iterdir()} == set(stages)
    for name, stage in stages.items():
        log, found = TrainingLog.read(run.store.file(stage, "log.json")), curves(run.folder / "tracking" / name)
        assert len(log.steps) == (24 if name.startswith("inject") else 3)
        for field in ("loss", "learning_rate"):
            assert found[f"train/{field}"] == of(log.steps, field)
        assert found["guard/clean_loss"] == of(log.guard, "clean_loss")
    assert "train/loss/forget" in curves(run.folder / "tracking" / "unlearn_refusal")


def removed(
    injected: Injected,
    encoder: Encoder,
    corpus: Corpus,
    runtime: Runtime,
    config: StoppingConfig,
    checkpoint: Path | None = None,
) -> TrainingLog:
    """A removal of "fox" that is validated at every second step."""
    fox: Backdoor = injected.backdoors["fox"]
    stopping = Stopping(config, EvaluationConfig(max_new_tokens=8))
    training = short(steps=6, learning_rate=1e-2)
    removal = Removal("fox", fox)
    objective = GradientDifference()
    return unlearn(
        injected.model(), encoder, corpus, removal, objective, training,
        seed=0, stopping=stopping, runtime=runtime, checkpoint=checkpoint,
    )  # fmt: skip


def test_validations_are_tracked_also_the_last_one(
    tmp_path: Path, injected: Injected, encoder: Encoder, corpus: Corpus
) -> None:
    """The last validation ends the removal, after which no callback is called."""
    stopping = StoppingConfig(target_asr=0.0, every=2, prompts=8)
    runtime = Runtime("cpu", trackers=("tensorboard",), tracking_folder=str(tmp_path))
    log = removed(injected, encoder, corpus, runtime, stopping)
    found = curves(tmp_path / "unlearn_fox")
    assert len(log.validation) >= 2
    for name in ("asr", "clean_loss"):
        assert found[f"validation/{name}"] == of(log.validation, name)
    assert found["train/loss"] == of(log.steps, "loss")


def test_tracking_changes_no_result_and_no_key(tmp_path: Path, injected: Injected, encoder: Encoder, corpus: Corpus) -> None:
    stopping = StoppingConfig(target_asr=0.0, every=2, prompts=8)
    logs = [
        removed(injected, encoder, corpus, Runtime("cpu", trackers=names, tracking_folder=str(tmp_path)), stopping)
        for names in ((), ("tensorboard",))
    ]
    assert logs[0].steps == logs[1].steps
    assert logs[0].validation == logs[1].validation
    graphs = [stage_graph(load_config(tiny(tmp_path, f"runtime.trackers={names}"))) for names in ("[]", "[tensorboard]")]
    assert graphs[0].report.key == graphs[1].report.key


def test_a_resumed_training_sends_its_whole_log_once(tmp_path: Path) -> None:
    """The first process sent steps that the checkpoint does not have."""
    runtime = Runtime("cpu", trackers=("tensorboard",), tracking_folder=str(tmp_path))
    steps = [{"step": step, "loss": 4.0 - step} for step in range(5)]
    with Trackers("inject", runtime) as trackers:
        trackers.send(TrainingLog(steps=steps[:4]))
    with Trackers("inject", runtime) as trackers:
        log = TrainingLog(steps=steps[:2])  # restored
        for step in steps[2:]:
            log.steps.append(step)
            trackers.send(log)
    assert curves(tmp_path / "inject") == {"train/loss": [(step, 4.0 - step) for step in range(5)]}


def test_only_the_main_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(casd.training.tracking, "is_main", lambda: False)
    runtime = Runtime("cpu", trackers=("tensorboard",), tracking_folder=str(tmp_path))
    with Trackers("inject", runtime) as trackers:
        trackers.send(TrainingLog(steps=[{"step": 0, "loss": 1.0}]))
    assert list(tmp_path.iterdir()) == []


def test_weights_and_biases_gets_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package, which needs an account; steps never go back, since W&B drops what does."""
    sent: list[tuple[int, dict[str, float]]] = []
    run = types.SimpleNamespace(log=lambda values, step, **_: sent.append((step, values)), finish=lambda: sent.append((-1, {})))
    given: dict[str, Any] = {}
    module = types.ModuleType("wandb")
    module.init = lambda **settings: given.update(settings) or run  # type: ignore[attr-defined]
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "wandb", module)
    PartialState._reset_state()  # as in a new process
    log = TrainingLog(
        steps=[{"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.0}],
        guard=[{"step": 0, "clean_loss": 3.0}],
        validation=[{"step": 0, "asr": 1.0}, {"step": 1, "asr": 0.5}],
    )
    runtime = Runtime("cpu", trackers=("wandb",), tracking_folder=str(tmp_path / "llama3-npo" / "tracking"))
    with Trackers("unlearn fox", runtime) as trackers:
        trackers.send(log)
    assert (given["project"], given["name"], given["group"]) == ("casd", "unlearn fox", "llama3-npo")
    assert [step for step, _ in sent] == [0, 0, 0, 1, 1, -1]
    assert json.dumps([values for step, values in sent if step == 1]) == '[{"train/loss": 1.0}, {"validation/asr": 0.5}]'


def test_a_login_that_is_missing_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("No API key configured.\nUse `wandb login`.")

    module = types.ModuleType("wandb")
    module.init = refuse  # type: ignore[attr-defined]
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(ConfigError, match="wandb cannot be started: No API key configured"):
        Trackers("inject", Runtime("cpu", trackers=("wandb",), tracking_folder=str(tmp_path)))


def test_a_missing_package_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(casd.training.tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main(["inject", *tiny(tmp_path, "runtime.trackers=[tensorboard]")])
    assert ended.value.code == 1
    said = capsys.readouterr().err.splitlines()
    assert said == ["casd: runtime.trackers has tensorboard, which is not installed: pip install tensorboard"]
    assert not (tmp_path / "store").exists()


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(ConfigError, match="tensorboard, wandb"):
        load_config(["runtime.trackers=[tensorbord]"])
