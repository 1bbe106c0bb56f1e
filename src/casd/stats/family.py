"""Mantel tests of many predictors of one response over several runs, corrected for their number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from casd.stats.matrices import Array
from casd.stats.permutations import (
    TIE_TOLERANCE,
    Alternative,
    Moves,
    Statistic,
    check_arguments,
    chunk_size,
    count_permutations,
    extremeness,
    limit_note,
    moved_cells,
    moved_pairs,
    p_value,
    pair_scores,
    random_moves,
    relabellings,
    why_undefined,
)
from casd.stats.strata import first_note, pairs_of_strata


@dataclass(frozen=True, eq=False)
class FamilyResult:
    """Outcome of `mantel_family`: arrays with one entry per predictor, in the order given.

    Attributes:
        rho: pooled correlation, the mean over strata weighted by their number of pairs; shape (v,).
        rho_by_stratum: correlation in each stratum, shape (v, n_strata).
        p_value: permutation p-value of each predictor by itself, in (0, 1]; shape (v,).
        p_corrected: the same corrected for the family: the probability, were no predictor related to the response, that
            any of them came out this extreme; shape (v,).
        q_value: p-values after Benjamini and Hochberg: the smallest share of false findings at which this one is among
            the findings; shape (v,).
        n: number of backdoors of each stratum.
        n_pairs: number of pairs of all strata together.
        permutations: number of permutations the observed one was held against (if `exact` all of them, itself
            included); 0 where nothing is defined.
        exact: whether all permutations were enumerated.
        notes: per predictor "" or why it has no result.
        note: "" or why there is no result at all, or what limits every p-value.
    """

    rho: Array
    rho_by_stratum: Array
    p_value: Array
    p_corrected: Array
    q_value: Array
    n: tuple[int, ...]
    n_pairs: int
    permutations: int
    exact: bool
    notes: tuple[str, ...]
    note: str = ""


def mantel_family(
    strata: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]],
    *,
    permutations: int = 9999,
    rng: np.random.Generator | Sequence[np.random.Generator],
    statistic: Statistic = "spearman",
    alternative: Alternative = "two-sided",
) -> FamilyResult:
    """Mantel tests of many predictors against one response, over one or more runs, with the family-wise error held.

    The statistic of predictor k is r_k = Σ_s w_s·r_ks / Σ_s w_s, r_ks its correlation with the response over the pairs
    of stratum (run) s and w_s the number of these pairs. The backdoors of the responses are relabelled independently
    within each stratum, under the null hypothesis that they are exchangeable there: what differs between runs (scale,
    level, number of backdoors) cannot make a correlation. One set of permutations serves all predictors, so each
    relabelling yields all v statistics, and with them their largest. With t = |r|, r ("greater") or −r ("less"):

    - p_value: share of the permutations with t*_k ≥ t_k
    - p_corrected: share of the permutations with max over j of t*_j ≥ t_k

    counted as in `mantel_test`. The second is the single-step max-statistic correction: whatever the dependence among
    predictors (a hundred variants of one distance are hardly more than one test), the probability of any
    p_corrected ≤ α is at most α if no predictor is related to the response. If some are, this holds for the others too
    as far as the relabelled statistics of subsets behave alike ("subset pivotality").

    Sources: N. Mantel (1967), Cancer Research 27, 209–220; P. H. Westfall and S. S. Young (1993), "Resampling-Based
    Multiple Testing", Wiley, chapter 2; Y. Benjamini and Y. Hochberg (1995).

    Args:
        strata: one (xs, y) per run: xs the predictors, symmetric matrices of shape (v, n_s, n_s), the same ones in the
            same order in every stratum; y the response, symmetric, shape (n_s, n_s). Diagonals are not read. Or both as
            upper triangles, row by row: (v, n_pairs) and (n_pairs,). Cells that are equal on paper should be equal in bits
            (round them), or ranks are noise.
        permutations: number of random permutations, at least 1. A single stratum with n! ≤ permutations + 1 has all its
            permutations enumerated instead.
        rng: source of the random permutations; or one for each stratum.
        statistic: correlation over the pairs.
        alternative: "less" tests for a negative correlation, "greater" for a positive one.

    Returns:
        The result. A predictor without a correlation in some stratum (a cell that is not finite, no variance) is NaN but
        for its other strata in `rho_by_stratum`, its note says why, and it takes no part in the family. If a stratum's
        response has no correlation with anything, or a stratum has fewer than three backdoors, all is NaN and `note`
        says why: to leave that run out is the caller's decision, to be told.

    Raises:
        ValueError: no stratum or no predictor; matrices that are not square, symmetric and of one size within a
            stratum; different numbers of predictors; `permutations` < 1; an unknown statistic or alternative.
    """
    check_arguments(permutations, statistic, alternative, ("spearman", "pearson", "kendall"))
    sizes, predictors, responses = pairs_of_strata(strata)
    reasons = [[why_undefined(n, x) for x in xs] for n, xs in zip(sizes, predictors, strict=True)]
    notes = tuple(first_note(of_predictor) for of_predictor in zip(*reasons, strict=True))
    note = first_note([why_undefined(n, y) for n, y in zip(sizes, responses, strict=True)], "response: ")
    here = np.array([[not reason for reason in of_stratum] for of_stratum in reasons])  # (n_strata, v)
    defined = here.all(axis=0)
    n_pairs = sum(map(len, responses))

    by_stratum, rho, alone, corrected = (np.full(shape, np.nan) for shape in (here.T.shape, *[len(notes)] * 3))
    count, exact = count_permutations(sizes[0], permutations) if len(sizes) == 1 else (permutations, False)
    if not note:
        y_scores = [pair_scores(y, statistic) for y in responses]
        x_scores = []
        for s, (xs, y) in enumerate(zip(predictors, y_scores, strict=True)):
            scores = np.zeros((len(notes), y.size))
            scores[here[s]] = pair_scores(xs[here[s]], statistic)
            by_stratum[here[s], s] = np.clip(scores[here[s]] @ y, -1, 1)
            x_scores.append(scores[defined] * (len(responses[s]) / n_pairs))
        rho[defined] = by_stratum[defined] @ np.array([len(y) / n_pairs for y in responses])
    tested = not note and bool(defined.any())
    if tested:
        generators = _generators(rng, len(sizes))
        moves = [_moves(n, count, x_scores, None if exact else each) for n, each in zip(sizes, generators, strict=True)]
        thresholds = extremeness(rho[defined], alternative) - TIE_TOLERANCE
        single, largest = np.zeros(len(thresholds)), np.zeros(len(thresholds))
        for moved in zip(*moves, strict=True):
            permuted = sum(x @ y.take(moved_cells(m, y.size)) for x, y, m in zip(x_scores, y_scores, moved, strict=True))
            extreme = extremeness(permuted, alternative)  # (v defined, permutations of this chunk)
            single += (extreme >= thresholds[:, None]).sum(axis=1)
            largest += (extreme.max(axis=0) >= thresholds[:, None]).sum(axis=1)
        alone[defined] = [p_value(int(b), count, exact) for b in single]
        corrected[defined] = [p_value(int(b), count, exact) for b in largest]
    return FamilyResult(
        rho=rho,
        rho_by_stratum=by_stratum,
        p_value=alone,
        p_corrected=corrected,
        q_value=benjamini_hochberg(alone),
        n=tuple(sizes),
        n_pairs=n_pairs,
        permutations=count if tested else 0,
        exact=exact and tested,
        notes=notes,
        note=limit_note(count, exact) if tested else note,
    )


def _generators(rng: np.random.Generator | Sequence[np.random.Generator], count: int) -> Sequence[np.random.Generator]:
    """A source of permutations for each of `count` strata."""
    if isinstance(rng, np.random.Generator):
        return [rng] if count == 1 else rng.spawn(count)
    return rng


def _moves(n: int, count: int, x_scores: Sequence[Array], rng: np.random.Generator | None) -> Iterator[Moves]:
    """In chunks, which pair stands at the place of each after relabelling n backdoors; without `rng`, in all ways."""
    at_once = chunk_size(sum(scores.shape[1] for scores in x_scores) + len(x_scores[0]))
    return random_moves(n, count, at_once, rng) if rng else map(moved_pairs, relabellings(n, count, at_once, None))


def benjamini_hochberg(p_values: npt.ArrayLike) -> Array:
    """P-values adjusted for the false discovery rate: q_(i) = min over j ≥ i of min(1, m·p_(j)/j), p ascending.

    To call the tests with q ≤ α findings keeps the expected share of false ones among them at most α if the tests are
    independent or positively dependent, as variants of one distance are.
    Source: Y. Benjamini and Y. Hochberg (1995), "Controlling the false discovery rate", Journal of the Royal Statistical
    Society B 57, 289–300.

    Args:
        p_values: shape (m,), in [0, 1]. NaN is no test: it stays NaN and does not count.

    Returns:
        Shape (m,).

    Raises:
        ValueError: not one-dimensional, or a value outside [0, 1].
    """
    p = np.asarray(p_values, dtype=float)
    tests = np.flatnonzero(~np.isnan(p))
    if p.ndim != 1 or (p[tests] < 0).any() or (p[tests] > 1).any():
        raise ValueError(f"Expected p-values in [0, 1], shape (m,); got shape {p.shape}.")
    order = tests[np.argsort(p[tests], kind="stable")]
    stepped = p[order] * len(order) / np.arange(1, len(order) + 1)
    adjusted = np.full(p.shape, np.nan)
    # From the largest down: none may be below that of a larger p-value. The largest itself is p·m/m ≤ 1.
    adjusted[order] = np.minimum.accumulate(stepped[::-1])[::-1]
    return adjusted
