"""Confidence intervals of a proportion, and of means over runs and backdoors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from casd.stats.matrices import Array


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute Wilson's score interval for a binomial proportion, without continuity correction.

    With p = successes/n and z the standard normal quantile at (1 + confidence)/2:
    (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n).
    It stays inside [0, 1] and has a sensible width at 0 and n successes, where an attack success rate often lies.
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
    from scipy.special import ndtri  # imported here, so that reading finished runs does not wait for it

    p = successes / n
    z = float(ndtri((1 + confidence) / 2))
    center = p + z**2 / (2 * n)
    half_width = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    denominator = 1 + z**2 / n
    # At the ends the bound is exactly 0 or 1; with rounding it could be off by a few 1e-17 and lie outside [0, 1].
    low = 0.0 if successes == 0 else (center - half_width) / denominator
    high = 1.0 if successes == n else (center + half_width) / denominator
    return low, high


def jackknife_interval(
    values: npt.ArrayLike,
    runs: npt.ArrayLike,
    clusters: npt.ArrayLike | None = None,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Compute the interval of a mean over runs whose values belong to clusters that the runs share: backdoors.

    The mean is m = (1/S)·Σ_s m_s over the S runs, with m_s the plain mean of all values of s. Its variance is
    V = V_runs + V_clusters. V_runs = Σ_s (m_s − m)²/(S(S − 1)), zero for a single run. V_clusters is the jackknife over the n
    clusters: with m_(−i) the same mean without all values of cluster i, and m_(·) the mean of these,
    V_clusters = (n − 1)/n·Σ_i (m_(−i) − m_(·))². The interval is m ± t·√V, with Student's t of
    V²/(V_runs²/(S − 1) + V_clusters²/(n − 1)) degrees of freedom (Satterthwaite).

    Clusters are crossed with runs: backdoor "a" of seed 0 and backdoor "a" of seed 1 are one cluster. What is peculiar to a
    backdoor recurs in every seed and does not average out with more seeds, so the interval is about other seeds and other
    backdoors of the kind. A value of two clusters (the suppression of one backdoor by the removal of another) leaves with
    either: removed backdoors vary as measured ones do, and one that suppresses much may be suppressed much. A cluster that all
    values belong to is taken as given. The coverage of 95 % intervals is about that with three backdoors as with twenty; it is
    more, up to 100 %, where single values vary and clusters hardly do (simulated in `scripts/check_statistics.py`).

    Sources: the jackknife for values of pairs: T. A. B. Snijders and S. P. Borgatti (1999), "Non-parametric standard errors and
    tests for network statistics", Connections 22, 161–170. The sum over two ways of clustering: A. C. Cameron, J. B. Gelbach
    and D. L. Miller (2011), "Robust inference with multiway clustering", Journal of Business and Economic Statistics 29,
    238–249, without their third term, which is small and may make the sum negative. Degrees of freedom: F. E. Satterthwaite
    (1946), Biometrics Bulletin 2, 110–114.

    Args:
        values: numbers, shape (n_values,). NaN is left out.
        runs: the run of each value, shape (n_values,).
        clusters: the cluster of each value, shape (n_values,), or its two clusters, shape (n_values, 2), from one set; a value
            whose two clusters are the same belongs to that one. None: the interval is over runs alone.
        bounds: smallest and largest possible mean, at which limits are cut off: (0, 1) for a rate.
        confidence: coverage, in (0, 1).

    Returns:
        (low, high), in the unit of `values`; (NaN, NaN) where there is neither a second run nor a second cluster.

    Raises:
        ValueError: the shapes differ, or an argument is outside its range.
    """
    value_array, run_array = np.asarray(values, dtype=float), np.asarray(runs)
    cluster_array = None if clusters is None else np.asarray(clusters)
    shapes = [array.shape[:1] for array in (run_array, cluster_array) if array is not None]
    if value_array.ndim != 1 or any(shape != value_array.shape for shape in shapes):
        raise ValueError(f"Expected arrays of one length; got values of shape {value_array.shape} and {shapes}.")
    if not 0 < confidence < 1:
        raise ValueError(f"Expected a confidence in (0, 1); got {confidence}.")
    known = ~np.isnan(value_array)
    run_names, run = np.unique(run_array[known], return_inverse=True)
    n_runs = len(run_names)
    if n_runs == 0:
        return math.nan, math.nan
    totals = np.bincount(run, weights=value_array[known], minlength=n_runs).astype(float)
    counts = np.bincount(run, minlength=n_runs)
    of_runs = totals / counts
    variances: list[tuple[float, int]] = []  # with their degrees of freedom
    if n_runs > 1:
        variances.append((float(of_runs.var(ddof=1)) / n_runs, n_runs - 1))
    if cluster_array is not None:
        without = _means_without_clusters(value_array[known], run, cluster_array[known], totals, counts)
        if (n := len(without)) > 1:
            variances.append(((n - 1) * float(without.var()), n - 1))
    if not variances:
        return math.nan, math.nan
    return limits_of(float(of_runs.mean()), variances, bounds=bounds, confidence=confidence)


def limits_of(
    estimate: float, variances: Sequence[tuple[float, int]], *, bounds: tuple[float, float], confidence: float = 0.95
) -> tuple[float, float]:
    """Compute the limits estimate ± t·√V of a sum V of variances, with Satterthwaite's degrees of freedom.

    Args:
        estimate: what the interval is of.
        variances: at least one variance of the estimate, each with its degrees of freedom.
        bounds: at which limits are cut off.
        confidence: coverage, in (0, 1).
    """
    from scipy.special import stdtrit  # imported here as in `wilson_interval`

    variance = sum(each for each, _ in variances)
    half_width = 0.0
    if variance > 0:
        freedom = variance**2 / sum(each**2 / degrees for each, degrees in variances)
        half_width = float(stdtrit(freedom, (1 + confidence) / 2)) * math.sqrt(variance)
    low, high = bounds
    return min(max(estimate - half_width, low), high), max(min(estimate + half_width, high), low)


def _means_without_clusters(
    values: Array, run: npt.NDArray[np.integer], clusters: npt.NDArray[Any], totals: Array, counts: npt.NDArray[np.integer]
) -> Array:
    """Return the mean over runs without each cluster in turn, omitting clusters without which no value is left.

    Args:
        values: shape (n_values,).
        run: number of the run of each value.
        clusters: shape (n_values,) or (n_values, 2).
        totals: sum of the values of each run, shape (n_runs,).
        counts: number of the values of each run, shape (n_runs,).
    """
    names, member = np.unique(clusters, return_inverse=True)
    member = member.reshape(len(values), -1)
    left, numbers = np.tile(totals, (len(names), 1)), np.tile(counts, (len(names), 1))
    for column in range(member.shape[1]):
        # A value leaves once, even if both of its clusters are the same.
        own = member[:, column] != member[:, 0] if column else np.ones(len(values), dtype=bool)
        np.subtract.at(left, (member[own, column], run[own]), values[own])
        np.subtract.at(numbers, (member[own, column], run[own]), 1)
    means = np.divide(left, numbers, out=np.full_like(left, math.nan), where=numbers > 0)
    return np.nanmean(means[(numbers > 0).any(axis=1)], axis=1)
