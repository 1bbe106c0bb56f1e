"""The memory of each phase of a run on one device: pretraining, injection, removal, evaluation, capture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from casd.backdoors.injection import GUARD_PASSAGES as GUARD_OF_INJECTION
from casd.config import Config, LanguageModelTraining, TrainingConfig
from casd.evaluation.asr import LOSS_BATCH_SIZE
from casd.planning.blueprint import Adapters, Blueprint
from casd.planning.machine import Machine
from casd.planning.memory import EIGHT_BIT_STATE, Need, Rows, Terms, capture_need, generation_need, loss_need, training_need
from casd.planning.workload import TextLengths
from casd.training.losses import mean_nll
from casd.unlearning import OBJECTIVES
from casd.unlearning.clean_target import CleanTarget
from casd.unlearning.reference import Reference
from casd.unlearning.removal import GUARD_PASSAGES as GUARD_OF_REMOVAL
from casd.utils.errors import CasdError, first_line
from casd.utils.registry import build

PhaseName = Literal["pretrain", "inject", "unlearn", "evaluate", "capture"]


@dataclass(frozen=True)
class Phase:
    """The memory of one phase.

    Attributes:
        name: name of the phase.
        need: memory on each device.
        copy: bytes of copies of trained weights in the CPU's memory: the one that removals are restored from, and the best
            step of a removal with early stopping.
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


def injection_adapters(config: Config) -> Adapters:
    """Return the adapters on the model during the injection; the last one is trained."""
    lora = config.injection.training.lora
    return [(lora, "injection")] if lora else []


def removal_adapters(config: Config) -> Adapters:
    """Return the adapters on the model in removals and measurements; an adapter of the injection alone is merged before."""
    lora = config.unlearning.training.lora
    return [*injection_adapters(config), (lora, "removal")] if lora else []


def best_step_bytes(blueprint: Blueprint, training: TrainingConfig) -> int:
    """Return the bytes per trained parameter in the copy of a removal's best step, in the precision of the training."""
    return 4 if training.optimizer == "adamw" else blueprint.element_size


class Phases:
    """The memory of the phases of a run. Each is estimated on first use, in about a second.

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
        return self._language_model("inject", self.config.injection.training, injection_adapters(self.config))

    def _language_model(self, name: PhaseName, training: LanguageModelTraining, adapters: Adapters) -> Phase:
        rows = self._rows(training.batch_size, training.packing)
        one, parts = self._parts({"all": rows})

        def terms(model: Any, batch: Any) -> Any:
            yield "nll", mean_nll(model, batch["all"])

        return self._training(name, training, adapters, one, parts, terms, GUARD_OF_INJECTION)

    def _unlearn(self) -> Phase:
        training = self.config.unlearning.training
        batch = {"forget": self._rows(training.forget_batch_size), "retain": self._rows(training.retain_batch_size)}
        one, parts = self._parts(batch)
        chosen = self.config.unlearning.objective
        objective = build(OBJECTIVES, "objective", chosen.name, chosen.params)
        adapters = removal_adapters(self.config)

        def need(terms: Callable[..., Any]) -> Phase:
            held: list[Any] = []  # the simulated model and its reference weights

            def with_reference(model: Any, part: Any) -> Any:
                if objective.needs_reference and (not held or held[0] is not model):
                    held[:] = [model, Reference(model)]
                return terms(model, part, *held[1:])

            return self._training("unlearn", training, adapters, one, parts, with_reference, GUARD_OF_REMOVAL)

        try:
            return need(objective.terms)
        except (DataDependentOutputException, DynamicOutputShapeException):
            # The objective reads values, which fake tensors do not have; approximate it by two plain terms on the same batches.
            return need(CleanTarget().terms)

    def _training(
        self,
        name: PhaseName,
        training: TrainingConfig,
        adapters: Adapters,
        one: Mapping[str, Rows],
        parts: int,
        terms: Terms,
        guard_passages: int,
    ) -> Phase:
        guard, _ = self._parts({"guard": Rows(guard_passages, self.texts.document)})
        # A sharded model has no float32 weights that autocast copies; its gradients and moments are float32 (set below).
        simulated = replace(training, optimizer="adamw_8bit") if self.devices.sharded else training
        need = training_need(
            self.blueprint,
            simulated,
            lambda: {key: rows.batch() for key, rows in one.items()},
            terms,
            parts=parts,
            guard=guard["guard"],
            adapters=adapters,
            gradient_checkpointing=self.config.runtime.gradient_checkpointing,
        )
        if self.devices.sharded:
            trained = self.blueprint.trained_parameters(adapters)
            moments = round((8 if training.optimizer == "adamw" else EIGHT_BIT_STATE) * trained)
            need = replace(need, gradients=4 * trained, optimizer=moments)
        largest = max(one.values(), key=lambda rows: rows.rows * rows.tokens)
        return self._phase(name, need, largest, adapters, restored=name == "unlearn")

    def _evaluate(self) -> Phase:
        config, adapters = self.config.evaluation, removal_adapters(self.config)
        backdoors = len(self.config.backdoor)
        prompts = config.prompts * (1 + backdoors) + (config.fake_prompts if config.fake_triggers else 0) * backdoors
        rows = Rows(min(config.batch_size, self._share(prompts)), self.texts.prompt)
        passages = Rows(min(LOSS_BATCH_SIZE, self._share(config.loss_passages)), self.texts.document)
        needs = [
            generation_need(self.blueprint, rows, config.max_new_tokens, adapters),
            loss_need(self.blueprint, passages, adapters),
        ]
        need = max(needs, key=lambda each: each.total)
        return self._phase("evaluate", need, rows if need is needs[0] else passages, adapters, restored=True)

    def _capture(self) -> Phase:
        config, adapters = self.config.activations, removal_adapters(self.config)
        tokens = self.texts.prompt + ("generated" in config.positions)
        rows = Rows(min(config.batch_size, config.prompts), tokens)
        need = capture_need(self.blueprint, rows, config, adapters)
        return self._phase("capture", need, rows, adapters, restored=True)

    def _rows(self, documents: int, packing: str = "none") -> Rows:
        """Return one device's share of the rows of `documents` documents."""
        if packing == "none":
            return Rows(self._share(documents), self.texts.document)
        room = self.config.model.max_length
        # First fit, longest first, takes at most 11/9 of the fewest rows there can be, and one more (Johnson 1973).
        rows = min(documents, int(documents * self.texts.mean_document / room * 11 / 9) + 1)
        return Rows(self._share(rows), room, isolated=packing == "isolated")

    def _parts(self, batch: Mapping[str, Rows]) -> tuple[dict[str, Rows], int]:
        """Split a batch into micro-batches: return the rows of one of them and their number."""
        most, size = max(rows.rows for rows in batch.values()), self.config.runtime.micro_batch_size
        parts = -(-most // size) if size else 1
        return {name: replace(rows, rows=-(-rows.rows // parts)) for name, rows in batch.items()}, parts

    def _share(self, items: int) -> int:
        return -(-items // self.devices.number)

    def _phase(self, name: PhaseName, need: Need, rows: Rows, adapters: Adapters, *, restored: bool) -> Phase:
        number, training = self.devices.number, name in ("pretrain", "inject", "unlearn")
        loaded = self.blueprint.weight_bytes(adapters)
        trained = self.blueprint.trained_parameters(adapters)
        kept = name == "unlearn" and self.config.unlearning.stopping.watched
        copy = trained * (4 if adapters else self.blueprint.element_size) if restored else 0
        copy += trained * best_step_bytes(self.blueprint, self.config.unlearning.training) if kept else 0
        if self.devices.sharded:
            loaded = 4 * (self.blueprint.parameters + sum(self.blueprint.trained_parameters([each]) for each in adapters))
            copy = -(-4 * trained * (restored + kept) // number)
            need = self._divided(need, loaded)
        elif number > 1 and training:
            need = need.replicated()
        return Phase(name, need, copy, number * (loaded + copy), rows.rows, rows.tokens, halves=not training)

    def _divided(self, need: Need, whole: int) -> Need:
        """Shard a need, with float32 weights of `whole` bytes, over the devices (`casd.models.sharding.place`)."""
        blueprint = self.blueprint
        outside = max(0, blueprint.parameters - blueprint.layers * blueprint.block_parameters)
        # Gathered at one time: parameters outside the blocks, a block, the prefetched next block, and a block's gradients.
        gathered = blueprint.element_size * (outside + 2 * blueprint.block_parameters) + 4 * blueprint.block_parameters
        need = replace(need, weights=whole).sharded(self.devices.number, gathered)
        return replace(need, activations=max(need.activations, whole - (need.total - need.activations)))
