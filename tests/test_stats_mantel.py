"""Mantel tests against scipy, brute force and simulation.

Run: pytest tests/test_stats_mantel.py
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from casd.stats import mantel_test, offdiagonal_center_columns, symmetrize

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
