"""CASD as a predictor of transfer, beside its baselines: the same tests for all, per model and over all runs.

The response is that of `casd.analysis.pairs`. For the prediction of a backdoor that nobody has seen the suppression itself is
used, since its column mean would not be known.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from casd.analysis.comparison import grouped
from casd.analysis.inclusion import count_exclusions
from casd.analysis.pairs import Pairs, PairTable, pair_table, rounded
from casd.analysis.results import RunTables
from casd.metric.baselines import BASELINES
from casd.stats import FamilyResult, Statistic, leave_one_out_predictions, mantel_family

_TESTS: Final = {
    "plain": ("rho", "p_value", "p_corrected"),
    "pairs": ("rho_pairs", "p_pairs", "p_pairs_corrected"),
    "partial": ("rho_partial", "p_partial", "p_partial_corrected"),
}
_PREDICTED: Final = ("r_squared", "rank_error")
COLUMNS: Final = (
    *("model", "objective", "predictor", "role", "runs", "left_out", "removals", "excluded", "n_pairs"),
    *(*_TESTS["plain"], "q_value", *_TESTS["pairs"], *_TESTS["partial"]),
    *_PREDICTED,
)
"""Of `predictor_table`."""

_FORMS: Final[dict[str, tuple[Callable[[PairTable, Sequence[str]], Pairs], Statistic]]] = {
    "plain": (PairTable.plain, "spearman"),
    "pairs": (PairTable.of_pairs, "spearman"),
    "partial": (PairTable.given_same_target, "pearson"),  # of ranks already: their plain correlation is the partial one
}
"""Under the names of _TESTS, what is tested, and by which correlation."""


def predictor_table(
    runs: Sequence[RunTables], *, response: str = "suppression", permutations: int = 9999, seed: int = 0
) -> pd.DataFrame:
    """How well each predictor goes with transfer, for each condition over its runs, and for each objective over all models.

    Args:
        runs: finished runs with the same CASD variants and baselines.
        response: "suppression" (of ASR) or "prob_suppression" (of the target's first-token probability).
        permutations: of the Mantel tests.
        seed: of the permutations.

    Returns:
        One row per group × predictor: the headline variants of CASD; the best of all variants that were computed ("best of N",
        best by |ρ|), and the baselines. Columns:

        - model ("all" over several), objective, predictor, role ("headline", "best", "baseline" or "ceiling")
        - runs, n_pairs: those that are included; left_out: runs with fewer than four included removals, or without any
          variance; removals: of all the runs; excluded: how many of these for each reason (`casd.analysis.inclusion`)
        - rho: Spearman's ρ, pooled over runs; low distances go with strong transfer where it is negative
        - p_value: two-sided Mantel test that permutes within runs (`casd.stats.mantel_family`)
        - p_corrected: for the best variant corrected for having looked at all; for a baseline for their number; a headline
          variant was named before looking and is not corrected
        - q_value: Benjamini and Hochberg over all variants or all baselines
        - rho_pairs, p_pairs, p_pairs_corrected: the same after what belongs to single backdoors is taken out of both sides
          (`casd.stats.remove_backdoor_effects`). A removal that moves the model far lies far from all others, and may weaken
          all others more: shared effects of that kind make a ρ, and a small p, without anything about pairs
        - rho_partial, p_partial, p_partial_corrected: partial ρ given the same target (`casd.stats.rank_residuals`): that two
          backdoors with one target go together is known without any activations. NaN without that baseline, and of itself
        - r_squared, rank_error: prediction with one backdoor left out (`casd.stats.leave_one_out_prediction`)
    """
    pairs = {id(tables): pair_table(tables, response) for tables in runs}  # a run may be in two groups
    places = {id(tables): place for place, tables in enumerate(runs)}
    groups: list[_Group] = []
    for (model, objective), members in grouped(runs).items():
        kept = [tables for tables in members if pairs[id(tables)] is not None]
        if kept:
            reasons = [tables.exclusions[name] for tables in members for name in tables.states_of("removal")]
            counts: dict[str, int | str] = {"runs": len(kept), "left_out": len(members) - len(kept)}
            counts |= {"removals": len(reasons), "excluded": count_exclusions(reasons)}
            strata = [pair for tables in kept if (pair := pairs[id(tables)])]
            of = [places[id(tables)] for tables in kept]
            groups.append(_Group({"model": model, "objective": objective}, counts, members[0].headline, strata, of))
    # Every run has a source of permutations of its own, which is the same in each test that the run is part of.
    tested = list(dict.fromkeys(run for group in groups for run in group.runs))
    rng = np.random.default_rng(seed)
    sources = dict(zip(tested, [rng] if len(tested) == 1 else rng.spawn(len(tested)), strict=True))
    rows = [
        {**group.named, **row, **group.counts}
        for group in groups
        for names in group.kinds
        for row in _rows(group, names, _families(group, names, sources, permutations))
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


@dataclass(frozen=True, eq=False)
class _Group:
    """The runs of a model and objective, or of an objective over all models.

    Attributes:
        named: model and objective.
        counts: of the runs that are included and left out, of all removals, and of those excluded for each reason.
        headline: the names of the CASD variants that were named before looking.
        strata: the pairs of each run that enters.
        runs: the numbers of these among all runs.
    """

    named: Mapping[str, str]
    counts: Mapping[str, int | str]
    headline: Sequence[str]
    strata: Sequence[PairTable]
    runs: Sequence[int]

    @property
    def kinds(self) -> list[list[str]]:
        """The predictors that all runs have: the variants of CASD, and the baselines, as far as there are any."""
        common = set(self.strata[0].predictors).intersection(*(each.predictors for each in self.strata))
        shared = [name for name in self.strata[0].predictors if name in common]
        baselines = [name for name in shared if name in BASELINES]
        return [names for names in ([name for name in shared if name not in BASELINES], baselines) if names]


def _families(
    group: _Group, names: Sequence[str], sources: Mapping[int, np.random.Generator], permutations: int
) -> dict[str, FamilyResult]:
    """By the names of _TESTS the results of a group's variants or baselines."""
    return {
        test: mantel_family(
            [form(pairs, names) for pairs in group.strata],
            permutations=permutations,
            rng=[copy.deepcopy(sources[run]) for run in group.runs],
            statistic=statistic,
        )
        for test, (form, statistic) in _FORMS.items()
    }


def _rows(group: _Group, names: Sequence[str], families: Mapping[str, FamilyResult]) -> list[dict[str, object]]:
    """The rows of a group's variants or of its baselines."""
    baselines = names[0] in BASELINES
    rho = families["plain"].rho
    best = int(np.nanargmax(np.abs(rho))) if not baselines and np.isfinite(rho).any() else None
    shown = [place for place, name in enumerate(names) if baselines or name in group.headline or place == best]
    chosen = [names[place] for place in shown]
    predictions = (
        leave_one_out_predictions([(rounded(each.of(chosen)), rounded(each.suppression)) for each in group.strata])
        if shown
        else []
    )
    rows: list[dict[str, object]] = []
    for place, prediction in zip(shown, predictions, strict=True):
        name = names[place]
        roles: list[str] = [BASELINES[name].role] if baselines else []
        roles += ["headline"] if name in group.headline else []
        roles += [f"best of {len(names)}"] if place == best and len(names) > len(group.headline) else []
        numbers: dict[str, object] = {"n_pairs": families["plain"].n_pairs, "q_value": families["plain"].q_value[place]}
        numbers |= dict(zip(_PREDICTED, (prediction.r_squared, prediction.rank_error), strict=True))
        for role in roles:
            row = {"predictor": name, "role": role, **numbers}
            for kind, columns in _TESTS.items():
                found = families[kind]
                corrected = math.nan if role == "headline" else found.p_corrected[place]
                row |= dict(zip(columns, (found.rho[place], found.p_value[place], corrected), strict=True))
            rows.append(row)
    return rows
