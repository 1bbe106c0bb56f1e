"""When a removal ends, and which of its steps is kept: by the removed backdoor's own ASR and by clean text, nothing else.

Looking at the other backdoors would choose the very thing that is to be measured. The prompts and passages looked at are held
out of the forget and the retain split: no removal trains on them, and the evaluation's prompts are of a split of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from casd.backdoors.poisoning import Backdoor
from casd.config import EvaluationConfig, StoppingConfig
from casd.data.corpora.passages import Passage
from casd.data.encoding import Encoder
from casd.evaluation.asr import generate, passage_loss
from casd.models.weights import copy_weights, restore_weights
from casd.training.checkpoints import TrainingLog
from casd.training.loop import Callback
from casd.unlearning.objective import Objective
from casd.utils import distributed
from casd.utils.seeding import python_rng

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from casd.unlearning.reference import Reference


class TakeSteps(Callback):
    """Ends a run after so many steps of its schedule: for controls of removals that ended early."""

    def __init__(self, steps: int):
        self.steps = steps

    def ends(self, done: int, log: TrainingLog) -> bool:
        """At the step."""
        return done >= self.steps


class Validation(Callback):
    """Measures a removal every few steps and after the last, ends it at its target or budget, and keeps its best step.

    Best is the step, among those within the clean budget, with the lowest ASR of the removed backdoor on validation prompts
    (all ASRs up to the target count as equal), and of equal ones that with the lowest clean loss. The injected model itself,
    step 0, is among them.

    Args:
        model: the one that is trained.
        encoder: its tokenizer.
        backdoor: the one that is removed.
        prompts: held-out passages whose prompts get the trigger.
        clean: held-out passages whose loss is the clean loss.
        config: targets, budgets, how often.
        generation: how many tokens are generated, and how many prompts or passages at once; fewer where memory runs out.
        objective: what it is trained by.
        reference: the weights before, if the objective has something left to do after the training.
        steps: of the whole training.
        seed: of the triggers' places.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: Encoder,
        backdoor: Backdoor,
        prompts: Sequence[Passage],
        clean: Sequence[Passage],
        config: StoppingConfig,
        generation: EvaluationConfig,
        objective: Objective,
        reference: Reference | None,
        *,
        steps: int,
        seed: int,
    ):
        rng = python_rng(seed, "validation prompts", backdoor.name)
        self._prompts = [backdoor.prompt(passage, rng) for passage in prompts]
        self._clean = clean
        self._model, self._encoder, self._backdoor = model, encoder, backdoor
        self._config, self._generation = config, generation
        self._objective, self._reference, self._steps = objective, reference, steps

    def begin(self, log: TrainingLog) -> None:
        """Measure the injected model."""
        self._measure(0, log)

    def ends(self, done: int, log: TrainingLog) -> bool:
        """Every `config.every` steps and after the last: whether the target is reached or the budget spent."""
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
            # The main process's numbers decide in every process: all have to end and to keep the same step.
            record = distributed.broadcast({"step": done, "asr": asr, "clean_loss": loss})
            log.validation.append(record)
            if self._is_best(log):
                log.kept_step = done
                self.kept = copy_weights(model)
        model.train()
        return record

    def _limit(self, log: TrainingLog) -> float:
        """The largest clean loss within the budget; without one any that is finite: a broken model has an ASR of 0 too."""
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
        """Inside the block the weights are those that the objective would leave if the training ended here."""
        if not self._objective.has_finish:
            yield
            return
        assert self._reference is not None
        trained = copy_weights(self._model)
        self._objective.finish(self._reference)
        try:
            yield
        finally:
            restore_weights(self._model, trained)
