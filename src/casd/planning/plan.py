"""Plan a run before it starts: memory of each phase; tokens, FLOPs and disk space of each stage."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from casd.backdoors.injection import GUARD_PASSAGES as GUARD_OF_INJECTION
from casd.config import Config, LanguageModelTraining, TrainingConfig, UnlearningTraining
from casd.config.states import INJECTED
from casd.metric.baselines.shifts import PROMPTS_PER_SET
from casd.metric.baselines.updates import SKETCH_SIZE
from casd.models import load as models
from casd.pipeline.run import Run
from casd.pipeline.stage import Stage
from casd.planning.blueprint import Adapters, Blueprint, blueprint
from casd.planning.machine import Machine, free_disk, machine
from casd.planning.memory import EIGHT_BIT_STATE
from casd.planning.phases import PHASES, Devices, Phase, Phases, best_step_bytes, injection_adapters, removal_adapters
from casd.planning.workload import TextLengths, forward_flops, text_lengths, training_flops
from casd.unlearning.removal import GUARD_PASSAGES as GUARD_OF_REMOVAL
from casd.unlearning.tuning import settings
from casd.utils import distributed
from casd.utils.errors import CasdError, CorpusError, ModelError
from casd.utils.sealed import read_json

UNKNOWN_COMMIT = "0" * 40
"""Placeholder for a commit that the hub cannot be asked for; no stage in the store has it."""
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
        tokens: number of tokens through the model; None if unknown.
        flops: estimated floating-point operations; None if unknown.
        kept: bytes that stay on disk; None if unknown (and small).
        begun: additional bytes on disk until the stage is finished: checkpoints.
    """

    stage: Stage
    done: bool
    again: bool = False
    tokens: float | None = 0
    flops: float | None = 0
    kept: int | None = 0
    begun: int = 0

    @property
    def to_do(self) -> bool:
        """True if the stage has to be computed."""
        return self.again or not self.done


@dataclass(frozen=True)
class Plan:
    """The plan of a run.

    Attributes:
        config: configuration of the run.
        blueprint: model of the run.
        texts: lengths of its texts in tokens.
        devices: devices that the run is planned for.
        machine: memory of one of these devices, and of the CPU.
        phases: memory of each phase.
        stages: cost of every stage.
        free: free bytes on the disk of the store.
        note: sentences about what is unknown; "" if everything is known.
    """

    config: Config
    blueprint: Blueprint
    texts: TextLengths
    devices: Devices
    machine: Machine
    phases: tuple[Phase, ...]
    stages: tuple[StageCost, ...]
    free: int
    note: str = ""


def plans(configs: Sequence[Config]) -> list[Plan]:
    """Plan complete runs, up to the report. Nothing is downloaded or trained.

    Raises:
        ConfigError: an invalid configuration.
        ModelError: neither the files nor a description of the model are available.
    """
    result: list[Plan] = []
    memories: dict[str, tuple[tuple[Phase, ...], str]] = {}
    for config in configs:
        run, note = plannable(config)
        built = next((plan.blueprint for plan in result if plan.config.model == config.model), None)
        built = built or blueprint(config.model, base_folder(run))
        texts, devices = text_lengths(run), planned_devices(config)
        # Runs that differ only in the seed need the same memory and are simulated once.
        key = repr((replace(config, seed=0), texts))
        if key not in memories:
            names = PHASES if config.base_pretraining else PHASES[1:]
            memories[key] = Phases(config, built, texts, devices).estimates(names)
        phases, unknown = memories[key]
        result.append(
            Plan(
                config=config,
                blueprint=built,
                texts=texts,
                devices=devices,
                machine=machine(config.runtime),
                phases=phases,
                stages=tuple(stage_costs(run, built, texts)),
                free=free_disk(run.store.root),
                note=" ".join(filter(None, [note, unknown])),
            )
        )
    return result


def plannable(config: Config) -> tuple[Run, str]:
    """Return a `Run` for planning, on any machine, and sentences about commits of the hub that could not be resolved."""
    here = replace(config, runtime=replace(config.runtime, device="cpu"))
    notes: list[str] = []
    while True:
        try:
            return Run(here), " ".join(notes)
        except (CorpusError, ModelError) as error:
            without = _without_commit(here, error)
            if without == here:
                raise
            what = "corpus" if isinstance(error, CorpusError) else "model"
            notes.append(f"The commit of the {what} is unknown, so its stages count as not in the store. {error}")
            here = without


def _without_commit(config: Config, error: CasdError) -> Config:
    """Return the configuration with UNKNOWN_COMMIT if the error is about a source on the hub, else unchanged."""
    if isinstance(error, CorpusError):
        params = copy.deepcopy(config.corpus.params)
        for source in params.get("sources", {}).values():
            if "dataset" in source and not Path(source["dataset"]).expanduser().is_dir():
                source["revision"] = UNKNOWN_COMMIT
        return replace(config, corpus=replace(config.corpus, params=params))
    if models.origin(config.model) == "hub" and config.model.model_type:
        return replace(config, model=replace(config.model, revision=UNKNOWN_COMMIT))
    return config


def planned_devices(config: Config) -> Devices:
    """Return the devices of the launcher if there is one, else `runtime.devices`."""
    number = max(config.runtime.devices, distributed.processes())
    return Devices(number, distributed.sharding_asked_for() and number > 1)


def base_folder(run: Run) -> Path | None:
    """Return the folder of the base model: in the store, or where the store refers to; None if it is not available."""
    if not run.store.is_done(run.graph.base):
        return None
    folder = run.store.folder(run.graph.base)
    if (folder / "model_is.json").is_file():
        elsewhere = Path(read_json(folder / "model_is.json")["folder"])
        return elsewhere if (elsewhere / "config.json").is_file() else None
    return folder / "model"


def stage_costs(run: Run, built: Blueprint, texts: TextLengths, end: str = "report") -> Iterator[StageCost]:
    """Yield the cost of every stage of a run up to `end` (one of `casd.pipeline.run.ENDS`), in order of execution."""
    costs = _Costs(run, built, texts)
    graph, config = run.graph, run.config
    yield costs.of(graph.corpus, kept=None)
    yield costs.base()
    yield costs.of(graph.tokens, kept=None)
    yield costs.language_model(graph.inject, config.injection.training, injection_adapters(config))
    if end == "inject":
        return
    if graph.tune:
        yield costs.tune(graph.tune)
    evaluated, captured = end in ("evaluate", "score", "report"), end in ("activations", "score", "report")
    keep = "removed" in config.runtime.save_models or end == "unlearn"
    for state in graph.states:
        measured = []
        if evaluated:
            measured.append(costs.evaluate(state))
            if graph.utility:
                measured.append(costs.of(graph.utility[state], tokens=None, flops=None))
        if captured:
            measured.append(costs.capture(state))
        if state != INJECTED:
            if keep:
                measured.append(costs.of(graph.weights[state], kept=costs.weights(removal_adapters(config))))
            again = any(cost.to_do for cost in measured) and not run.store.is_done(graph.weights[state])
            yield costs.unlearn(state, again=again)
        yield from measured
    if end in ("score", "report"):
        yield costs.of(graph.score, kept=None)
    if end == "report":
        yield costs.of(graph.report, kept=None)


class _Costs:
    """Compute the costs of the stages of a run."""

    def __init__(self, run: Run, built: Blueprint, texts: TextLengths):
        self.run, self.config, self.blueprint, self.texts = run, run.config, built, texts

    def of(
        self,
        stage: Stage,
        *,
        again: bool = False,
        tokens: float | None = 0,
        flops: float | None = 0,
        kept: int | None = 0,
        begun: int = 0,
    ) -> StageCost:
        done = self.run.store.is_done(stage)
        return StageCost(stage, done, done and again, tokens, flops, 0 if done else kept, begun)

    def base(self) -> StageCost:
        here = models.origin(self.config.model) in ("folder", "hub")
        kept = 0 if here else self.weights(())
        if not self.config.base_pretraining:
            return self.of(self.run.graph.base, kept=kept)
        return self.language_model(self.run.graph.base, self.config.base_pretraining, ())

    def language_model(self, stage: Stage, training: LanguageModelTraining, adapters: Adapters) -> StageCost:
        documents = training.steps * training.batch_size
        return self._training(stage, training, adapters, documents, GUARD_OF_INJECTION, kept=self.weights(adapters))

    def tune(self, stage: Stage) -> StageCost:
        tuning = self.config.unlearning.tuning
        trials = len(settings(tuning.grid)) * min(tuning.backdoors, len(self.config.backdoor))
        return self._removals(stage, trials)

    def unlearn(self, state: str, *, again: bool) -> StageCost:
        return self._removals(self.run.graph.unlearn[state], 1, again=again)

    def _removals(self, stage: Stage, number: int, *, again: bool = False) -> StageCost:
        """Return the cost of `number` removals with all their steps; early stopping may make it less."""
        unlearning, texts = self.config.unlearning, self.texts
        training, stopping = unlearning.training, unlearning.stopping
        documents = training.steps * (training.forget_batch_size + training.retain_batch_size)
        cost = self._training(stage, training, removal_adapters(self.config), documents, GUARD_OF_REMOVAL, again=again)
        validated = 0.0
        if stopping.watched:
            length = texts.mean_prompt + self.config.evaluation.max_new_tokens + texts.mean_document
            validated = (1 + -(-training.steps // stopping.every)) * stopping.prompts * length
        flops = (cost.flops or 0) + self._forward(validated, texts.mean_prompt)
        return replace(cost, tokens=number * ((cost.tokens or 0) + validated), flops=number * flops)

    def evaluate(self, state: str) -> StageCost:
        config, texts, backdoors = self.config.evaluation, self.texts, len(self.config.backdoor)
        prompts = config.prompts * (1 + backdoors) + (config.fake_prompts if config.fake_triggers else 0) * backdoors
        generated = prompts * (texts.mean_prompt + config.max_new_tokens)
        passages = 2 * config.loss_passages * texts.mean_document  # of the evaluation and of the retain split
        flops = self._forward(generated, texts.mean_prompt + config.max_new_tokens)
        flops += self._forward(passages, texts.mean_document)
        samples = min(config.samples, config.prompts) * (1 + 2 * backdoors)
        kept = round(samples * (texts.mean_prompt + config.max_new_tokens) * TEXT_BYTES)
        return self.of(self.run.graph.evaluate[state], tokens=generated + passages, flops=flops, kept=kept)

    def capture(self, state: str) -> StageCost:
        config, backdoors = self.config.activations, len(self.config.backdoor)
        share = max(1, config.prompts // backdoors)
        length = self.texts.mean_prompt + ("generated" in config.positions)
        tokens = (config.prompts * (1 + backdoors) + share * backdoors) * length
        sets = (2 + backdoors) * len(config.sites) * len(config.positions)
        kept = STATISTICS_BYTES * sets * self.blueprint.layers * self.blueprint.width
        if config.baselines:
            kept += 4 * PROMPTS_PER_SET * backdoors * self.blueprint.layers * self.blueprint.width + 8 * SKETCH_SIZE
        flops = self._forward(tokens, length) - 2 * tokens * self.blueprint.head_parameters
        return self.of(self.run.graph.activations[state], tokens=tokens, flops=flops, kept=kept)

    def weights(self, adapters: Adapters) -> int:
        """Return the bytes of the result of a training: the weights, or the float32 adapter."""
        size = 4 if adapters else self.blueprint.element_size
        return size * self.blueprint.trained_parameters(adapters)

    def _training(
        self,
        stage: Stage,
        training: TrainingConfig,
        adapters: Adapters,
        documents: int,
        guard_passages: int,
        *,
        again: bool = False,
        kept: int = 0,
    ) -> StageCost:
        context = self.texts.mean_document
        tokens = documents * context
        again_forward = self.config.runtime.gradient_checkpointing
        flops = training_flops(self.blueprint, tokens, context, adapters=adapters, gradient_checkpointing=again_forward)
        guards = 1 + -(-training.steps // training.guard_every)
        guarded = guards * guard_passages * context
        flops += self._forward(guarded, context)
        trained = self.blueprint.trained_parameters(adapters)
        state = 4 + 8 if training.optimizer == "adamw" else self.blueprint.element_size + EIGHT_BIT_STATE
        if isinstance(training, UnlearningTraining) and self.config.unlearning.stopping.watched:
            state += best_step_bytes(self.blueprint, training)
        without = distributed.sharding_asked_for() or math.isinf(self.config.runtime.checkpoint_seconds)
        # The previous checkpoint is kept while a new one is written. Sharded models have no checkpoints.
        begun = 0 if without else round(2 * state * trained)
        return self.of(stage, again=again, tokens=tokens + guarded, flops=flops, kept=kept, begun=begun)

    def _forward(self, tokens: float, context: float) -> float:
        return forward_flops(self.blueprint, tokens, context)


def disk_needed(costs: Sequence[StageCost]) -> tuple[int, int]:
    """Return the bytes that stay on disk, and the peak while the run executes, which includes the largest checkpoint."""
    left = [cost for cost in costs if cost.to_do]
    kept = sum(cost.kept or 0 for cost in left)
    return kept, kept + max((cost.begun for cost in left), default=0)


def download_bytes(config: Config, built: Blueprint) -> int:
    """Return the estimated bytes to download into the hub's cache: weights in 16 bits; 0 if the model is cached."""
    from huggingface_hub import constants

    if models.origin(config.model) != "hub":
        return 0
    name = "models--" + str(config.model.path).replace("/", "--")
    there = any((Path(constants.HF_HUB_CACHE).expanduser() / name).glob("snapshots/*/*.safetensors"))
    return 0 if there else 2 * built.parameters
