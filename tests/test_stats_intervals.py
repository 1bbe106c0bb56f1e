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

from casd.stats import jackknife_interval, wilson_interval

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


# --- jackknife over runs and backdoors --------------------------------------------------------------------------------


def by_definition(cells: list[tuple[float, str, frozenset[str]]]) -> tuple[float, float]:
    """The interval of cells (value, run, backdoors) by the formulas of its docstring, one mean after another."""

    def mean(without: str = "") -> float:
        left = [(value, run) for value, run, backdoors in cells if without not in backdoors]
        runs = {run for _, run in left}
        return float(np.mean([np.mean([value for value, of in left if of == run]) for run in runs])) if runs else math.nan

    runs = sorted({run for _, run, _ in cells})
    of_runs = [np.mean([value for value, of, _ in cells if of == run]) for run in runs]
    without = [mean(name) for name in sorted(set().union(*(backdoors for *_, backdoors in cells)))]
    without = [each for each in without if not math.isnan(each)]
    parts = []
    if len(runs) > 1:
        parts.append((scipy.stats.sem(of_runs) ** 2, len(runs) - 1))
    if (n := len(without)) > 1:
        parts.append(((n - 1) / n * sum((each - np.mean(without)) ** 2 for each in without), n - 1))
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    return scipy.stats.t.interval(0.95, freedom, loc=mean(), scale=math.sqrt(variance))


@pytest.mark.parametrize("runs", ["0", "01", "0123"])
def test_pairs_of_backdoors_by_definition(runs: str) -> None:
    """Removed and measured backdoors, some missing in some runs, one measured only."""
    rng = np.random.default_rng(0)
    cells = [
        (float(rng.normal() + ord(a) - 98), run, frozenset((a, b)))
        for run in runs
        for a in "abcd"
        for b in "abcde"
        if a != b and rng.random() < 0.8
    ]
    pairs = [(tuple(sorted(both))) for *_, both in cells]
    found = jackknife_interval([value for value, *_ in cells], [run for _, run, _ in cells], pairs)
    assert found == pytest.approx(by_definition(cells))


def test_single_backdoors_by_definition() -> None:
    rng = np.random.default_rng(1)
    cells = [
        (float(rng.normal()), run, frozenset(name))
        for run, names in (("0", "abc"), ("1", "ab"), ("2", "bcd"))
        for name in names * 2
    ]
    found = jackknife_interval(
        [value for value, *_ in cells], [run for _, run, _ in cells], [next(iter(one)) for *_, one in cells]
    )
    assert found == pytest.approx(by_definition(cells))


def test_runs_alone_and_backdoors_alone_have_students_interval() -> None:
    values = np.random.default_rng(2).normal(size=9)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
    names = np.arange(9)
    assert jackknife_interval(values, names, confidence=0.9) == pytest.approx(tuple(expected))
    assert jackknife_interval(values, np.zeros(9), names, confidence=0.9) == pytest.approx(tuple(expected))
    assert jackknife_interval(values, names, np.zeros(9), confidence=0.9) == pytest.approx(tuple(expected)), (
        "one backdoor: given"
    )


def test_an_interval_is_not_narrowed_by_repeating_a_run() -> None:
    values, pairs = np.random.default_rng(4).normal(size=6), [(a, b) for a in "abc" for b in "abc" if a != b]
    once = jackknife_interval(values, [0] * 6, pairs)
    assert jackknife_interval(np.tile(values, 5), np.repeat(np.arange(5), 6), pairs * 5) == pytest.approx(once)


def test_every_run_has_the_same_weight_whatever_its_number_of_values() -> None:
    values, runs = [0.0] * 2 + [1.0] * 60, [0] * 2 + [1] * 60
    low, high = jackknife_interval(values, runs, [0, 1] + [0, 1, 2] * 20)
    assert (low + high) / 2 == pytest.approx(0.5)


def test_a_backdoor_that_all_values_have_is_given() -> None:
    values = [0.1, 0.4, 0.2, 0.9]
    of_one_removal = jackknife_interval(values, [0] * 4, [("a", name) for name in "bcde"])
    assert of_one_removal == pytest.approx(jackknife_interval(values, [0] * 4, list("bcde")))


def test_what_a_removal_does_to_its_own_backdoor_leaves_once() -> None:
    values, runs = [0.1, 0.4, 0.2, 0.3, 0.8, 0.5], [0, 0, 0, 1, 1, 1]
    of_pairs = jackknife_interval(values, runs, [(name, name) for name in "abcabc"])
    assert of_pairs == pytest.approx(jackknife_interval(values, runs, list("abcabc")))


def test_limits_are_cut_off_at_what_is_possible() -> None:
    low, high = jackknife_interval([0.0, 0.0, 0.3], [0] * 3, list("abc"), bounds=(0, 1))
    assert low == 0 and 0.1 < high < 1
    assert jackknife_interval([1.0, 1.0, 1.0], [0] * 3, list("abc"), bounds=(0, 1)) == (1, 1)


def test_nan_is_left_out_and_two_runs_or_backdoors_are_needed() -> None:
    values, runs, names = [1.0, 2.0, 3.0, 4.0, 6.0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 1]
    more = jackknife_interval([*values, math.nan, math.nan], [*runs, 1, 7], [*names, 5, 5])
    assert more == jackknife_interval(values, runs, names)
    for one in (([1.0, math.nan], [0, 0], [0, 1]), ([], [], []), ([1.0], [0]), ([1.0, 2.0], [0, 0], [("a", "b"), ("b", "a")])):
        assert np.isnan(jackknife_interval(*one)).all()
    with pytest.raises(ValueError, match="one length"):
        jackknife_interval([1.0], [0], [0, 1])
    with pytest.raises(ValueError, match="confidence"):
        jackknife_interval([1.0], [0], [0], confidence=1.0)
