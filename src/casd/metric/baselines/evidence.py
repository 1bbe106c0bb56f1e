"""Data stored for each state of the model for the baselines that need removals, and the table of all baselines of a run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from casd.backdoors.poisoning import Backdoor
from casd.config.states import INJECTED
from casd.data.documents import Prompt
from casd.data.encoding import Encoder
from casd.metric.baselines.shifts import FEWEST_PROMPTS, cka_distances, last_token_activations, probe_distances
from casd.metric.baselines.triggers import (
    directed_shift,
    directed_shift_distances,
    same_target_distances,
    trigger_overlap_distances,
    trigger_shift_distances,
)
from casd.metric.baselines.updates import sketch_update, update_distances
from casd.metric.measurement import TextStatistics

_SKETCH_SEED = 0
"""Seed of the hashes; sketches can be compared only if they share it."""
_FILE = "baselines.safetensors"


@dataclass(frozen=True, eq=False)
class Evidence:
    """Data about one state that the baselines need.

    Attributes:
        last_tokens: activations at the last token of triggered prompts, (n_layers, n_prompts, d_model), float32.
        update: sketch of the update of the weights, (size,), float64; zero for the injected model.
    """

    last_tokens: Tensor
    update: Tensor

    def write(self, folder: Path) -> None:
        """Write one safetensors file."""
        save_file({"last_tokens": self.last_tokens.contiguous(), "update": self.update}, folder / _FILE)

    @classmethod
    def read(cls, folder: Path) -> Evidence:
        """Read the file written by `write`."""
        return cls(**load_file(folder / _FILE))


def gather_evidence(
    model: torch.nn.Module,
    injected_weights: Mapping[str, Tensor],
    encoder: Encoder,
    triggered: Mapping[str, Sequence[Prompt]],
    *,
    batch_size: int,
) -> Evidence:
    """Collect the evidence of the current state of the model; `triggered` has the triggered prompts by backdoor."""
    last_tokens = last_token_activations(model, encoder, triggered, batch_size=batch_size)
    return Evidence(last_tokens, sketch_update(model, injected_weights, seed=_SKETCH_SEED))


def baseline_table(
    backdoors: Mapping[str, Backdoor],
    encoder: Encoder,
    statistics: Mapping[str, TextStatistics],
    evidence: Mapping[str, Evidence],
) -> pd.DataFrame:
    """Compute all baselines of a run: `predictor` (a name in `BASELINES`), `a`, `b`, `distance`, one row per pair of backdoors.

    Args:
        backdoors: the backdoors that were removed.
        encoder: tokenizes the triggers.
        statistics: activation statistics by state.
        evidence: evidence by state; if empty, the baselines that need it are omitted, and so is CKA with too few prompts.
    """
    names = list(backdoors)
    moved = directed_shift(statistics, statistics[INJECTED], names, names)
    matrices = {
        "trigger_shift": trigger_shift_distances(statistics[INJECTED], names),
        "trigger_overlap": trigger_overlap_distances(
            {
                name: [token for text in backdoor.trigger.texts() for token in encoder.tokens_inside(text)]
                for name, backdoor in backdoors.items()
            }
        ),
        "same_target": same_target_distances({name: repr(backdoor.target) for name, backdoor in backdoors.items()}),
        "directed_shift": directed_shift_distances(moved),
    }
    if evidence:
        before = evidence[INJECTED].last_tokens
        after = torch.stack([evidence[name].last_tokens for name in names])
        matrices |= update_distances(torch.stack([evidence[name].update for name in names]))
        if after.shape[2] >= FEWEST_PROMPTS:
            matrices["cka"] = cka_distances(after - before)
        matrices["probe"] = probe_distances(before, after)
    rows = [
        (predictor, names[i], names[j], float(matrix[i, j]))
        for predictor, matrix in matrices.items()
        for i, j in itertools.combinations(range(len(names)), 2)
    ]
    return pd.DataFrame(rows, columns=["predictor", "a", "b", "distance"])
