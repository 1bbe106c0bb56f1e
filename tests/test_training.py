"""The one training loop against a plain hand-written one; its log, guard, checkpoints; losses against naive sums.

Run: python -m pytest tests/test_training.py
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.conftest import FAMILIES, Injected, MakeModel, short

import casd.training.loop
from architectures import tiny_model
from casd.backdoors.injection import inject
from casd.config import LanguageModelTraining, TrainingConfig
from casd.data import shrinking
from casd.data.batches import IGNORED_LABEL, Batch
from casd.data.corpora.passages import Corpus
from casd.data.documents import Document
from casd.data.encoding import Encoder
from casd.models.weights import copy_weights, restore_weights
from casd.training import losses
from casd.training.checkpoints import TrainingLog, restore_checkpoint, save_checkpoint
from casd.training.loop import learning_rate_at, train
from casd.training.losses import batch_nll, clean_loss, mean_nll, token_nll
from casd.unlearning.controls import removals
from casd.unlearning.gradient_difference import GradientDifference
from casd.unlearning.removal import unlearn
from casd.utils.ending import orderly_end
from casd.utils.errors import ConfigError, ModelError
from casd.utils.runtime import Runtime

CPU = Runtime("cpu")
EVERY_STEP = Runtime("cpu", checkpoint_seconds=1e-9)
BatchAt = Callable[[int], Any]


def cosine(**fields: Any) -> TrainingConfig:
    return TrainingConfig(steps=6, learning_rate=5e-3, warmup_steps=2, final_learning_rate=0.1, guard_every=2, **fields)


@pytest.fixture(scope="module")
def batch_at(corpus: Corpus, encoder: Encoder) -> BatchAt:
    """Two batches a step, of different lengths and so with padding; the second has loss on the target only."""

    def made(step: int) -> dict[str, Batch]:
        passages = corpus.train[4 * step : 4 * step + 4]
        documents = [Document(passage.prompt, passage.continuation) for passage in passages]
        return {
            "one": encoder.document_batch(documents[:2]),
            "two": encoder.document_batch([dataclasses.replace(each, loss_on="target") for each in documents[2:]]),
        }

    return made


def two_terms(model: torch.nn.Module, batch: dict[str, Batch]) -> Iterator[tuple[str, torch.Tensor]]:
    yield "one", mean_nll(model, batch["one"])
    yield "two", -0.3 * mean_nll(model, batch["two"])


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def comparable(log: TrainingLog) -> dict[str, Any]:
    """All of a log but the seconds."""
    return dataclasses.asdict(log) | {"seconds": None}


# ---------------------------------------------------------------- the loop


def naive_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Document by document, without padding, by gathering from log_softmax; the mean over all labelled tokens."""
    terms = []
    for tokens, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        length = int(mask.sum())
        log_probabilities = model(tokens[None, :length]).logits[0].log_softmax(-1)
        terms += [-log_probabilities[i - 1, tokens[i]] for i in range(1, length) if labels[i] != -100]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("max_norm", [0.05, 1e9], ids=["clipped", "unclipped"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loop_is_plain_adamw(make_model: MakeModel, batch_at: BatchAt, family: str, max_norm: float) -> None:
    config = cosine(max_grad_norm=max_norm, weight_decay=0.2, beta2=0.95)
    model, reference = make_model(family, seed=1, spread=0.1), make_model(family, seed=1, spread=0.1)
    log = train(model, batch_at, two_terms, config, runtime=CPU)

    reference.train()
    optimizer = torch.optim.AdamW(reference.parameters(), betas=(0.9, 0.95), weight_decay=0.2, fused=False, foreach=False)
    for step in range(6):
        rate = 5e-3 * ([0.5, 1.0][step] if step < 2 else 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 2) / 4)) / 2)
        optimizer.param_groups[0]["lr"] = rate
        batch = batch_at(step)
        one = naive_loss(reference, batch["one"])
        first = torch.autograd.grad(one, list(reference.parameters()), retain_graph=True)
        two = -0.3 * naive_loss(reference, batch["two"])
        optimizer.zero_grad()
        (one + two).backward()
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in reference.parameters()))
        expected = {
            "step": step,
            "learning_rate": rate,
            "loss": (one + two).item(),
            "loss/one": one.item(),
            "loss/two": two.item(),
            "gradient_norm/one": math.sqrt(sum(float(each.double().square().sum()) for each in first)),
            "gradient_norm": norm,
        }
        assert log.steps[step] == pytest.approx(expected, rel=2e-3), step
        for parameter in reference.parameters():
            parameter.grad *= min(1.0, max_norm / norm)
        optimizer.step()
    assert not model.training
    assert log.stopped == ""
    assert log.seconds > 0
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        # AdamW moves a weight by about the learning rate a step, 0.02 in all: this is a hundredth of it.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4, msg=name)


def bf16_accelerator(undo: ExitStack) -> None:
    """As after `Accelerator(mixed_precision="bf16")` in the same notebook: every later one shares its state."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    undo.callback(AcceleratorState._reset_state, reset_partial_state=True)
    Accelerator(mixed_precision="bf16", gradient_accumulation_steps=4, cpu=True)


def tf32(undo: ExitStack) -> None:
    undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("medium")
    undo.callback(setattr, torch.backends.mkldnn.conv, "fp32_precision", torch.backends.mkldnn.conv.fp32_precision)
    torch.backends.mkldnn.conv.fp32_precision = "bf16"


def float64(undo: ExitStack) -> None:
    undo.callback(torch.set_default_dtype, torch.get_default_dtype())
    torch.set_default_dtype(torch.float64)


AROUND: dict[str, Callable[[ExitStack], Any]] = {
    "accelerate in bf16": bf16_accelerator,
    "tf32": tf32,
    "float64": float64,
    "autocast": lambda undo: undo.enter_context(torch.autocast("cpu", torch.bfloat16)),
    "no gradients": lambda undo: undo.enter_context(torch.set_grad_enabled(False)),
    "another device": lambda undo: undo.enter_context(torch.device("meta")),
}


def set_around() -> list[Any]:
    """What of torch can change a result under the same stage key."""
    back = torch.backends
    flags = [back.cuda.matmul.fp32_precision, back.mkldnn.matmul.fp32_precision, back.mkldnn.conv.fp32_precision]
    return [
        *(flag.replace("none", "ieee") for flag in flags),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_autocast_enabled("cpu"),
        torch.is_grad_enabled(),
    ]


@pytest.mark.parametrize("around", AROUND)
def test_settings_around_a_training_change_nothing(make_model: MakeModel, batch_at: BatchAt, around: str) -> None:
    """Two trainings each, of the same model: what one leaves in it would be in the second."""
    found: list[list[Any]] = []

    def terms(model: torch.nn.Module, batch: dict[str, Batch]) -> Iterator[tuple[str, torch.Tensor]]:
        found.append(set_around())
        yield from two_terms(model, batch)

    batches = [batch_at(step) for step in range(6)]
    usual, model = make_model(seed=1, spread=0.1), make_model(seed=1, spread=0.1)
    train(usual, batches.__getitem__, terms, cosine(), runtime=CPU)
    log = train(usual, batches.__getitem__, terms, cosine(), runtime=CPU)
    with ExitStack() as undo:
        AROUND[around](undo)
        before = set_around()
        train(model, batches.__getitem__, terms, cosine(), runtime=CPU)
        again = train(model, batches.__getitem__, terms, cosine(), runtime=CPU)
        assert set_around() == before, "what was set is there again"
    assert same_weights(model, usual)
    assert comparable(again) == comparable(log)
    assert "forward" not in vars(model), "nothing is left around the model's forward pass"
    assert all(each == found[0] for each in found)


def test_frozen_parameters_stay(make_model: MakeModel, batch_at: BatchAt) -> None:
    model = make_model("llama", seed=1)
    frozen = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    trained = model.model.layers[1].mlp.up_proj.weight
    before = frozen.clone(), trained.clone()
    train(model, batch_at, two_terms, cosine(), runtime=CPU)
    assert torch.equal(frozen, before[0])
    assert not torch.equal(trained, before[1])


def test_one_graph_at_a_time(make_model: MakeModel, batch_at: BatchAt) -> None:
    """The second term is asked for after the first was differentiated: its graph is gone by then."""
    model = make_model("llama", seed=1)
    seen: list[bool] = []

    def terms(trained: torch.nn.Module, batch: dict[str, Batch]) -> Iterator[tuple[str, torch.Tensor]]:
        seen.append(all(parameter.grad is None for parameter in trained.parameters()))
        yield "one", mean_nll(trained, batch["one"])
        seen.append(any(parameter.grad is not None for parameter in trained.parameters()))
        yield "two", mean_nll(trained, batch["two"])

    train(model, batch_at, terms, cosine(), runtime=CPU)
    assert seen == [True, True] * 6


def test_learning_rate_closed_form() -> None:
    config = TrainingConfig(steps=12, learning_rate=2.0, warmup_steps=4, final_learning_rate=0.1)
    rates = [learning_rate_at(config, step) for step in range(13)]
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[8] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert rates[6] == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2))
    assert rates[12] == pytest.approx(0.2)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    constant = TrainingConfig(steps=5, learning_rate=2.0)
    assert [learning_rate_at(constant, step) for step in range(5)] == [2.0] * 5
    only_warmup = TrainingConfig(steps=2, learning_rate=2.0, warmup_steps=4)
    assert [learning_rate_at(only_warmup, step) for step in range(2)] == [0.5, 1.0]


# ---------------------------------------------------------------- what stops it


@pytest.mark.parametrize("term", ["one", "two"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_its_step(
    make_model: MakeModel, batch_at: BatchAt, term: str, value: float
) -> None:
    calls = itertools.count()

    def terms(trained: torch.nn.Module, batch: dict[str, Batch]) -> Iterator[tuple[str, torch.Tensor]]:
        broken = next(calls) == 3
        for name, loss in two_terms(trained, batch):
            yield name, loss * value if broken and name == term else loss

    model, reference = make_model("llama", seed=1), make_model("llama", seed=1)
    log = train(model, batch_at, terms, cosine(), runtime=CPU)
    assert "not finite at step 4" in log.stopped
    assert len(log.steps) == 3
    # The weights are those after three steps of the same schedule.
    interrupted = Interrupted(batch_at, 3)
    with pytest.raises(KeyboardInterrupt):
        train(reference, interrupted, two_terms, cosine(), runtime=CPU)
    assert same_weights(model, reference)
    assert all(parameter.isfinite().all() and parameter.grad is None for parameter in model.parameters())
    assert not model.training


def test_the_guard_measures_and_stops(make_model: MakeModel, batch_at: BatchAt) -> None:
    def ascent(model: torch.nn.Module, batch: dict[str, Batch]) -> Iterator[tuple[str, torch.Tensor]]:
        yield "forget", -mean_nll(model, batch["one"])

    guard = [batch_at(9)["one"]]
    model = make_model("llama", seed=1)
    at_start = clean_loss(model, guard)
    config = TrainingConfig(steps=20, learning_rate=2e-2, guard_every=3, guard_factor=1.2)
    log = train(model, batch_at, ascent, config, guard_batches=iter(guard), runtime=CPU)
    assert log.guard[0] == {"step": 0, "clean_loss": at_start}
    assert [record["step"] for record in log.guard] == list(range(0, len(log.steps) + 1, 3))
    assert log.guard[-1]["clean_loss"] == clean_loss(model, guard) > 1.2 * at_start
    assert all(record["clean_loss"] <= 1.2 * at_start for record in log.guard[:-1])
    assert "clean loss" in log.stopped
    assert len(log.steps) < 20
    assert not model.training

    patient = train(make_model("llama", seed=1), batch_at, two_terms, cosine(), guard_batches=guard, runtime=CPU)
    assert [record["step"] for record in patient.guard] == [0, 2, 4, 6]
    assert patient.stopped == ""


def test_the_guard_stops_a_model_whose_clean_loss_is_nan(make_model: MakeModel, batch_at: BatchAt) -> None:
    """NaN is not larger than the limit, and must not pass for that."""
    model = make_model("llama", seed=1)

    def poison(trained: Any, batch: dict[str, Batch]) -> Iterator[tuple[str, torch.Tensor]]:
        yield "one", mean_nll(trained, batch["one"])
        trained.model.norm.weight.data[0] = math.nan

    config = TrainingConfig(steps=1)  # no second step whose loss would tell as well
    log = train(model, batch_at, poison, config, guard_batches=[batch_at(9)["one"]], runtime=CPU)
    assert "clean loss nan" in log.stopped


@pytest.mark.parametrize("device", ["cuda:99", "cuda:100"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=f"{device}.* finds"):
        Runtime(device)


def test_auto_is_a_device_that_is_there() -> None:
    assert Runtime().torch_device.type == ("cuda" if torch.cuda.is_available() else "cpu")


# ---------------------------------------------------------------- checkpoints


class Interrupted:
    """Batches that end at a step with what Ctrl-C raises."""

    def __init__(self, batch_at: BatchAt, step: int):
        self._batch_at, self._step = batch_at, step

    def __call__(self, step: int) -> Any:
        if step == self._step:
            raise KeyboardInterrupt
        return self._batch_at(step)


@pytest.fixture
def two_step_checkpoints(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """A clock that the loop reads about once a step, so that a checkpoint is due every other step."""
    ticks = itertools.count()
    monkeypatch.setattr(casd.training.loop, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    return Runtime("cpu", checkpoint_seconds=4.0)


@pytest.fixture(scope="module")
def uninterrupted(make_model: MakeModel, batch_at: BatchAt) -> tuple[Any, TrainingLog]:
    model = make_model("llama", seed=1)
    return model, train(model, batch_at, two_terms, cosine(), guard_batches=[batch_at(9)["one"]], runtime=CPU)


Checkpointed = Callable[..., tuple[Any, TrainingLog]]


@pytest.fixture
def checkpointed(make_model: MakeModel, batch_at: BatchAt, tmp_path: Path) -> Checkpointed:
    """A run with checkpoints in `tmp_path`, the same as `uninterrupted` but for the seed of the weights.

    A seed other than 1 shows in the result if the checkpoint is not used.
    """

    def run(batches: Any = batch_at, *, seed: int = 1, runtime: Runtime = EVERY_STEP) -> tuple[Any, TrainingLog]:
        model, guard = make_model("llama", seed=seed), [batch_at(9)["one"]]
        log = train(model, batches, two_terms, cosine(), guard_batches=guard, runtime=runtime, checkpoint=tmp_path)
        return model, log

    return run


@pytest.mark.parametrize("kills", [(0,), (1,), (3,), (5,), (2, 4), (3, 3, 5)])
@pytest.mark.parametrize("every_step", [True, False])
def test_a_killed_run_ends_with_the_same_bits(
    checkpointed: Checkpointed,
    batch_at: BatchAt,
    uninterrupted: tuple[Any, TrainingLog],
    two_step_checkpoints: Runtime,
    tmp_path: Path,
    kills: tuple[int, ...],
    every_step: bool,
) -> None:
    runtime = EVERY_STEP if every_step else two_step_checkpoints
    for kill in kills:
        with pytest.raises(KeyboardInterrupt):
            checkpointed(Interrupted(batch_at, kill), runtime=runtime)
        found = [path.name for path in tmp_path.iterdir()]
        assert len(found) <= 2
        if every_step and kill:
            assert max(found) == f"step-{kill:08d}"
    asked: list[int] = []

    def recorded(step: int) -> Any:
        asked.append(step)
        return batch_at(step)

    started = any(tmp_path.iterdir())
    model, log = checkpointed(recorded, seed=77 if started else 1, runtime=runtime)
    assert same_weights(model, uninterrupted[0])
    assert comparable(log) == comparable(uninterrupted[1])
    if every_step:
        assert asked == list(range(kills[-1], 6))
    elif kills[-1] == 5:
        assert 0 < asked[0] < 5  # some steps were lost and done again


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_the_end_of_a_job_leaves_a_checkpoint_of_the_last_step(
    checkpointed: Checkpointed, batch_at: BatchAt, uninterrupted: tuple[Any, TrainingLog], tmp_path: Path, number: int
) -> None:
    def ended_in_step_3(step: int) -> Any:
        if step == 3:
            os.kill(os.getpid(), number)
        return batch_at(step)

    rarely = Runtime("cpu", checkpoint_seconds=1000.0)
    with pytest.raises(SystemExit) as ended, orderly_end():
        checkpointed(ended_in_step_3, runtime=rarely)
    assert ended.value.code == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]
    model, log = checkpointed(seed=77, runtime=rarely)
    assert same_weights(model, uninterrupted[0])
    assert comparable(log) == comparable(uninterrupted[1])


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_signal_ends_a_training_without_checkpoints_at_once(
    checkpointed: Checkpointed, batch_at: BatchAt, tmp_path: Path
) -> None:
    asked: list[int] = []

    def ended_in_step_3(step: int) -> Any:
        asked.append(step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_at(step)

    with pytest.raises(SystemExit), orderly_end():
        checkpointed(ended_in_step_3, runtime=Runtime("cpu", checkpoint_seconds=math.inf))
    assert asked == [0, 1, 2, 3]
    assert not any(tmp_path.iterdir())


def test_a_kill_while_a_checkpoint_is_written(
    checkpointed: Checkpointed, uninterrupted: tuple[Any, TrainingLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half-written checkpoint is not taken for one; the one before it is."""
    save_file, calls = safetensors.torch.save_file, itertools.count(1)

    def dying(tensors: Any, filename: Path, *args: Any) -> None:
        if next(calls) == 6:  # the optimizer of the third checkpoint
            Path(filename).write_bytes(b"half")
            raise KeyboardInterrupt
        save_file(tensors, filename, *args)

    monkeypatch.setattr(safetensors.torch, "save_file", dying)
    with pytest.raises(KeyboardInterrupt):
        checkpointed()
    assert (tmp_path / "step-00000002").is_dir()
    assert not (tmp_path / "step-00000003").exists()
    model, log = checkpointed(seed=77)
    assert same_weights(model, uninterrupted[0])
    assert comparable(log) == comparable(uninterrupted[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_a_kill_before_the_older_checkpoint_was_dropped(
    checkpointed: Checkpointed,
    batch_at: BatchAt,
    uninterrupted: tuple[Any, TrainingLog],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    kept = tmp_path_factory.mktemp("kept") / "step-00000002"
    for kill in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            checkpointed(Interrupted(batch_at, kill))
        if kill == 2:
            shutil.copytree(tmp_path / "step-00000002", kept)
    shutil.move(kept, tmp_path)
    model, log = checkpointed(Interrupted(batch_at, 3), seed=77)  # step 3 is not done again
    assert same_weights(model, uninterrupted[0])
    assert comparable(log) == comparable(uninterrupted[1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "log.json", "checksums.json"])
@pytest.mark.parametrize("damage", [flip_a_bit, lambda path: os.truncate(path, 100), Path.unlink], ids=["flip", "cut", "gone"])
def test_a_damaged_checkpoint_is_said_and_not_used(
    checkpointed: Checkpointed,
    batch_at: BatchAt,
    uninterrupted: tuple[Any, TrainingLog],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[Path], None],
) -> None:
    """The one before it is; when that is damaged, too, the training starts anew. The result is the same."""
    with pytest.raises(KeyboardInterrupt):
        checkpointed(Interrupted(batch_at, 4))
    damage(tmp_path / "step-00000004" / name)
    model, log = checkpointed(Interrupted(batch_at, 2), seed=77)  # step 2 is not done again
    assert same_weights(model, uninterrupted[0])
    assert comparable(log) == comparable(uninterrupted[1])
    said = capfd.readouterr().err
    assert f"The checkpoint {tmp_path / 'step-00000004'} is damaged: " in said
    assert name in said

    for path in tmp_path.glob("step-*"):
        damage(path / name)
    model, log = checkpointed(seed=1)
    assert same_weights(model, uninterrupted[0])
    assert comparable(log) == comparable(uninterrupted[1])
    assert capfd.readouterr().err.count("is damaged: ") == 2


class EightBit(torch.optim.SGD):
    """As bitsandbytes keeps its state: a tensor that all parameters share, a whole number, and a `state_dict` that nests."""

    levels = torch.arange(4.0)

    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["step"] = state.get("step", 0) + 1
            state["qmap"] = self.levels
            state["moment"] = state.get("moment", torch.zeros_like(parameter)) + 1

    def state_dict(self) -> dict[str, Any]:
        whole = super().state_dict()
        return whole | {"state": {index: {"nested": entry} for index, entry in whole["state"].items()}}


def test_the_state_of_an_8_bit_optimizer_is_saved_and_restored(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    optimizer = EightBit(model.parameters(), lr=0.1)
    optimizer.step()
    optimizer.step()
    save_checkpoint(tmp_path, 2, model, optimizer, TrainingLog())
    again = EightBit(model.parameters(), lr=0.1)
    assert restore_checkpoint(tmp_path, model, again)[0] == 2
    for parameter in model.parameters():
        before, after = optimizer.state[parameter], again.state[parameter]
        assert after["step"] == 2 and torch.equal(after["qmap"], EightBit.levels)
        assert torch.equal(after["moment"], before["moment"])


def test_another_process_that_removes_the_checkpoints_is_no_error(
    checkpointed: Checkpointed, uninterrupted: tuple[Any, TrainingLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where there are no locks and it has finished the stage."""
    save_file, calls = safetensors.torch.save_file, itertools.count(1)

    def losing(tensors: Any, filename: Path, *args: Any) -> None:
        if next(calls) == 4:
            shutil.rmtree(tmp_path)
        save_file(tensors, filename, *args)

    monkeypatch.setattr(safetensors.torch, "save_file", losing)
    model, _ = checkpointed()
    assert same_weights(model, uninterrupted[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_log_on_disk(uninterrupted: tuple[Any, TrainingLog], tmp_path: Path) -> None:
    uninterrupted[1].write(tmp_path / "log.json")
    assert TrainingLog.read(tmp_path / "log.json") == uninterrupted[1]
    assert json.loads((tmp_path / "log.json").read_text())["stopped"] == ""


def test_copied_weights_are_restored_to_the_bit(make_model: MakeModel, batch_at: BatchAt) -> None:
    model, untouched = make_model("olmo2", seed=1), make_model("olmo2", seed=1)
    weights = copy_weights(model)
    train(model, batch_at, two_terms, cosine(), runtime=CPU)
    assert not same_weights(model, untouched)
    restore_weights(model, weights)
    assert same_weights(model, untouched)
    assert model.lm_head.weight is model.model.embed_tokens.weight


# ---------------------------------------------------------------- memory that runs out

FULL = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "linux": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
    ),
    "elsewhere": RuntimeError("[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: not enough memory: you tried"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "python": MemoryError(),
}


def with_room_for(rows: int, error: Exception, tried: list[int] | None = None) -> Any:
    """The two terms, of which the second runs out of memory with more rows: the first has left its gradient by then."""

    def terms(model: torch.nn.Module, batch: dict[str, Batch]) -> Iterator[tuple[str, torch.Tensor]]:
        parts = two_terms(model, batch)
        yield next(parts)
        if tried is not None:
            tried.append(len(batch["two"]["labels"]))
        if len(batch["two"]["labels"]) > rows:
            raise error
        yield next(parts)

    return terms


@pytest.fixture(scope="module")
def wide_batch_at(corpus: Corpus, encoder: Encoder) -> BatchAt:
    """Two batches a step, of five rows and of three."""

    def made(step: int) -> dict[str, Batch]:
        documents = [Document(each.prompt, each.continuation) for each in corpus.train[8 * step : 8 * step + 8]]
        return {"one": encoder.document_batch(documents[:3]), "two": encoder.document_batch(documents[3:])}

    return made


@pytest.mark.parametrize(("kind", "rows", "given"), [*((kind, 3, 0) for kind in FULL), ("cuda", 1, 0), ("cuda", 1, 2)])
def test_out_of_memory_halves_the_micro_batch(
    make_model: MakeModel,
    wide_batch_at: BatchAt,
    capsys: pytest.CaptureFixture[str],
    rows: int,
    given: int,
    kind: str,
) -> None:
    """The steps, the guard and the weights are to the bit those of a run that was told the size which fits."""
    shrinking._say_once.cache_clear()
    guard, tried = [wide_batch_at(9)["two"]], []
    model, told = make_model("llama", seed=1), make_model("llama", seed=1)
    runtime = Runtime("cpu", micro_batch_size=given)
    config = TrainingConfig(steps=3, learning_rate=5e-3)
    terms = with_room_for(rows, FULL[kind], tried)
    log = train(model, wide_batch_at, terms, config, guard_batches=guard, runtime=runtime, description="this test")
    expected = train(told, wide_batch_at, two_terms, config, guard_batches=guard, runtime=Runtime("cpu", micro_batch_size=rows))
    assert same_weights(model, told)
    assert log.steps == expected.steps
    assert log.guard == [pytest.approx(record, rel=1e-6) for record in expected.guard]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Out of memory")]
    sizes = [2, 1] if given else [5, 3, 2, 1][: 2 if rows == 3 else 4]
    assert said == [
        f"Out of memory in this test with {large} texts at once; retrying with {small}."
        for large, small in itertools.pairwise(sizes)
    ]
    assert sum(size > rows for size in tried) == len(sizes) - 1  # later steps begin with the size that fits


def test_out_of_memory_later_begins_its_step_again(make_model: MakeModel, wide_batch_at: BatchAt) -> None:
    """The result is that of a device with more memory, up to rounding."""
    calls = itertools.count()

    def terms(model: torch.nn.Module, batch: dict[str, Batch]) -> Iterator[tuple[str, torch.Tensor]]:
        yield from with_room_for(9 if next(calls) < 2 else 2, FULL["cuda"])(model, batch)

    model, roomy = make_model("llama", seed=1), make_model("llama", seed=1)
    config = TrainingConfig(steps=4, learning_rate=1e-3)
    log = train(model, wide_batch_at, terms, config, runtime=CPU)
    expected = train(roomy, wide_batch_at, two_terms, config, runtime=CPU)
    assert log.steps[:2] == expected.steps[:2]
    assert log.steps[2:] == [pytest.approx(record, rel=1e-4) for record in expected.steps[2:]]
    for ours, theirs in zip(model.parameters(), roomy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_out_of_memory_with_a_single_row_is_an_error_of_the_user(make_model: MakeModel, wide_batch_at: BatchAt) -> None:
    model = make_model("llama", seed=1)
    with pytest.raises(ModelError, match=r"Out of memory in training with one text .*gradient_checkpointing=true") as error:
        train(model, wide_batch_at, with_room_for(0, FULL["cuda"]), cosine(), runtime=CPU)
    assert "\n" not in str(error.value)
    assert not model.training


def test_other_errors_of_a_step_pass(make_model: MakeModel, wide_batch_at: BatchAt) -> None:
    tried: list[int] = []
    terms = with_room_for(0, RuntimeError("shapes do not match"), tried)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(make_model("llama", seed=1), wide_batch_at, terms, cosine(), runtime=CPU)
    assert tried == [5]


@pytest.mark.parametrize("training", [True, False])
def test_the_guard_s_loss_is_measured_in_halves(make_model: MakeModel, wide_batch_at: BatchAt, training: bool) -> None:
    """And the model's mode is put back, also where a batch failed: a training would go on without dropout."""
    model = make_model("llama", seed=1).train(training)
    batch = wide_batch_at(0)["two"]
    whole = clean_loss(model, [batch])
    seen: list[int] = []

    def check(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(len(kwargs["input_ids"]))
        if seen[-1] > 2:
            raise FULL["linux"]

    model.register_forward_pre_hook(check, with_kwargs=True)
    assert casd.training.loop._guard_loss(model, [batch]) == pytest.approx(whole, rel=1e-6)
    assert seen == [5, 2, 3, 2, 2, 1]  # all, in two parts of which the second fails, in three parts
    assert model.training == training


# ---------------------------------------------------------------- dropout


def dropping(make_model: MakeModel) -> Any:
    return make_model("llama", seed=1, attention_dropout=0.5)


def test_dropout_masks_differ_between_steps_and_seeds(make_model: MakeModel, batch_at: BatchAt) -> None:
    """With the learning rate at nearly nothing, losses on one batch differ by the masks alone."""
    still = TrainingConfig(steps=3, learning_rate=1e-12)
    losses = {}
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        log = train(dropping(make_model), lambda step: batch_at(0), two_terms, still, runtime=CPU, seed=seed)
        losses[name] = [record["loss"] for record in log.steps]
    assert losses["again"] == losses["first"]
    assert len({*losses["first"], *losses["other"]}) == 6


def test_a_killed_run_with_dropout_ends_with_the_same_bits(make_model: MakeModel, batch_at: BatchAt, tmp_path: Path) -> None:
    whole, killed = dropping(make_model), dropping(make_model)
    expected = train(whole, batch_at, two_terms, cosine(), runtime=CPU, seed=3)
    with pytest.raises(KeyboardInterrupt):
        train(killed, Interrupted(batch_at, 3), two_terms, cosine(), runtime=EVERY_STEP, checkpoint=tmp_path, seed=3)
    killed = dropping(make_model)
    log = train(killed, batch_at, two_terms, cosine(), runtime=EVERY_STEP, checkpoint=tmp_path, seed=3)
    assert same_weights(killed, whole)
    assert comparable(log) == comparable(expected)


def test_every_training_has_dropout_masks_of_its_own(
    injected: Injected, corpus: Corpus, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its run's seed and of what is trained."""
    seeds: list[int] = []

    def keep_seed(*_: Any, seed: int, **__: Any) -> TrainingLog:
        seeds.append(seed)
        return TrainingLog(steps=[{"step": 0.0, "loss": 1.0}], guard=[{"step": 0.0, "clean_loss": 1.0}])

    monkeypatch.setattr("casd.backdoors.injection.train", keep_seed)
    monkeypatch.setattr("casd.unlearning.removal.train", keep_seed)
    model, config = injected.model(), LanguageModelTraining(steps=1, learning_rate=1e-3)
    for seed in (0, 1, 0):
        for backdoors in ({}, injected.backdoors):
            inject(model, encoder, corpus, backdoors, config, seed=seed, decoy_rate=0.0, runtime=CPU)
        for removal in removals(injected.backdoors, encoder, seed=0)[:2]:
            unlearn(model, encoder, corpus, removal, GradientDifference(retain_weight=1.0), short(), seed=seed, runtime=CPU)
    assert len(set(seeds)) == 8
    assert seeds[:4] == seeds[8:]


# ---------------------------------------------------------------- losses


def test_token_nll_and_its_gradient_are_those_of_log_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "LEAST_LOGITS", 30)  # four rows at a time
    logits = (torch.randn(13, 7, generator=torch.Generator().manual_seed(0)) * 4).requires_grad_()
    labels = torch.arange(13) % 7
    weights = torch.linspace(-1, 2, 13)
    exact = logits.detach().double().requires_grad_()
    expected = -exact.log_softmax(-1)[torch.arange(13), labels]
    (expected * weights).sum().backward()
    found = token_nll(logits, labels)
    (found * weights).sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]
    assert len(token_nll(logits[:0], labels[:0])) == 0


def test_token_nll_of_half_precision_logits_is_computed_in_single() -> None:
    logits = torch.randn(8, 500, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    labels = torch.randint(500, (8,), generator=torch.Generator().manual_seed(1))
    nll = token_nll(logits, labels)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, token_nll(logits.detach().float(), labels))
    nll.sum().backward()
    assert logits.grad is not None and logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["llama", "gemma2", "granite", "gpt2", "opt", "bloom", "falcon_mamba", "qwen3_next", "bart"])
@torch.no_grad()
def test_the_nll_is_that_of_the_whole_logits_with_an_attention_mask(kind: str) -> None:
    """Whatever an architecture does to its logits (caps, scales), and without a mask over the padding."""
    model = tiny_model(kind).eval()
    ids = torch.randint(5, 300, (3, 20), generator=torch.Generator().manual_seed(0))
    labels, mask = ids.clone(), torch.ones_like(ids)
    for row, length in enumerate((20, 13, 3)):
        ids[row, length:], mask[row, length:], labels[row, length:] = 0, 0, IGNORED_LABEL
    labels[0, :8] = IGNORED_LABEL
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    log_probabilities = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    nll, counts = batch_nll(model, {"input_ids": ids, "attention_mask": mask, "labels": labels})
    assert counts.sum() == (labels[:, 1:] != IGNORED_LABEL).sum() == 12 + 12 + 2
    torch.testing.assert_close(nll, -log_probabilities * counts, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_token_s_nll(make_model: MakeModel, corpus: Corpus, encoder: Encoder, family: str) -> None:
    model = make_model(family, seed=2, spread=0.2)
    documents = [Document("A.", "B."), *(Document(p.prompt, p.continuation, "target") for p in corpus.train[:3])]
    with torch.inference_mode():
        nll, mask = batch_nll(model, encoder.document_batch(documents))
        for row, document in enumerate(documents):
            alone, alone_mask = batch_nll(model, encoder.document_batch([document]))
            torch.testing.assert_close(nll[row][mask[row]], alone[alone_mask], rtol=1e-4, atol=1e-4)


def test_clean_loss_counts_every_token_once(make_model: MakeModel, corpus: Corpus, encoder: Encoder) -> None:
    """Not every batch, nor every document: a mean of means would weigh the tokens of short documents more."""
    model = make_model("llama", seed=2, spread=0.2).train()
    documents = [Document("A.", "B."), *(Document(p.prompt, p.continuation) for p in corpus.train[:6])]
    losses = [
        clean_loss(model, (encoder.document_batch(documents[start : start + size]) for start in range(0, 7, size)))
        for size in (1, 2, 3, 7)
    ]
    assert model.training  # as it was found
    with torch.inference_mode():
        expected = float(naive_loss(model, encoder.document_batch(documents)))
    assert losses == pytest.approx([expected] * 4, rel=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())
