"""What each stage of a run takes: tokens, FLOPs, time and disk space."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from casd.backdoors.injection import GUARD_PASSAGES as GUARD_OF_INJECTION
from casd.config import LanguageModelTraining, TrainingConfig, UnlearningTraining
from casd.config.states import INJECTED, removed_backdoor
from casd.metric.baselines.shifts import PROMPTS_PER_SET
from casd.metric.baselines.updates import SKETCH_SIZE
from casd.models import load as models
from casd.pipeline.run import Run
from casd.pipeline.stage import Stage
from casd.planning.blueprint import Adapters, Blueprint
from casd.planning.memory import EIGHT_BIT_STATE
from casd.planning.phases import best_step_bytes, evaluation_prompts, injection_adapters, planned_devices, removal_adapters
from casd.planning.speed import Speed
from casd.planning.workload import NOTHING, TextLengths, Work, forward_flops, generation_work, training_flops
from casd.unlearning.removal import GUARD_PASSAGES as GUARD_OF_REMOVAL
from casd.unlearning.tuning import settings
from casd.utils.sealed import read_json

STATISTICS_BYTES = 3 * 8
"""Bytes per feature of activation statistics: three means in float64."""
TEXT_BYTES = 6
"""Approximate bytes per token of a stored text."""


@dataclass(frozen=True)
class StageCost:
    """The cost of executing one stage.

    Attributes:
        stage: the stage.
        done: True if the stage is in the store.
        again: True if the stage is in the store but has to be computed again, because its weights are needed.
        work: what goes through the model; None if unknown.
        kept: bytes that stay on disk; None if unknown (and small).
        begun: additional bytes on disk until the stage is finished: checkpoints.
    """

    stage: Stage
    done: bool
    again: bool = False
    work: Work | None = NOTHING
    kept: int | None = 0
    begun: int = 0

    @property
    def to_do(self) -> bool:
        """True if the stage has to be computed."""
        return self.again or not self.done


def base_folder(run: Run) -> Path | None:
    """Return the folder of the base model: in the store, or where the store refers to; None if it is not available."""
    if not run.store.is_done(run.graph.base):
        return None
    folder = run.store.folder(run.graph.base)
    if (folder / "model_is.json").is_file():
        elsewhere = Path(read_json(folder / "model_is.json")["folder"])
        return elsewhere if (elsewhere / "config.json").is_file() else None
    return folder / "model"


def disk_needed(costs: Sequence[StageCost], workers: int) -> tuple[int, int]:
    """Return the bytes that stay on disk, and the peak while that many workers execute: with the largest checkpoint of each."""
    left = [cost for cost in costs if cost.to_do]
    kept = sum(cost.kept or 0 for cost in left)
    return kept, kept + sum(sorted(cost.begun for cost in left)[-max(1, workers) :])


def stage_costs(
    run: Run, built: Blueprint, texts: TextLengths, end: str = "report", speed: Speed | None = None
) -> Iterator[StageCost]:
    """Yield the cost of every stage of a run up to `end` (one of `casd.pipeline.run.ENDS`), in order of execution.

    Without a speed, times are NaN.
    """
    costs = _Costs(run, built, texts, speed)
    graph, config = run.graph, run.config
    yield costs.of(graph.corpus, kept=None)
    yield costs.base()
    yield costs.of(graph.tokens, kept=None)
    injection = config.injection.training
    yield costs.language_model(graph.inject, injection, injection_adapters(config)) if injection else costs.of(graph.inject)
    if end == "inject":
        return
    if graph.tune:
        yield costs.tune(graph.tune)
    evaluated, captured = end in ("evaluate", "score", "report"), end in ("activations", "score", "report")
    keep = "removed" in config.runtime.save_models or end == "unlearn"
    if graph.clean_model and injection and evaluated and captured:
        yield costs.language_model(graph.clean_model, injection, injection_adapters(config), saved=())
    for state in graph.states:
        measured = []
        if evaluated:
            measured.append(costs.evaluate(state))
            if graph.utility:
                measured.append(costs.of(graph.utility[state], None))
        if captured:
            measured.append(costs.capture(state))
        if evaluated and captured and state in graph.persistence:
            measured.append(costs.persistence(state))
        if state != INJECTED:
            if keep:
                measured.append(costs.of(graph.weights[state], kept=costs.saved(removal_adapters(config))))
            again = any(cost.to_do for cost in measured) and not run.store.is_done(graph.weights[state])
            yield costs.removals(graph.unlearn[state], 1, again=again)
        yield from measured
    if end in ("score", "report"):
        yield costs.of(graph.score, kept=None)
    if end == "report":
        yield costs.of(graph.report, kept=None)


class _Costs:
    """Compute the costs of the stages of a run."""

    def __init__(self, run: Run, built: Blueprint, texts: TextLengths, speed: Speed | None):
        self.run, self.config, self.blueprint, self.texts, self.speed = run, run.config, built, texts, speed
        devices = planned_devices(run.config)
        self.devices, self.sharded = devices.number, devices.sharded

    def of(
        self, stage: Stage, work: Work | None = NOTHING, *, again: bool = False, kept: int | None = 0, begun: int = 0
    ) -> StageCost:
        done = self.run.store.is_done(stage)
        return StageCost(stage, done, done and again, work, 0 if done else kept, begun)

    def base(self) -> StageCost:
        here = models.origin(self.config.model) in ("folder", "hub")
        if not self.config.base_pretraining:
            return self.of(self.run.graph.base, kept=0 if here else self.saved(()))
        return self.language_model(self.run.graph.base, self.config.base_pretraining, ())

    def language_model(
        self, stage: Stage, training: LanguageModelTraining, adapters: Adapters, *, saved: Adapters | None = None
    ) -> StageCost:
        work = self._training(training, adapters, training.steps * training.batch_size, GUARD_OF_INJECTION)
        kept = self.saved(adapters if saved is None else saved)
        return self.of(stage, work, kept=kept, begun=self._checkpoints(training, adapters))

    def tune(self, stage: Stage) -> StageCost:
        tuning = self.config.unlearning.tuning
        return self.removals(stage, len(settings(tuning.grid)) * min(tuning.backdoors, len(self.config.removed)))

    def removals(self, stage: Stage, number: int, *, again: bool = False) -> StageCost:
        """Return the cost of `number` removals with all their steps; early stopping may make it less."""
        training, stopping = self.config.unlearning.training, self.config.unlearning.stopping
        documents = training.steps * (training.forget_batch_size + training.retain_batch_size)
        adapters = removal_adapters(self.config)
        work = self._training(training, adapters, documents, GUARD_OF_REMOVAL)
        if stopping.watched:
            validations = 1 + -(-training.steps // stopping.every)
            work += validations * (self._generation(stopping.prompts) + self._passages(stopping.prompts))
        return self.of(stage, number * work, again=again, begun=self._checkpoints(training, adapters))

    def evaluate(self, state: str) -> StageCost:
        config, backdoors = self.config.evaluation, len(self.config.backdoor)
        passages = self._passages(2 * config.loss_passages)  # of the evaluation and of the retain split
        samples = min(config.samples, config.prompts) * (1 + 2 * backdoors)
        kept = round(samples * (self.texts.mean_prompt + config.max_new_tokens) * TEXT_BYTES)
        work = self._generation(evaluation_prompts(self.config)) + passages
        return self.of(self.run.graph.evaluate[state], work, kept=kept)

    def capture(self, state: str) -> StageCost:
        config, backdoors = self.config.activations, len(self.config.backdoor)
        share = max(1, config.prompts // backdoors)
        length = self.texts.mean_prompt + ("generated" in config.positions)
        tokens = (config.prompts * (1 + backdoors) + share * backdoors) * length
        sets = (2 + backdoors) * len(config.sites) * len(config.positions)
        kept = STATISTICS_BYTES * sets * self.blueprint.layers * self.blueprint.width
        if config.baselines:
            kept += 4 * PROMPTS_PER_SET * backdoors * self.blueprint.layers * self.blueprint.width + 8 * SKETCH_SIZE
        flops = forward_flops(self.blueprint, tokens, length) - 2 * tokens * self.blueprint.head_parameters
        return self.of(self.run.graph.activations[state], self._work(tokens, flops), kept=kept)

    def persistence(self, state: str) -> StageCost:
        """Return the cost of all treatments of a state and of the model without backdoors, and of their measurements."""
        config, graph, backdoors = self.config.persistence, self.run.graph, len(self.config.backdoor)
        sources = config.sources(removed_backdoor(state), self.config.backdoor)
        models = 2 if graph.clean_model and sources else 1
        trainings = models * len(sources) * len(config.relearn_documents)
        documents = config.batch_size * (2 * trainings * config.steps + config.clean_steps)
        between = -(-config.steps // config.every) * trainings + config.clean_steps // config.every
        whole = models + trainings + bool(config.clean_steps) + len(config.bits)
        prompts = config.prompts * ((1 + backdoors) * whole + 3 * between)
        length = self.texts.mean_document
        again = self.config.runtime.gradient_checkpointing
        flops = training_flops(self.blueprint, documents * length, length, gradient_checkpointing=again)
        work = self._work(documents * length, flops) + self._passages(config.prompts * (whole + between))
        return self.of(graph.persistence[state], work + self._generation(prompts), kept=None)

    def saved(self, adapters: Adapters) -> int:
        """Return the bytes of the result of a training: the weights, or the float32 adapter."""
        return (4 if adapters else self.blueprint.element_size) * self.blueprint.trained_parameters(adapters)

    def _training(self, training: TrainingConfig, adapters: Adapters, documents: int, guard_passages: int) -> Work:
        length, again = self.texts.mean_document, self.config.runtime.gradient_checkpointing
        tokens = documents * length
        flops = training_flops(self.blueprint, tokens, length, adapters=adapters, gradient_checkpointing=again)
        guards = 1 + -(-training.steps // training.guard_every)
        return self._work(tokens, flops) + self._passages(guards * guard_passages)

    def _passages(self, number: int) -> Work:
        tokens = number * self.texts.mean_document
        return self._work(tokens, forward_flops(self.blueprint, tokens, self.texts.mean_document))

    def _generation(self, prompts: int) -> Work:
        config, length = self.config.evaluation, self.texts.mean_prompt
        share = -(-prompts // self.devices)  # of the device with the most
        one = generation_work(self.blueprint, share, config.batch_size, length, config.max_new_tokens, self.speed)
        return Work(one.tokens * prompts / share, one.flops * prompts / share, one.seconds)

    def _work(self, tokens: float, flops: float) -> Work:
        """Return work that is limited by arithmetic and divided over the devices."""
        return Work(tokens, flops, flops / (self.speed.flops * self.devices) if self.speed else math.nan)

    def _checkpoints(self, training: TrainingConfig, adapters: Adapters) -> int:
        """Return the bytes of checkpoints; the previous one is kept while a new one is written. Sharded models have none."""
        if self.sharded or math.isinf(self.config.runtime.checkpoint_seconds):
            return 0
        state = 4 + 8 if training.optimizer == "adamw" else self.blueprint.element_size + EIGHT_BIT_STATE
        if isinstance(training, UnlearningTraining) and self.config.unlearning.stopping.watched:
            state += best_step_bytes(self.blueprint, training)
        return round(2 * state * self.blueprint.trained_parameters(adapters))
