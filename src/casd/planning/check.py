"""Whether a run fits into memory and on the disk, asked before it starts; and which settings would make it fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from casd.config import Config
from casd.evaluation.asr import LOSS_BATCH_SIZE
from casd.pipeline.run import Run
from casd.planning.advice import first_that_fits, fits
from casd.planning.blueprint import Blueprint, blueprint
from casd.planning.machine import Machine, free_disk, machine
from casd.planning.phases import Phase, PhaseName, Phases
from casd.planning.plan import StageCost, base_folder, disk_needed, planned_devices, stage_costs
from casd.planning.workload import TextLengths, text_lengths
from casd.utils import distributed
from casd.utils.disk import readable_size
from casd.utils.errors import CasdError, ConfigError, ModelError, first_line
from casd.utils.progress import say

BYTES_A_PARAMETER = 100
"""A generous bound of what a parameter takes with gradients, optimizer and copies: six times AdamW's 16 bytes."""
FAR_BELOW = 0.5
"""A bound below this share of the memory needs no closer look."""


def check(run: Run, end: str) -> None:
    """Refuse a run that cannot fit, before anything of it is made. Only what is not in the store counts.

    It costs next to nothing where a generous bound is far below the memory that there is, and seconds else. With a launcher
    the main process decides for all.

    Args:
        run: what is to be run.
        end: up to what; one of `casd.pipeline.run.ENDS`.

    Raises:
        ConfigError: in a line, what does not fit, and settings with which it would.
    """
    refusal = ""
    if distributed.is_main():
        try:
            refusal = _if_estimated(lambda: _refusal(run, end))
        except CasdError as error:  # raised below, in all processes: those that wait for the main one must be told
            refusal = str(error)
    refusal = distributed.broadcast(refusal)
    if refusal:
        raise ConfigError(refusal)


def _refusal(run: Run, end: str) -> str:
    """Why the run cannot fit; empty if it can, or if its model's shape is not known before it is downloaded."""
    config = run.config
    if refusal := output_refusal(Path(config.runtime.output)):
        return refusal
    try:
        built = blueprint(config.model, base_folder(run))
    except ModelError:
        return ""  # whoever makes the base model says it better
    longest = config.model.max_length
    texts = TextLengths(longest, longest, longest, longest)
    costs = list(stage_costs(run, built, texts, end))
    names = _phases_to_do(run, costs)
    if not names:
        return ""
    here, devices = machine(config.runtime), planned_devices(config)

    def memory() -> str:
        far_below = _far_below(config, built, here)
        return "" if far_below else memory_refusal(Phases(config, built, text_lengths(run), devices), here, names)

    return _if_estimated(memory) or disk_refusal(config, costs, free_disk(run.store.root))


def _if_estimated(refusal: Callable[[], str]) -> str:
    """A refusal; empty, and a line says so, where the model's code does not run on tensors without data."""
    try:
        return refusal()
    except CasdError:
        raise
    except Exception as error:  # each architecture may raise its own
        say(f"Whether the run fits into memory is not checked: it cannot be estimated for this model ({first_line(error)}).")
        return ""


def _phases_to_do(run: Run, costs: list[StageCost]) -> list[PhaseName]:
    kinds = {cost.stage.name for cost in costs if cost.to_do}
    phases: dict[PhaseName, bool] = {
        "pretrain": "base" in kinds and run.config.base_pretraining is not None,
        "inject": "inject" in kinds,
        "unlearn": "unlearn" in kinds,
        "evaluate": "evaluate" in kinds,
        "capture": "activations" in kinds,
    }
    return [name for name, wanted in phases.items() if wanted]


def _far_below(config: Config, built: Blueprint, here: Machine) -> bool:
    """Whether a generous bound is far below the memory. Models whose shapes hide more are looked at closely."""
    if here.memory is None or not built.plain:
        return False
    bound = upper_bound(built, config)
    return max(here.taken + bound, 0 if here.shared else here.process + bound) < FAR_BELOW * min(here.memory, here.host)


def upper_bound(built: Blueprint, config: Config) -> int:
    """A generous bound of the bytes that any phase of a run takes on one device, without a simulation.

    Of each token of a training it counts thrice what goes into and comes out of every matrix, and eight numbers for every
    token that it could look at; of each token of a measurement the cache and thrice what one block and the head have.
    """
    trained = max(
        config.injection.training.batch_size,
        config.base_pretraining.batch_size if config.base_pretraining else 0,
        config.unlearning.training.forget_batch_size,
        config.unlearning.training.retain_batch_size,
        LOSS_BATCH_SIZE,
    )
    measured = max(config.evaluation.batch_size, config.activations.batch_size)
    tokens = config.model.max_length
    length = tokens + config.evaluation.max_new_tokens
    training = trained * tokens * (3 * built.features + 8 * tokens)
    at_once = 2 * built.layers * built.attention_width + 3 * built.block_features + 8 * length
    measurement = measured * (length * at_once + 4 * built.vocab_size)
    return BYTES_A_PARAMETER * built.parameters + 4 * max(training, measurement)


def memory_refusal(memory: Phases, here: Machine, names: list[PhaseName]) -> str:
    """Why phases do not fit into a device, and settings with which they would; empty if they fit, or if that is not known."""
    phases = [memory.phase(name) for name in names]
    too_large = [phase for phase in phases if not fits(phase, here)]
    if not too_large:
        return ""
    worst = max(too_large, key=lambda phase: phase.on_device(here))
    # Where the weights alone do not fit, no setting of the CPU helps, and to try them all would take minutes.
    hopeless = here.shared and here.memory is not None and memory.blueprint.weight_bytes() > here.memory
    found = "" if hopeless else first_that_fits(memory, here, names)
    remedy = f"It would fit with {found}" if found else "No setting makes it fit: choose a smaller model or a larger machine"
    return f"{_lack(worst, here)} {remedy}. (An estimate; `casd plan` shows it in full.)"


def _lack(phase: Phase, here: Machine) -> str:
    """What a phase needs and what there is, in a sentence."""
    work = {"pretrain": "pretraining", "inject": "the injection", "unlearn": "a removal", "evaluate": "the evaluation"}
    what = work.get(phase.name, "the capture of activations")
    needed = phase.on_device(here)
    if here.memory is None or needed <= here.memory:
        return (
            f"Not enough memory of the CPU for {what}: {readable_size(phase.host)} for loading the model and the copy that"
            f" removals are restored from, and {readable_size(here.host - here.process)} are left."
        )
    need = phase.need
    parts = {
        "weights": need.weights,
        "gradients": need.gradients,
        "optimizer": need.optimizer,
        "activations": need.activations,
        "copy": phase.copy if here.shared else 0,
        "process" if here.shared else "context": here.taken,
    }
    listed = ", ".join(f"{name} {readable_size(each)}" for name, each in parts.items() if each)
    source = "runtime.memory_gib" if here.given else f"this machine's {here.device}"
    return (
        f"Not enough memory for {what}: {readable_size(needed)} needed ({listed}; {phase.rows} texts of up to {phase.tokens}"
        f" tokens at once), {readable_size(here.memory)} by {source}."
    )


def output_refusal(folder: Path) -> str:
    """Why the reports could not be written to a folder when all is done; empty if they can."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if place.is_dir() and os.access(place, os.W_OK):
        return ""
    return f"runtime.output is {folder}, and {place} is not a folder that can be written to: choose another."


def disk_refusal(config: Config, costs: list[StageCost], free: int) -> str:
    """Why what a run writes does not fit on the disk, and what to do; empty if it fits."""
    kept, needed = disk_needed(costs)
    if needed <= free:
        return ""
    without = kept - sum(cost.kept or 0 for cost in costs if cost.to_do and cost.stage.name == "weights")
    checkpoint = needed - kept
    if kept <= free:
        remedy = "runtime.checkpoint_seconds=inf, which writes no checkpoints"
    elif without + checkpoint <= free:
        remedy = "runtime.save_models=[injected]"
    elif without <= free:
        remedy = "runtime.save_models=[injected] runtime.checkpoint_seconds=inf"
    else:
        remedy = "runtime.store=FOLDER on a larger disk"
    return (
        f"Not enough room on the disk of {config.runtime.store}: {readable_size(needed)} needed ({readable_size(kept)} stay,"
        f" {readable_size(checkpoint)} are checkpoints), {readable_size(free)} are free. It would fit with {remedy}."
        " (An estimate; `casd plan` shows it in full.)"
    )
