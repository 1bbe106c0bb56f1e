"""Shared parts of the permutation tests: correlations as products of scores, relabellings of backdoors, p-values."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from casd.stats.matrices import Array, numbers_of_pairs, places_of_pairs, ranks_of

Statistic = Literal["spearman", "pearson", "kendall"]
Alternative = Literal["two-sided", "less", "greater"]
Labels = npt.NDArray[np.intp]

# Correlations that are equal on paper may differ in their last bits, and ties count as "at least as extreme".
TIE_TOLERANCE = 1e-12
# Numbers per chunk of permutations: bounds the memory (8 MB) for any number of backdoors and permutations.
_CHUNK_CELLS = 1_000_000
# Maximum number of backdoors for which all permutations are tabulated: 8! = 40 320, in 3 MB.
_TABULATED = 8
# A note is added to results whose p-value cannot be below this level.
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
    """Return why pairs of n backdoors, shape (n_pairs,), have no correlation with any others; "" if they may have one."""
    if n < 3:
        return f"a correlation over pairs needs at least 3 backdoors, here {n}"
    if not np.isfinite(pairs).all():
        return "a pair has no finite value"
    if np.ptp(pairs) == 0:
        return "all pairs have the same value"
    return ""


def pair_scores(pairs: Array, statistic: Statistic) -> Array:
    """Compute scores with mean 0 and norm 1, such that the inner product of two of them is the correlation.

    Args:
        pairs: shape (…, n_pairs), not constant along the last axis.
        statistic: the correlation.

    Returns:
        Shape (…, n_pairs); for Kendall's τ-b the normalised signs of all differences, shape (…, n_pairs²), whose norms contain
        its correction for ties.
    """
    if statistic == "kendall":
        scores = np.sign(pairs[..., :, None] - pairs[..., None, :]).reshape(*pairs.shape[:-1], -1)
    else:
        values = ranks_of(pairs, axis=-1) if statistic == "spearman" else pairs
        scores = values - values.mean(axis=-1, keepdims=True)
    return scores / np.linalg.norm(scores, axis=-1, keepdims=True)


def permuted_scores(scores: Array, labels: Labels) -> Array:
    """Return the scores of one matrix, shape (cells,), after each relabelling of its backdoors (m, n): shape (cells, m)."""
    return scores.take(moved_cells(moved_pairs(labels), scores.size))


def moved_pairs(labels: Labels) -> Labels:
    """Return the index of the pair that each relabelling (m, n) moves to the position of each pair: shape (n_pairs, m)."""
    n = labels.shape[1]
    rows, columns = places_of_pairs(n)
    # One flat index is five times as fast as two.
    return numbers_of_pairs(n).take(labels.T.take(rows, axis=0) * n + labels.T.take(columns, axis=0))


def moved_cells(moved: Labels, cells: int) -> Labels:
    """Return the index of the score that moves to the position of each score, given `moved_pairs`: shape (cells, m)."""
    n_pairs, m = moved.shape
    if cells == n_pairs:
        return moved
    return (moved[:, None] * n_pairs + moved[None, :]).reshape(-1, m)


def count_permutations(n: int, permutations: int) -> tuple[int, bool]:
    """Return the number of relabellings to test, and True if these are all n! of them."""
    exact = math.factorial(n) <= permutations + 1
    return (math.factorial(n) if exact else permutations), exact


def chunk_size(cells: int) -> int:
    """Return the number of permutations per chunk if each needs `cells` numbers."""
    return max(1, _CHUNK_CELLS // cells)


def relabellings(n: int, count: int, at_once: int, rng: np.random.Generator | None) -> Iterator[Labels]:
    """Yield permutations of range(n) in chunks of shape (m, n), m ≤ at_once: `count` random ones, or all if `rng` is None.

    The random ones do not depend on the chunk size.
    """
    if rng is None:
        permutations = itertools.permutations(range(n))
        while chunk := list(itertools.islice(permutations, at_once)):
            yield np.array(chunk, dtype=np.intp)
        return
    for start in range(0, count, at_once):
        yield rng.permuted(np.tile(np.arange(n), (min(at_once, count - start), 1)), axis=1)


def random_relabellings(n: int, count: int, at_once: int, rng: np.random.Generator) -> Iterator[Labels]:
    """Yield `count` random permutations of range(n) in chunks of shape (m, n), m ≤ at_once.

    They do not depend on the chunk size. With few backdoors, they are drawn from a table of all.
    """
    if n > _TABULATED:
        yield from relabellings(n, count, at_once, rng)
        return
    table = _all_relabellings(n)
    for start in range(0, count, at_once):
        yield table.take(rng.integers(len(table), size=min(at_once, count - start)), axis=0)


@functools.cache
def _all_relabellings(n: int) -> Labels:
    return np.array(list(itertools.permutations(range(n))), dtype=np.intp)


def relabellings_of_some(labels: Labels, some: Labels) -> Labels:
    """Restrict relabellings of all backdoors to some of them.

    Where a relabelling gives one of `some` the label of another of them, it stays so; where it gives a label of the rest, that
    one's label is taken instead, and so on. Of a uniformly random permutation this is a uniformly random permutation of
    `some`, since leaving elements out of the cycles of the first gives the cycles of the second.

    Args:
        labels: permutations of range(n), shape (m, n).
        some: different numbers below n, shape (k,).

    Returns:
        Permutations of range(k), shape (m, k).
    """
    place = np.full(labels.shape[1], -1, dtype=np.intp)
    place[some] = np.arange(len(some))
    images = labels[:, some]
    while (outside := place[images] < 0).any():
        images = np.where(outside, np.take_along_axis(labels, images, axis=1), images)
    return place[images]


def extremeness(correlations: npt.ArrayLike, alternative: Alternative) -> Array:
    """Map correlations to a scale on which larger is more extreme: |r|, −r ("less") or r ("greater")."""
    values = np.asarray(correlations, dtype=float)
    if alternative == "two-sided":
        return np.abs(values)
    return -values if alternative == "less" else values


def p_value(extreme: int, count: int, exact: bool) -> float:
    """Return b/m if the m relabellings are all there are, else (b + 1)/(m + 1), which counts the observed one as drawn.

    Source of the second: B. Phipson and G. K. Smyth (2010), Statistical Applications in Genetics and Molecular
    Biology 9, article 39.
    """
    return extreme / count if exact else (extreme + 1) / (count + 1)


def limit_note(count: int, exact: bool) -> str:
    """Return a sentence if the p-value cannot reach the usual 5 % with so few relabellings, else ""."""
    smallest = p_value(1 if exact else 0, count, exact)
    return f"{count} permutations only: the p-value cannot be below {smallest:.3f}" if smallest > _USUAL_LEVEL else ""


def clip(correlation: float) -> float:
    """Clip a correlation to [−1, 1], which rounding may exceed by a few 1e-16."""
    return min(1.0, max(-1.0, correlation))
