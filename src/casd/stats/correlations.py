"""Confidence intervals of correlations over pairs of backdoors, pooled over runs, and of their differences."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from casd.stats.intervals import limits_of
from casd.stats.matrices import Array, places_of_pairs
from casd.stats.permutations import pair_scores, why_undefined
from casd.stats.strata import pairs_of_strata


@dataclass(frozen=True, eq=False)
class CorrelationIntervals:
    """Outcome of `correlation_intervals`: arrays with one entry per predictor, in the order given; NaN where undefined.

    Attributes:
        rho: pooled correlation, as in `mantel_family`; shape (v,).
        low: lower limit of it; shape (v,).
        high: upper limit of it; shape (v,).
        difference: rho minus that of the reference; shape (v,).
        difference_low: lower limit of the difference; shape (v,).
        difference_high: upper limit of the difference; shape (v,).
    """

    rho: Array
    low: Array
    high: Array
    difference: Array
    difference_low: Array
    difference_high: Array


def correlation_intervals(
    strata: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]],
    names: Sequence[Sequence[Hashable]],
    *,
    reference: int = 0,
    confidence: float = 0.95,
) -> CorrelationIntervals:
    """Compute intervals of the pooled Spearman correlations of predictors and a response, and of their differences.

    The pooled correlation is that of `mantel_family`: the mean over strata (runs), weighted by their number of pairs. Its
    variance is the sum of two jackknife variances, (m − 1)/m·Σ_i (r_(−i) − r_(·))²: with each of the m backdoors left out
    wherever it stands in any run, and with each of the m runs left out. The interval is r ± t·√V as in `jackknife_interval`.
    It is about other backdoors and seeds of the kind, while the permutation tests ask whether these backdoors show a relation
    at all: a small p-value and an interval that holds zero do not contradict each other.

    The difference of two predictors is taken before the variance: both are correlated with one response, so that their own
    intervals may overlap although one is better in every subset.

    The limits hold the correlation in 93 to 100 % of simulated cases, and in 90 % with four backdoors: they are too wide where
    single pairs vary, and right where backdoors do (`scripts/check_statistics.py`).

    Source: T. A. B. Snijders and S. P. Borgatti (1999), "Non-parametric standard errors and tests for network statistics",
    Connections 22, 161–170; theirs has a smaller factor, which is too small where backdoors vary.

    Args:
        strata: see `mantel_family`.
        names: names of the backdoors of each stratum, in the order of its rows; the same name in two strata is one backdoor.
        reference: index of the predictor that the others are compared with.
        confidence: coverage, in (0, 1).

    Returns:
        The correlations and limits. There are no limits where a correlation is undefined without one of the backdoors or runs:
        with three backdoors in a run, or if a predictor or response is then constant.

    Raises:
        ValueError: the shapes are not those of `mantel_family`, or the names of a stratum are not as many as its backdoors, or
            not different.
    """
    sizes, predictors, responses = pairs_of_strata(strata)
    if (counts := [len(set(each)) for each in names]) != sizes:
        raise ValueError(f"Expected different names of {sizes} backdoors; got {counts}.")
    parts = list(zip(sizes, predictors, responses, strict=True))
    rho = _pooled(parts)
    backdoors = dict.fromkeys(name for each in names for name in each)
    without = [[_without(part, list(own), name) for part, own in zip(parts, names, strict=True)] for name in backdoors]
    deleted = [np.array([_pooled(left) for left in without])]
    if len(parts) > 1:
        deleted.append(np.array([_pooled(parts[:run] + parts[run + 1 :]) for run in range(len(parts))]))
    low, high = _limits(rho, deleted, (-1, 1), confidence)
    difference = rho - rho[reference]
    differences = [each - each[:, [reference]] for each in deleted]
    difference_low, difference_high = _limits(difference, differences, (-2, 2), confidence)
    return CorrelationIntervals(rho, low, high, difference, difference_low, difference_high)


_Part = tuple[int, Array, Array]
"""A stratum: its number of backdoors, and the pairs of its predictors and response, shapes (v, n_pairs) and (n_pairs,)."""


def _without(part: _Part, names: list[Hashable], name: Hashable) -> _Part:
    """Return a stratum without one of its backdoors; as it is if it does not have that one."""
    if name not in names:
        return part
    n, xs, y = part
    first, second = places_of_pairs(n)
    kept = (first != names.index(name)) & (second != names.index(name))
    return n - 1, xs[:, kept], y[kept]


def _pooled(parts: Sequence[_Part]) -> Array:
    """Return the pooled Spearman correlation of each predictor; NaN if it, or the response, has none in some stratum."""
    v = len(parts[0][1])
    total, weight = np.zeros(v), 0
    for n, xs, y in parts:
        rho = np.full(v, math.nan)
        valid = np.array([not why_undefined(n, x) and not why_undefined(n, y) for x in xs])
        if valid.any():
            rho[valid] = pair_scores(xs[valid], "spearman") @ pair_scores(y, "spearman")
        total, weight = total + rho * len(y), weight + len(y)
    return total / weight


def _limits(estimates: Array, deleted: Sequence[Array], bounds: tuple[float, float], confidence: float) -> tuple[Array, Array]:
    """Return the limits of each estimate from its values with one backdoor, or one run, left out: shapes (m, v)."""
    low, high = np.full(len(estimates), math.nan), np.full(len(estimates), math.nan)
    for index, estimate in enumerate(estimates):
        columns = [values[:, index] for values in deleted]
        if np.isfinite(estimate) and all(np.isfinite(column).all() for column in columns):
            variances = [((len(column) - 1) * float(column.var()), len(column) - 1) for column in columns]
            low[index], high[index] = limits_of(float(estimate), variances, bounds=bounds, confidence=confidence)
    return low, high
