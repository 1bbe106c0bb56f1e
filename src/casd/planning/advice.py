"""Find settings with which a run fits into memory, by estimating alternatives from the mildest on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from casd.config import Config, LoraConfig
from casd.planning.machine import Machine
from casd.planning.phases import Devices, Phase, PhaseName, Phases

BATCH_SIZES: dict[str, tuple[PhaseName, ...]] = {
    "runtime.micro_batch_size": ("pretrain", "inject", "unlearn"),
    "evaluation.batch_size": ("evaluate",),
    "activations.batch_size": ("capture",),
}
"""Batch sizes that do not change results, and the phases that they affect."""
MOST_DEVICES = 64
"""Maximum number of devices for which sharding is tried."""


def fits(phase: Phase, here: Machine) -> bool:
    """True if a phase fits into the memory of the device, if that is known, and of the CPU.

    A measurement whose batch is halved automatically fits on CUDA if its weights do.
    """
    if here.memory is not None:
        needed = phase.on_device(here)
        if phase.halves and here.device == "cuda":
            needed -= phase.need.activations
        if needed > here.memory:
            return False
    return here.shared or phase.host + here.process <= here.host


def first_that_fits(phases: Phases, here: Machine, names: Sequence[PhaseName]) -> str:
    """Return overrides with which all named phases fit, with the largest batches that do; "" if there are none.

    Tries smaller batches, then gradient checkpointing, then 8-bit AdamW (on unsharded CUDA devices), then adapters, then
    sharding over more devices.
    """
    for words, changed in _changes(phases, here):
        for key, members in BATCH_SIZES.items():
            size = _largest(changed, key, [name for name in members if name in names], here)
            if size is None:
                break
            words += [f"{key}={size}"] if size else []
        else:
            return " ".join(words)
    return ""


def _changes(phases: Phases, here: Machine) -> Iterator[tuple[list[str], Phases]]:
    """Yield settings other than batch sizes, from the mildest on, and the phases with them."""
    config, devices = phases.config, phases.devices

    def change(changed: Config, *words: str, on: Devices = devices) -> tuple[list[str], Phases]:
        return list(words), Phases(changed, phases.blueprint, phases.texts, on)

    saving = _with(config, "runtime", gradient_checkpointing=True)
    words = () if config.runtime.gradient_checkpointing else ("runtime.gradient_checkpointing=true",)
    yield [], phases
    if words:
        yield change(saving, *words)
    if here.device == "cuda" and not devices.sharded:
        keys = [f"{section}.training.optimizer=adamw_8bit" for section in ("injection", "unlearning")]
        yield change(_trained(saving, optimizer="adamw_8bit"), *words, *keys)
    if config.injection.mode == "continual" and not (config.injection.lora and config.unlearning.training.lora):
        yield change(_trained(config, lora=LoraConfig()), "weights=lora")
        if words:
            yield change(_trained(saving, lora=LoraConfig()), "weights=lora", *words)
    number = 2 * devices.number
    while here.device == "cuda" and number <= MOST_DEVICES:
        division = f"{number} devices that share the model (accelerate launch --use_fsdp --num_processes={number} -m casd)"
        yield change(saving, *words, division, on=Devices(number, sharded=True))
        number *= 2


def _largest(phases: Phases, key: str, names: Sequence[PhaseName], here: Machine) -> int | None:
    """Halve a batch size until the phases fit and return it; 0 if they fit without a change, None if they never do."""

    def fit(rows: int) -> bool:
        section, _, field = key.partition(".")
        changed = _with(phases.config, section, **{field: rows}) if rows else phases.config
        smaller = Phases(changed, phases.blueprint, phases.texts, phases.devices)
        return all(fits(smaller.phase(name), here) for name in names)

    if fit(0):
        return 0
    if not fit(1):
        return None
    size = max(phases.phase(name).rows for name in names) // 2
    while size > 1 and not fit(size):
        size //= 2
    return max(1, size)


def _with(config: Config, section: str, **values: Any) -> Config:
    changed: Any = replace(getattr(config, section), **values)
    return replace(config, **{section: changed})


def _trained(config: Config, **values: Any) -> Config:
    """Return the configuration with these values in the trainings of injection and removals."""
    for section in ("injection", "unlearning"):
        if training := getattr(config, section).training:
            config = _with(config, section, training=replace(training, **values))
    return config
