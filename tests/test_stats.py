"""Intervals and permutation tests against closed forms, scipy and brute force.

Run: pytest tests/test_stats.py
"""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from casd.stats import (
    cluster_bootstrap_interval,
    mantel_test,
    offdiagonal_center_columns,
    symmetrize,
    wilson_interval,
)

SCIPY_CORRELATION = {
    "spearman": lambda x, y: scipy.stats.spearmanr(x, y).statistic,
    "pearson": lambda x, y: scipy.stats.pearsonr(x, y).statistic,
    "kendall": lambda x, y: scipy.stats.kendalltau(x, y).statistic,
}


def random_symmetric(rng: np.random.Generator, n: int, levels: int | None = None) -> np.ndarray:
    """Symmetric with a NaN diagonal; with `levels` the cells are small integers, so that there are ties."""
    cells = rng.normal(size=(n, n)) if levels is None else rng.integers(levels, size=(n, n)).astype(float)
    cells = np.triu(cells, 1) + np.triu(cells, 1).T
    np.fill_diagonal(cells, np.nan)
    return cells


def row_effect_matrix(rng: np.random.Generator, n: int) -> np.ndarray:
    """A pair's cell is mostly the sum of its two rows' effects: the pairs are far from independent."""
    effect = rng.normal(size=n)
    return effect[:, None] + effect[None, :] + 0.3 * random_symmetric(rng, n)


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


# --- matrices ---------------------------------------------------------------------------------------------------------


def test_center_columns_by_hand() -> None:
    centered = offdiagonal_center_columns([[9, 1, 4], [2, 9, 8], [4, 5, 9]])
    nan = math.nan
    np.testing.assert_allclose(centered, [[nan, -2, -2], [-1, nan, 2], [1, 2, nan]])


def test_center_columns_ignores_the_diagonal_and_any_constant_of_a_column() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(6, 6))
    other = matrix + rng.normal(size=6)[None, :]
    np.fill_diagonal(other, np.nan)
    centered = offdiagonal_center_columns(matrix)
    np.testing.assert_allclose(centered, offdiagonal_center_columns(other), atol=1e-12)
    np.testing.assert_allclose(np.nansum(centered, axis=0), 0, atol=1e-12)
    assert np.isnan(np.diag(centered)).all()


def test_center_columns_of_a_single_backdoor_is_nan() -> None:
    assert np.isnan(offdiagonal_center_columns([[1.0]])).all()


def test_symmetrize_is_the_mean_of_both_directions() -> None:
    np.testing.assert_array_equal(symmetrize([[1, 2], [4, 8]]), [[1, 3], [3, 8]])


def test_matrices_must_be_square() -> None:
    for function in (offdiagonal_center_columns, symmetrize):
        with pytest.raises(ValueError, match="square"):
            function(np.zeros((2, 3)))


# --- Mantel -----------------------------------------------------------------------------------------------------------


def brute_force_p(x: np.ndarray, y: np.ndarray, statistic: str, alternative: str) -> float:
    """The exact p-value by definition: scipy's correlation at each of the n! relabellings."""
    upper = np.triu_indices(len(x), 1)
    correlation = SCIPY_CORRELATION[statistic]
    observed = correlation(x[upper], y[upper])
    permuted = np.array(
        [correlation(x[upper], y[np.ix_(order, order)][upper]) for order in itertools.permutations(range(len(x)))]
    )
    extreme = {
        "two-sided": np.abs(permuted) >= abs(observed) - 1e-9,
        "less": permuted <= observed + 1e-9,
        "greater": permuted >= observed - 1e-9,
    }
    return float(extreme[alternative].mean())


@pytest.mark.parametrize("statistic", ["spearman", "pearson", "kendall"])
@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
@pytest.mark.parametrize(("n", "levels"), [(3, None), (4, 3), (5, None), (5, 3)])
def test_exact_p_value_is_that_of_brute_force(statistic: str, alternative: str, n: int, levels: int | None) -> None:
    rng = np.random.default_rng(n)
    x, y = random_symmetric(rng, n, levels), random_symmetric(rng, n, levels)
    result = mantel_test(x, y, rng=rng, statistic=statistic, alternative=alternative)
    upper = np.triu_indices(n, 1)
    assert result.rho == pytest.approx(SCIPY_CORRELATION[statistic](x[upper], y[upper]))
    assert result.p_value == pytest.approx(brute_force_p(x, y, statistic, alternative))
    assert (result.exact, result.permutations, result.n, result.n_pairs) == (
        True,
        math.factorial(n),
        n,
        n * (n - 1) // 2,
    )


@pytest.mark.parametrize("statistic", ["spearman", "pearson", "kendall"])
def test_sampled_p_value_approaches_the_exact_one(statistic: str) -> None:
    rng = np.random.default_rng(3)
    x, y = random_symmetric(rng, 6), random_symmetric(rng, 6, levels=4)
    exact = mantel_test(x, y, rng=rng, statistic=statistic, permutations=719)
    sampled = mantel_test(x, y, rng=rng, statistic=statistic, permutations=718)
    assert (exact.exact, exact.permutations) == (True, 720)
    assert (sampled.exact, sampled.permutations) == (False, 718)
    assert sampled.rho == exact.rho
    # Five standard errors of a share over 718 draws.
    assert sampled.p_value == pytest.approx(
        exact.p_value, abs=5 * math.sqrt(exact.p_value * (1 - exact.p_value) / 718) + 1 / 719
    )


def test_sampled_p_value_counts_the_observed_labelling() -> None:
    x = random_symmetric(np.random.default_rng(0), 10)
    result = mantel_test(x, x, rng=np.random.default_rng(1), permutations=99)
    assert result.rho == pytest.approx(1) and result.rho <= 1
    assert result.p_value == pytest.approx(1 / 100)  # (b + 1)/(m + 1) with b = 0


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    x, y = random_symmetric(rng, 6), random_symmetric(rng, 6)
    whole = mantel_test(x, y, rng=np.random.default_rng(0), statistic="kendall")
    monkeypatch.setattr("casd.stats._CHUNK_CELLS", 1000)
    assert mantel_test(x, y, rng=np.random.default_rng(0), statistic="kendall") == whole


def test_relabelling_both_matrices_changes_nothing() -> None:
    rng = np.random.default_rng(7)
    x, y = random_symmetric(rng, 6), random_symmetric(rng, 6, levels=5)
    order = rng.permutation(6)
    first = mantel_test(x, y, rng=rng)
    again = mantel_test(x[np.ix_(order, order)], y[np.ix_(order, order)], rng=rng)
    assert (first.rho, first.p_value) == pytest.approx((again.rho, again.p_value))


def test_ranks_make_monotone_scales_irrelevant_and_a_reversed_scale_changes_the_sign() -> None:
    rng = np.random.default_rng(8)
    x, y = random_symmetric(rng, 6), random_symmetric(rng, 6)
    plain = mantel_test(x, y, rng=rng)
    assert mantel_test(np.exp(x), y, rng=rng) == plain
    reverse = mantel_test(-x, y, rng=rng)
    assert (reverse.rho, reverse.p_value) == pytest.approx((-plain.rho, plain.p_value))


def test_the_same_generator_gives_the_same_result() -> None:
    rng = np.random.default_rng(9)
    x, y = random_symmetric(rng, 9), random_symmetric(rng, 9)
    results = [mantel_test(x, y, rng=np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert results[0] == results[1]
    assert results[0].p_value != results[2].p_value


def naive_rejects(x: np.ndarray, y: np.ndarray) -> bool:
    """The usual Spearman test, which takes the pairs for independent."""
    upper = np.triu_indices(len(x), 1)
    return bool(scipy.stats.spearmanr(x[upper], y[upper]).pvalue <= 0.05)


@pytest.mark.parametrize("null", ["independent cells", "row effects", "centred transfer"])
def test_type_one_error_is_the_nominal_one(null: str) -> None:
    """5 % of the nulls are rejected, within the binomial spread of 600 simulations, also where pairs share rows."""
    rng = np.random.default_rng(2026)
    simulations, n, rejected, naive = 600, 6, 0, 0
    for _ in range(simulations):
        if null == "independent cells":
            x, y = random_symmetric(rng, n), random_symmetric(rng, n)
        else:
            x, y = row_effect_matrix(rng, n), row_effect_matrix(rng, n)
        if null == "centred transfer":  # directed, with strong and weak removals (rows) and fragile targets (columns)
            directed = rng.normal(size=(n, 1)) + rng.normal(size=(1, n)) + 0.3 * rng.normal(size=(n, n))
            y = symmetrize(offdiagonal_center_columns(directed))
        rejected += mantel_test(x, y, rng=rng, permutations=719).p_value <= 0.05
        naive += naive_rejects(x, y)
    # The permutation distribution is discrete, so 5 % may be missed downwards by a little; 99.9 % binomial limits.
    low, high = scipy.stats.binom.ppf([0.0005, 0.9995], simulations, 0.05)
    print(f"{null}: rejected {rejected / simulations:.3f} (naive Spearman test: {naive / simulations:.3f})")
    assert low <= rejected <= high
    if null == "row effects":
        assert naive > high  # the reason for the test: the naive one is far off here


def test_power_on_a_planted_relation() -> None:
    rng = np.random.default_rng(11)
    simulations, found = 100, 0
    for _ in range(simulations):
        x = random_symmetric(rng, 8)
        y = -0.7 * x + math.sqrt(1 - 0.7**2) * random_symmetric(rng, 8)  # r = −0.7 over 28 pairs
        result = mantel_test(x, y, rng=rng, permutations=499)
        found += result.rho < 0 and result.p_value <= 0.05
    print(f"power at r = -0.7, 8 backdoors, 28 pairs: {found / simulations:.2f}")
    assert found >= 0.85 * simulations


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_backdoors_are_a_statement_and_not_a_crash(n: int) -> None:
    matrix = random_symmetric(np.random.default_rng(0), n)
    result = mantel_test(matrix, matrix, rng=np.random.default_rng(0))
    assert math.isnan(result.rho) and math.isnan(result.p_value)
    assert (result.n, result.n_pairs, result.permutations) == (n, n * (n - 1) // 2, 0)
    assert f"at least 3 backdoors, here {n}" in result.note


def test_three_backdoors_have_a_result_that_says_its_limit() -> None:
    matrix = random_symmetric(np.random.default_rng(0), 3)
    result = mantel_test(matrix, matrix, rng=np.random.default_rng(0))
    assert result.rho == pytest.approx(1)
    assert result.p_value == pytest.approx(2 / 6)  # both the identity and the full reversal reach |ρ| = 1
    assert "cannot be below 0.167" in result.note


def test_constant_or_not_finite_pairs_have_no_correlation() -> None:
    rng = np.random.default_rng(0)
    x = random_symmetric(rng, 5)
    result = mantel_test(x, np.full((5, 5), 0.1), rng=rng)
    assert math.isnan(result.rho) and math.isnan(result.p_value) and "same value" in result.note
    hole = x.copy()
    hole[0, 1] = hole[1, 0] = np.nan
    for pair in ((hole, x), (x, hole)):
        result = mantel_test(*pair, rng=rng)
        assert math.isnan(result.rho) and "no finite value" in result.note


def test_mantel_rejects_programming_errors() -> None:
    rng = np.random.default_rng(0)
    x = random_symmetric(rng, 5)
    with pytest.raises(ValueError, match="symmetric"):
        mantel_test(x, np.arange(25.0).reshape(5, 5), rng=rng)
    with pytest.raises(ValueError, match="one shape"):
        mantel_test(x, random_symmetric(rng, 4), rng=rng)
    with pytest.raises(ValueError, match="permutations"):
        mantel_test(x, x, rng=rng, permutations=0)
    with pytest.raises(ValueError, match="statistic"):
        mantel_test(x, x, rng=rng, statistic="tau")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alternative"):
        mantel_test(x, x, rng=rng, alternative="both")  # type: ignore[arg-type]


def test_eight_backdoors_take_well_under_half_a_second() -> None:
    rng = np.random.default_rng(0)
    x, y = random_symmetric(rng, 8), random_symmetric(rng, 8)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        mantel_test(x, y, rng=rng, permutations=9999)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5
