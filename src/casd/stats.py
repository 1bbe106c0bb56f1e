"""Intervals and permutation tests: numbers in, numbers out, nothing of the experiment.

A matrix over N backdoors has N(N − 1)/2 pairs but only N independent things behind them: two pairs that share a
backdoor are correlated. Tests here therefore permute, and intervals resample, whole backdoors and never single pairs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri
from scipy.stats import rankdata

Statistic = Literal["spearman", "pearson", "kendall"]
Alternative = Literal["two-sided", "less", "greater"]
Array = npt.NDArray[np.float64]

# Correlations that are equal on paper may differ in their last bits, and equal counts as "at least as extreme".
_TIE_TOLERANCE = 1e-12
# Numbers gathered at once while permuting: bounds the memory (16 MB) whatever the number of backdoors and permutations.
_CHUNK_CELLS = 2_000_000
# A result that could not have come out below this, whatever the data, says so in its note.
_USUAL_LEVEL = 0.05


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a binomial proportion, without continuity correction.

    With p = successes/n and z the standard normal quantile at (1 + confidence)/2:
    (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n).
    It stays inside [0, 1] and keeps a sensible width at 0 and n successes, where an attack success rate often lies.
    Source: E. B. Wilson (1927), "Probable inference, the law of succession, and statistical inference", JASA 22,
    209–212.

    Args:
        successes: number of successes, 0 ≤ successes ≤ n.
        n: number of trials, at least 1.
        confidence: coverage, in (0, 1).

    Returns:
        (low, high), fractions.

    Raises:
        ValueError: an argument is outside its range.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"Expected n >= 1 and 0 <= successes <= n; got successes={successes}, n={n}.")
    if not 0 < confidence < 1:
        raise ValueError(f"Expected a confidence in (0, 1); got {confidence}.")
    p = successes / n
    z = float(ndtri((1 + confidence) / 2))
    center = p + z**2 / (2 * n)
    half_width = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    denominator = 1 + z**2 / n
    # At the ends the bound is exactly 0 or 1; rounding would leave it a few 1e-17 beside, perhaps outside [0, 1].
    low = 0.0 if successes == 0 else (center - half_width) / denominator
    high = 1.0 if successes == n else (center + half_width) / denominator
    return low, high


def cluster_bootstrap_interval(
    values: npt.ArrayLike,
    clusters: npt.ArrayLike,
    *,
    rng: np.random.Generator,
    resamples: int = 9999,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`, resampling whole clusters with replacement.

    With few clusters (eight backdoors, say) percentile intervals are known to be somewhat too narrow: read them as a
    lower bound on the doubt.
    Source: Davison and Hinkley (1997), "Bootstrap Methods and their Application".

    Args:
        values: numbers, shape (n_values,). NaN is left out.
        clusters: the cluster each value belongs to, shape (n_values,).
        rng: source of the resamples.
        resamples: number of bootstrap samples, at least 1.
        confidence: coverage, in (0, 1).

    Returns:
        (low, high), in the unit of `values`; (NaN, NaN) with fewer than two clusters, which say nothing on the spread
        between clusters.

    Raises:
        ValueError: the shapes differ, or an argument is outside its range.
    """
    value_array, cluster_array = np.asarray(values, dtype=float), np.asarray(clusters)
    if value_array.ndim != 1 or value_array.shape != cluster_array.shape:
        raise ValueError(f"Expected two arrays of one length; got shapes {value_array.shape} and {cluster_array.shape}.")
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"Expected resamples >= 1 and a confidence in (0, 1); got {resamples} and {confidence}.")
    kept = ~np.isnan(value_array)
    names, membership = np.unique(cluster_array[kept], return_inverse=True)
    if len(names) < 2:
        return math.nan, math.nan
    sums = np.bincount(membership, weights=value_array[kept])
    counts = np.bincount(membership)
    draws = rng.integers(len(names), size=(resamples, len(names)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def offdiagonal_center_columns(matrix: npt.ArrayLike) -> Array:
    """Subtract from each off-diagonal cell the mean of the off-diagonal cells of its column.

    In a transfer matrix this takes out how fragile each measured backdoor is, whichever other one was removed.

    Args:
        matrix: shape (n, n); the diagonal is not read. A NaN off the diagonal makes its column NaN.

    Returns:
        Shape (n, n), the diagonal NaN.

    Raises:
        ValueError: `matrix` is not square.
    """
    cells = _square(matrix)
    n = len(cells)
    off_diagonal = ~np.eye(n, dtype=bool)
    means = np.where(off_diagonal, cells, 0.0).sum(axis=0) / max(n - 1, 1)
    return np.where(off_diagonal, cells - means, np.nan)


def symmetrize(matrix: npt.ArrayLike) -> Array:
    """(M + Mᵀ)/2, shape (n, n): the mean of both directions of each pair.

    Raises:
        ValueError: `matrix` is not square.
    """
    cells = _square(matrix)
    return (cells + cells.T) / 2


@dataclass(frozen=True)
class MantelResult:
    """Outcome of a Mantel test.

    Attributes:
        rho: correlation over the pairs, in [−1, 1] (Spearman's ρ, Pearson's r or Kendall's τ-b, as was asked for); NaN
            if undefined.
        p_value: permutation p-value, in (0, 1]; NaN where `rho` is.
        n: number of backdoors, the rows of each matrix.
        n_pairs: n(n − 1)/2.
        permutations: number of permutations the observed one was held against (if `exact` all n!, itself included);
            0 where `rho` is NaN.
        exact: whether all permutations were enumerated.
        note: "" or, in a sentence, why there is no result or what limits it.
    """

    rho: float
    p_value: float
    n: int
    n_pairs: int
    permutations: int
    exact: bool
    note: str = ""


def mantel_test(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    *,
    permutations: int = 9999,
    rng: np.random.Generator,
    statistic: Statistic = "spearman",
    alternative: Alternative = "two-sided",
) -> MantelResult:
    """Mantel's permutation test of the correlation between two symmetric matrices over the same backdoors.

    The correlation runs over the pairs (the upper triangles). Under the null hypothesis the labels of one matrix are
    exchangeable, so rows and columns of `y` are permuted together. Of m permuted correlations let b be at least as
    extreme as the observed one. If n! ≤ permutations + 1 all m = n! permutations are enumerated and the p-value is b/m;
    otherwise m = `permutations` are drawn and it is (b + 1)/(m + 1): the observed labelling counts as one of the
    sample, so the p-value is never 0. "Two-sided" compares absolute values, since the mean over all permutations is 0.
    Ties get mean ranks; a permutation moves ranks without changing them, so they are computed once.

    A small p-value says that the two matrices agree beyond relabelling. It does not say that the agreement is about
    pairs: a property of single backdoors that shows in both matrices (row and column effects) is found as well.
    Source: N. Mantel (1967), "The detection of disease clustering and a generalized regression approach", Cancer
    Research 27, 209–220.

    Args:
        x: symmetric, shape (n, n); the diagonal is not read.
        y: the same. Cells that are equal on paper should be equal in bits (round them), or ranks are noise.
        permutations: number of random permutations, at least 1, where not all are enumerated.
        rng: source of the random permutations.
        statistic: correlation over the pairs.
        alternative: "less" tests for a negative correlation, "greater" for a positive one.

    Returns:
        The result. Where no correlation exists (fewer than three backdoors, a matrix without variance, a cell that is
        not finite) `rho` and `p_value` are NaN and `note` says why.

    Raises:
        ValueError: the matrices are not square, symmetric and of one size; `permutations` < 1; an unknown statistic or
            alternative.
    """
    x_cells, y_cells = _square(x), _square(y)
    if x_cells.shape != y_cells.shape:
        raise ValueError(f"Expected two matrices of one shape; got {x_cells.shape} and {y_cells.shape}.")
    if permutations < 1:
        raise ValueError(f"Expected permutations >= 1; got {permutations}.")
    if statistic not in ("spearman", "pearson", "kendall"):
        raise ValueError(f"Unknown statistic {statistic!r}.")
    if alternative not in ("two-sided", "less", "greater"):
        raise ValueError(f"Unknown alternative {alternative!r}.")
    n = len(x_cells)
    upper = np.triu_indices(n, k=1)
    for name, cells in (("x", x_cells), ("y", y_cells)):
        if not np.allclose(cells[upper], cells.T[upper], rtol=1e-6, atol=1e-12, equal_nan=True):
            raise ValueError(f"Expected symmetric matrices; {name} is not.")
    x_pairs, y_pairs = x_cells[upper], y_cells[upper]
    note = _why_undefined(n, x_pairs, y_pairs)
    if note:
        return MantelResult(math.nan, math.nan, n, len(x_pairs), 0, False, note)

    x_scores, y_scores = _scores(x_pairs, statistic), _scores(y_pairs, statistic)
    rho = float(np.sum(x_scores * y_scores))
    exact = math.factorial(n) <= permutations + 1
    count = math.factorial(n) if exact else permutations
    extreme = 0
    for labels in _permutations(n, count, x_scores.size, None if exact else rng):
        permuted = _permuted_correlations(x_scores, y_scores, labels)
        if alternative == "two-sided":
            at_least = np.abs(permuted) >= abs(rho) - _TIE_TOLERANCE
        elif alternative == "less":
            at_least = permuted <= rho + _TIE_TOLERANCE
        else:
            at_least = permuted >= rho - _TIE_TOLERANCE
        extreme += int(at_least.sum())
    smallest = 1 / count if exact else 1 / (count + 1)
    p_value = extreme / count if exact else (extreme + 1) / (count + 1)
    if smallest > _USUAL_LEVEL:
        note = f"{count} permutations only: the p-value cannot be below {smallest:.3f}"
    # Rounding may carry a perfect correlation a few 1e-16 beyond its range.
    return MantelResult(min(1.0, max(-1.0, rho)), p_value, n, len(x_pairs), count, exact, note)


def _square(matrix: npt.ArrayLike) -> Array:
    """`matrix` as floats, shape (n, n)."""
    cells = np.asarray(matrix, dtype=float)
    if cells.ndim != 2 or cells.shape[0] != cells.shape[1]:
        raise ValueError(f"Expected a square matrix; got shape {cells.shape}.")
    return cells


def _why_undefined(n: int, x_pairs: Array, y_pairs: Array) -> str:
    """Why these pairs have no correlation; "" if they have one."""
    if n < 3:
        return f"a correlation over pairs needs at least 3 backdoors, here {n}"
    if not (np.isfinite(x_pairs).all() and np.isfinite(y_pairs).all()):
        return "a pair has no finite value"
    if np.ptp(x_pairs) == 0 or np.ptp(y_pairs) == 0:
        return "all pairs have the same value"
    return ""


def _scores(pairs: Array, statistic: Statistic) -> Array:
    """Scores of the pairs with mean 0 and norm 1: the sum of the products of two such arrays is the correlation.

    Shape (n_pairs,); for Kendall's τ-b the signs of all differences, shape (n_pairs, n_pairs), whose norms hold its
    correction for ties.
    """
    if statistic == "kendall":
        scores = np.sign(pairs[:, None] - pairs[None, :])
    else:
        values = rankdata(pairs) if statistic == "spearman" else pairs
        scores = values - values.mean()
    return scores / np.linalg.norm(scores)


def _permutations(n: int, count: int, cells: int, rng: np.random.Generator | None) -> Iterator[npt.NDArray[np.intp]]:
    """Permutations of range(n) in chunks of shape (m, n): `count` random ones, or without `rng` all of them.

    `cells`: numbers that a test gathers for one permutation.
    """
    at_once = max(1, _CHUNK_CELLS // cells)
    if rng is None:
        everything = itertools.permutations(range(n))
        while chunk := list(itertools.islice(everything, at_once)):
            yield np.array(chunk, dtype=np.intp)
        return
    for start in range(0, count, at_once):
        yield rng.permuted(np.tile(np.arange(n), (min(at_once, count - start), 1)), axis=1)


def _permuted_correlations(x_scores: Array, y_scores: Array, labels: npt.NDArray[np.intp]) -> Array:
    """Correlation of x with y after each relabelling of y's backdoors; `labels` has shape (m, n), the result (m,)."""
    n = labels.shape[1]
    rows, columns = np.triu_indices(n, k=1)
    pair_at = np.zeros((n, n), dtype=np.intp)
    pair_at[rows, columns] = pair_at[columns, rows] = np.arange(len(rows))
    moved = pair_at[labels[:, rows], labels[:, columns]]
    if y_scores.ndim == 1:
        return y_scores[moved] @ x_scores
    return y_scores[moved[:, :, None], moved[:, None, :]].reshape(len(labels), -1) @ x_scores.ravel()
