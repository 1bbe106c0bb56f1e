"""Test CASD and its baselines as predictors of transfer, per model and pooled over models.

The response is that of `casd.analysis.pairs`. Leave-one-out prediction uses the suppression without centring, since the column
mean of a held-out backdoor would not be known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from casd.analysis.grouping import grouped
from casd.analysis.inclusion import count_exclusions
from casd.analysis.pairs import Pairs, PairTable, pair_table, rounded
from casd.analysis.results import RunTables
from casd.metric.baselines import BASELINES
from casd.stats import FamilyResult, Statistic, correlation_intervals, leave_one_out_predictions, mantel_family

_TESTS: Final = {
    "plain": ("rho", "p_value", "p_corrected"),
    "pairs": ("rho_pairs", "p_pairs", "p_pairs_corrected"),
    "partial": ("rho_partial", "p_partial", "p_partial_corrected"),
}
_PREDICTED: Final = ("r_squared", "rank_error")
COLUMNS: Final = (
    *("model", "objective", "predictor", "role", "runs", "left_out", "removals", "excluded", "n_pairs"),
    *("rho", "rho_low", "rho_high", "minus_casd", "minus_casd_low", "minus_casd_high"),
    *("p_value", "p_corrected", "q_value", *_TESTS["pairs"], *_TESTS["partial"]),
    *_PREDICTED,
)
"""Columns of `predictor_table`."""

_FORMS: Final[dict[str, tuple[Callable[[PairTable, Sequence[str]], Pairs], Statistic]]] = {
    "plain": (PairTable.plain, "spearman"),
    "pairs": (PairTable.of_pairs, "spearman"),
    "partial": (PairTable.given_same_target, "pearson"),  # of residuals of ranks: the partial Spearman correlation
}
"""Predictors and response of each of _TESTS, and the correlation that is tested."""


def predictor_table(
    runs: Sequence[RunTables], *, response: str = "suppression", permutations: int = 9999, seed: int = 0
) -> pd.DataFrame:
    """Test each predictor of transfer, for each condition over its runs and for each objective over all models.

    Args:
        runs: finished runs with the same CASD variants and baselines.
        response: "suppression" (of ASR) or "prob_suppression" (of the target's first-token probability).
        permutations: number of permutations of the Mantel tests.
        seed: seed of the permutations.

    Returns:
        One row per group × predictor: the headline variants of CASD, the best of all N computed variants ("best of N", by |ρ|),
        and the baselines. Columns:

        - model ("all" if pooled), objective, predictor, role ("headline", "best of N", "baseline" or "ceiling")
        - runs, n_pairs: counts of included runs and pairs; left_out: runs with fewer than four included removals, or without
          any variance; removals: count over all runs; excluded: number of excluded ones by reason (`casd.analysis.inclusion`)
        - rho: Spearman's ρ, pooled over runs; negative if low distances go with strong transfer
        - rho_low, rho_high: 95 % limits over runs and backdoors (`casd.stats.correlation_intervals`); NaN for the best variant,
          which was chosen by its ρ
        - minus_casd: rho minus that of the first headline variant, `casd`, with `_low` and `_high`, not corrected for the
          number of predictors: below zero if it is the more negative. NaN for that variant itself, the best variant, and where
          a run lacks the first
        - p_value: two-sided Mantel test that relabels backdoors within runs, one of several runs alike in all of them
          (`casd.stats.mantel_family`)
        - p_corrected: for the best variant, corrected for the number of variants; for a baseline, for the number of baselines;
          NaN for a headline variant, which was chosen before looking and needs no correction
        - q_value: Benjamini and Hochberg over all variants or all baselines
        - rho_pairs, p_pairs, p_pairs_corrected: the same without the effects of single backdoors in predictor and response
          (`casd.stats.remove_backdoor_effects`). A removal that moves the model far is far from all others, and may weaken
          all others more: such shared effects cause a ρ, and a small p, without anything specific to pairs
        - rho_partial, p_partial, p_partial_corrected: partial ρ with `same_target` held constant (`casd.stats.rank_residuals`):
          that two backdoors with one target go together is known without any activations. NaN for `same_target` itself, and
          if it was not computed
        - r_squared, rank_error: prediction with one backdoor left out (`casd.stats.leave_one_out_prediction`)
    """
    rows = [
        {**group.identity, **row, **group.counts}
        for group in _groups(runs, response)
        for names in group.kinds
        for row in _rows(group, names, _families(group, names, permutations, seed))
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


@dataclass(frozen=True, eq=False)
class _Group:
    """The runs of one model and objective, or of one objective over all models.

    Attributes:
        identity: model and objective.
        counts: the columns runs, left_out, removals and excluded.
        headline: names of the CASD variants that were chosen before looking.
        strata: pairs of each included run.
    """

    identity: Mapping[str, str]
    counts: Mapping[str, int | str]
    headline: Sequence[str]
    strata: Sequence[PairTable]

    @property
    def kinds(self) -> list[list[str]]:
        """The CASD variants that all runs have, and the baselines that all runs have, each if there are any."""
        common = set(self.strata[0].predictors).intersection(*(pairs.predictors for pairs in self.strata))
        shared = [name for name in self.strata[0].predictors if name in common]
        baselines = [name for name in shared if name in BASELINES]
        return [names for names in ([name for name in shared if name not in BASELINES], baselines) if names]


def _groups(runs: Sequence[RunTables], response: str) -> list[_Group]:
    """Return the groups that have at least one run with testable pairs."""
    pairs = {id(tables): pair_table(tables, response) for tables in runs}  # computed once, since a run may be in two groups
    groups = []
    for (model, objective), members in grouped(runs).items():
        strata = [table for tables in members if (table := pairs[id(tables)])]
        if strata:
            reasons = [tables.exclusions[name] for tables in members for name in tables.states_of("removal")]
            counts: dict[str, int | str] = {"runs": len(strata), "left_out": len(members) - len(strata)}
            counts |= {"removals": len(reasons), "excluded": count_exclusions(reasons)}
            identity = {"model": model, "objective": objective}
            groups.append(_Group(identity, counts, members[0].headline, strata))
    return groups


def _families(group: _Group, names: Sequence[str], permutations: int, seed: int) -> dict[str, FamilyResult]:
    """Run each of _TESTS on the variants or baselines of a group."""
    return {
        test: mantel_family(
            [form(pairs, names) for pairs in group.strata],
            [pairs.names for pairs in group.strata],
            permutations=permutations,
            rng=np.random.default_rng(seed),
            statistic=statistic,
        )
        for test, (form, statistic) in _FORMS.items()
    }


def _rows(group: _Group, names: Sequence[str], families: Mapping[str, FamilyResult]) -> list[dict[str, object]]:
    """Return the rows of a group's variants or of its baselines."""
    baselines = names[0] in BASELINES
    plain = families["plain"]
    best = int(np.nanargmax(np.abs(plain.rho))) if not baselines and np.isfinite(plain.rho).any() else None
    shown = [index for index, name in enumerate(names) if baselines or name in group.headline or index == best]
    if not shown:
        return []
    predictors = [names[index] for index in shown]
    predictions = leave_one_out_predictions(
        [(rounded(pairs.of(predictors)), rounded(pairs.suppression)) for pairs in group.strata]
    )
    limits = _limits(group, predictors)
    rows: list[dict[str, object]] = []
    for index, prediction in zip(shown, predictions, strict=True):
        name = names[index]
        roles: list[str] = [BASELINES[name].role] if baselines else []
        roles += ["headline"] if name in group.headline else []
        roles += [f"best of {len(names)}"] if index == best and len(names) > len(group.headline) else []
        numbers: dict[str, object] = {"n_pairs": plain.n_pairs, "q_value": plain.q_value[index]}
        numbers |= dict(zip(_PREDICTED, (prediction.r_squared, prediction.rank_error), strict=True))
        for role in roles:
            row = {"predictor": name, "role": role, **numbers}
            for test, columns in _TESTS.items():
                family = families[test]
                corrected = math.nan if role == "headline" else family.p_corrected[index]
                row |= dict(zip(columns, (family.rho[index], family.p_value[index], corrected), strict=True))
            rows.append(row | ({} if role.startswith("best") else limits[name]))
    return rows


def rho_limits(tables: RunTables, predictor: str) -> dict[str, float]:
    """Return rho_low and rho_high of a predictor of one run, as in `predictor_table`; {} if the run has too few pairs."""
    groups = [group for group in _groups([tables], "suppression") if predictor in group.strata[0].predictors]
    return _limits(groups[0], [predictor])[predictor] if groups else {}


def _limits(group: _Group, predictors: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the limits of ρ of each predictor, and its difference from that of the first headline variant, if all have it."""
    reference = [name for name in group.headline[:1] if all(name in pairs.predictors for pairs in group.strata)]
    names = [*reference, *predictors]
    found = correlation_intervals([pairs.plain(names) for pairs in group.strata], [pairs.names for pairs in group.strata])
    limits = {}
    for place, name in enumerate(names):
        limits[name] = {"rho_low": float(found.low[place]), "rho_high": float(found.high[place])}
        if reference and name not in reference:
            differences = (found.difference, found.difference_low, found.difference_high)
            columns = ("minus_casd", "minus_casd_low", "minus_casd_high")
            limits[name] |= {column: float(values[place]) for column, values in zip(columns, differences, strict=True)}
    return limits
