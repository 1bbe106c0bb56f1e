"""What the permutation tests share: correlations as products of scores, relabellings of backdoors, p-values."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from casd.stats.matrices import Array, numbers_of_pairs, places_of_pairs

Statistic = Literal["spearman", "pearson", "kendall"]
Alternative = Literal["two-sided", "less", "greater"]
Labels = npt.NDArray[np.intp]
Moves = npt.NDArray[np.integer]

# Correlations that are equal on paper may differ in their last bits, and equal counts as "at least as extreme".
TIE_TOLERANCE = 1e-12
# Numbers held at once while permuting: bounds the memory (8 MB) whatever the number of backdoors and permutations.
_CHUNK_CELLS = 1_000_000
# Backdoors of which all permutations are kept: 8! = 40 320, 1 MB of them.
_TABULATED = 8
# A result that could not have come out below this, whatever the data, says so in its note.
_USUAL_LEVEL = 0.05


def check_arguments(permutations: int, statistic: str, alternative: str, statistics: tuple[str, ...]) -> None:
    """Raise ValueError for fewer than one permutation, an unknown statistic or an unknown alternative."""
    if permutations < 1:
        raise ValueError(f"Expected permutations >= 1; got {permutations}.")
    if statistic not in statistics:
        raise ValueError(f"Unknown statistic {statistic!r}; expected one of {', '.join(statistics)}.")
    if alternative not in ("two-sided", "less", "greater"):
        raise ValueError(f"Unknown alternative {alternative!r}; expected two-sided, less or greater.")


def why_undefined(n: int, pairs: Array) -> str:
    """Why these pairs of n backdoors, shape (n_pairs,), have no correlation with any others; "" if they may have one."""
    if n < 3:
        return f"a correlation over pairs needs at least 3 backdoors, here {n}"
    if not np.isfinite(pairs).all():
        return "a pair has no finite value"
    if np.ptp(pairs) == 0:
        return "all pairs have the same value"
    return ""


def pair_scores(pairs: Array, statistic: Statistic) -> Array:
    """Scores with mean 0 and norm 1: the sum of the products of two such arrays is the correlation.

    Args:
        pairs: shape (…, n_pairs), none of them constant along the last axis.
        statistic: the correlation wanted.

    Returns:
        Shape (…, n_pairs); for Kendall's τ-b the signs of all differences, shape (…, n_pairs²), whose norms hold its
        correction for ties.
    """
    if statistic == "kendall":
        scores = np.sign(pairs[..., :, None] - pairs[..., None, :]).reshape(*pairs.shape[:-1], -1)
    else:
        values = rankdata(pairs, axis=-1) if statistic == "spearman" else pairs
        scores = values - values.mean(axis=-1, keepdims=True)
    return scores / np.linalg.norm(scores, axis=-1, keepdims=True)


def permuted_scores(scores: Array, labels: Labels) -> Array:
    """Scores of one matrix, shape (cells,), after each relabelling of its backdoors (m, n): shape (cells, m)."""
    return scores.take(moved_cells(moved_pairs(labels), scores.size))


def moved_pairs(labels: Labels) -> Labels:
    """Which pair stands at the place of each after relabelling the backdoors, (m, n): shape (n_pairs, m)."""
    n = labels.shape[1]
    rows, columns = places_of_pairs(n)
    # By one flat index: five times as fast as by two.
    return numbers_of_pairs(n).take(labels.T.take(rows, axis=0) * n + labels.T.take(columns, axis=0))


def moved_cells(moved: Moves, cells: int) -> Moves:
    """Which of a matrix's scores stands at the place of each after its pairs were moved, (n_pairs, m): shape (cells, m)."""
    n_pairs, m = moved.shape
    if cells == n_pairs:
        return moved
    numbers = moved.astype(np.intp)
    return (numbers[:, None] * n_pairs + numbers[None, :]).reshape(-1, m)


def count_permutations(n: int, permutations: int) -> tuple[int, bool]:
    """(number of relabellings to hold the data against, whether these are all n! of them)."""
    exact = math.factorial(n) <= permutations + 1
    return (math.factorial(n) if exact else permutations), exact


def chunk_size(cells: int) -> int:
    """How many permutations to treat at once, `cells` numbers being held for each."""
    return max(1, _CHUNK_CELLS // cells)


def relabellings(n: int, count: int, at_once: int, rng: np.random.Generator | None) -> Iterator[Labels]:
    """Permutations of range(n) in chunks of shape (m, n), m ≤ at_once: `count` random ones, or without `rng` all of them.

    The random ones do not depend on the size of the chunks.
    """
    if rng is None:
        everything = itertools.permutations(range(n))
        while chunk := list(itertools.islice(everything, at_once)):
            yield np.array(chunk, dtype=np.intp)
        return
    for start in range(0, count, at_once):
        yield rng.permuted(np.tile(np.arange(n), (min(at_once, count - start), 1)), axis=1)


def random_moves(n: int, count: int, at_once: int, rng: np.random.Generator) -> Iterator[Moves]:
    """`moved_pairs` of `count` random permutations of range(n), in chunks of at most `at_once`, whose size changes nothing.

    Of few backdoors every permutation is at hand, and to draw one is to draw its number.
    """
    if n > _TABULATED:
        yield from map(moved_pairs, relabellings(n, count, at_once, rng))
        return
    table = _every_move(n)
    for start in range(0, count, at_once):
        yield table.take(rng.integers(len(table), size=min(at_once, count - start)), axis=0).T


@functools.cache
def _every_move(n: int) -> npt.NDArray[np.uint8]:
    """`moved_pairs` of all n! permutations of range(n), a row for each, so that drawing one is one copy: (n!, n_pairs)."""
    return np.ascontiguousarray(moved_pairs(np.array(list(itertools.permutations(range(n))), dtype=np.intp)).T, dtype=np.uint8)


def extremeness(correlations: npt.ArrayLike, alternative: Alternative) -> Array:
    """The correlations on a scale on which larger is more extreme: |r|, −r ("less") or r ("greater")."""
    values = np.asarray(correlations, dtype=float)
    if alternative == "two-sided":
        return np.abs(values)
    return -values if alternative == "less" else values


def p_value(extreme: int, count: int, exact: bool) -> float:
    """b/m if the m relabellings are all there are, else (b + 1)/(m + 1): the observed one counts as one of the sample.

    Source of the second: B. Phipson and G. K. Smyth (2010), Statistical Applications in Genetics and Molecular
    Biology 9, article 39.
    """
    return extreme / count if exact else (extreme + 1) / (count + 1)


def limit_note(count: int, exact: bool) -> str:
    """A sentence if no p-value from so few relabellings can reach the usual 5 %, else ""."""
    smallest = p_value(1 if exact else 0, count, exact)
    return f"{count} permutations only: the p-value cannot be below {smallest:.3f}" if smallest > _USUAL_LEVEL else ""


def clip(correlation: float) -> float:
    """The correlation without the few 1e-16 by which rounding may carry a perfect one beyond [−1, 1]."""
    return min(1.0, max(-1.0, correlation))
