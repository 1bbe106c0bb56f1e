"""CASD as a predictor of transfer, beside its rivals: the same tests for all, per model and over all runs.

The response is the suppression of the other backdoors, as in `casd.transfer.relate`: centred by column (each backdoor's own
fragility taken out) and averaged over both directions of a pair. For the prediction of a backdoor that nobody has seen the
suppression itself is used, since its column mean would not be known.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from casd.comparison import MIN_BACKDOORS, counted_matrices, grouped
from casd.results import RunTables, rows_of
from casd.rivals import RIVALS
from casd.stats import (
    FamilyResult,
    leave_one_out_predictions,
    mantel_families,
    rank_residuals,
    remove_backdoor_effects,
    symmetrize,
)
from casd.transfer import RATE_DECIMALS, centered_response

_TESTS: Final = {
    "plain": ("rho", "p_value", "p_corrected"),
    "pairs": ("rho_pairs", "p_pairs", "p_pairs_corrected"),
    "partial": ("rho_partial", "p_partial", "p_partial_corrected"),
}
_PREDICTED: Final = ("r_squared", "rank_error")
COLUMNS: Final = (
    *("model", "objective", "predictor", "role", "runs", "left_out", "n_pairs"),
    *(*_TESTS["plain"], "q_value", *_TESTS["pairs"], *_TESTS["partial"]),
    *_PREDICTED,
)
"""Of `predictor_table`."""
_SAME_TARGET: Final = "same_target"
"""The rival that is held constant."""

_Stratum = tuple[np.ndarray, np.ndarray]
"""Of a run: predictors (n_predictors, n, n), and the response (n, n)."""


@dataclass(frozen=True, eq=False)
class PairTable:
    """What one run says of the pairs of its removals that count.

    Attributes:
        names: of the n removals.
        distances: by predictor, (n, n), symmetric.
        centered: the response for tests, (n, n), symmetric; NaN on the diagonal.
        suppression: the response for prediction, (n, n), symmetric.
    """

    names: tuple[str, ...]
    distances: Mapping[str, np.ndarray]
    centered: np.ndarray
    suppression: np.ndarray

    def stacked(self, predictors: Sequence[str]) -> np.ndarray:
        """The distances of some predictors, shape (n_predictors, n, n)."""
        return np.stack([self.distances[name] for name in predictors])

    def plain(self, predictors: Sequence[str]) -> _Stratum:
        """What the test of some predictors is about."""
        return self.stacked(predictors), self.centered

    def of_pairs(self, predictors: Sequence[str]) -> _Stratum:
        """The same without what belongs to single backdoors."""
        return _effects_removed(self.stacked(predictors)), _effects_removed(self.centered)

    def given_same_target(self, predictors: Sequence[str]) -> _Stratum:
        """The same as ranks, without what the same target accounts for; without the rival that tells it, NaN."""
        held = self.distances.get(_SAME_TARGET, np.full(self.centered.shape, np.nan))
        return rank_residuals(self.stacked(predictors), held), rank_residuals(self.centered, held)


def pair_table(tables: RunTables, response: str = "suppression") -> PairTable | None:
    """The pairs of one run; None if fewer than four removals count, or all pairs have the same response."""
    names, [values] = counted_matrices(tables, response)
    if len(names) < MIN_BACKDOORS:
        return None
    centered = centered_response(values)
    pairs = centered[np.triu_indices(len(names), k=1)]
    if not np.isfinite(pairs).all() or np.ptp(pairs) == 0:
        return None
    distances = _matrices(tables.every_variant(), "variant", names) | _matrices(tables.rivals, "predictor", names)
    return PairTable(tuple(names), distances, centered, np.round(symmetrize(values), RATE_DECIMALS))


def predictor_table(
    runs: Sequence[RunTables], *, response: str = "suppression", permutations: int = 9999, seed: int = 0
) -> pd.DataFrame:
    """How well each predictor goes with transfer, for each model × objective over its runs, and for each objective over all.

    Args:
        runs: finished runs with the same CASD variants and rivals.
        response: "suppression" (of ASR) or "prob_suppression" (of the target's first-token probability).
        permutations: of the Mantel tests.
        seed: of the permutations.

    Returns:
        One row per group × predictor: the headline variants of CASD; the best of all variants that were computed ("best of N",
        best by |ρ|), and the rivals. Columns:

        - model ("all" over several), objective, predictor, role ("headline", "best", "rival" or "ceiling")
        - runs, n_pairs: those that enter; left_out: runs with fewer than four removals that count, or without any variance
        - rho: Spearman's ρ, pooled over runs; low distances go with strong transfer where it is negative
        - p_value: two-sided Mantel test that permutes within runs (`casd.stats.mantel_family`)
        - p_corrected: for the best variant corrected for having looked at all; for a rival for the number of rivals; a headline
          variant was named before looking and is not corrected
        - q_value: Benjamini and Hochberg over all variants or all rivals
        - rho_pairs, p_pairs, p_pairs_corrected: the same after what belongs to single backdoors is taken out of both sides
          (`casd.stats.remove_backdoor_effects`). A removal that moves the model far lies far from all others, and may weaken
          all others more: shared effects of that kind make a ρ, and a small p, without anything about pairs
        - rho_partial, p_partial, p_partial_corrected: partial ρ given the same target (`casd.stats.rank_residuals`): that two
          backdoors with one target go together is known without any activations. NaN without that rival, and of itself
        - r_squared, rank_error: prediction with one backdoor left out (`casd.stats.leave_one_out_prediction`)
    """
    pairs = {id(tables): pair_table(tables, response) for tables in runs}  # a run may be in two groups
    places = {id(tables): place for place, tables in enumerate(runs)}
    groups: list[_Group] = []
    for (model, objective), members in grouped(runs).items():
        kept = [tables for tables in members if pairs[id(tables)] is not None]
        if kept:
            counts = {"runs": len(kept), "left_out": len(members) - len(kept)}
            strata = [pair for tables in kept if (pair := pairs[id(tables)])]
            of = [places[id(tables)] for tables in kept]
            groups.append(_Group({"model": model, "objective": objective}, counts, members[0].headline, strata, of))
    kinds = [(group, names) for group in groups for names in group.kinds]
    tested = _tested(kinds, permutations, seed) if kinds else []
    rows = [
        {**group.named, **row, **group.counts}
        for (group, names), families in zip(kinds, tested, strict=True)
        for row in _rows(group, names, families)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


@dataclass(frozen=True, eq=False)
class _Group:
    """The runs of a model and objective, or of an objective over all models.

    Attributes:
        named: model and objective.
        counts: of the runs that enter and of those that are left out.
        headline: the names of the CASD variants that were named before looking.
        strata: the pairs of each run that enters.
        runs: the numbers of these among all runs.
    """

    named: Mapping[str, str]
    counts: Mapping[str, int]
    headline: Sequence[str]
    strata: Sequence[PairTable]
    runs: Sequence[int]

    @property
    def kinds(self) -> list[list[str]]:
        """The predictors that all runs have: the variants of CASD, and the rivals, as far as there are any."""
        shared = [name for name in self.strata[0].distances if all(name in each.distances for each in self.strata)]
        rivals = [name for name in shared if name in RIVALS]
        return [names for names in ([name for name in shared if name not in RIVALS], rivals) if names]


def _tested(kinds: Sequence[tuple[_Group, list[str]]], permutations: int, seed: int) -> list[dict[str, FamilyResult]]:
    """By the names of _TESTS the results of each group's variants or rivals."""
    runs = [group.runs for group, _ in kinds]
    # A run is in the group of its model and in that of all models.
    made = functools.cache(lambda form, each, names: form(each, names))
    plain, pairs, partial = (
        [[made(form, each, tuple(names)) for each in group.strata] for group, names in kinds]
        for form in (PairTable.plain, PairTable.of_pairs, PairTable.given_same_target)
    )
    both = mantel_families([*plain, *pairs], runs=[*runs, *runs], permutations=permutations, rng=np.random.default_rng(seed))
    # Of ranks already: their plain correlation is the partial one.
    given = mantel_families(partial, runs=runs, permutations=permutations, rng=np.random.default_rng(seed), statistic="pearson")
    results = zip(both[: len(kinds)], both[len(kinds) :], given, strict=True)
    return [dict(zip(_TESTS, each, strict=True)) for each in results]


def _rows(group: _Group, names: Sequence[str], families: Mapping[str, FamilyResult]) -> list[dict[str, object]]:
    """The rows of a group's variants or of its rivals."""
    rivals = names[0] in RIVALS
    rho = families["plain"].rho
    best = int(np.nanargmax(np.abs(rho))) if not rivals and np.isfinite(rho).any() else None
    shown = [place for place, name in enumerate(names) if rivals or name in group.headline or place == best]
    chosen = [names[place] for place in shown]
    predictions = (
        leave_one_out_predictions([(each.stacked(chosen), each.suppression) for each in group.strata]) if shown else []
    )
    rows: list[dict[str, object]] = []
    for place, prediction in zip(shown, predictions, strict=True):
        name = names[place]
        roles: list[str] = [RIVALS[name].role] if rivals else []
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


def _effects_removed(matrices: np.ndarray) -> np.ndarray:
    return np.round(remove_backdoor_effects(matrices), RATE_DECIMALS)


def _matrices(tidy: pd.DataFrame, by: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Tidy distances (a, b, distance; each pair once or in both orders) as symmetric matrices; NaN where a pair is absent."""
    place = {name: index for index, name in enumerate(names)}
    rows = list(rows_of(tidy, by, "a", "b", "distance"))
    found = {kind: index for index, kind in enumerate(dict.fromkeys(kind for kind, *_ in rows))}
    cells = [(found[kind], place[a], place[b], distance) for kind, a, b, distance in rows if a in place and b in place]
    matrices = np.full((len(found), len(names), len(names)), np.nan)
    matrices[:, range(len(names)), range(len(names))] = 0.0
    if cells:
        kinds, first, second = np.array([cell[:3] for cell in cells]).T
        matrices[kinds, first, second] = matrices[kinds, second, first] = [cell[3] for cell in cells]
    return dict(zip(found, np.round(matrices, RATE_DECIMALS), strict=True))
