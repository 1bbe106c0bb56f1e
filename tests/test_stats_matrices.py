"""Centring and fits of matrices against hand counts and numpy's least squares.

Run: pytest tests/test_stats_matrices.py
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import rankdata

from casd.stats import (
    offdiagonal_center_columns,
    offdiagonal_center_two_way,
    remove_backdoor_effects,
    remove_effects_from_pairs,
    symmetrize,
)

ROUNDED = 1e-8
"""Residuals of backdoor effects are rounded for their ties: half of 2⁻³⁰ of the power of two above a largest cell below 16."""


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
    for function in (offdiagonal_center_columns, offdiagonal_center_two_way, remove_backdoor_effects, symmetrize):
        with pytest.raises(ValueError, match="square"):
            function(np.zeros((2, 3)))


def residual_by_lstsq(matrix: np.ndarray, directed: bool) -> np.ndarray:
    """numpy's least squares over the off-diagonal cells, with one indicator a row and a column (or a backdoor)."""
    n = len(matrix)
    cells = [(i, j) for i in range(n) for j in range(n) if i != j]
    design = np.zeros((len(cells), 1 + 2 * n))
    design[:, 0] = 1
    for k, (i, j) in enumerate(cells):
        design[k, 1 + i] += 1
        design[k, 1 + (n if directed else 0) + j] += 1
    values = np.array([matrix[cell] for cell in cells])
    fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    residual = np.full((n, n), np.nan)
    for cell, value in zip(cells, values - fitted, strict=True):
        residual[cell] = value
    return residual


@pytest.mark.parametrize("n", [3, 4, 8, 13])
def test_two_way_residual_is_that_of_least_squares(n: int) -> None:
    matrix = np.random.default_rng(n).normal(size=(n, n)) + 5
    np.testing.assert_allclose(offdiagonal_center_two_way(matrix), residual_by_lstsq(matrix, directed=True), atol=1e-12)


@pytest.mark.parametrize("n", [3, 4, 8, 13])
def test_residual_of_backdoor_effects_is_that_of_least_squares(n: int) -> None:
    matrix = symmetrize(np.random.default_rng(n).normal(size=(n, n)) + 5)
    found = remove_backdoor_effects(matrix)
    np.testing.assert_allclose(found, residual_by_lstsq(matrix, directed=False), atol=ROUNDED)
    np.testing.assert_array_equal(found, found.T)


def test_rows_and_columns_of_any_size_leave_no_trace() -> None:
    rng = np.random.default_rng(1)
    matrix, rows, columns = rng.normal(size=(7, 7)), 9 * rng.normal(size=7), 9 * rng.normal(size=7)
    moved = matrix + rows[:, None] + columns[None, :]
    np.fill_diagonal(moved, np.nan)
    np.testing.assert_allclose(offdiagonal_center_two_way(moved), offdiagonal_center_two_way(matrix), atol=1e-12)
    symmetric = symmetrize(matrix)
    np.testing.assert_allclose(
        remove_backdoor_effects(symmetric + rows[:, None] + rows), remove_backdoor_effects(symmetric), atol=4 * ROUNDED
    )
    # What simple double centring of the off-diagonal cells would do: it leaves some of the effects.
    cells = np.where(np.eye(7, dtype=bool), 0.0, rows[:, None] + columns)
    double = cells - cells.sum(axis=1, keepdims=True) / 6 - cells.sum(axis=0) / 6 + cells.sum() / 42
    assert np.abs(double[~np.eye(7, dtype=bool)]).max() > 0.1


def test_symmetrising_and_taking_effects_out_can_be_swapped() -> None:
    matrix = np.random.default_rng(2).normal(size=(6, 6))
    np.testing.assert_allclose(
        symmetrize(offdiagonal_center_two_way(matrix)), remove_backdoor_effects(symmetrize(matrix)), atol=ROUNDED
    )


def test_what_effects_account_for_wholly_is_zero_and_not_rounding() -> None:
    off = ~np.eye(6, dtype=bool)
    effects = np.random.default_rng(3).normal(size=6)
    assert (remove_backdoor_effects(0.1 + effects[:, None] + effects)[off] == 0).all()
    assert (offdiagonal_center_two_way(0.1 + effects[:, None] - 3 * effects)[off] == 0).all()
    three = remove_backdoor_effects(symmetrize(np.random.default_rng(4).normal(size=(3, 3))))  # 3 pairs, 3 parameters
    assert (three[~np.eye(3, dtype=bool)] == 0).all()


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e3])
@pytest.mark.parametrize("prompts", [32, 40, 25])
@pytest.mark.parametrize("n", [4, 5, 8])
def test_residuals_that_are_equal_on_paper_are_equal_in_bits(n: int, prompts: int, scale: float) -> None:
    """Against the same least squares in whole numbers: of rates k/prompts, means of both directions, at any scale."""
    rng = np.random.default_rng(n * prompts)
    for _ in range(50):
        counts = rng.integers(0, prompts + 1, size=(n, n))
        sums = counts + counts.T
        np.fill_diagonal(sums, 0)
        # The residual times (n − 1)(n − 2), so that nothing is divided.
        rows = sums.sum(axis=1)
        whole = (n - 1) * (n - 2) * sums - (n - 1) * (rows[:, None] + rows[None, :]) + rows.sum()
        upper = np.triu_indices(n, k=1)
        found = remove_effects_from_pairs(scale * (sums / prompts / 2)[upper])
        order, places = np.unique(whole[upper], return_inverse=True)
        assert len(np.unique(found)) == len(order)
        np.testing.assert_array_equal(rankdata(found, "dense"), places + 1)
        np.testing.assert_allclose(found, scale * whole[upper] / ((n - 1) * (n - 2) * prompts * 2), atol=2 * ROUNDED * scale)


def test_pairs_are_those_of_a_number_of_backdoors() -> None:
    with pytest.raises(ValueError, match="got 7"):
        remove_effects_from_pairs(np.ones(7))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_effects_need_three_backdoors(n: int) -> None:
    for function in (offdiagonal_center_two_way, remove_backdoor_effects):
        assert function(np.ones((n, n))).shape == (n, n)
        assert np.isnan(function(np.ones((n, n)))).all()


def test_a_missing_cell_is_not_guessed() -> None:
    hole = symmetrize(np.random.default_rng(5).normal(size=(5, 5)))
    hole[0, 1] = hole[1, 0] = np.nan
    assert np.isnan(offdiagonal_center_two_way(hole)).all()
    assert np.isnan(remove_backdoor_effects(hole)).all()


def test_backdoor_effects_are_those_of_a_symmetric_matrix() -> None:
    with pytest.raises(ValueError, match="symmetric"):
        remove_backdoor_effects(np.arange(16.0).reshape(4, 4))


def test_effects_of_several_matrices_are_those_of_each() -> None:
    rng = np.random.default_rng(8)
    stacked = np.stack([symmetrize(rng.normal(scale=scale, size=(6, 6))) for scale in (1.0, 1e-14, 1e6)])
    for found, matrix in zip(remove_backdoor_effects(stacked), stacked, strict=True):
        np.testing.assert_array_equal(found, remove_backdoor_effects(matrix))
