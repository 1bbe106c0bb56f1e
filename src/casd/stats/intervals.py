"""Confidence intervals of a proportion and of means over clusters."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

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


def nested_bootstrap_interval(
    values: npt.ArrayLike,
    outer: npt.ArrayLike,
    inner: npt.ArrayLike,
    *,
    rng: np.random.Generator,
    resamples: int = 9999,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of a mean over runs, resampling runs and clusters within each drawn run.

    The mean is (1/S)·Σ_s m_s over the S outer clusters (seeds), with m_s the plain mean of all values of s: every seed has the
    same weight, and within a seed every value has, so an inner cluster (a measured backdoor) is weighted by its number of
    values, as in `cluster_bootstrap_interval`. A resample draws S outer clusters with replacement and, independently for each
    drawn one, as many of its inner clusters as it has, with replacement.

    Inner clusters are nested: backdoor "a" of seed 0 and backdoor "a" of seed 1 are two clusters. An effect that a backdoor has
    in every seed is therefore averaged over S independent draws: the interval is about other seeds with similar backdoors. With
    few seeds, percentile limits are too narrow by √((S − 1)/S) where the seeds differ most, and too wide by up to √2 where they
    hardly differ, since the spread within seeds is then counted twice.
    Source: Davison and Hinkley (1997), "Bootstrap Methods and their Application", section 3.8.

    Args:
        values: numbers, shape (n_values,). NaN is left out.
        outer: the outer cluster (seed) of each value, shape (n_values,).
        inner: the inner cluster (measured backdoor) of each value, shape (n_values,).
        rng: source of the resamples.
        resamples: number of bootstrap samples, at least 1.
        confidence: coverage, in (0, 1).

    Returns:
        (low, high), in the unit of `values`; (NaN, NaN) with fewer than two outer clusters.

    Raises:
        ValueError: the shapes differ, or an argument is outside its range.
    """
    value_array, outer_array, inner_array = np.asarray(values, dtype=float), np.asarray(outer), np.asarray(inner)
    if value_array.ndim != 1 or not value_array.shape == outer_array.shape == inner_array.shape:
        shapes = f"{value_array.shape}, {outer_array.shape} and {inner_array.shape}"
        raise ValueError(f"Expected three arrays of one length; got shapes {shapes}.")
    _check_resampling(resamples, confidence)
    known = ~np.isnan(value_array)
    cells = pd.DataFrame({"value": value_array[known], "outer": outer_array[known], "inner": inner_array[known]})
    clusters = cells.groupby(["outer", "inner"])["value"].agg(["sum", "count"])
    by_outer = [cluster.to_numpy(dtype=float) for _, cluster in clusters.groupby(level="outer")]  # (inner clusters, 2) each
    if len(by_outer) < 2:
        return math.nan, math.nan
    drawn = rng.integers(len(by_outer), size=(resamples, len(by_outer))).ravel()
    means = np.zeros(resamples)
    for index, sums_and_counts in enumerate(by_outer):
        resample = np.flatnonzero(drawn == index) // len(by_outer)  # the resample of each time that it was drawn
        n_inner = len(sums_and_counts)
        inner_draws = rng.integers(n_inner, size=(len(resample), n_inner), dtype=np.min_scalar_type(n_inner - 1))
        totals = _times_drawn(inner_draws) @ sums_and_counts
        means += np.bincount(resample, weights=totals[:, 0] / totals[:, 1], minlength=resamples)
    low, high = np.quantile(means / len(by_outer), [(1 - confidence) / 2, (1 + confidence) / 2])
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
