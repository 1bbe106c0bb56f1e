"""The mean over runs with its interval: the estimate used for all statements over several runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from casd.stats.intervals import cluster_bootstrap_interval, crossed_bootstrap_interval


@dataclass(frozen=True)
class MeanOverRuns:
    """A mean over runs and its 95 % interval.

    Attributes:
        mean: (1/S)·Σ_s m_s over the S runs that have values, with m_s the plain mean of the values of run s; NaN if S = 0.
        low: lower limit of the mean; NaN if undefined (see `mean_over_runs`).
        high: upper limit of the mean; NaN if undefined.
        runs: S.
    """

    mean: float
    low: float
    high: float
    runs: int


def mean_over_runs(
    values: npt.ArrayLike, runs: npt.ArrayLike, clusters: npt.ArrayLike | None = None, *, seed: int = 0, resamples: int = 9999
) -> MeanOverRuns:
    """Compute the mean over runs of each run's mean, with a 95 % bootstrap interval of that mean.

    Every run has the same weight, however many values it has.

    The interval resamples runs and clusters (`crossed_bootstrap_interval`), and without clusters runs alone. If only one run
    has values, it resamples that run's clusters (`cluster_bootstrap_interval`), and says nothing about other runs.

    Args:
        values: numbers, shape (n_values,). NaN is left out.
        runs: the run of each value, shape (n_values,).
        clusters: the cluster of each value (the measured backdoor), shape (n_values,); the same name in two runs is the same
            cluster. None if a run is one cluster.
        seed: seed of the bootstrap.
        resamples: number of bootstrap samples.

    Raises:
        ValueError: the shapes differ.
    """
    value_array, run_array = np.asarray(values, dtype=float), np.asarray(runs)
    cluster_array = run_array if clusters is None else np.asarray(clusters)
    rng = np.random.default_rng(seed)
    known = ~np.isnan(value_array)
    of_runs = np.unique(run_array[known])
    if clusters is None or len(of_runs) == 1:
        low, high = cluster_bootstrap_interval(value_array, cluster_array, rng=rng, resamples=resamples)
    else:
        low, high = crossed_bootstrap_interval(value_array, run_array, cluster_array, rng=rng, resamples=resamples)
    means = [float(value_array[known & (run_array == run)].mean()) for run in of_runs]
    return MeanOverRuns(float(np.mean(means)) if means else math.nan, low, high, len(means))
