"""Intervals of correlations over pairs of backdoors, against a computation by loops.

Run: python -m pytest tests/test_stats_correlations.py
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from casd.stats import correlation_intervals, mantel_family

NAMES = (("a", "b", "c", "d", "e"), ("b", "c", "d", "e", "f", "g"))
"""Two runs that share four of seven backdoors."""


def matrices(seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    runs = []
    for names in NAMES:
        x, other, own = (each + each.T for each in rng.normal(size=(3, len(names), len(names))))
        runs.append((np.stack([x, other]), -x + own))
    return runs


def pooled(runs: list[tuple[np.ndarray, np.ndarray]], names: list[list[str]], k: int) -> float:
    """Mean over runs, weighted by pairs, of Spearman's correlation of predictor k and the response."""
    parts = []
    for (xs, y), own in zip(runs, names, strict=True):
        upper = np.triu_indices(len(own), k=1)
        parts.append((scipy.stats.spearmanr(xs[k][upper], y[upper]).statistic, len(upper[0])))
    return float(sum(rho * pairs for rho, pairs in parts) / sum(pairs for _, pairs in parts))


def without(
    runs: list[tuple[np.ndarray, np.ndarray]], name: str
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[list[str]]]:
    left, names = [], []
    for (xs, y), own in zip(runs, NAMES, strict=True):
        kept = [place for place, each in enumerate(own) if each != name]
        left.append((xs[:, kept][:, :, kept], y[np.ix_(kept, kept)]))
        names.append([own[place] for place in kept])
    return left, names


def test_limits_are_those_of_the_two_jackknives() -> None:
    runs, every = matrices(0), [list(own) for own in NAMES]
    found = correlation_intervals(runs, NAMES)
    estimates = np.array([pooled(runs, every, k) for k in range(2)])
    assert found.rho == pytest.approx(estimates)
    assert found.rho == pytest.approx(mantel_family(runs, NAMES, permutations=9, rng=np.random.default_rng(0)).rho)
    by_backdoor = np.array([[pooled(*without(runs, name), k) for k in range(2)] for name in "abcdefg"])
    by_run = np.array([[pooled([runs[at]], [every[at]], k) for k in range(2)] for at in (1, 0)])
    for estimate, low, high, deleted in (
        (estimates[1], found.low[1], found.high[1], (by_backdoor[:, 1], by_run[:, 1])),
        (
            estimates[1] - estimates[0],
            found.difference_low[1],
            found.difference_high[1],
            (by_backdoor[:, 1] - by_backdoor[:, 0], by_run[:, 1] - by_run[:, 0]),
        ),
    ):
        variances = [(len(each) - 1) * np.var(each) for each in deleted]
        freedom = sum(variances) ** 2 / sum(v**2 / (len(each) - 1) for v, each in zip(variances, deleted, strict=True))
        width = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(sum(variances))
        assert low == pytest.approx(max(estimate - width, -2 if estimate != estimates[1] else -1))
        assert high == pytest.approx(min(estimate + width, 2 if estimate != estimates[1] else 1))
    assert (found.difference[0], found.difference_low[0], found.difference_high[0]) == (0, 0, 0)


def test_a_difference_is_within_runs_and_backdoors() -> None:
    """A predictor of the same ranks differs by nothing, though both have wide intervals."""
    runs = [(np.stack([xs[0], np.exp(xs[0])]), y) for xs, y in matrices(1)]
    found = correlation_intervals(runs, NAMES)
    assert found.high[1] - found.low[1] > 0.2
    assert [found.difference[1], found.difference_low[1], found.difference_high[1]] == pytest.approx([0, 0, 0], abs=1e-12)


def test_what_is_undefined_without_a_backdoor_has_no_limits() -> None:
    """A predictor that only the pair of b and c differs in is constant without either."""
    runs = matrices(2)
    same = [np.zeros_like(y) for _, y in runs]
    for each, own in zip(same, NAMES, strict=True):
        b, c = own.index("b"), own.index("c")
        each[b, c] = each[c, b] = 1
    found = correlation_intervals([(np.stack([xs[0], one]), y) for (xs, y), one in zip(runs, same, strict=True)], NAMES)
    assert np.isfinite([found.rho[1], found.low[0]]).all()
    assert np.isnan([found.low[1], found.high[1], found.difference_low[1]]).all()
    with pytest.raises(ValueError, match="names"):
        correlation_intervals(runs, [("a", "b"), NAMES[1]])
