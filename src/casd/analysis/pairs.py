"""Pairs of removals of a run: their distance by each predictor, and the suppression between them.

The response is the suppression of the other backdoors, as in `casd.analysis.relation.relate`: centred by column (which removes
each backdoor's own fragility) and averaged over both directions of a pair. Matrices are stored as upper triangles, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from casd.analysis.grouping import included_matrices
from casd.analysis.inclusion import MIN_REMOVALS
from casd.analysis.relation import RATE_DECIMALS, centered_response
from casd.analysis.results import RunTables
from casd.stats import numbers_of_pairs, rank_residuals, remove_effects_from_pairs, symmetrize

Pairs = tuple[np.ndarray, np.ndarray]
"""Predictors (v, n_pairs) and response (n_pairs,)."""
_SAME_TARGET: Final = "same_target"
"""Baseline that partial correlations hold constant."""


@dataclass(frozen=True, eq=False)
class PairTable:
    """Distances and suppression over the pairs of included removals of one run, as upper triangles, row by row.

    Attributes:
        names: names of the n removals.
        predictors: names of the v predictors.
        distances: distances of each predictor, shape (v, n_pairs).
        centered: suppression centred by column, averaged over both directions and rounded, shape (n_pairs,).
        suppression: suppression averaged over both directions, shape (n_pairs,).
    """

    names: tuple[str, ...]
    predictors: tuple[str, ...]
    distances: np.ndarray
    centered: np.ndarray
    suppression: np.ndarray

    def of(self, predictors: Sequence[str]) -> np.ndarray:
        """Return the distances of the named predictors, shape (n_predictors, n_pairs)."""
        return self.distances[[self.predictors.index(name) for name in predictors]]

    @property
    def same_target(self) -> np.ndarray:
        """The baseline that partial correlations hold constant, shape (n_pairs,); NaN if it was not computed."""
        computed = _SAME_TARGET in self.predictors
        return self.of([_SAME_TARGET])[0] if computed else np.full(self.centered.shape, np.nan)

    def plain(self, predictors: Sequence[str]) -> Pairs:
        """Return the predictors and the centred response."""
        return rounded(self.of(predictors)), self.centered

    def of_pairs(self, predictors: Sequence[str]) -> Pairs:
        """Return both without the effects of single backdoors, which include those that centring removes."""
        return remove_effects_from_pairs(self.of(predictors)), remove_effects_from_pairs(self.suppression)

    def given_same_target(self, predictors: Sequence[str]) -> Pairs:
        """Return the residuals of the ranks of both after regression on the ranks of `same_target`."""
        held = rounded(self.same_target)
        return rank_residuals(rounded(self.of(predictors)), held), rank_residuals(self.centered, held)


def pair_table(tables: RunTables, response: str = "suppression") -> PairTable | None:
    """Return the pairs of a run; None if fewer than four removals are included or the response is constant or not finite."""
    names, [values] = included_matrices(tables, response)
    if len(names) < MIN_REMOVALS:
        return None
    upper = np.triu_indices(len(names), k=1)
    centered = centered_response(values)[upper]
    if not np.isfinite(centered).all() or np.ptp(centered) == 0:
        return None
    variants, casd = _pairs(tables.every_variant(), "variant", names)
    baselines, distances = _pairs(tables.baselines, "predictor", names)
    predictors = (*variants, *baselines)
    return PairTable(tuple(names), predictors, np.concatenate([casd, distances]), centered, symmetrize(values)[upper])


def rounded(values: np.ndarray) -> np.ndarray:
    """Round values before ranking: rates and distances that are equal on paper may differ in their last bits."""
    return np.round(values, RATE_DECIMALS)


def _pairs(tidy: pd.DataFrame, kind: str, names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Convert tidy distances into upper triangles over `names`; NaN where a pair is absent.

    Args:
        tidy: columns a, b, distance and `kind`; each pair once or in both orders.
        kind: name of the column of predictor names.
        names: names of the n backdoors.

    Returns:
        The predictors in order of appearance, and their distances, shape (n_predictors, n_pairs).
    """
    codes, predictors = pd.factorize(tidy[kind])
    place = {name: index for index, name in enumerate(names)}
    first, second = (tidy[end].map(place).fillna(-1).to_numpy(dtype=int) for end in ("a", "b"))
    known = (first >= 0) & (second >= 0) & (first != second)
    pairs = np.full((len(predictors), len(names) * (len(names) - 1) // 2), np.nan)
    pairs[codes[known], numbers_of_pairs(len(names))[first[known], second[known]]] = tidy["distance"].to_numpy(float)[known]
    return list(map(str, predictors)), pairs
