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
    from check_statistics import CASES, LEVEL, Case, covered, predictions, rejections
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


def test_coverage_of_the_crossed_bootstrap() -> None:
    """Nearly as stated where backdoors are peculiar alike in all seeds, wide where nothing recurs, as its docstring says."""
    rng, simulations = np.random.default_rng(0), 250
    nothing = np.mean([covered(rng, 20, 0.0, 1.0, 0.0) for _ in range(simulations)], axis=0)
    recurring = np.mean([covered(rng, 15, 0.3, 0.6, 0.8) for _ in range(simulations)], axis=0)
    few = np.mean([covered(rng, 5, 2.0, 0.5, 0.0) for _ in range(simulations)], axis=0)
    assert nothing[0] >= 0.97 and nothing[1] >= 0.88
    assert 0.86 <= recurring[0] <= 0.97 and recurring[1] < 0.65
    assert 0.78 <= few[0] <= 0.92


def test_prediction_without_a_relation_is_worth_nothing_and_with_one_something() -> None:
    rng = np.random.default_rng(0)
    nothing, something = (np.mean(list(predictions(rng, r, 200)), axis=0) for r in (0.0, -0.8))
    assert -0.12 < nothing[0] < 0 and nothing[1] == pytest.approx(1, abs=0.03)
    assert something[0] > 0.5 and something[1] < 0.6
