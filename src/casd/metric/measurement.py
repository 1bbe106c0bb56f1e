"""Measure the activation statistics of one state of the model on the prompts of the evaluation, by text set."""

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
from casd.data.documents import Prompt
from casd.data.encoding import Encoder
from casd.data.shrinking import shrinking
from casd.models.probe import measured_together
from casd.utils import distributed
from casd.utils.progress import track

TextStatistics = dict[str, ActivationStatistics]
"""Statistics by text set: "clean", "fake" if there are fake triggers, and "triggered:<backdoor>" for each backdoor."""


def text_sets(prompt_sets: PromptSets, prompts: int) -> dict[str, Sequence[Prompt]]:
    """Return the prompts of each text set, at most `prompts` per set; "fake" takes equally many from every backdoor."""
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
    """Run the model on the prompts of every text set and average its activations.

    Args:
        model: on its device.
        encoder: its tokenizer.
        prompt_sets: the prompts on which attack success is measured.
        config: sites, positions, prompts per set, batch size (halved when memory runs out). The position "trigger" is
            omitted for the clean set, which has no triggers.
        description: label of the progress bar.

    Raises:
        ModelError: the device has too little memory for a single prompt.
    """
    all_sets = text_sets(prompt_sets, config.prompts)
    sets = {name: all_sets[name] for name in distributed.share(list(all_sets))}
    statistics: TextStatistics = {}

    def measure_remaining(batch_size: int) -> None:
        # A set that ran out of memory is restarted: its sums include part of the failed batch.
        for name in [name for name in sets if name not in statistics]:
            batches = capture_batches(model, encoder, name, sets[name], config, batch_size)
            statistics[name] = collect_statistics(model, batches, config.sites, _positions(name, config))
            advance()

    with track(description, len(sets)) as advance:
        shrinking(measure_remaining, min(config.batch_size, max(map(len, all_sets.values()))), "the capture of activations")
    gathered = {name: part[name] for part in distributed.gather_each(statistics) for name in part}
    return {name: gathered[name] for name in all_sets}


def capture_batches(
    model: torch.nn.Module,
    encoder: Encoder,
    name: str,
    prompts: Sequence[Prompt],
    config: ActivationsConfig,
    batch_size: int,
) -> Iterator[Mapping[str, Any]]:
    """Yield the batches of a text set for capture (see `Encoder.capture_batch`), grouping prompts of similar length.

    Batches are padded on the left, unless that changes what the model computes (`casd.models.probe`).

    Args:
        model: the model to capture.
        encoder: its tokenizer.
        name: name of the text set.
        prompts: prompts of the text set.
        config: the positions.
        batch_size: number of prompts per batch.
    """
    batches = [
        [prompts[indices[row]] for row in rows]
        for indices in batches_by_length([len(prompt.text) for prompt in prompts], batch_size)
        # Computed before the first capture: this may run the model, which capture hooks must not record.
        for rows in measured_together(model, encoder, [prompts[index] for index in indices])
    ]
    return (encoder.capture_batch(batch, _positions(name, config)) for batch in batches)


def _positions(name: str, config: ActivationsConfig) -> list[str]:
    return [position for position in config.positions if position != "trigger" or name != "clean"]


def write_statistics(statistics: TextStatistics, folder: Path) -> None:
    """Write all text sets into one safetensors file, `statistics.safetensors`."""
    tensors = {
        f"{name}|{key}": tensor.contiguous()
        for name, text_set in statistics.items()
        for key, tensor in text_set.to_tensors().items()
    }
    save_file(tensors, folder / "statistics.safetensors")


def read_statistics(file: Path) -> TextStatistics:
    """Read the statistics written by `write_statistics`."""
    grouped: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(file).items():
        name, _, rest = key.partition("|")
        grouped.setdefault(name, {})[rest] = tensor
    return {name: ActivationStatistics.from_tensors(tensors) for name, tensors in grouped.items()}
