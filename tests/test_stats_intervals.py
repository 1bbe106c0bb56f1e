"""Intervals against closed forms, scipy and simulation.

Run: pytest tests/test_stats_intervals.py
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from casd.stats import cluster_bootstrap_interval, wilson_interval

# --- Wilson -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.data(), st.integers(1, 500), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_agrees_with_scipy(data: st.DataObject, n: int, confidence: float) -> None:
    successes = data.draw(st.integers(0, n))
    expected = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    low, high = wilson_interval(successes, n, confidence)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= successes / n <= high <= 1


def test_wilson_solves_the_score_equation() -> None:
    # The limits are the proportions π at which the score statistic |p − π| / √(π(1 − π)/n) equals z.
    n, p, z = 64, 13 / 64, 1.959963984540054
    for limit in wilson_interval(13, n):
        assert abs(p - limit) / math.sqrt(limit * (1 - limit) / n) == pytest.approx(z)


def test_wilson_closed_form_at_the_ends() -> None:
    z2 = 1.959963984540054**2
    assert wilson_interval(0, 20) == (0.0, pytest.approx(z2 / (20 + z2)))
    assert wilson_interval(20, 20) == (pytest.approx(20 / (20 + z2)), 1.0)


@pytest.mark.parametrize("arguments", [(0, 0), (-1, 5), (6, 5), (1, 5, 0.0), (1, 5, 1.0)])
def test_wilson_rejects_what_is_out_of_range(arguments: tuple) -> None:
    with pytest.raises(ValueError, match="Expected"):
        wilson_interval(*arguments)


# --- cluster bootstrap ------------------------------------------------------------------------------------------------


def test_bootstrap_of_single_valued_clusters_is_scipys() -> None:
    values = np.random.default_rng(0).normal(size=12)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=40_000, rng=np.random.default_rng(1)
    ).confidence_interval
    found = cluster_bootstrap_interval(values, np.arange(12), rng=np.random.default_rng(2), resamples=40_000)
    assert found == pytest.approx((expected.low, expected.high), abs=0.02)


def test_bootstrap_resamples_clusters_and_not_values() -> None:
    # Two clusters: all resamples have mean 0 (1/4), 1/2 (1/2) or 1 (1/4), however many values each cluster repeats.
    values, clusters = [0.0] * 50 + [1.0] * 50, ["a"] * 50 + ["b"] * 50
    rng = np.random.default_rng(0)
    assert cluster_bootstrap_interval(values, clusters, rng=rng) == (0.0, 1.0)
    assert cluster_bootstrap_interval(values, clusters, rng=rng, confidence=0.4) == (0.5, 0.5)


def test_bootstrap_weights_clusters_by_their_size_and_skips_nan() -> None:
    # Means of resamples: 0 (aa), 1 (bb), or 3/4 (ab), since b has three values and a one.
    limits = cluster_bootstrap_interval(
        [0.0, math.nan, 1.0, 1.0, 1.0], list("aabbb"), rng=np.random.default_rng(0), confidence=0.4
    )
    assert limits == (0.75, 0.75)


def test_bootstrap_needs_two_clusters() -> None:
    rng = np.random.default_rng(0)
    for values, clusters in (([], []), ([1.0, 2.0], ["a", "a"]), ([1.0, math.nan], ["a", "b"])):
        assert np.isnan(cluster_bootstrap_interval(values, clusters, rng=rng)).all()
    with pytest.raises(ValueError, match="one length"):
        cluster_bootstrap_interval([1.0], ["a", "b"], rng=rng)
    with pytest.raises(ValueError, match="resamples"):
        cluster_bootstrap_interval([1.0, 2.0], ["a", "b"], rng=rng, resamples=0)
