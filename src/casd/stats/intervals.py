"""Intervals of a proportion and of means over clusters."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from casd.stats.matrices import Array


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
    from scipy.special import ndtri  # here: what reads intervals that were computed before need not wait for it

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
    """Percentile bootstrap interval of a mean over runs, resampling runs and, within each drawn one, its clusters.

    The mean is (1/S)·Σ_s m_s over the S outer clusters (seeds), m_s the plain mean of all values of s: every seed
    weighs the same, and within a seed every value does, so that an inner cluster (a measured backdoor) weighs by its
    number of values, as in `cluster_bootstrap_interval`. A resample draws S outer clusters with replacement and, anew
    for each one drawn, as many of its inner clusters as it has, with replacement.

    Inner clusters belong to their outer one: backdoor "a" of seed 0 and backdoor "a" of seed 1 are two clusters. What
    a backdoor does in every seed is so averaged over S independent draws: the interval speaks of other seeds with
    backdoors like these. With few seeds percentile limits are narrow by √((S − 1)/S) where the seeds differ most, and
    wide by up to √2 where they hardly differ, since the spread within seeds is then counted twice.
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
    samples = [(value_array[:, None], outer_array, inner_array)]
    [[interval]] = nested_bootstrap_intervals(samples, rng=rng, resamples=resamples, confidence=confidence)
    return interval


def nested_bootstrap_intervals(
    samples: Sequence[tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]],
    *,
    rng: np.random.Generator,
    resamples: int = 9999,
    confidence: float = 0.95,
) -> list[list[tuple[float, float]]]:
    """`nested_bootstrap_interval` of several quantities of several samples; those with as many clusters share the resamples.

    To draw them takes most of the time, and what a sample has for values does not enter into it.

    Args:
        samples: of each its values, shape (n_values, k), a column for each quantity, of which NaN is left out; and the outer
            and the inner cluster of each row, shape (n_values,).
        rng: as there, and so the others.
        resamples: number of bootstrap samples, at least 1.
        confidence: coverage, in (0, 1).

    Returns:
        Of each sample an interval for each column: what `nested_bootstrap_interval` gives with a generator in the same state.

    Raises:
        ValueError: as there.
    """
    _check_resampling(resamples, confidence)
    limits = []
    alike: dict[tuple[int, ...], list[_Clustered]] = {}
    for place, (values, outer, inner) in enumerate(samples):
        cells, outer_array, inner_array = np.asarray(values, dtype=float), np.asarray(outer), np.asarray(inner)
        if cells.ndim != 2 or not cells.shape[:1] == outer_array.shape == inner_array.shape:
            shapes = f"{cells.shape}, {outer_array.shape} and {inner_array.shape}"
            raise ValueError(f"Expected shapes (n, k), (n,) and (n,); got {shapes}.")
        limits.append(np.full((2, cells.shape[1]), np.nan))
        for clustered in _clustered(place, cells, outer_array, inner_array):
            if len(clustered.sums) > 1:
                alike.setdefault(tuple(map(len, clustered.sums)), []).append(clustered)
    state = copy.deepcopy(rng)
    for turn, members in enumerate(alike.values()):
        generator = copy.deepcopy(state) if turn else rng
        sums, counts = (
            [np.concatenate(of_cluster, axis=1) for of_cluster in zip(*parts, strict=True)]
            for parts in ([member.sums for member in members], [member.counts for member in members])
        )
        means = _nested_means(sums, counts, generator, resamples)
        found = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=1)
        ends = np.cumsum([len(member.columns) for member in members])
        for member, of_member in zip(members, np.split(found, ends[:-1], axis=1), strict=True):
            limits[member.place][:, member.columns] = of_member
    return [[(float(low), float(high)) for low, high in of_sample.T] for of_sample in limits]


@dataclass(frozen=True, eq=False)
class _Clustered:
    """Quantities of a sample that have values in the same clusters.

    Attributes:
        place: of the sample.
        columns: which of its quantities.
        sums: of each outer cluster the sums over its inner ones, shape (inner clusters, columns).
        counts: likewise the numbers of values, none of them 0.
    """

    place: int
    columns: list[int]
    sums: list[Array]
    counts: list[Array]


def _clustered(
    place: int, cells: Array, outer: npt.NDArray[np.generic], inner: npt.NDArray[np.generic]
) -> Iterator[_Clustered]:
    """The quantities of one sample, (n_values, k), as sums over its clusters."""
    outer_codes, inner_codes = (np.unique(names, return_inverse=True)[1] for names in (outer, inner))
    clusters, membership = np.unique(np.stack([outer_codes, inner_codes]), axis=1, return_inverse=True)
    known = ~np.isnan(cells)
    counts, sums = (_sums(each, membership, clusters.shape[1]) for each in (known.astype(float), np.where(known, cells, 0.0)))
    alike: dict[bytes, list[int]] = {}
    for column, present in enumerate((counts > 0).T):
        alike.setdefault(present.tobytes(), []).append(column)
    for columns in alike.values():
        present = counts[:, columns[0]] > 0
        starts = np.flatnonzero(np.diff(clusters[0][present], prepend=-1))
        of_sums, of_counts = (np.split(each[present][:, columns], starts[1:]) for each in (sums, counts))
        yield _Clustered(place, columns, of_sums, of_counts)


def _nested_means(sums: list[Array], counts: list[Array], rng: np.random.Generator, resamples: int) -> Array:
    """The resampled means of k quantities, shape (k, resamples).

    Args:
        sums: of each outer cluster the sums over its inner ones, shape (inner clusters, k).
        counts: likewise the numbers of values, none of them 0.
        rng: source of the resamples.
        resamples: their number.
    """
    drawn = rng.integers(len(sums), size=(resamples, len(sums))).ravel()
    # The places where each outer cluster was drawn, one cluster after another, and so the resamples that drew it.
    resample = np.argsort(drawn.astype(np.min_scalar_type(len(sums))), kind="stable") // len(sums)
    ends = np.cumsum(np.bincount(drawn, minlength=len(sums)))
    means = np.zeros((sums[0].shape[1], resamples))
    for of_cluster, inner_sums, inner_counts in zip(np.split(resample, ends[:-1]), sums, counts, strict=True):
        n_inner = len(inner_sums)
        # The smallest kind of integer: millions of them are drawn.
        inner = rng.integers(n_inner, size=(len(of_cluster), n_inner), dtype=np.min_scalar_type(n_inner - 1))
        weights = _times_drawn(inner)
        # Where the inner clusters have as many values as each other, so has every draw.
        alike = bool((inner_counts == inner_counts[0]).all())
        of_draws = inner_sums.T @ weights.T
        of_draws /= (inner_counts[0] * n_inner)[:, None] if alike else inner_counts.T @ weights.T
        for mean, row in zip(means, of_draws, strict=True):
            mean += np.bincount(of_cluster, weights=row, minlength=resamples)
    return means / len(sums)


def _check_resampling(resamples: int, confidence: float) -> None:
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"Expected resamples >= 1 and a confidence in (0, 1); got {resamples} and {confidence}.")


def _sums(cells: Array, membership: npt.NDArray[np.intp], n_clusters: int) -> Array:
    """The sums of the columns (n, k) over the rows of each cluster, shape (n_clusters, k)."""
    return np.stack([np.bincount(membership, weights=column, minlength=n_clusters) for column in cells.T], axis=1)


def _times_drawn(draws: npt.NDArray[np.integer]) -> Array:
    """How often each of k things is among the k of a draw: of draws (m, k) of numbers below k, shape (m, k).

    With these as weights the sums over what was drawn are one matrix product, whatever is summed.
    """
    m, k = draws.shape
    cells = (np.arange(0, m * k, k)[:, None] + draws).ravel()
    return np.bincount(cells, minlength=m * k).reshape(m, k).astype(float)


def mean_interval(values: npt.ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of independent, roughly normal values: m ± t·s/√n, t with n − 1 degrees of freedom.

    For a few independent runs, of which percentile bootstraps make too narrow intervals.
    Source: Student (1908), "The probable error of a mean", Biometrika 6, 1–25.

    Args:
        values: shape (n,).
        confidence: coverage, in (0, 1).

    Returns:
        (low, high), in the unit of `values`; (NaN, NaN) with fewer than three values, of whose spread next to nothing is known.

    Raises:
        ValueError: not one-dimensional, or a confidence outside (0, 1).
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not 0 < confidence < 1:
        raise ValueError(f"Expected values of shape (n,) and a confidence in (0, 1); got {array.shape} and {confidence}.")
    if len(array) < 3:
        return math.nan, math.nan
    from scipy.special import stdtrit  # here, as in `wilson_interval`

    half_width = float(stdtrit(len(array) - 1, (1 + confidence) / 2)) * array.std(ddof=1) / math.sqrt(len(array))
    return float(array.mean() - half_width), float(array.mean() + half_width)
