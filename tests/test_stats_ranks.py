"""Ranks against scipy's.

Run: pytest tests/test_stats_ranks.py
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import scipy.stats

from casd.stats.ranks import rankdata


@pytest.mark.parametrize("method", ["average", "min", "max"])
@pytest.mark.parametrize("shape", [(1,), (7,), (4, 28), (2, 3, 10), (0, 5)])
def test_ranks_are_scipys(shape: tuple[int, ...], method: Literal["average", "min", "max"]) -> None:
    rng = np.random.default_rng(0)
    for values in (rng.integers(5, size=shape), rng.normal(size=shape), np.zeros(shape), -rng.integers(2, size=shape) / 3):
        np.testing.assert_array_equal(rankdata(values, method), scipy.stats.rankdata(values, method, axis=-1))


def test_ranks_of_a_list() -> None:
    assert rankdata([3, 1, 3, -2]).tolist() == [3.5, 2, 3.5, 1]
