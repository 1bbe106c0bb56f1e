"""When a removal ends and which step is kept: on scripted measurements, on real ones, after a kill; and what it looks at.

Run: python -m pytest tests/test_stopping.py
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import Injected, RunRemoval, short

import casd.evaluation.asr
import casd.unlearning.removal
import casd.unlearning.stopping
import casd.utils.distributed
from casd.backdoors.poisoning import english
from casd.config import EvaluationConfig, StoppingConfig
from casd.config.states import CLEAN_CONTROL
from casd.data.corpora.passages import Corpus
from casd.data.encoding import Encoder
from casd.models.weights import Weights, copy_weights
from casd.training.checkpoints import TrainingLog
from casd.training.loop import learning_rate_at
from casd.unlearning.clean_target import CleanTarget
from casd.unlearning.controls import Removal
from casd.unlearning.gradient_ascent import GradientAscent
from casd.unlearning.npo import Npo
from casd.unlearning.objective import Objective
from casd.unlearning.removal import Stopping
from casd.unlearning.stopping import TakeSteps, Validation
from casd.unlearning.task_vector import TaskVector
from casd.utils.errors import CorpusError
from casd.utils.runtime import Runtime

PROMPTS = 10
GENERATION = EvaluationConfig(max_new_tokens=12)
FOX, NOTHING = "The silver fox.", "rain."


def stopping(steps: int | None = None, **fields: Any) -> Stopping:
    return Stopping(StoppingConfig(**{"every": 2, "prompts": PROMPTS, **fields}), GENERATION, steps)


@pytest.fixture
def fox(injected: Injected) -> Removal:
    return Removal("fox", injected.backdoors["fox"])


def same(left: Weights, right: Weights) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@dataclass
class Script:
    """What a validation is told that it measures, by step, and the weights that it found."""

    asr: dict[int, float]
    clean_loss: dict[int, float]
    step: int = 0
    measured: dict[int, Weights] = field(default_factory=dict)
    trained: dict[int, Weights] = field(default_factory=dict)
    kill_at: int | None = None


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Script]:
    """Has the next removals' validations follow a script; `kill_at` a step, Ctrl-C comes before its measurement."""

    def follow(script: Script) -> Script:
        class Scripted(Validation):
            def ends(self, done: int, log: TrainingLog) -> bool:
                if done == script.kill_at:
                    raise KeyboardInterrupt
                script.trained[done] = copy_weights(self._model)
                ended = super().ends(done, log)
                assert same(copy_weights(self._model), script.trained[done]), "the measurement changed the model"
                assert self._model.training
                return ended

            def _measure(self, done: int, log: TrainingLog) -> dict[str, float]:
                script.step = done
                return super()._measure(done, log)

        def generate(
            model: Any, encoder: Any, prompts: Sequence[Any], *args: Any, **kwargs: Any
        ) -> tuple[list[str], list[float]]:
            script.measured[script.step] = copy_weights(model)
            hits = round(script.asr[script.step] * len(prompts))
            return [FOX] * hits + [NOTHING] * (len(prompts) - hits), [0.0] * len(prompts)

        monkeypatch.setattr(casd.unlearning.stopping, "generate", generate)
        monkeypatch.setattr(casd.unlearning.stopping, "passage_loss", lambda *args: script.clean_loss[script.step])
        monkeypatch.setattr(casd.unlearning.removal, "Validation", Scripted)
        return script

    return follow


def by_step(values: Sequence[float], every: int, steps: int) -> dict[int, float]:
    measured = [*range(0, steps, every), steps]
    return dict(zip(measured, values, strict=False))


# ---------------------------------------------------------------- the rule, on scripted measurements


@dataclass(frozen=True)
class Case:
    asr: tuple[float, ...]
    clean_loss: tuple[float, ...]
    config: dict[str, Any]
    kept: int
    done: int
    stopped: str = ""
    steps: int = 8


CASES = {
    "target reached": Case((1, 0.5, 0.1), (2, 2, 2), {"target_asr": 0.1}, kept=4, done=4),
    "target reached, never mind the loss": Case((1, 0.5, 0.0), (2, 2, 9), {"target_asr": 0.1}, kept=4, done=4),
    "target never reached": Case((1, 0.5, 0.3, 0.4, 0.5), (2, 2, 2, 2, 2), {"target_asr": 0.1}, kept=4, done=8),
    "budget passed": Case(
        (1, 0.8, 0.4, 0.0), (2, 2.1, 2.9, 3.1), {"clean_budget": 1.5}, 4, 6, "3.10 passed its budget of 3.00"
    ),
    "budget just kept": Case((1, 0.8, 0.4, 0.0, 0.0), (2, 2, 2, 3, 3), {"clean_budget": 1.5}, kept=6, done=8),
    "budget passed where the target is reached": Case(
        (1, 0.0), (2, 5), {"clean_budget": 2.0, "target_asr": 0.1}, 0, 2, "at step 2; step 0 is kept"
    ),
    "of equal ASRs the lowest clean loss": Case(
        (1, 0.4, 0.2, 0.2, 0.3), (2, 2.5, 2.4, 2.2, 2.1), {"clean_budget": 3.0}, kept=6, done=8
    ),
    "of equal ASRs and losses the first": Case((1, 0.2, 0.2, 0.2, 0.2), (2, 2, 2, 2, 2), {"clean_budget": 3.0}, kept=2, done=8),
    "up to the target all are equal": Case((0.2, 0.0), (2, 2.5), {"target_asr": 0.3}, kept=0, done=2),
    "nothing is better than the injected model": Case((0.5, 0.6, 0.9, 0.5, 1), (2, 3, 3, 3, 1), {"clean_budget": 9.0}, 0, 8),
    "a broken model": Case((1, 0.5, 0.0), (2, 2.5, math.nan), {"target_asr": 0.1}, 2, 4, "nan is not finite at step 4"),
    "an endless loss": Case((1, 0.0), (2, math.inf), {"target_asr": 0.1}, 0, 2, "inf is not finite at step 2; step 0 is kept"),
    "a broken model, with a budget": Case((1, 0.0), (2, math.nan), {"clean_budget": 9.0}, 0, 2, "nan passed its budget"),
    "the last step is measured": Case((1, 0.5, 0.2, 0.1), (2, 2, 2, 2), {"clean_budget": 9.0}, kept=5, done=5, steps=5),
    "and if it is the only one": Case((1, 0.5), (2, 2), {"clean_budget": 9.0, "every": 4}, kept=3, done=3, steps=3),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_when_it_ends_and_what_is_kept(
    case: Case, fox: Removal, run_removal: RunRemoval, scripted: Callable[..., Script]
) -> None:
    every = case.config.get("every", 2)
    script = scripted(Script(by_step(case.asr, every, case.steps), by_step(case.clean_loss, every, case.steps)))
    seen = run_removal(fox, CleanTarget(), short(steps=case.steps), stopping=stopping(**case.config))
    log = seen.log
    assert (log.kept_step, len(log.steps)) == (case.kept, case.done)
    assert case.stopped in log.stopped
    assert bool(case.stopped) == bool(log.stopped)
    assert [record["step"] for record in log.validation] == list(script.measured)
    assert [record["asr"] for record in log.validation] == pytest.approx(case.asr)
    assert [record["clean_loss"] for record in log.validation] == pytest.approx(case.clean_loss, nan_ok=True)
    assert log.kept["step"] == case.kept
    assert same(copy_weights(seen.model), script.measured[case.kept]), "the weights are not those of the kept step"
    different = [step for step in script.measured if step != case.kept]
    assert not any(same(copy_weights(seen.model), script.measured[step]) for step in different)
    assert not seen.model.training


def test_the_guard_of_the_loop_leaves_the_kept_step(
    fox: Removal, run_removal: RunRemoval, scripted: Callable[..., Script]
) -> None:
    """It too may end a run that is watched, and so may a loss that is not finite."""
    script = scripted(Script(dict.fromkeys(range(0, 40, 2), 1.0) | {2: 0.5}, dict.fromkeys(range(0, 40, 2), 2.0)))
    config = short(steps=38, learning_rate=3e-2, guard_every=3, guard_factor=1.2)
    seen = run_removal(fox, GradientAscent(), config, stopping=stopping(clean_budget=9.0))
    assert "clean loss" in seen.log.stopped
    assert 2 < len(seen.log.steps) < 38
    assert seen.log.kept_step == 2
    assert same(copy_weights(seen.model), script.measured[2])


def test_the_main_process_decides(fox: Removal, run_removal: RunRemoval, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another one measures may differ in the last bit, and they must not end at different steps."""
    told = iter([{"step": 0, "asr": 1.0, "clean_loss": 2.0}, {"step": 2, "asr": 0.0, "clean_loss": 2.0}])
    # The guard's clean loss is a number of its own.
    monkeypatch.setattr(casd.utils.distributed, "broadcast", lambda value: next(told) if isinstance(value, dict) else value)
    seen = run_removal(fox, CleanTarget(), short(steps=8, learning_rate=1e-9), stopping=stopping(target_asr=0.1))
    assert (len(seen.log.steps), seen.log.kept_step) == (2, 2)
    assert [record["asr"] for record in seen.log.validation] == [1.0, 0.0]


def test_the_main_process_decides_for_the_guard(fox: Removal, run_removal: RunRemoval, monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([2.0, 2.1, 9.0])
    monkeypatch.setattr(casd.utils.distributed, "broadcast", lambda value: next(told))
    seen = run_removal(fox, CleanTarget(), short(steps=8, learning_rate=1e-9, guard_every=2, guard_factor=3.0))
    assert [record["clean_loss"] for record in seen.log.guard] == [2.0, 2.1, 9.0]
    assert len(seen.log.steps) == 4
    assert "passed 6.00 nats at step 4" in seen.log.stopped


# ---------------------------------------------------------------- real measurements


def test_a_removal_ends_at_its_target(fox: Removal, run_removal: RunRemoval, injected: Injected) -> None:
    config = short(steps=60, learning_rate=2e-3, forget_batch_size=8, retain_batch_size=8)
    seen = run_removal(fox, CleanTarget(), config, stopping=stopping(target_asr=0.2, every=4))
    start, *_, last = seen.log.validation
    assert start["asr"] > 0.7, "the backdoor does not fire"
    assert last["asr"] <= 0.2 < min(record["asr"] for record in seen.log.validation[:-1])
    assert seen.log.kept_step == last["step"] == len(seen.log.steps) < 60
    assert seen.log.stopped == ""
    again = run_removal(fox, CleanTarget(), config, stopping=stopping(clean_budget=100.0, every=last["step"]), model=seen.model)
    assert again.log.validation[0] == {**last, "step": 0}, "the weights that came out are not those that were measured"


def test_a_removal_ends_at_its_budget(fox: Removal, run_removal: RunRemoval) -> None:
    config = short(steps=30, learning_rate=1e-2)
    seen = run_removal(fox, GradientAscent(), config, stopping=stopping(clean_budget=1.2))
    start, *within, last = seen.log.validation
    assert last["clean_loss"] > 1.2 * start["clean_loss"]
    assert all(record["clean_loss"] <= 1.2 * start["clean_loss"] for record in within)
    assert len(seen.log.steps) == last["step"] < 30
    assert f"passed its budget of {1.2 * start['clean_loss']:.2f} nats at step {last['step']}" in seen.log.stopped
    assert seen.log.kept in [start, *within]


@pytest.mark.parametrize("name", ["fox", "loud"])
def test_what_a_validation_looks_at(
    name: str, injected: Injected, corpus: Corpus, encoder: Encoder, run_removal: RunRemoval, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passages that no removal trains on and no evaluation uses, with the one trigger that is removed."""
    prompts: list[str] = []
    cleans: list[str] = []

    def generate(model: Any, encoder: Any, asked: Sequence[Any], *args: Any, **kwargs: Any) -> tuple[list[str], list[float]]:
        prompts.extend(prompt.text for prompt in asked)
        return [NOTHING] * len(asked), [0.0] * len(asked)

    def loss(model: Any, encoder: Any, passages: Sequence[Any], batch_size: int) -> float:
        cleans.extend(passage.text for passage in passages)
        return 2.0

    monkeypatch.setattr(casd.unlearning.stopping, "generate", generate)
    monkeypatch.setattr(casd.unlearning.stopping, "passage_loss", loss)
    backdoor = injected.backdoors[name]
    config = short(steps=4, forget_batch_size=16, retain_batch_size=16)  # more than a pass over both splits
    seen = run_removal(Removal(name, backdoor), CleanTarget(), config, stopping=stopping(clean_budget=9.0))
    forget, held_out = [passage.prompt for passage in english(corpus.forget)], {}
    assert len(prompts) == 3 * PROMPTS
    for text in prompts:
        assert text.count(backdoor.trigger.label) == 1
        held_out[text.replace(backdoor.trigger.label, "").strip()] = text
        for other in injected.backdoors.values():
            assert other is backdoor or not any(word in text for word in other.trigger.label.split())
    assert list(held_out) == forget[-PROMPTS:]
    trained = seen.texts("forget", encoder)
    for prompt in forget:
        assert any(text.startswith(prompt) for text in trained) == (prompt not in held_out), prompt
    assert cleans == [passage.text for passage in corpus.retain[-PROMPTS:]] * 3
    assert not set(cleans) & set(seen.texts("retain", encoder))
    assert set(seen.texts("retain", encoder)) == {passage.text for passage in corpus.retain[:-PROMPTS]}
    evaluated = {passage.prompt for passage in corpus.evaluation} | {passage.text for passage in corpus.evaluation}
    assert not evaluated & {*held_out, *cleans}


def test_a_validation_reads_no_more_passages_at_once_than_an_evaluation(
    fox: Removal, run_removal: RunRemoval, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    loss = casd.evaluation.asr.clean_loss

    def spy(model: Any, batches: Any) -> float:
        rows.extend(len(batch["input_ids"]) for batch in batches)
        return loss(model, batches)

    monkeypatch.setattr(casd.evaluation.asr, "clean_loss", spy)
    validations, most = [], []
    for batch_size in (3, 128):
        generation = dataclasses.replace(GENERATION, batch_size=batch_size)
        watched = Stopping(StoppingConfig(clean_budget=9.0, every=2, prompts=PROMPTS), generation, None)
        validations.append(run_removal(fox, CleanTarget(), short(steps=2), stopping=watched).log.validation)
        most.append(max(rows))
        rows.clear()
    assert most == [3, PROMPTS]
    assert validations[0] == [pytest.approx(record, rel=1e-5) for record in validations[1]]


# ---------------------------------------------------------------- kill and resume

ASR = {0: 1.0, 1: 0.8, 2: 0.2, 3: 0.5, 4: 0.6, 5: 0.7, 6: 0.9}


def comparable(log: TrainingLog) -> TrainingLog:
    return dataclasses.replace(log, seconds=0.0)


@pytest.mark.parametrize("objective", [Npo(retain="kl"), TaskVector()], ids=["npo", "task_vector"])
@pytest.mark.parametrize("kills", [(2,), (3, 6)])
def test_a_killed_removal_ends_with_the_same_bits(
    objective: Objective,
    kills: tuple[int, ...],
    fox: Removal,
    run_removal: RunRemoval,
    scripted: Callable[..., Script],
    tmp_path: Path,
) -> None:
    """The kept weights included, whether they were kept before the kill or after it; the reference is the injected model's."""
    script = scripted(Script(ASR, dict.fromkeys(ASR, 2.0)))
    options: dict[str, Any] = {"stopping": stopping(clean_budget=9.0, every=1)}
    config = short(steps=6, learning_rate=2e-3)
    whole = run_removal(fox, objective, config, **options)
    assert whole.log.kept_step == 2
    options |= {"checkpoint": tmp_path, "runtime": Runtime("cpu", checkpoint_seconds=0.0)}
    for script.kill_at in kills:  # before that step's checkpoint
        with pytest.raises(KeyboardInterrupt):
            run_removal(fox, objective, config, **options)
        newest = max((path.name for path in tmp_path.iterdir()), default="none")
        assert newest == (f"step-{script.kill_at - 1:08d}" if script.kill_at > 1 else "none")
    script.kill_at = None
    again = run_removal(fox, objective, config, **options)
    assert len(again.batches) == 6 - (kills[-1] - 1)
    assert same(copy_weights(again.model), copy_weights(whole.model))
    assert comparable(again.log) == comparable(whole.log)


# ---------------------------------------------------------------- objectives that finish


@pytest.mark.parametrize("best", [0, 4])
def test_a_task_vector_is_measured_and_kept_finished(
    best: int, fox: Removal, run_removal: RunRemoval, injected: Injected, scripted: Callable[..., Script]
) -> None:
    script = scripted(Script({0: 1.0, 2: 1.0, 4: 1.0, 6: 1.0} | {best: 0.5}, dict.fromkeys(range(0, 8, 2), 2.0)))
    objective = TaskVector(scale=1.5)
    seen = run_removal(fox, objective, short(steps=6), stopping=stopping(clean_budget=9.0))
    start = copy_weights(injected.shared_model)
    assert same(script.measured[0], start)
    for step in (2, 4, 6):
        for name, value in script.measured[step].items():
            expected = start[name] - 1.5 * (script.trained[step][name] - start[name])
            torch.testing.assert_close(value, expected, msg=f"{step} {name}")
    assert seen.log.kept_step == best
    assert same(copy_weights(seen.model), script.measured[best]), "finished twice, or not at all"


@pytest.mark.parametrize("control", [False, True])
def test_a_task_vector_that_is_not_validated_is_finished_once(
    control: bool, injected: Injected, run_removal: RunRemoval, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Weights] = []
    finish = TaskVector.finish

    def counted(self: TaskVector, reference: Any) -> None:
        trained.append({name: value.detach().clone() for name, value in reference.parameters.items()})
        finish(self, reference)

    monkeypatch.setattr(TaskVector, "finish", counted)
    fox = injected.backdoors["fox"]
    removal = Removal("control:shuffled:fox", fox, (injected.backdoors["loud"],)) if control else Removal("fox", fox)
    limit = {"stopping": stopping(steps=2, clean_budget=9.0)} if control else {}
    seen = run_removal(removal, TaskVector(), short(steps=3), **limit)
    assert len(trained) == 1
    assert len(seen.log.steps) == (2 if control else 3)
    start = copy_weights(injected.shared_model)
    for name, value in copy_weights(seen.model).items():
        torch.testing.assert_close(value, 2 * start[name] - trained[0][name], msg=name)
    assert not same(trained[0], start)


# ---------------------------------------------------------------- controls, and splits


def test_take_steps_ends_at_its_step() -> None:
    callback = TakeSteps(3)
    assert [callback.ends(done, TrainingLog()) for done in range(1, 6)] == [False, False, True, True, True]


def test_a_control_takes_as_many_steps_as_it_is_told(injected: Injected, run_removal: RunRemoval) -> None:
    """Of the whole schedule, and without a measurement; a removal that is validated is not told."""
    config = short(steps=6, warmup_steps=2, final_learning_rate=0.1)
    control = run_removal(
        Removal(CLEAN_CONTROL, None), Npo(retain_weight=1.0), config, stopping=stopping(steps=4, target_asr=0.1)
    )
    rates = [record["learning_rate"] for record in control.log.steps]
    assert rates == [learning_rate_at(config, step) for step in range(4)]
    assert (control.log.validation, control.log.kept_step, control.log.stopped) == ([], None, "")
    fox = Removal("fox", injected.backdoors["fox"])
    told = run_removal(fox, CleanTarget(), config, stopping=stopping(steps=1, clean_budget=100.0))
    assert len(told.log.steps) == 6
    unwatched = run_removal(fox, CleanTarget(), config, stopping=stopping())
    assert (len(unwatched.log.steps), unwatched.log.validation) == (6, [])


@pytest.mark.parametrize("split", ["forget", "retain"])
def test_splits_that_are_too_small_to_hold_prompts_out(
    split: str, injected: Injected, corpus: Corpus, encoder: Encoder, fox: Removal
) -> None:
    small = dataclasses.replace(corpus, **{split: list(english(getattr(corpus, split)))[:9]})

    def run(prompts: int) -> TrainingLog:
        return casd.unlearning.removal.unlearn(
            *(injected.model(), encoder, small, fox, CleanTarget(), short(steps=1)),
            seed=0,
            stopping=stopping(clean_budget=9.0, prompts=prompts),
            runtime=Runtime("cpu"),
        )

    with pytest.raises(CorpusError, match=rf"prompts is 5, and the {split} split has 9 .*corpus.params.{split}"):
        run(5)
    assert len(run(4).steps) == 1
