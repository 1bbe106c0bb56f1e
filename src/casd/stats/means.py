"""The mean over runs with its interval: the estimate used for all statements over several runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from casd.stats.intervals import jackknife_interval


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

    def columns(self, name: str) -> dict[str, float]:
        """Return mean, low and high as the columns `name`, `name_low` and `name_high` of a table."""
        return {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high}


def mean_over_runs(
    values: npt.ArrayLike,
    runs: npt.ArrayLike,
    clusters: npt.ArrayLike | None = None,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> MeanOverRuns:
    """Compute the mean over runs of each run's mean, with the 95 % interval of that mean.

    Every run has the same weight, however many values it has. The interval is that of `jackknife_interval`: over runs and
    clusters, and without clusters over runs alone. That of a single run is over its clusters and says nothing about other runs.

    Args:
        values: numbers, shape (n_values,). NaN is left out.
        runs: the run of each value, shape (n_values,).
        clusters: the backdoor of each value, shape (n_values,), or the removed and the measured one, shape (n_values, 2); the
            same name in two runs is the same cluster. None if a run is one cluster.
        bounds: smallest and largest possible mean, at which limits are cut off: (0, 1) for a rate.

    Raises:
        ValueError: the shapes differ.
    """
    value_array, run_array = np.asarray(values, dtype=float), np.asarray(runs)
    low, high = jackknife_interval(value_array, run_array, clusters, bounds=bounds)
    known = ~np.isnan(value_array)
    means = [float(value_array[known & (run_array == run)].mean()) for run in np.unique(run_array[known])]
    return MeanOverRuns(float(np.mean(means)) if means else math.nan, low, high, len(means))
