"""The baselines of CASD: other predictors of which removals suppress which backdoors.

Each is a pure function of tensors and strings. It returns a distance matrix (n, n), float64 on the CPU, symmetric, with a zero
diagonal, in which smaller means more similar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Baseline:
    """Description of a baseline for captions.

    Attributes:
        description: a phrase for a table's caption.
        needs: what the baseline is computed from: "nothing" but the configuration and a tokenizer, the "injected model", or
            the "removals" themselves.
        role: a "baseline" competes with CASD; a "ceiling" nearly measures transfer itself, and bounds what can be predicted.
    """

    description: str
    needs: Literal["nothing", "injected model", "removals"]
    role: Literal["baseline", "ceiling"] = "baseline"


BASELINES: dict[str, Baseline] = {
    "weights_l2": Baseline("L2 distance between the updates of the weights", "removals"),
    "weights_cosine": Baseline("cosine distance between the updates of the weights", "removals"),
    "cka": Baseline("1 − debiased linear CKA between the shifts of the prompts' last tokens", "removals"),
    "probe": Baseline("cosine distance between linear probes that tell the removed from the injected model", "removals"),
    "trigger_shift": Baseline(
        "cosine distance between the shifts that triggers induce in the injected model", "injected model"
    ),
    "trigger_overlap": Baseline("1 − Jaccard index of the triggers' tokens", "nothing"),
    "same_target": Baseline("0 for the same target behavior, 1 for another", "nothing"),
    "directed_shift": Baseline(
        "minus the shift that either removal makes on the other's triggered text", "removals", "ceiling"
    ),
}
"""Baselines by name, in the order of tables."""
