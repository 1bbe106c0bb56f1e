"""The mean over runs, with its interval: the one estimate of what several runs say together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from casd.stats.intervals import cluster_bootstrap_interval, nested_bootstrap_intervals


@dataclass(frozen=True)
class MeanOverRuns:
    """A mean over runs and its 95 % interval.

    Attributes:
        mean: (1/S)·Σ_s m_s over the S runs that have values, m_s the plain mean of the values of run s; NaN without any.
        low: lower end of the interval of the same quantity; NaN where there is none (see `means_over_runs`).
        high: upper end.
        runs: S.
    """

    mean: float
    low: float
    high: float
    runs: int


def mean_over_runs(
    values: npt.ArrayLike, runs: npt.ArrayLike, clusters: npt.ArrayLike, *, seed: int = 0, resamples: int = 9999
) -> MeanOverRuns:
    """The mean over runs of each run's mean, with a 95 % bootstrap interval of that very quantity.

    Every run has the same weight, however many values it has: one with more removals or backdoors counts no more than others.

    Args:
        values: numbers, shape (n_values,). NaN is left out.
        runs: the run of each value, shape (n_values,).
        clusters: the cluster of each value within its run (the measured backdoor), shape (n_values,).
        seed: of the bootstrap.
        resamples: bootstrap samples.

    Raises:
        ValueError: the shapes differ.
    """
    [[estimate]] = means_over_runs([(np.asarray(values, dtype=float)[:, None], runs, clusters)], seed=seed, resamples=resamples)
    return estimate


def means_over_runs(
    samples: Sequence[tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]], *, seed: int = 0, resamples: int = 9999
) -> list[list[MeanOverRuns]]:
    """`mean_over_runs` of several quantities of several samples.

    The interval resamples runs and, within each, clusters (`nested_bootstrap_interval`). A sample of a single run has the
    interval over its clusters alone (`cluster_bootstrap_interval`). A quantity of which only one of several runs has values has
    none: nothing is known of the spread between runs.

    Args:
        samples: of each the values, shape (n_values, k), a column for each quantity, of which NaN is left out; then the run and
            the cluster of each row, shape (n_values,).
        seed: of the bootstrap, anew for each sample.
        resamples: bootstrap samples.

    Returns:
        Of each sample an estimate for each of its k quantities.

    Raises:
        ValueError: the shapes differ.
    """
    arrays = [(np.asarray(values, dtype=float), np.asarray(runs), np.asarray(clusters)) for values, runs, clusters in samples]
    nested = nested_bootstrap_intervals(arrays, rng=np.random.default_rng(seed), resamples=resamples)
    estimates = []
    for (values, runs, clusters), over_runs in zip(arrays, nested, strict=True):
        limits = over_runs
        if len(np.unique(runs)) == 1:
            limits = [
                cluster_bootstrap_interval(column, clusters, rng=np.random.default_rng(seed), resamples=resamples)
                for column in values.T
            ]
        row = []
        for column, (low, high) in zip(values.T, limits, strict=True):
            means = _run_means(column, runs)
            row.append(MeanOverRuns(float(np.mean(means)) if means else math.nan, low, high, len(means)))
        estimates.append(row)
    return estimates


def _run_means(values: npt.NDArray[np.float64], runs: npt.NDArray[np.generic]) -> list[float]:
    """The mean of each run that has values."""
    known = ~np.isnan(values)
    return [float(values[known & (runs == run)].mean()) for run in np.unique(runs[known])]
