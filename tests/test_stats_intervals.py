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

from casd.stats import (
    cluster_bootstrap_interval,
    crossed_bootstrap_interval,
    wilson_interval,
)

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


# --- crossed bootstrap ------------------------------------------------------------------------------------------------


def crossed_by_loops(cells: dict[str, dict[str, list[float]]], rng: np.random.Generator, resamples: int) -> np.ndarray:
    """The resampled means, drawn as the definition says."""
    names = sorted({name for of_seed in cells.values() for name in of_seed})
    means = []
    for _ in range(resamples):
        drawn = rng.choice(names, size=len(names))
        of_seeds = []
        for seed in rng.choice(list(cells), size=len(cells)):
            values = [value for backdoor in drawn for value in cells[seed].get(backdoor, [])]
            of_seeds += [np.mean(values)] if values else []
        means += [np.mean(of_seeds)] if of_seeds else []
    return np.array(means)


def test_crossed_bootstrap_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    cells = {
        seed: {backdoor: list(shift + rng.normal(size=size)) for backdoor, size in zip("abcd", sizes, strict=False)}
        for seed, shift, sizes in (("0", 0, (2, 3, 1)), ("1", 2, (4, 1)), ("2", -1, (2, 2, 2, 5)))
    }
    flat = [(value, seed, name) for seed in cells for name in cells[seed] for value in cells[seed][name]]
    by_definition = crossed_by_loops(cells, rng, 5_000)
    for confidence in (0.95, 0.6):
        low, high = crossed_bootstrap_interval(*zip(*flat, strict=True), rng=rng, resamples=40_000, confidence=confidence)
        expected = np.quantile(by_definition, [(1 - confidence) / 2, (1 + confidence) / 2])
        assert (low, high) == pytest.approx(tuple(expected), abs=0.06)


def test_crossed_bootstrap_weighs_seeds_the_same_whatever_their_number_of_values() -> None:
    # No spread within a seed: resamples of two seeds have the mean 0 (1/4), 1/2 (1/2) or 1 (1/4), though 1 has more values.
    values, outer, inner = [0.0] * 2 + [1.0] * 60, [0] * 2 + [1] * 60, [0, 1] + [0, 1, 2] * 20
    rng = np.random.default_rng(0)
    assert crossed_bootstrap_interval(values, outer, inner, rng=rng) == (0.0, 1.0)
    assert crossed_bootstrap_interval(values, outer, inner, rng=rng, confidence=0.4) == (0.5, 0.5)


def test_crossed_bootstrap_variance_in_closed_form() -> None:
    """Balanced cells x_sb: E Var* as in Owen (2007), theorem 3 and below, for the observed cells.

    With weights w_s and v_b of a resample, the mean is Σ w_s·v_b·x_sb/(S·B). Both are multinomial: E w_s·w_t = 1 − 1/S, plus 1
    if s = t, and v alike and independent. So, for cells with the mean 0, Var* = Σ_{s,t,b,c} x_sb·x_tc·(1 − 1/S + [s=t])·
    (1 − 1/B + [b=c])/(S·B)². The limits of a nearly normal mean are its mean ± 1.96 standard deviations.
    """
    rng = np.random.default_rng(3)
    seeds, backdoors = 30, 40
    half = 0.5 * rng.normal(size=(seeds // 2, 1)) + 0.5 * rng.normal(size=backdoors) + rng.normal(size=(seeds // 2, backdoors))
    cells = np.concatenate([half, -half])  # mirrored, so that the resamples are not skewed
    cells += np.tile(0.3 * np.linspace(-1, 1, backdoors), (seeds, 1))  # recurs in all seeds
    cells -= cells.mean()
    seed, backdoor = np.indices(cells.shape)
    low, high = crossed_bootstrap_interval(cells.ravel(), seed.ravel(), backdoor.ravel(), rng=rng, resamples=40_000)
    rows = (1 - 1 / seeds) * np.ones((seeds, seeds)) + np.eye(seeds)
    columns = (1 - 1 / backdoors) * np.ones((backdoors, backdoors)) + np.eye(backdoors)
    variance = np.einsum("sb,tc,st,bc->", cells, cells, rows, columns) / cells.size**2
    assert (high - low) / 2 == pytest.approx(1.959964 * math.sqrt(variance), rel=0.03)
    assert (high + low) / 2 == pytest.approx(0, abs=0.05 * math.sqrt(variance))


def test_crossed_bootstrap_is_not_narrowed_by_repeating_a_run() -> None:
    """The same run five times has an interval about as wide as that of the run's backdoors alone."""
    rng = np.random.default_rng(4)
    values = rng.normal(size=8)
    once = cluster_bootstrap_interval(values, np.arange(8), rng=rng, resamples=40_000)
    again = crossed_bootstrap_interval(
        np.tile(values, 5), np.repeat(np.arange(5), 8), np.tile(np.arange(8), 5), rng=rng, resamples=40_000
    )
    assert again == pytest.approx(once, abs=0.03)


def test_crossed_bootstrap_leaves_nan_out_and_needs_two_seeds() -> None:
    rng = np.random.default_rng(0)
    values, outer, inner = [1.0, 2.0, 3.0, 4.0, 6.0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 1]
    plain = crossed_bootstrap_interval(values, outer, inner, rng=np.random.default_rng(1))
    more = crossed_bootstrap_interval(
        [*values, math.nan, math.nan], [*outer, 1, 7], [*inner, 5, 5], rng=np.random.default_rng(1)
    )
    assert plain == more
    for one in (([1.0, 2.0], [0, 0], [0, 1]), ([1.0, math.nan], [0, 1], [0, 0]), ([], [], [])):
        assert np.isnan(crossed_bootstrap_interval(*one, rng=rng)).all()
    with pytest.raises(ValueError, match="one length"):
        crossed_bootstrap_interval([1.0], [0], [0, 1], rng=rng)
    with pytest.raises(ValueError, match="confidence"):
        crossed_bootstrap_interval([1.0], [0], [0], rng=rng, confidence=1.0)
