"""The rivals of CASD: other things by which one might foretell which removals suppress which backdoors.

Each is a pure function that gives a matrix (n, n), float64 on the CPU, symmetric, with a zero diagonal: a distance, in which
smaller means more alike. They read tensors and strings; the models and the stages are the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Rival:
    """What a caption says of a rival.

    Attributes:
        description: a phrase for a table's caption.
        needs: what has to be there before it can be computed: "nothing" but the configuration and a tokenizer, the "injected
            model", or the "removals" themselves.
        role: a "rival" competes with CASD; a "ceiling" is nearly the thing to be foretold, and only bounds what can be.
    """

    description: str
    needs: Literal["nothing", "injected model", "removals"]
    role: Literal["rival", "ceiling"] = "rival"


RIVALS: dict[str, Rival] = {
    "weights_l2": Rival("L2 distance between the updates of the weights", "removals"),
    "weights_cosine": Rival("cosine distance between the updates of the weights", "removals"),
    "cka": Rival("1 − debiased linear CKA between the shifts of the prompts' last tokens", "removals"),
    "probe": Rival("cosine distance between linear probes that tell the removed from the injected model", "removals"),
    "trigger_shift": Rival("cosine distance between the shifts that triggers induce in the injected model", "injected model"),
    "trigger_overlap": Rival("1 − Jaccard index of the triggers' tokens", "nothing"),
    "same_target": Rival("0 for the same target behaviour, 1 for another", "nothing"),
    "directed_shift": Rival("minus the shift that either removal makes on the other's triggered text", "removals", "ceiling"),
}
"""By name, in the order of tables: what each rival is, needs and stands for."""
