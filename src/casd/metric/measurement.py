"""Activation statistics of one state of the model on the prompts of the evaluation, a text set at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from casd.activations.statistics import ActivationStatistics, collect_statistics
from casd.backdoors.prompts import PromptSets
from casd.config import ActivationsConfig
from casd.data.batches import batches_by_length
from casd.data.encoding import Encoder, Prompt
from casd.data.shrinking import shrinking
from casd.models.probe import measured_together
from casd.utils import distributed
from casd.utils.progress import track

TextStatistics = dict[str, ActivationStatistics]
"""Statistics by text set: "clean", "fake" if there are fake triggers, and "triggered:<backdoor>" for each backdoor."""


def text_sets(prompt_sets: PromptSets, prompts: int) -> dict[str, Sequence[Prompt]]:
    """The prompts of each text set, at most `prompts` a set; "fake" takes its share from every backdoor's fake triggers."""
    share = max(1, prompts // len(prompt_sets.fake))
    fake = [prompt for fakes in prompt_sets.fake.values() for prompt in fakes[:share]]
    return {
        "clean": prompt_sets.clean[:prompts],
        **({"fake": fake} if fake else {}),
        **{f"triggered:{name}": triggered[:prompts] for name, triggered in prompt_sets.triggered.items()},
    }


def measure_activations(
    model: torch.nn.Module,
    encoder: Encoder,
    prompt_sets: PromptSets,
    config: ActivationsConfig,
    *,
    description: str = "capture",
) -> TextStatistics:
    """Stream the prompts of every text set through the model and average its activations.

    Args:
        model: on its device.
        encoder: its tokenizer.
        prompt_sets: the prompts; the same that attack success is measured on.
        config: sites, positions, prompts a set, batch size (halved where memory runs out). The position "trigger" is left
            out of the clean set, which has none.
        description: for the progress bar.

    Raises:
        ModelError: the device has too little memory for a single prompt.
    """
    every = text_sets(prompt_sets, config.prompts)
    sets = {name: every[name] for name in distributed.share(list(every))}
    statistics: TextStatistics = {}

    def rest(batch_size: int) -> None:
        # A set during which memory ran out is begun anew: part of the batch that failed is in its sums.
        for name in [name for name in sets if name not in statistics]:
            batches = capture_batches(model, encoder, name, sets[name], config, batch_size)
            statistics[name] = collect_statistics(model, batches, config.sites, _positions(name, config))
            advance()

    with track(description, len(sets)) as advance:
        shrinking(rest, min(config.batch_size, max(map(len, every.values()))), "the capture of activations")
    whole = {name: each for part in distributed.gather_each(statistics) for name, each in part.items()}
    return {name: whole[name] for name in every}


def capture_batches(
    model: torch.nn.Module,
    encoder: Encoder,
    name: str,
    prompts: Sequence[Prompt],
    config: ActivationsConfig,
    batch_size: int,
) -> Iterator[Mapping[str, Any]]:
    """The batches in which a text set is captured (see `Encoder.capture_batch`), prompts of similar length together.

    Padded on the left, unless that changes what the model computes (`casd.models.probe`).

    Args:
        model: what they are for.
        encoder: makes them.
        name: of the text set.
        prompts: its prompts.
        config: the positions.
        batch_size: prompts a batch.
    """
    batches = [
        [prompts[indices[row]] for row in rows]
        for indices in batches_by_length([len(prompt.text) for prompt in prompts], batch_size)
        # All of them before the first is captured: the model may be probed here, which no hook of a capture must see.
        for rows in measured_together(model, encoder, [prompts[index] for index in indices])
    ]
    return (encoder.capture_batch(batch, _positions(name, config)) for batch in batches)


def _positions(name: str, config: ActivationsConfig) -> list[str]:
    return [position for position in config.positions if position != "trigger" or name != "clean"]


def write_statistics(statistics: TextStatistics, folder: Path) -> None:
    """Write all text sets into one safetensors file, `statistics.safetensors`."""
    tensors = {
        f"{name}|{key}": tensor.contiguous() for name, each in statistics.items() for key, tensor in each.to_tensors().items()
    }
    save_file(tensors, folder / "statistics.safetensors")


def read_statistics(file: Path) -> TextStatistics:
    """Read what `write_statistics` wrote."""
    grouped: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(file).items():
        name, _, rest = key.partition("|")
        grouped.setdefault(name, {})[rest] = tensor
    return {name: ActivationStatistics.from_tensors(tensors) for name, tensors in grouped.items()}
