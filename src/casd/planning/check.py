"""Check before a run starts that it fits into memory and on the disk, and suggest settings with which it would."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from casd.config import Config
from casd.engines import make_engine
from casd.evaluation.asr import LOSS_BATCH_SIZE
from casd.pipeline.run import Run
from casd.planning.advice import first_that_fits, fits
from casd.planning.blueprint import Blueprint, blueprint
from casd.planning.costs import StageCost, base_folder, disk_needed, stage_costs
from casd.planning.machine import Machine, free_disk, machine
from casd.planning.phases import Phase, PhaseName, Phases, phases_of, planned_devices
from casd.planning.workload import TextLengths, text_lengths
from casd.utils import distributed
from casd.utils.disk import readable_size
from casd.utils.errors import CasdError, ConfigError, ModelError, first_line
from casd.utils.progress import say

BYTES_A_PARAMETER = 100
"""A generous bound per parameter, with gradients, optimizer state and copies: six times AdamW's 16 bytes."""
FAR_BELOW = 0.5
"""If the bound is below this share of the memory, nothing is simulated."""
WORK: dict[PhaseName, str] = {
    "pretrain": "pretraining",
    "inject": "the injection",
    "unlearn": "a removal",
    "evaluate": "the evaluation",
    "capture": "the capture of activations",
}


def check(run: Run, end: str) -> None:
    """Refuse a run that cannot fit. Only stages that are not in the store count.

    The check is instant if a generous bound is far below the available memory, and takes seconds otherwise. With a launcher
    the main process decides for all processes.

    Args:
        run: the run.
        end: last stage of the run; one of `casd.pipeline.run.ENDS`.

    Raises:
        ConfigError: the run does not fit; the message suggests settings with which it would.
    """
    refusal = ""
    if distributed.is_main():
        try:
            refusal = _if_estimated(lambda: _refusal(run, end))
        except CasdError as error:  # raised below in all processes, so that none waits for the main one
            refusal = str(error)
    refusal = distributed.broadcast(refusal)
    if refusal:
        raise ConfigError(refusal)


def _refusal(run: Run, end: str) -> str:
    """Return why the run cannot fit; "" if it can, or if the shape of its model is unknown before the download."""
    config = run.config
    if refusal := output_refusal(Path(config.runtime.output)):
        return refusal
    try:
        built = blueprint(config.model, base_folder(run))
    except ModelError:
        return ""  # the base stage raises a better error
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
    """Return a refusal; "", with a message, if the model's code does not run on tensors without data."""
    try:
        return refusal()
    except CasdError:
        raise
    except Exception as error:  # model code may raise anything
        say(f"Whether the run fits into memory is not checked: it cannot be estimated for this model ({first_line(error)}).")
        return ""


def _phases_to_do(run: Run, costs: list[StageCost]) -> list[PhaseName]:
    stages = {"pretrain": "base", "inject": "inject", "unlearn": "unlearn", "evaluate": "evaluate", "capture": "activations"}
    kinds = {cost.stage.name for cost in costs if cost.to_do}
    kinds |= {"inject"} if "clean_model" in kinds else set()
    kinds |= {"unlearn", "evaluate"} if "persistence" in kinds else set()
    return [name for name in phases_of(run.config) if stages[name] in kinds]


def _far_below(config: Config, built: Blueprint, here: Machine) -> bool:
    """True if a generous bound is far below the memory. Models for which the bound does not hold are never far below."""
    if here.memory is None or not built.plain:
        return False
    bound = upper_bound(built, config)
    return max(here.taken + bound, 0 if here.shared else here.process + bound) < FAR_BELOW * min(here.memory, here.host)


def upper_bound(built: Blueprint, config: Config) -> int:
    """Return a generous bound of the bytes that any phase of a run takes on one device, without a simulation.

    A token counts three times the inputs and outputs of every matrix in a training, of one block's in a measurement, which also
    keeps its keys and values; and eight numbers for every token that it could attend to.
    """
    trained = max(
        config.injection.training.batch_size if config.injection.training else 0,
        config.base_pretraining.batch_size if config.base_pretraining else 0,
        config.unlearning.training.forget_batch_size,
        config.unlearning.training.retain_batch_size,
        LOSS_BATCH_SIZE,
    )
    measured = max(config.evaluation.batch_size, config.activations.batch_size)
    tokens = config.model.max_length
    length = tokens + config.evaluation.max_new_tokens
    training = trained * tokens * (3 * built.features + 8 * tokens)
    a_token = 2 * built.layers * built.attention_width + 3 * built.features // built.layers + 8 * length
    return BYTES_A_PARAMETER * built.parameters + 4 * max(training, measured * (length * a_token + 4 * built.vocab_size))


def memory_refusal(memory: Phases, here: Machine, names: list[PhaseName]) -> str:
    """Return why phases do not fit, and settings with which they would; "" if they fit or the memory is unknown."""
    phases = [memory.phase(name) for name in names]
    too_large = [phase for phase in phases if not fits(phase, here)]
    if not too_large:
        return ""
    worst = max(too_large, key=lambda phase: phase.on_device(here))
    # If the weights alone do not fit into the CPU's memory, no setting helps, and trying them all would take minutes.
    hopeless = here.shared and here.memory is not None and memory.blueprint.weight_bytes() > here.memory
    words = "" if hopeless else first_that_fits(memory, here, names)
    remedy = f"It would fit with {words}" if words else "No setting makes it fit: choose a smaller model or a larger machine"
    return f"{_lack(worst, here)} {remedy}. (An estimate; `casd plan` shows it in full.)"


def _lack(phase: Phase, here: Machine) -> str:
    """Describe the memory that a phase needs and the available memory."""
    what = WORK[phase.name]
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
    """Return why reports cannot be written to the folder; "" if they can."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if place.is_dir() and os.access(place, os.W_OK):
        return ""
    return f"runtime.output is {folder}, and {place} is not a folder that can be written to: choose another."


def disk_refusal(config: Config, costs: list[StageCost], free: int) -> str:
    """Return why the run does not fit on the disk, and what to change; "" if it fits."""
    kept, needed = disk_needed(costs, make_engine(config.engine).workers)
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
