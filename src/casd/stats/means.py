"""The mean over runs, with its interval: the one estimate of what several runs say together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from casd.stats.intervals import cluster_bootstrap_interval, nested_bootstrap_interval


@dataclass(frozen=True)
class MeanOverRuns:
    """A mean over runs and its 95 % interval.

    Attributes:
        mean: (1/S)·Σ_s m_s over the S runs that have values, m_s the plain mean of the values of run s; NaN without any.
        low: lower end of the interval of the same quantity; NaN where there is none (see `mean_over_runs`).
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

    Every run has the same weight, however many values it has.

    The interval resamples runs and, within each, clusters (`nested_bootstrap_interval`). With a single run it resamples the
    run's clusters (`cluster_bootstrap_interval`). It is NaN if only one of several runs has values, since then nothing is
    known of the spread between runs.

    Args:
        values: numbers, shape (n_values,). NaN is left out.
        runs: the run of each value, shape (n_values,).
        clusters: the cluster of each value within its run (the measured backdoor), shape (n_values,).
        seed: of the bootstrap.
        resamples: bootstrap samples.

    Raises:
        ValueError: the shapes differ.
    """
    numbers, of_run, of_cluster = np.asarray(values, dtype=float), np.asarray(runs), np.asarray(clusters)
    rng = np.random.default_rng(seed)
    if len(np.unique(of_run)) == 1:
        low, high = cluster_bootstrap_interval(numbers, of_cluster, rng=rng, resamples=resamples)
    else:
        low, high = nested_bootstrap_interval(numbers, of_run, of_cluster, rng=rng, resamples=resamples)
    means = _run_means(numbers, of_run)
    return MeanOverRuns(float(np.mean(means)) if means else math.nan, low, high, len(means))


def _run_means(values: npt.NDArray[np.float64], runs: npt.NDArray[np.generic]) -> list[float]:
    """The mean of each run that has values."""
    known = ~np.isnan(values)
    return [float(values[known & (runs == run)].mean()) for run in np.unique(runs[known])]
