"""Matrices over backdoors: centring, symmetrising, and removing the effects of single backdoors."""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Residuals below this share of the largest cell are rounding errors of an exact fit.
_ROUNDING = 1e-13
# Residuals that are equal on paper differ by far less than the largest cell times ½ to this power.
_TIE_BITS = 30


def ranks_of(values: npt.ArrayLike, ties: Literal["average", "min", "max"] = "average", *, axis: int | None = None) -> Array:
    """Return the ranks of values, from 1, as `scipy.stats.rankdata` does."""
    from scipy.stats import rankdata  # imported here: it takes two seconds, and most processes compute no ranks

    return rankdata(values, ties, axis=axis)


def offdiagonal_center_columns(matrix: npt.ArrayLike) -> Array:
    """Subtract from each off-diagonal cell the mean of the off-diagonal cells of its column.

    In a transfer matrix this removes the fragility of each measured backdoor, regardless of which other one was removed.

    Args:
        matrix: shape (n, n); the diagonal is not read. A NaN off the diagonal makes its column NaN.

    Returns:
        Shape (n, n), the diagonal NaN.

    Raises:
        ValueError: `matrix` is not square.
    """
    cells = square(matrix)
    n = len(cells)
    off_diagonal = ~np.eye(n, dtype=bool)
    means = np.where(off_diagonal, cells, 0.0).sum(axis=0) / max(n - 1, 1)
    return np.where(off_diagonal, cells - means, np.nan)


def offdiagonal_center_two_way(matrix: npt.ArrayLike) -> Array:
    """Remove row and column effects: return the residual of m_ij = μ + r_i + c_j, fitted by least squares, i ≠ j.

    In a transfer matrix this removes the strength of each removal (rows) and the fragility of each measured backdoor
    (columns). Subtracting row and column means would be wrong, since without the diagonal row i and column i do not
    meet the same rows and columns. With R_i and C_j the off-diagonal sums of rows and columns, μ the off-diagonal mean,
    ρ_i = R_i − (n − 1)μ and γ_j = C_j − (n − 1)μ the normal equations are ρ = (n − 1)r − c and γ = (n − 1)c − r (where
    Σr = Σc = 0), so r = ((n − 1)ρ + γ)/(n(n − 2)) and c = ((n − 1)γ + ρ)/(n(n − 2)).

    The n(n − 1) cells leave n² − 3n + 1 degrees of freedom: 1 of 6 with three backdoors. That one is a difference of
    directions, so for three backdoors `symmetrize` of the residual is 0; in general it is `remove_backdoor_effects` of the
    symmetrised matrix.
    Source: least squares; the model is that of additive sender and receiver effects, e.g. D. A. Kenny and L. La Voie
    (1984), "The social relations model", Advances in Experimental Social Psychology 18, 141–182.

    Args:
        matrix: shape (n, n); the diagonal is not read. A NaN off the diagonal makes all cells NaN.

    Returns:
        Shape (n, n), the diagonal NaN; all NaN with fewer than three backdoors, where row and column effects explain every
        cell and are not identifiable.

    Raises:
        ValueError: `matrix` is not square.
    """
    cells = square(matrix)
    n = len(cells)
    if n < 3:
        return np.full((n, n), np.nan)
    diagonal = np.eye(n, dtype=bool)
    known = np.where(diagonal, 0.0, cells)
    mean = known.sum() / (n * (n - 1))
    row_sums = known.sum(axis=1) - (n - 1) * mean
    column_sums = known.sum(axis=0) - (n - 1) * mean
    rows = ((n - 1) * row_sums + column_sums) / (n * (n - 2))
    columns = ((n - 1) * column_sums + row_sums) / (n * (n - 2))
    residual = known - (mean + rows[:, None] + columns[None, :])
    # Rounding errors of an exact fit are set to 0, so that they are not ranked.
    residual = np.where(np.abs(residual) <= _ROUNDING * np.abs(known).max(), 0.0, residual)
    return np.where(diagonal, np.nan, residual)


def remove_backdoor_effects(matrix: npt.ArrayLike) -> Array:
    """Remove the effects of single backdoors: return the residual of m_ij = μ + a_i + a_j, fitted by least squares, i ≠ j.

    In a distance matrix this removes that some removals are far from all others. Two matrices that agree only because the same
    backdoors stand out in both no longer agree afterwards. With R_i the off-diagonal sum of row i and μ the off-diagonal
    mean, a_i = (R_i − (n − 1)μ)/(n − 2). The n(n − 1)/2 pairs leave n(n − 3)/2 degrees of freedom: none with three backdoors,
    where the residual is exactly 0, and two with four, where each pair has the same residual as the complementary pair.

    Residuals are rounded to multiples of 2⁻³⁰ times the largest cell (rounded up to a power of two), so that residuals that are
    equal on paper are equal in bits and get tied ranks. The quantum is a power of two, not of ten, since residuals of rates
    (fractions with small odd factors in the denominator) do not lie halfway between two of its multiples. The cells should
    not have been rounded before: an error of that size may change the multiple.
    Source: least squares; the effects are the general, the residuals the specific combining abilities of a diallel
    cross without selfs: B. Griffing (1956), Australian Journal of Biological Sciences 9, 463–493, method 4.

    Args:
        matrix: symmetric, shape (n, n), or several, shape (…, n, n); the diagonal is not read. A NaN off the diagonal makes
            all cells of its matrix NaN.

    Returns:
        Symmetric, of the same shape, the diagonal NaN; all NaN with fewer than three backdoors, where the effects are not
        identifiable.

    Raises:
        ValueError: `matrix` is not square and symmetric.
    """
    return matrices_of_pairs(remove_effects_from_pairs(upper_pairs(matrix, "the matrix")), np.shape(matrix)[-1])


def remove_effects_from_pairs(pairs: npt.ArrayLike) -> Array:
    """Apply `remove_backdoor_effects` to upper triangles, in the order of `upper_pairs`.

    Args:
        pairs: shape (…, n(n − 1)/2).

    Returns:
        Residuals of the shape of `pairs`.

    Raises:
        ValueError: the number of pairs is not n(n − 1)/2 for any n.
    """
    cells = np.asarray(pairs, dtype=float)
    n = backdoors_of_pairs(cells.shape[-1])
    if n < 3:
        return np.full(cells.shape, np.nan)
    rows, columns = places_of_pairs(n)
    pairs_of_backdoor = numbers_of_pairs(n)[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    mean = cells.mean(axis=-1, keepdims=True)
    effects = (cells[..., pairs_of_backdoor].sum(axis=-1) - (n - 1) * mean) / (n - 2)
    residual = cells - (mean + (effects[..., rows] + effects[..., columns]))
    _, exponent = np.frexp(np.abs(cells).max(axis=-1, keepdims=True))
    quantum = np.ldexp(1.0, exponent - _TIE_BITS)
    return np.round(residual / quantum) * quantum


def symmetrize(matrix: npt.ArrayLike) -> Array:
    """Return (M + Mᵀ)/2, shape (n, n): the mean of both directions of each pair.

    Raises:
        ValueError: `matrix` is not square.
    """
    cells = square(matrix)
    return (cells + cells.T) / 2


def square(matrix: npt.ArrayLike) -> Array:
    """Convert to a float array of shape (n, n).

    Raises:
        ValueError: `matrix` is not square.
    """
    cells = np.asarray(matrix, dtype=float)
    if cells.ndim != 2 or cells.shape[0] != cells.shape[1]:
        raise ValueError(f"Expected a square matrix; got shape {cells.shape}.")
    return cells


def upper_pairs(matrices: npt.ArrayLike, name: str) -> Array:
    """Return the upper triangles, shape (…, n(n − 1)/2), of symmetric matrices, shape (…, n, n).

    Args:
        matrices: shape (…, n, n).
        name: name of the matrices in error messages.

    Raises:
        ValueError: the matrices are not square and symmetric.
    """
    cells = np.asarray(matrices, dtype=float)
    if cells.ndim < 2 or cells.shape[-1] != cells.shape[-2]:
        raise ValueError(f"Expected a square matrix; {name} has the shape {cells.shape}.")
    rows, columns = places_of_pairs(cells.shape[-1])
    above, below = cells[..., rows, columns], cells[..., columns, rows]
    # Exact comparison first, since it is faster and nearly always sufficient.
    if not (np.array_equal(above, below) or np.allclose(above, below, rtol=1e-6, atol=1e-12, equal_nan=True)):
        raise ValueError(f"Expected symmetric matrices; {name} is not.")
    return above


def matrices_of_pairs(pairs: npt.ArrayLike, n: int) -> Array:
    """Return symmetric matrices, shape (…, n, n), the diagonal NaN, from upper triangles, shape (…, n(n − 1)/2)."""
    cells = np.asarray(pairs, dtype=float)
    matrices = np.full((*cells.shape[:-1], n, n), np.nan)
    rows, columns = places_of_pairs(n)
    matrices[..., rows, columns] = matrices[..., columns, rows] = cells
    return matrices


def backdoors_of_pairs(n_pairs: int) -> int:
    """Return the number n of backdoors that have n(n − 1)/2 pairs.

    Raises:
        ValueError: there is no such n.
    """
    n = (1 + math.isqrt(1 + 8 * n_pairs)) // 2
    if n * (n - 1) // 2 != n_pairs:
        raise ValueError(f"Expected the pairs of n backdoors, n(n − 1)/2 of them; got {n_pairs}.")
    return n


@functools.cache
def places_of_pairs(n: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return rows and columns of the upper triangle of an (n, n) matrix. Cached: do not modify the result."""
    return np.triu_indices(n, k=1)


@functools.cache
def numbers_of_pairs(n: int) -> npt.NDArray[np.intp]:
    """Return the index in `upper_pairs` of each cell of an (n, n) matrix; 0 on the diagonal. Cached: do not modify it."""
    rows, columns = places_of_pairs(n)
    numbers = np.zeros((n, n), dtype=np.intp)
    numbers[rows, columns] = numbers[columns, rows] = np.arange(len(rows))
    return numbers
