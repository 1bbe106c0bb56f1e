"""The pairs of a run's removals: how far they are apart by each predictor, how much they suppress each other.

The response is the suppression of the other backdoors, as in `casd.analysis.transfer.relate`: centred by column (each
backdoor's own fragility taken out) and averaged over both directions of a pair. All is kept as upper triangles, row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
"""Of predictors (…, v, n_pairs), and of the response (…, n_pairs)."""
_SAME_TARGET: Final = "same_target"
"""The rival that is held constant."""
_Column = np.ndarray | pd.Series


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
        """The rival that is held constant, (n_pairs,); without it, NaN."""
        known = _SAME_TARGET in self.predictors
        return self.of([_SAME_TARGET])[0] if known else np.full(self.centered.shape, np.nan)


def pair_table(tables: RunTables, response: str = "suppression") -> PairTable | None:
    """The pairs of one run; None if fewer than four removals are included, or all pairs have the same response."""
    names, [values] = included_matrices(tables, response)
    if len(names) < MIN_REMOVALS:
        return None
    upper = np.triu_indices(len(names), k=1)
    centered = centered_response(values)[upper]
    if not np.isfinite(centered).all() or np.ptp(centered) == 0:
        return None
    columns = ("a", "b", "distance")
    casd: list[_Column] = [*tables.columns("casd", "variant", *columns)]
    if tables.lacks_grid:
        every = tables.every_variant()
        casd = [every[name] for name in ("variant", *columns)]
    variants, distances = _pairs(casd, names)
    rivals, of_rivals = _pairs(tables.columns("rivals", "predictor", *columns), names)
    every_distance = np.concatenate([distances, of_rivals])
    return PairTable(tuple(names), (*variants, *rivals), every_distance, centered, symmetrize(values)[upper])


@dataclass(frozen=True, eq=False)
class PairStack:
    """The pairs of m runs that have as many backdoors.

    Attributes:
        distances: of some predictors, (m, v, n_pairs).
        centered: as in PairTable, (m, n_pairs).
        suppression: as there.
        same_target: the rival that is held constant, (m, n_pairs); NaN without it.
    """

    distances: np.ndarray
    centered: np.ndarray
    suppression: np.ndarray
    same_target: np.ndarray

    @classmethod
    def of(cls, tables: Sequence[PairTable], predictors: Sequence[str]) -> PairStack:
        """Put the pairs of runs together."""
        parts = [(table.of(predictors), table.centered, table.suppression, table.same_target) for table in tables]
        return cls(*map(np.stack, zip(*parts, strict=True)))

    def plain(self) -> Pairs:
        """As they are."""
        return rounded(self.distances), self.centered

    def of_pairs(self) -> Pairs:
        """Without what belongs to single backdoors: so the response need not be centered before."""
        return remove_effects_from_pairs(self.distances), remove_effects_from_pairs(self.suppression)

    def given_same_target(self) -> Pairs:
        """As ranks, without what the same target accounts for."""
        held = rounded(self.same_target)
        return rank_residuals(rounded(self.distances), held[:, None]), rank_residuals(self.centered, held)


def rounded(values: np.ndarray) -> np.ndarray:
    """For ranks: rates, and distances, that are equal on paper may differ in their last bits."""
    return np.round(values, RATE_DECIMALS)


def _pairs(tidy: Sequence[_Column], names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Tidy distances as the pairs of some backdoors; NaN where one is absent.

    Args:
        tidy: the columns of the kind, of a and b, and of the distance; each pair once or in both orders.
        names: of the backdoors.

    Returns:
        The kinds of distances in their order, and of each the pairs, (kinds, n_pairs).
    """
    kinds, a, b, distances = tidy
    codes, found = pd.factorize(kinds)
    place = {name: index for index, name in enumerate(names)}
    first, second = (_places(column, place) for column in (a, b))
    known = (first >= 0) & (second >= 0) & (first != second)
    pairs = np.full((len(found), len(names) * (len(names) - 1) // 2), np.nan)
    pairs[codes[known], numbers_of_pairs(len(names))[first[known], second[known]]] = np.asarray(distances, dtype=float)[known]
    return list(map(str, found)), pairs


def _places(column: _Column, place: Mapping[str, int]) -> np.ndarray:
    """The place of each name; −1 for those that have none."""
    codes, names = pd.factorize(column)
    return np.array([place.get(name, -1) for name in names], dtype=int).take(codes)
