"""The exhibits that can be reproduced, each with the set of runs it is made from and the claims it bears on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

RUN_SETS: Final = ("main", "learning_rate", "writing_system", "factors")
"""The sets of runs; a scale says which sweeps make each, and may leave out all but the first."""


@dataclass(frozen=True)
class Exhibit:
    """Tables and figures that belong together.

    Attributes:
        title: a few words.
        run_set: of RUN_SETS.
        claims: names in `casd.reproduction.claims.CLAIMS`.
    """

    title: str
    run_set: str
    claims: tuple[str, ...]


EXHIBITS: Final[dict[str, Exhibit]] = {
    "asr_matrices": Exhibit(
        "Attack success rates after each removal, for each model",
        "main",
        ("others_weaken",),
    ),
    "casd_matrices": Exhibit(
        "CASD between removals, for each model",
        "main",
        ("casd_tells",),
    ),
    "relation": Exhibit(
        "CASD and suppression, across models",
        "main",
        (
            *("casd_tells", "casd_cos_tells", "casd_tells_pairs"),
            *("casd_tells_more_than_targets", "casd_cos_tells_more_than_targets"),
        ),
    ),
    "controls": Exhibit(
        "The controls: clean text, phantoms, repeats",
        "main",
        ("others_weaken", "more_than_phantoms", "clean_text_spares"),
    ),
    "utility": Exhibit(
        "Clean language after removals",
        "main",
        ("language_kept",),
    ),
    "learning_rate": Exhibit(
        "Ablation: the removals' learning rate",
        "learning_rate",
        ("at_every_setting", "more_than_phantoms_at_every_setting"),
    ),
    "writing_system": Exhibit(
        "Ablation: the writing system of the triggers",
        "writing_system",
        ("at_every_setting", "more_than_phantoms_at_every_setting"),
    ),
    "factors": Exhibit(
        "Ablation: what the transfer depends on, one factor at a time",
        "factors",
        ("at_every_setting", "more_than_phantoms_at_every_setting"),
    ),
    "summary": Exhibit(
        "The families in one table",
        "main",
        ("others_weaken_everywhere", "casd_tells_everywhere"),
    ),
}
