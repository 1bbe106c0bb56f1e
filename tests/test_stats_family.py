"""Families of Mantel tests and the false discovery rate against brute force and scipy.

Run: pytest tests/test_stats_family.py   (their level and power: tests/test_stats_simulations.py)
"""

from __future__ import annotations

import collections
import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from casd.stats import benjamini_hochberg, mantel_family, mantel_test
from casd.stats.permutations import random_relabellings, relabellings_of_some


def matrices(rng: np.random.Generator, n: int, count: int) -> np.ndarray:
    """Symmetric matrices of small integers, so that there are ties; shape (count, n, n)."""
    upper = np.triu(rng.integers(12, size=(count, n, n)).astype(float), 1)
    return upper + upper.transpose(0, 2, 1)


def pooled(strata: list, orders: tuple) -> np.ndarray:
    """Mean over strata of Spearman's correlation, weighted by pairs, after relabelling each response."""
    total, weight = 0.0, 0
    for (xs, y), order in zip(strata, orders, strict=True):
        upper = np.triu_indices(len(y), 1)
        y_pairs = y[np.ix_(order, order)][upper]
        ranks = scipy.stats.rankdata([y_pairs, *(x[upper] for x in xs)], axis=1)
        total = total + len(y_pairs) * np.corrcoef(ranks)[0, 1:]
        weight += len(y_pairs)
    return total / weight


EXTREME = {"two-sided": np.abs, "less": np.negative, "greater": np.asarray}


@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
def test_one_run_is_that_of_brute_force(alternative: str) -> None:
    rng = np.random.default_rng(0)
    xs, y = matrices(rng, 5, 4), matrices(rng, 5, 1)[0]
    result = mantel_family([(xs, y)], rng=rng, alternative=alternative)
    identity = tuple(range(5))
    statistics = EXTREME[alternative]([pooled([(xs, y)], (order,)) for order in itertools.permutations(identity)])
    observed = statistics[0]
    assert_allclose(result.rho, pooled([(xs, y)], (identity,)))
    assert_allclose(result.p_value, (statistics >= observed - 1e-9).mean(axis=0))
    assert_allclose(result.p_corrected, (statistics.max(axis=1)[:, None] >= observed - 1e-9).mean(axis=0))
    assert_allclose(result.q_value, scipy.stats.false_discovery_control(result.p_value))
    assert (result.n, result.n_pairs, result.permutations, result.exact) == ((5,), 10, 120, True)
    assert result.notes == ("",) * 4 and result.note == ""


def test_several_runs_approach_all_independent_relabellings() -> None:
    rng = np.random.default_rng(1)
    strata = [(matrices(rng, n, 3), matrices(rng, n, 1)[0]) for n in (3, 4, 3)]
    orders = itertools.product(*(itertools.permutations(range(n)) for n in (3, 4, 3)))
    statistics = np.abs([pooled(strata, order) for order in orders])
    result = mantel_family(strata, rng=rng, permutations=20_000)
    observed = np.abs(pooled(strata, tuple(tuple(range(n)) for n in (3, 4, 3))))
    assert_allclose(np.abs(result.rho), observed)
    assert (result.n, result.n_pairs, result.permutations, result.exact) == ((3, 4, 3), 12, 20_000, False)
    # Five standard errors of a share over 20 000 draws.
    assert_allclose(result.p_value, (statistics >= observed - 1e-9).mean(axis=0), atol=0.018)
    assert_allclose(result.p_corrected, (statistics.max(axis=1)[:, None] >= observed - 1e-9).mean(axis=0), atol=0.018)


@pytest.mark.parametrize("statistic", ["spearman", "pearson", "kendall"])
def test_a_family_of_one_is_the_mantel_test(statistic: str) -> None:
    rng = np.random.default_rng(2)
    x, y = matrices(rng, 9, 2)
    single = mantel_test(x, y, permutations=499, rng=np.random.default_rng(0), statistic=statistic)
    result = mantel_family([(x[None], y)], permutations=499, rng=np.random.default_rng(0), statistic=statistic)
    assert_allclose(result.rho, single.rho)
    assert result.p_value == result.p_corrected == result.q_value == single.p_value


def test_rho_by_stratum_and_its_weights() -> None:
    rng = np.random.default_rng(3)
    strata = [(matrices(rng, n, 2), matrices(rng, n, 1)[0]) for n in (8, 4)]
    result = mantel_family(strata, rng=rng, permutations=9)
    for s, (xs, y) in enumerate(strata):
        for k in range(2):
            assert result.rho_by_stratum[k, s] == pytest.approx(mantel_test(xs[k], y, permutations=1, rng=rng).rho)
    assert_allclose(result.rho, (28 * result.rho_by_stratum[:, 0] + 6 * result.rho_by_stratum[:, 1]) / 34)


def test_scale_and_level_of_a_run_do_not_matter() -> None:
    rng = np.random.default_rng(4)
    strata = [(matrices(rng, n, 2), matrices(rng, n, 1)[0]) for n in (5, 6)]
    moved = [(xs, y) if s == 0 else (3 * xs - 40, 0.01 * y + 7) for s, (xs, y) in enumerate(strata)]
    first, second = (mantel_family(one, rng=np.random.default_rng(0), permutations=99) for one in (strata, moved))
    assert_allclose(first.rho, second.rho)
    assert_array_equal(first.p_value, second.p_value)


def test_a_repeated_predictor_costs_nothing_and_unrelated_ones_cost_something() -> None:
    rng = np.random.default_rng(5)
    x, y, *others = matrices(rng, 6, 12)
    repeated = mantel_family([(np.stack([x, x, 2 * x]), y)], rng=rng, permutations=999)
    assert_array_equal(repeated.p_corrected, repeated.p_value)
    among = mantel_family([(np.stack([x, *others]), y)], rng=rng, permutations=999)
    assert (among.p_corrected >= among.p_value).all()
    assert among.p_corrected[0] > among.p_value[0] == repeated.p_value[0]


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    strata = [(matrices(rng, n, 5), matrices(rng, n, 1)[0]) for n in (6, 8)]
    whole = mantel_family(strata, rng=np.random.default_rng(0), permutations=500)
    monkeypatch.setattr("casd.stats.permutations._CHUNK_CELLS", 700)
    parts = mantel_family(strata, rng=np.random.default_rng(0), permutations=500)
    assert_array_equal(whole.p_value, parts.p_value)
    assert_array_equal(whole.p_corrected, parts.p_corrected)


def test_a_random_relabelling_is_one_of_all_in_their_usual_order() -> None:
    """p-values that were published depend on which number stands for which permutation."""
    labels = np.concatenate(list(random_relabellings(5, 100, 30, np.random.default_rng(0))))
    every = np.array(list(itertools.permutations(range(5))))
    assert_array_equal(labels, every[np.random.default_rng(0).integers(120, size=100)])


def test_relabellings_of_some_backdoors_are_uniform_and_keep_what_they_can() -> None:
    every = np.array(list(itertools.permutations(range(5))))
    some = np.array([4, 0, 3])
    restricted = relabellings_of_some(every, some)
    found = collections.Counter(map(tuple, restricted.tolist()))
    assert found == dict.fromkeys(itertools.permutations(range(3)), 20)
    kept = np.isin(every[:, some], some)
    assert_array_equal(some[restricted][kept], every[:, some][kept])
    assert_array_equal(relabellings_of_some(every, np.arange(5)), every)


def test_backdoors_that_runs_share_are_relabelled_alike() -> None:
    """Against all relabellings of five backdoors: by brute force, and whatever the order of a run's rows."""
    rng = np.random.default_rng(11)
    strata = [(matrices(rng, 5, 3), matrices(rng, 5, 1)[0]) for _ in range(3)]
    orders = [(order,) * 3 for order in itertools.permutations(range(5))]
    statistics = np.abs([pooled(strata, order) for order in orders])
    result = mantel_family(strata, ["abcde"] * 3, rng=rng)
    assert (result.permutations, result.exact) == (120, True)
    assert_allclose(result.p_value, (statistics >= statistics[0] - 1e-9).mean(axis=0))
    assert_allclose(result.p_corrected, (statistics.max(axis=1)[:, None] >= statistics[0] - 1e-9).mean(axis=0))
    order = [3, 0, 4, 1, 2]
    moved = [strata[0], (strata[1][0][:, order][:, :, order], strata[1][1][np.ix_(order, order)]), strata[2]]
    again = mantel_family(moved, ["abcde", "daebc", "abcde"], rng=rng)
    assert_allclose(again.p_value, result.p_value)
    assert_allclose(again.p_corrected, result.p_corrected)


def test_the_same_run_twice_tells_no_more_than_once() -> None:
    rng = np.random.default_rng(12)
    run = (matrices(rng, 6, 3), matrices(rng, 6, 1)[0])
    once = mantel_family([run], rng=rng)
    assert_allclose(mantel_family([run] * 4, ["abcdef"] * 4, rng=rng).p_value, once.p_value)
    apart = mantel_family([run] * 4, rng=rng, permutations=1999).p_value
    assert (apart < once.p_value).all()


def test_runs_without_a_common_backdoor_are_relabelled_by_themselves() -> None:
    rng = np.random.default_rng(13)
    strata = [(matrices(rng, n, 2), matrices(rng, n, 1)[0]) for n in (5, 6, 5)]
    apart = mantel_family(strata, ["abcde", "fghijk", "lmnop"], rng=np.random.default_rng(0), permutations=99)
    assert_array_equal(apart.p_value, mantel_family(strata, rng=np.random.default_rng(0), permutations=99).p_value)
    chain = mantel_family(strata, ["abcde", "efghij", "jklmn"], rng=np.random.default_rng(0), permutations=99)
    assert np.isfinite(chain.p_value).all() and not chain.exact
    with pytest.raises(ValueError, match=r"Expected different names, \[5, 6, 5\] of them"):
        mantel_family(strata, ["abcde", "abcdee", "abcde"], rng=rng)


def test_an_undefined_predictor_is_named_and_is_no_part_of_the_family() -> None:
    rng = np.random.default_rng(7)
    strata = [(matrices(rng, n, 4), matrices(rng, n, 1)[0]) for n in (5, 6)]
    broken = [(xs.copy(), y) for xs, y in strata]
    broken[1][0][1] = 3.0
    broken[0][0][2, 0, 1] = broken[0][0][2, 1, 0] = np.nan
    result = mantel_family(broken, rng=np.random.default_rng(0), permutations=99)
    fewer = mantel_family([(xs[[0, 3]], y) for xs, y in strata], rng=np.random.default_rng(0), permutations=99)
    assert result.notes == ("", "stratum 1: all pairs have the same value", "stratum 0: a pair has no finite value", "")
    for name in ("rho", "p_value", "p_corrected", "q_value"):
        assert np.isnan(getattr(result, name)[1:3]).all()
        assert_allclose(getattr(result, name)[[0, 3]], getattr(fewer, name))
    assert_array_equal(np.isnan(result.rho_by_stratum), [[False, False], [False, True], [True, False], [False, False]])
    none = mantel_family([(np.ones((2, 5, 5)), strata[0][1])], rng=rng)
    assert np.isnan(none.p_corrected).all() and none.permutations == 0 and "same value" in none.notes[0]


def test_a_response_without_variance_has_no_family() -> None:
    rng = np.random.default_rng(8)
    xs, y = matrices(rng, 5, 3), matrices(rng, 5, 1)[0]
    for strata, why in (
        ([(xs, np.ones((5, 5)))], "response: all pairs have the same value"),
        ([(xs, y), (xs, np.ones((5, 5)))], "response: stratum 1: all pairs have the same value"),
        ([(xs, y), (xs[:, :2, :2], y[:2, :2])], "at least 3 backdoors, here 2"),
    ):
        result = mantel_family(strata, rng=rng)
        assert why in result.note and result.permutations == 0
        for name in ("rho", "rho_by_stratum", "p_value", "p_corrected", "q_value"):
            assert np.isnan(getattr(result, name)).all()


def test_few_backdoors_say_the_limit_of_the_p_value() -> None:
    rng = np.random.default_rng(9)
    xs, y = matrices(rng, 3, 2), np.array([[0, 1, 2], [1, 0, 3], [2, 3, 0.0]])
    assert "cannot be below 0.167" in mantel_family([(xs, y)], rng=rng).note


def test_family_rejects_programming_errors() -> None:
    rng = np.random.default_rng(10)
    xs, y = matrices(rng, 5, 2), matrices(rng, 5, 1)[0]
    for strata, why in (
        ([], "at least one stratum"),
        ([(xs[:0], y)], "one predictor"),
        ([(xs[0], y)], "shapes"),
        ([(xs, y[:4, :4])], "shapes"),
        ([(xs, y), (xs[:1], y)], "same predictors"),
        ([(np.arange(25.0).reshape(1, 5, 5), y)], "symmetric"),
    ):
        with pytest.raises(ValueError, match=why):
            mantel_family(strata, rng=rng)
    with pytest.raises(ValueError, match="permutations"):
        mantel_family([(xs, y)], rng=rng, permutations=0)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_benjamini_hochberg_is_scipys(p_values: list[float]) -> None:
    assert_allclose(benjamini_hochberg(p_values), scipy.stats.false_discovery_control(p_values), atol=1e-15)


def test_benjamini_hochberg_leaves_nan_out() -> None:
    found = benjamini_hochberg([math.nan, 0.01, 0.04, math.nan, 0.03])
    assert_allclose(found, [math.nan, 0.03, 0.04, math.nan, 0.04])
    assert benjamini_hochberg([]).shape == (0,) and np.isnan(benjamini_hochberg([math.nan])).all()
    for wrong in ([1.2], [-0.1], [[0.5]]):
        with pytest.raises(ValueError, match="p-values"):
            benjamini_hochberg(wrong)
