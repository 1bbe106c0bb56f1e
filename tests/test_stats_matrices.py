"""Centring and fits of matrices against hand counts and numpy's least squares.

Run: pytest tests/test_stats_matrices.py
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from casd.stats import offdiagonal_center_columns, symmetrize


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
