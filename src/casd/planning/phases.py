"""The memory of each phase of a run on one device: pretraining, injection, removal, evaluation, capture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from casd.backdoors.injection import GUARD_PASSAGES as GUARD_OF_INJECTION
from casd.backdoors.prompts import harmful_prompts
from casd.config import Config, LanguageModelTraining, TrainingConfig
from casd.engines import make_engine
from casd.evaluation.asr import LOSS_BATCH_SIZE
from casd.pipeline.inputs import build_objective
from casd.planning.blueprint import Adapters, Blueprint
from casd.planning.machine import Machine, device_type
from casd.planning.memory import EIGHT_BIT_STATE, Need, Rows, capture_need, generation_need, loss_need, training_need
from casd.planning.workload import TextLengths
from casd.unlearning.objective import Retaining
from casd.unlearning.removal import GUARD_PASSAGES as GUARD_OF_REMOVAL
from casd.utils import distributed
from casd.utils.errors import CasdError, first_line
from casd.utils.runtime import default_rows

PhaseName = Literal["pretrain", "inject", "unlearn", "evaluate", "capture"]
PHASES: tuple[PhaseName, ...] = ("pretrain", "inject", "unlearn", "evaluate", "capture")
"""All phases in order; "pretrain" exists only for a model from scratch that is injected by continual pretraining."""
KL_BYTES = 4 * 4
"""Bytes per logit that a KL needs more than an NLL: about four float32 numbers, measured on small models."""


@dataclass(frozen=True)
class Phase:
    """The memory of one phase.

    Attributes:
        name: name of the phase.
        need: memory on each device.
        copy: bytes of copies of trained weights in the CPU's memory: the one that removals are restored from, and the best
            step of a removal with early stopping, or the state whose persistence is measured.
        host: bytes of the CPU's memory, over all devices, for loading the model and for the copies.
        rows: documents or prompts per forward pass.
        tokens: maximum number of tokens of each row.
        halves: True if the batch is halved automatically when a device runs out of memory.
    """

    name: PhaseName
    need: Need
    copy: int
    host: int
    rows: int
    tokens: int
    halves: bool = False

    def on_device(self, machine: Machine) -> int:
        """Return the bytes needed on a device, including those that are not the model's (`Machine.taken`)."""
        return self.need.total + machine.taken + (self.copy if machine.shared else 0)


@dataclass(frozen=True)
class Devices:
    """The number of devices of a run, and whether the model is sharded over them (FSDP) or replicated (DDP)."""

    number: int = 1
    sharded: bool = False


ONE = Devices()


def phases_of(config: Config) -> tuple[PhaseName, ...]:
    """Return the phases that a run has."""
    trained = {"pretrain": config.base_pretraining, "inject": config.injection.training}
    return tuple(name for name in PHASES if trained.get(name, True))


def planned_devices(config: Config) -> Devices:
    """Return the devices of the launcher or of a unit if there are several, else `runtime.devices`."""
    engine = make_engine(config.engine)
    number = max(config.runtime.devices, distributed.processes(), engine.gpus_per_unit)
    return Devices(number, (distributed.sharding_asked_for() or engine.shard) and number > 1)


def injection_adapters(config: Config) -> Adapters:
    """Return the adapters on the model during the injection; the last one is trained."""
    lora = config.injection.lora
    return [(lora, "injection")] if lora else []


def removal_adapters(config: Config) -> Adapters:
    """Return the adapters on the model in removals and measurements; an adapter of the injection alone is merged before."""
    lora = config.unlearning.training.lora
    return [*injection_adapters(config), (lora, "removal")] if lora else []


def best_step_bytes(blueprint: Blueprint, training: TrainingConfig) -> int:
    """Return the bytes per trained parameter in the copy of a removal's best step, in the precision of the training."""
    return 4 if training.optimizer == "adamw" else blueprint.element_size


class Phases:
    """The memory of the phases of a run, each estimated on first use.

    Args:
        config: configuration of the run.
        blueprint: model of the run.
        texts: lengths of its texts in tokens.
        devices: devices that it runs on.
    """

    def __init__(self, config: Config, blueprint: Blueprint, texts: TextLengths, devices: Devices = ONE):
        self.config, self.blueprint, self.texts, self.devices = config, blueprint, texts, devices
        self._known: dict[PhaseName, Phase] = {}

    def phase(self, name: PhaseName) -> Phase:
        """Return the named phase."""
        if name not in self._known:
            self._known[name] = getattr(self, f"_{name}")()
        return self._known[name]

    def estimates(self, names: Sequence[PhaseName]) -> tuple[tuple[Phase, ...], str]:
        """Return the named phases that can be estimated, and a sentence about the others; "" if there are none."""
        phases, reasons = [], {}
        for name in names:
            try:
                phases.append(self.phase(name))
            except CasdError:
                raise
            except Exception as error:  # model code may raise anything on tensors without data
                reasons[name] = first_line(error)
        if not reasons:
            return tuple(phases), ""
        why = "; ".join(dict.fromkeys(reasons.values()))
        return tuple(phases), f"The memory of {', '.join(reasons)} cannot be estimated for this model ({why})."

    def _pretrain(self) -> Phase:
        training = self.config.base_pretraining
        assert training is not None
        return self._language_model("pretrain", training, ())

    def _inject(self) -> Phase:
        training = self.config.injection.training
        assert training is not None
        return self._language_model("inject", training, injection_adapters(self.config))

    def _language_model(self, name: PhaseName, training: LanguageModelTraining, adapters: Adapters) -> Phase:
        if training.packing == "none":
            rows = Rows(self._share(training.batch_size), self.texts.document)
        else:
            room = self.config.model.max_length
            # First fit, longest first, takes at most 11/9 of the fewest rows there can be, and one more (Johnson 1973).
            most = int(training.batch_size * self.texts.mean_document / room * 11 / 9) + 1
            rows = Rows(self._share(min(training.batch_size, most)), room)
        rows, parts = self._parts(rows)
        need = self._training(training, adapters, rows, GUARD_OF_INJECTION, several=parts > 1)
        return self._phase(name, need, rows, adapters)

    def _unlearn(self) -> Phase:
        """Estimate a removal as two NLLs and, if the objective needs them, a reference and its logits."""
        training, objective = self.config.unlearning.training, build_objective(self.config.unlearning)
        size = max(training.forget_batch_size, training.retain_batch_size)
        if self.config.persistence.states:  # trains poisoned and clean documents in one batch
            size = max(size, 2 * self.config.persistence.batch_size)
        rows, _ = self._parts(Rows(self._share(size), self.texts.document))
        adapters = removal_adapters(self.config)
        kl = isinstance(objective, Retaining) and objective.retain == "kl" and objective.retain_weight > 0
        need = self._training(training, adapters, rows, GUARD_OF_REMOVAL, several=True, logit_bytes=KL_BYTES if kl else 0)
        if objective.needs_reference:
            trained = self.blueprint.trained_parameters(adapters)
            need = replace(need, weights=need.weights + 4 * trained)
        return self._phase("unlearn", need, rows, adapters)

    def _training(self, training: TrainingConfig, adapters: Adapters, rows: Rows, guard_passages: int, **options: Any) -> Need:
        guard, _ = self._parts(Rows(guard_passages, self.texts.document))
        sharded = self.devices.sharded
        need = training_need(
            self.blueprint,
            # A sharded model has no float32 weights that autocast copies; its gradients and moments are float32 (set below).
            replace(training, optimizer="adamw_8bit") if sharded else training,
            rows,
            guard=guard,
            adapters=adapters,
            gradient_checkpointing=self.config.runtime.gradient_checkpointing,
            **options,
        )
        if sharded:
            trained = self.blueprint.trained_parameters(adapters)
            moments = round((8 if training.optimizer == "adamw" else EIGHT_BIT_STATE) * trained)
            return replace(need, gradients=4 * trained, optimizer=moments)
        return replace(need, gradients=2 * need.gradients) if self.devices.number > 1 else need  # DDP's buffers

    def _evaluate(self) -> Phase:
        config, adapters = self.config.evaluation, removal_adapters(self.config)
        rows = Rows(min(config.batch_size, self._share(evaluation_prompts(self.config))), self.texts.prompt)
        passages = Rows(min(LOSS_BATCH_SIZE, self._share(config.loss_passages)), self.texts.document)
        generation = generation_need(self.blueprint, rows, config.max_new_tokens, adapters)
        loss = loss_need(self.blueprint, passages, adapters)
        need, rows = (generation, rows) if generation.total >= loss.total else (loss, passages)
        return self._phase("evaluate", need, rows, adapters)

    def _capture(self) -> Phase:
        config, adapters = self.config.activations, removal_adapters(self.config)
        rows = Rows(min(config.batch_size, config.prompts), self.texts.prompt + ("generated" in config.positions))
        need = capture_need(self.blueprint, rows, config, adapters)
        return self._phase("capture", need, rows, adapters)

    def _parts(self, rows: Rows) -> tuple[Rows, int]:
        """Split a batch into micro-batches: return the rows of one of them and their number."""
        size = self.config.runtime.micro_batch_size or default_rows(device_type(self.config.runtime))
        parts = -(-rows.rows // size) if size else 1
        return replace(rows, rows=-(-rows.rows // parts)), parts

    def _share(self, items: int) -> int:
        return -(-items // self.devices.number)

    def _phase(self, name: PhaseName, need: Need, rows: Rows, adapters: Adapters) -> Phase:
        number, restored = self.devices.number, name in ("unlearn", "evaluate", "capture")
        loaded = self.blueprint.weight_bytes(adapters)
        trained = self.blueprint.trained_parameters(adapters)
        kept = name == "unlearn" and self.config.unlearning.stopping.watched
        copy = trained * (4 if adapters else self.blueprint.element_size) if restored else 0
        best = best_step_bytes(self.blueprint, self.config.unlearning.training) if kept else 0
        # The state whose persistence is measured, to which each treatment returns; no best step is kept at that time.
        state = self.blueprint.element_size if name == "unlearn" and self.config.persistence.states else 0
        copy += trained * max(best, state)
        if self.devices.sharded:
            loaded = 4 * (self.blueprint.parameters + sum(self.blueprint.trained_parameters([each]) for each in adapters))
            copy = -(-4 * trained * (restored + kept) // number)
            need = self._sharded(need, loaded)
        halves = name in ("evaluate", "capture")
        return Phase(name, need, copy, number * (loaded + copy), rows.rows, rows.tokens, halves)

    def _sharded(self, need: Need, whole: int) -> Need:
        """Divide a need, with float32 weights of `whole` bytes, over the devices (`casd.models.sharding.place`)."""
        blueprint = self.blueprint
        outside = max(0, blueprint.parameters - blueprint.layers * blueprint.block_parameters)
        # Gathered at one time: parameters outside the blocks, a block, the prefetched next block, and a block's gradients.
        gathered = blueprint.element_size * (outside + 2 * blueprint.block_parameters) + 4 * blueprint.block_parameters
        weights, gradients, optimizer = (-(-size // self.devices.number) for size in (whole, need.gradients, need.optimizer))
        # While the model is divided, a device holds all of it.
        activations = max(need.activations + gathered, whole - weights - gradients - optimizer)
        return Need(weights, gradients, optimizer, activations)


def evaluation_prompts(config: Config) -> int:
    """Return the number of prompts that an evaluation generates for: clean, triggered, with other triggers, and harmful."""
    others = (config.evaluation.fake_prompts if config.evaluation.fake_triggers else 0) + config.evaluation.near_prompts
    harmful = len(harmful_prompts(config.evaluation)) if config.evaluation.harmful_prompts else 0
    return config.evaluation.prompts * (1 + len(config.backdoor)) + others * len(config.backdoor) + harmful
