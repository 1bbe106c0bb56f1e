"""The pairs of a run's removals: how far they are apart by each predictor, how much they suppress each other.

The response is the suppression of the other backdoors, as in `casd.analysis.transfer.relate`: centred by column (each
backdoor's own fragility taken out) and averaged over both directions of a pair. All is kept as upper triangles, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from casd.analysis.comparison import included_matrices
from casd.analysis.inclusion import MIN_REMOVALS
from casd.analysis.results import RunTables
from casd.analysis.transfer import RATE_DECIMALS, centered_response
from casd.stats import numbers_of_pairs, rank_residuals, remove_effects_from_pairs, symmetrize

Pairs = tuple[np.ndarray, np.ndarray]
"""Predictors (v, n_pairs) and response (n_pairs,)."""
_SAME_TARGET: Final = "same_target"
"""The baseline that is held constant."""


@dataclass(frozen=True, eq=False)
class PairTable:
    """What one run says of the pairs of its included removals: upper triangles, row by row.

    Attributes:
        names: of the n removals.
        predictors: the names of the v predictors.
        distances: theirs, (v, n_pairs).
        centered: the suppression as tests take it, (n_pairs,); rounded.
        suppression: the mean of both directions of each pair, (n_pairs,).
    """

    names: tuple[str, ...]
    predictors: tuple[str, ...]
    distances: np.ndarray
    centered: np.ndarray
    suppression: np.ndarray

    def of(self, predictors: Sequence[str]) -> np.ndarray:
        """The distances of some predictors, shape (n_predictors, n_pairs)."""
        place = {name: index for index, name in enumerate(self.predictors)}
        return self.distances[[place[name] for name in predictors]]

    @property
    def same_target(self) -> np.ndarray:
        """The baseline that is held constant, (n_pairs,); without it, NaN."""
        known = _SAME_TARGET in self.predictors
        return self.of([_SAME_TARGET])[0] if known else np.full(self.centered.shape, np.nan)

    def plain(self, predictors: Sequence[str]) -> Pairs:
        """The predictors and the response as they are."""
        return rounded(self.of(predictors)), self.centered

    def of_pairs(self, predictors: Sequence[str]) -> Pairs:
        """Both without the effects of single backdoors, so the response need not be centered first."""
        return remove_effects_from_pairs(self.of(predictors)), remove_effects_from_pairs(self.suppression)

    def given_same_target(self, predictors: Sequence[str]) -> Pairs:
        """Both as ranks, after regression on the ranks of the same target."""
        held = rounded(self.same_target)
        return rank_residuals(rounded(self.of(predictors)), held), rank_residuals(self.centered, held)


def pair_table(tables: RunTables, response: str = "suppression") -> PairTable | None:
    """The pairs of one run; None if fewer than four removals are included, or all pairs have the same response."""
    names, [values] = included_matrices(tables, response)
    if len(names) < MIN_REMOVALS:
        return None
    upper = np.triu_indices(len(names), k=1)
    centered = centered_response(values)[upper]
    if not np.isfinite(centered).all() or np.ptp(centered) == 0:
        return None
    variants, distances = _pairs(tables.every_variant(), "variant", names)
    baselines, of_baselines = _pairs(tables.baselines, "predictor", names)
    every_distance = np.concatenate([distances, of_baselines])
    return PairTable(tuple(names), (*variants, *baselines), every_distance, centered, symmetrize(values)[upper])


def rounded(values: np.ndarray) -> np.ndarray:
    """Rounded for ranking: rates and distances that are equal on paper may differ in their last bits."""
    return np.round(values, RATE_DECIMALS)


def _pairs(tidy: pd.DataFrame, kind: str, names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Tidy distances as upper triangles over `names`; NaN where a pair is absent.

    Args:
        tidy: columns a, b, distance and `kind`, whose values name the predictors; each pair once or in both orders.
        kind: the name of that column.
        names: of the n backdoors.

    Returns:
        The predictors in their order, and the distances of each, (predictors, n_pairs).
    """
    codes, predictors = pd.factorize(tidy[kind])
    place = {name: index for index, name in enumerate(names)}
    first, second = (tidy[end].map(place).fillna(-1).to_numpy(dtype=int) for end in ("a", "b"))
    known = (first >= 0) & (second >= 0) & (first != second)
    pairs = np.full((len(predictors), len(names) * (len(names) - 1) // 2), np.nan)
    pairs[codes[known], numbers_of_pairs(len(names))[first[known], second[known]]] = tidy["distance"].to_numpy(float)[known]
    return list(map(str, predictors)), pairs
