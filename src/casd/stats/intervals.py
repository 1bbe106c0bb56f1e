"""Confidence intervals of a proportion and of means over clusters."""

from __future__ import annotations

import math

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


def cluster_bootstrap_interval(
    values: npt.ArrayLike,
    clusters: npt.ArrayLike,
    *,
    rng: np.random.Generator,
    resamples: int = 9999,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of the mean of `values`, resampling whole clusters with replacement.

    With few clusters (such as eight backdoors) percentile intervals are known to be somewhat too narrow: read them as a
    lower bound on the uncertainty.
    Source: Davison and Hinkley (1997), "Bootstrap Methods and their Application".

    Args:
        values: numbers, shape (n_values,). NaN is left out.
        clusters: the cluster each value belongs to, shape (n_values,).
        rng: source of the resamples.
        resamples: number of bootstrap samples, at least 1.
        confidence: coverage, in (0, 1).

    Returns:
        (low, high), in the unit of `values`; (NaN, NaN) with fewer than two clusters, where the spread between clusters is
        unknown.

    Raises:
        ValueError: the shapes differ, or an argument is outside its range.
    """
    value_array, cluster_array = np.asarray(values, dtype=float), np.asarray(clusters)
    if value_array.ndim != 1 or value_array.shape != cluster_array.shape:
        raise ValueError(f"Expected two arrays of one length; got shapes {value_array.shape} and {cluster_array.shape}.")
    _check_resampling(resamples, confidence)
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


def crossed_bootstrap_interval(
    values: npt.ArrayLike,
    runs: npt.ArrayLike,
    clusters: npt.ArrayLike,
    *,
    rng: np.random.Generator,
    resamples: int = 9999,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of a mean over runs, resampling runs and clusters that the runs share.

    The mean is (1/S)·Σ_s m_s over the S runs, with m_s the plain mean of all values of s: every run has the same weight, and
    within a run every value has, so a cluster (a measured backdoor) is weighted by its number of values, as in
    `cluster_bootstrap_interval`. A resample draws S runs with replacement, and independently as many of the clusters as there
    are, with replacement; a cluster counts in every drawn run as often as it was drawn. A run without any of the drawn clusters
    is left out of that resample.

    Runs and clusters are crossed: backdoor "a" of seed 0 and backdoor "a" of seed 1 are one cluster. What is peculiar to a
    backdoor recurs in every seed and does not average out with more seeds, so the interval is about other seeds and other
    backdoors of the kind. If nothing recurs, it is too wide, by up to √3. With few runs or backdoors, percentile limits are too
    narrow by √((n − 1)/n) where these differ most.
    Source: A. B. Owen (2007), "The pigeonhole bootstrap", Annals of Applied Statistics 1, 386–411.

    Args:
        values: numbers, shape (n_values,). NaN is left out.
        runs: the run of each value, shape (n_values,).
        clusters: the cluster (measured backdoor) of each value, shape (n_values,).
        rng: source of the resamples.
        resamples: number of bootstrap samples, at least 1.
        confidence: coverage, in (0, 1).

    Returns:
        (low, high), in the unit of `values`; (NaN, NaN) with fewer than two runs that have values.

    Raises:
        ValueError: the shapes differ, or an argument is outside its range.
    """
    value_array, run_array, cluster_array = np.asarray(values, dtype=float), np.asarray(runs), np.asarray(clusters)
    if value_array.ndim != 1 or not value_array.shape == run_array.shape == cluster_array.shape:
        shapes = f"{value_array.shape}, {run_array.shape} and {cluster_array.shape}"
        raise ValueError(f"Expected three arrays of one length; got shapes {shapes}.")
    _check_resampling(resamples, confidence)
    known = ~np.isnan(value_array)
    run_names, run = np.unique(run_array[known], return_inverse=True)
    cluster_names, cluster = np.unique(cluster_array[known], return_inverse=True)
    n_runs, n_clusters = len(run_names), len(cluster_names)
    if n_runs < 2:
        return math.nan, math.nan
    sums, counts = np.zeros((2, n_clusters, n_runs))
    np.add.at(sums, (cluster, run), value_array[known])
    np.add.at(counts, (cluster, run), 1)
    runs_drawn = _times_drawn(rng.integers(n_runs, size=(resamples, n_runs)))
    clusters_drawn = _times_drawn(rng.integers(n_clusters, size=(resamples, n_clusters)))
    totals, numbers = clusters_drawn @ sums, clusters_drawn @ counts  # (resamples, runs)
    run_means = np.divide(totals, numbers, out=np.zeros_like(totals), where=numbers > 0)
    weights = runs_drawn * (numbers > 0)
    defined = weights.sum(axis=1) > 0
    means = (weights * run_means).sum(axis=1)[defined] / weights.sum(axis=1)[defined]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check_resampling(resamples: int, confidence: float) -> None:
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"Expected resamples >= 1 and a confidence in (0, 1); got {resamples} and {confidence}.")


def _times_drawn(draws: npt.NDArray[np.integer]) -> Array:
    """Count how often each of 0 … k − 1 occurs in each row of `draws`, shape (m, k); returns shape (m, k).

    With the counts as weights, sums over the drawn items are one matrix product.
    """
    m, k = draws.shape
    cells = (np.arange(0, m * k, k)[:, None] + draws).ravel()
    return np.bincount(cells, minlength=m * k).reshape(m, k).astype(float)


def mean_interval(values: npt.ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Compute Student's t interval of the mean of independent, roughly normal values: m ± t·s/√n, n − 1 degrees of freedom.

    Use it for a few independent runs, for which percentile bootstrap intervals are too narrow.
    Source: Student (1908), "The probable error of a mean", Biometrika 6, 1–25.

    Args:
        values: shape (n,).
        confidence: coverage, in (0, 1).

    Returns:
        (low, high), in the unit of `values`; (NaN, NaN) with fewer than three values, whose spread is hardly known.

    Raises:
        ValueError: not one-dimensional, or a confidence outside (0, 1).
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not 0 < confidence < 1:
        raise ValueError(f"Expected values of shape (n,) and a confidence in (0, 1); got {array.shape} and {confidence}.")
    if len(array) < 3:
        return math.nan, math.nan
    from scipy.special import stdtrit  # imported here as in `wilson_interval`

    half_width = float(stdtrit(len(array) - 1, (1 + confidence) / 2)) * array.std(ddof=1) / math.sqrt(len(array))
    return float(array.mean() - half_width), float(array.mean() + half_width)
