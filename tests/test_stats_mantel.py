"""Mantel tests against scipy and brute force. (Their level and power: tests/test_stats_simulations.py)

Run: pytest tests/test_stats_mantel.py
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from casd.stats import mantel_test, partial_mantel_test, rank_residuals

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
    monkeypatch.setattr("casd.stats.permutations._CHUNK_CELLS", 1000)
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


# --- partial ----------------------------------------------------------------------------------------------------------


def left(values: np.ndarray, zs: list[np.ndarray]) -> np.ndarray:
    """Residuals of the values by numpy's least squares on an intercept and zs."""
    design = np.stack([np.ones(len(values)), *zs], axis=1)
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def brute_force_partial(x: np.ndarray, y: np.ndarray, zs: list[np.ndarray], statistic: str, alternative: str) -> tuple:
    """(ρ, exact p-value) as defined: y* = ŷ + relabelled residuals, its partial correlation computed from scratch."""
    n = len(x)
    upper = np.triu_indices(n, 1)
    rank = scipy.stats.rankdata if statistic == "spearman" else np.asarray
    x_pairs, y_pairs, *z_pairs = (rank(matrix[upper]) for matrix in (x, y, *zs))
    residuals = np.zeros((n, n))
    residuals[upper] = left(y_pairs, z_pairs)
    residuals += residuals.T
    permuted = []
    for order in itertools.permutations(range(n)):
        star = (y_pairs - left(y_pairs, z_pairs)) + residuals[np.ix_(order, order)][upper]
        permuted.append(scipy.stats.pearsonr(left(x_pairs, z_pairs), left(star, z_pairs)).statistic)
    observed, all_of_them = permuted[0], np.array(permuted)
    extreme = {
        "two-sided": np.abs(all_of_them) >= abs(observed) - 1e-9,
        "less": all_of_them <= observed + 1e-9,
        "greater": all_of_them >= observed - 1e-9,
    }
    return observed, extreme[alternative].mean()


@pytest.mark.parametrize("statistic", ["spearman", "pearson"])
@pytest.mark.parametrize(("alternative", "held"), [("two-sided", 1), ("less", 2), ("greater", 3)])
def test_partial_test_is_that_of_brute_force(statistic: str, alternative: str, held: int) -> None:
    rng = np.random.default_rng(held)
    x, y, *zs = (random_symmetric(rng, 5) for _ in range(2 + held))
    x, y = x + zs[0], y + zs[0]
    result = partial_mantel_test(x, y, zs, rng=rng, statistic=statistic, alternative=alternative)
    rho, p_value = brute_force_partial(x, y, zs, statistic, alternative)
    assert (result.rho, result.p_value) == (pytest.approx(rho), pytest.approx(p_value))
    assert (result.exact, result.permutations, result.n, result.n_pairs) == (True, 120, 5, 10)


@pytest.mark.parametrize("statistic", ["spearman", "pearson"])
def test_partial_correlation_in_closed_form(statistic: str) -> None:
    """One matrix held constant: (r_xy − r_xz·r_yz) / √((1 − r_xz²)(1 − r_yz²)), Smouse, Long and Sokal's statistic."""
    rng = np.random.default_rng(0)
    x, y, z = (random_symmetric(rng, 8, levels=9) for _ in range(3))
    upper = np.triu_indices(8, 1)
    xy, xz, yz = (SCIPY_CORRELATION[statistic](a[upper], b[upper]) for a, b in ((x, y), (x, z), (y, z)))
    result = partial_mantel_test(x, y, z, rng=rng, statistic=statistic, permutations=9)
    assert result.rho == pytest.approx((xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2)))
    assert (result.exact, result.permutations) == (False, 9)


def test_rank_residuals_have_the_partial_correlation() -> None:
    rng = np.random.default_rng(5)
    x, y, z = (random_symmetric(rng, 7, levels=5) for _ in range(3))
    upper = np.triu_indices(7, 1)
    x_left, y_left = rank_residuals(np.stack([x[upper], y[upper]]), z[upper])
    expected = partial_mantel_test(x, y, z, rng=rng, permutations=9)
    assert SCIPY_CORRELATION["pearson"](x_left, y_left) == pytest.approx(expected.rho)


def test_rank_residuals_of_what_is_held_are_zero_and_of_the_unknown_nan() -> None:
    rng = np.random.default_rng(6)
    z = random_symmetric(rng, 6)[np.triu_indices(6, 1)]
    hole = z.copy()
    hole[3] = np.nan
    same, unknown = rank_residuals(np.stack([2 * z + 1, hole]), z)
    assert (same == 0).all()
    assert np.isnan(unknown).all() and np.isnan(rank_residuals(z, hole)).all()
    assert (rank_residuals(z, np.ones(15)).mean(), np.ptp(rank_residuals(z, np.ones(15)))) == (0, 14)  # nothing to account for
    with pytest.raises(ValueError, match="one size"):
        rank_residuals(z, z[:10])


def test_each_of_several_matrices_has_its_own_held_constant() -> None:
    rng = np.random.default_rng(7)
    xs, zs = rng.normal(size=(3, 2, 15)), rng.integers(3, size=(3, 15)).astype(float)
    zs[1, 2] = np.nan
    for found, x, z in zip(rank_residuals(xs, zs[:, None]), xs, zs, strict=True):
        np.testing.assert_array_equal(found, rank_residuals(x, z))


def test_holding_nothing_constant_is_the_plain_test() -> None:
    rng = np.random.default_rng(1)
    x, y = random_symmetric(rng, 5, levels=4), random_symmetric(rng, 5)
    plain = mantel_test(x, y, rng=rng)
    for nothing in ([], np.full((5, 5), 3.0)):
        partial = partial_mantel_test(x, y, nothing, rng=rng)
        assert (partial.rho, partial.p_value) == (pytest.approx(plain.rho), plain.p_value)


def test_neither_repetition_nor_scale_of_what_is_held_constant_matters() -> None:
    rng = np.random.default_rng(2)
    x, y, z = (random_symmetric(rng, 6) for _ in range(3))
    once = partial_mantel_test(x, y, z, rng=rng, statistic="pearson")
    again = partial_mantel_test(x, y, [z, 1e-9 * z, z + 4], rng=rng, statistic="pearson")
    assert (again.rho, again.p_value) == (pytest.approx(once.rho), once.p_value)


def test_partial_sampled_p_value_approaches_the_exact_one_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    x, y, z = (random_symmetric(rng, 6) for _ in range(3))
    exact = partial_mantel_test(x, y, z, rng=rng, permutations=719)
    sampled = partial_mantel_test(x, y, z, rng=np.random.default_rng(0), permutations=718)
    monkeypatch.setattr("casd.stats.permutations._CHUNK_CELLS", 500)
    assert partial_mantel_test(x, y, z, rng=np.random.default_rng(0), permutations=718) == sampled
    assert (exact.exact, sampled.exact) == (True, False)
    error = math.sqrt(exact.p_value * (1 - exact.p_value) / 718)
    assert sampled.p_value == pytest.approx(exact.p_value, abs=5 * error + 1 / 719)


def test_partial_test_says_why_there_is_no_result() -> None:
    rng = np.random.default_rng(4)
    x, y, z = (random_symmetric(rng, 5) for _ in range(3))
    hole = z.copy()
    hole[0, 1] = hole[1, 0] = np.nan
    many = [random_symmetric(rng, 5) for _ in range(8)]
    for arguments, why in (
        ((z, y, z), "accounts for all of x"),
        ((x, 2 * z + 1, z), "accounts for all of y"),
        ((x, y, hole), "held constant has no finite value"),
        ((hole, y, z), "no finite value"),
        ((x, np.ones((5, 5)), z), "same value"),
        ((x, y, many), "10 pairs leave no degrees of freedom beside 8"),
        (tuple(matrix[:2, :2] for matrix in (x, y, z)), "at least 3 backdoors"),
    ):
        result = partial_mantel_test(*arguments, rng=rng)
        assert math.isnan(result.rho) and math.isnan(result.p_value) and result.permutations == 0
        assert why in result.note
    with pytest.raises(ValueError, match="one shape"):
        partial_mantel_test(x, y, [z, z[:4, :4]], rng=rng)
    with pytest.raises(ValueError, match="symmetric"):
        partial_mantel_test(x, y, np.arange(25.0).reshape(5, 5), rng=rng)
    with pytest.raises(ValueError, match="statistic"):
        partial_mantel_test(x, y, z, rng=rng, statistic="kendall")  # type: ignore[arg-type]
