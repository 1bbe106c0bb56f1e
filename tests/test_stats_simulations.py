"""The tests of casd.stats on data with known truth: their level, what inflates it, and their power.

Run: pytest tests/test_stats_simulations.py -s   (scripts/check_statistics.py has the cases, and prints them all)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
try:
    from check_statistics import (
        CASES,
        CORRELATIONS,
        COVERAGE,
        LEVEL,
        Case,
        coverage_of_correlations,
        covered,
        predictions,
        rejections,
    )
finally:
    sys.path.pop(0)

SIMULATIONS = 500


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.expected != "power"], ids=lambda case: f"{case.test.strip()} | {case.truth}"
)
def test_share_rejected(case: Case) -> None:
    """Nulls are rejected as often as the level says, within the binomial 99 % interval; the rest as the case expects."""
    rejected = rejections(case, SIMULATIONS, seed=2026)
    low, high = scipy.stats.binom.interval(0.99, SIMULATIONS, LEVEL)
    print(f"{case.test} | {case.truth}: rejected {rejected / SIMULATIONS:.3f}")
    if case.expected == "level":
        assert low <= rejected <= high
    elif case.expected == "liberal":
        assert low <= rejected <= scipy.stats.binom.ppf(0.995, SIMULATIONS, 2 * LEVEL)
    else:
        assert rejected > high


def test_power_needs_the_right_test() -> None:
    """Effects of single backdoors hide a relation of pairs until they are taken out; more runs show more."""
    found = {(case.test, case.truth): rejections(case, 100, seed=0) for case in CASES if case.expected == "power"}
    hidden = "alternative: r = -0.6 under effects"
    assert found["mantel of residuals", hidden] > 60 > 40 > found["mantel_test", hidden]
    pooled, single = (f"alternative: r = -0.6 in {runs}, 1 of 20" for runs in ("3 runs", "1 run"))
    assert found["mantel_family, p_corrected", pooled] > 90 > 75 > found["mantel_family, p_corrected", single]


@pytest.mark.parametrize("name", COVERAGE)
def test_coverage_of_intervals_over_runs_and_backdoors(name: str) -> None:
    """As stated where backdoors or runs differ, however few; wide where only single cells do, as its docstring says."""
    rng, simulations = np.random.default_rng(0), 400
    runs, backdoors, deviations = COVERAGE[name]
    held, of_one = np.mean([covered(rng, runs, backdoors, deviations) for _ in range(simulations)], axis=0)
    print(f"{name}: {held:.3f}, over one of them {of_one:.3f}")
    assert held >= 0.92
    if "single cells" not in name:
        assert held <= 0.985
    if ("backdoors differ" in name and runs > 1) or "removed" in name:
        assert of_one < 0.85, "an interval over runs alone, or over measured backdoors alone, is too narrow"


@pytest.mark.parametrize("name", CORRELATIONS)
def test_coverage_of_intervals_of_correlations(name: str) -> None:
    """At least as stated, also for differences of two predictors; an interval over runs alone is too narrow."""
    crossed, differing, of_runs = coverage_of_correlations(np.random.default_rng(0), CORRELATIONS[name], 200)
    print(f"{name}: {crossed:.3f}, differences {differing:.3f}, over runs alone {of_runs:.3f}")
    assert min(crossed, differing) >= (0.88 if "four" in name else 0.93)
    if "effects" in name and "runs" in name:
        assert of_runs < 0.85


def test_prediction_without_a_relation_is_worth_nothing_and_with_one_something() -> None:
    rng = np.random.default_rng(0)
    nothing, something = (np.mean(list(predictions(rng, r, 200)), axis=0) for r in (0.0, -0.8))
    assert -0.12 < nothing[0] < 0 and nothing[1] == pytest.approx(1, abs=0.03)
    assert something[0] > 0.5 and something[1] < 0.6
