"""Early stopping of a removal and choice of the step to keep, by the removed backdoor's own ASR and clean text only.

The other backdoors are never measured here, since transfer to them is the outcome of the experiment. Validation prompts and
passages are held out of the forget and retain splits: no removal trains on them, and evaluation uses another split.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casd.backdoors.poisoning import Backdoor
from casd.config import EvaluationConfig, StoppingConfig
from casd.data.corpora.passages import Passage
from casd.data.documents import Prompt
from casd.data.encoding import Encoder
from casd.evaluation.asr import passage_loss
from casd.evaluation.generation import generate
from casd.models.weights import copy_weights, restore_weights
from casd.training.checkpoints import TrainingLog
from casd.training.loop import Callback
from casd.utils import distributed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Stopping:
    """When a removal ends: by measurements, or after a number of steps.

    Attributes:
        config: target and budget; without either nothing is measured.
        generation: number of tokens to generate at a validation prompt, and the batch size.
        steps: for controls, which have no ASR of their own: number of steps to run; None for all.
    """

    config: StoppingConfig
    generation: EvaluationConfig
    steps: int | None = None


class TakeSteps(Callback):
    """End a run after `steps` steps of its schedule: for controls of removals that ended early."""

    def __init__(self, steps: int):
        self.steps = steps

    def ends(self, done: int, log: TrainingLog) -> bool:
        """Return True after `steps` steps."""
        return done >= self.steps


class Validation(Callback):
    """Measure a removal every few steps and after the last, end it at its target or budget, and keep its best step.

    The best step is the one within the clean budget with the lowest ASR of the removed backdoor on validation prompts (ASRs up
    to the target count as equal); ties are broken by the lowest clean loss. Step 0, the injected model, is a candidate.

    Args:
        model: the model being trained.
        encoder: its tokenizer.
        backdoor: the backdoor being removed.
        prompts: held-out prompts with its trigger.
        clean: held-out passages whose loss is the clean loss.
        stopping: target, budget, interval, and how to generate.
        finish: applies in place what the objective does to the weights after training; None for nothing.
        steps: of the whole training.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: Encoder,
        backdoor: Backdoor,
        prompts: Sequence[Prompt],
        clean: Sequence[Passage],
        stopping: Stopping,
        *,
        finish: Callable[[], None] | None,
        steps: int,
    ):
        self._model, self._encoder, self._backdoor = model, encoder, backdoor
        self._prompts, self._clean = prompts, clean
        self._config, self._generation = stopping.config, stopping.generation
        self._finish, self._steps = finish, steps

    def begin(self, log: TrainingLog) -> None:
        """Measure the injected model."""
        self._measure(0, log)

    def ends(self, done: int, log: TrainingLog) -> bool:
        """Measure every `config.every` steps and after the last; return True at the target or beyond the budget."""
        if done % self._config.every and done < self._steps:
            return False
        now = self._measure(done, log)
        if not now["clean_loss"] <= (limit := self._limit(log)):
            ended = "is not finite" if self._config.clean_budget is None else f"passed its budget of {limit:.2f} nats"
            log.stopped = f"the clean loss {now['clean_loss']:.2f} {ended} at step {done}; step {log.kept_step} is kept"
            return True
        return self._config.target_asr is not None and now["asr"] <= self._config.target_asr

    def _measure(self, done: int, log: TrainingLog) -> dict[str, float]:
        model = self._model
        model.eval()
        with self._finished():
            texts, _ = generate(
                model, self._encoder, self._prompts, [()] * len(self._prompts), self._generation, description="validation"
            )
            asr = sum(map(self._backdoor.target.success, texts)) / len(texts)
            loss = passage_loss(model, self._encoder, self._clean, self._generation.batch_size)
            # Use the main process's numbers everywhere, so that all processes end at and keep the same step.
            record = distributed.broadcast({"step": done, "asr": asr, "clean_loss": loss})
            log.validation.append(record)
            if self._is_best(log):
                log.kept_step = done
                self.kept = copy_weights(model)
        model.train()
        return record

    def _limit(self, log: TrainingLog) -> float:
        """The largest clean loss allowed. Without a budget it must still be finite: a broken model has an ASR of 0 too."""
        budget = self._config.clean_budget
        return sys.float_info.max if budget is None else budget * log.validation[0]["clean_loss"]

    def _is_best(self, log: TrainingLog) -> bool:
        now = log.validation[-1]
        if len(log.validation) == 1:
            return True
        if not now["clean_loss"] <= self._limit(log):
            return False

        def rank(record: dict[str, float]) -> tuple[float, float]:
            return max(record["asr"], self._config.target_asr or 0.0), record["clean_loss"]

        return rank(now) < rank(log.kept)

    @contextmanager
    def _finished(self) -> Iterator[None]:
        """Inside the block, set the weights to those that the removal would return if training ended here."""
        if self._finish is None:
            yield
            return
        trained = copy_weights(self._model)
        self._finish()
        try:
            yield
        finally:
            restore_weights(self._model, trained)
