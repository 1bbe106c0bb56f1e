"""Many predictors of one response: all tested with one set of permutations, over several runs, corrected for their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from casd.stats.matrices import Array
from casd.stats.permutations import (
    TIE_TOLERANCE,
    Alternative,
    Statistic,
    check_arguments,
    count_permutations,
    extremeness,
    limit_note,
    p_value,
    pair_scores,
    why_undefined,
)
from casd.stats.pooled import Scores, permuted_correlations
from casd.stats.strata import connected, first_note, generators_of, pairs_of_strata


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
    rng: np.random.Generator,
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
        rng: source of the random permutations.
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
    [result] = mantel_families([strata], permutations=permutations, rng=rng, statistic=statistic, alternative=alternative)
    return result


def mantel_families(
    families: Sequence[Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]],
    *,
    runs: Sequence[Sequence[int]] | None = None,
    permutations: int = 9999,
    rng: np.random.Generator | Mapping[int, np.random.Generator],
    statistic: Statistic | Sequence[Statistic] = "spearman",
    alternative: Alternative = "two-sided",
) -> list[FamilyResult]:
    """`mantel_family` of several families, all held against the same relabellings of the runs that they share.

    Each test is valid by itself, as those of `mantel_family` are: within a family the runs are relabelled independently. What
    families have in common (a run that is in two of them, a response) is permuted once, which takes most of the time.

    Args:
        families: each as `strata` of `mantel_family`.
        runs: for each family the number, from 0 up, of the run that each of its strata is of; None if all are of the same.
        permutations: as there.
        rng: source of the random permutations; or, where the families are tested in several calls, those of `generators_of`
            for the runs of all calls, each of which is used in one of them.
        statistic: correlation over the pairs; or that of each family.
        alternative: "two-sided", "less" or "greater".

    Returns:
        Of each family what `mantel_family` gives; if all have the same strata, with a generator in the same state.

    Raises:
        ValueError: as there; or strata of one run differ in their number of backdoors.
    """
    statistics: Sequence[Statistic] = [statistic] * len(families) if isinstance(statistic, str) else statistic
    for each in statistics:
        check_arguments(permutations, each, alternative, ("spearman", "pearson", "kendall"))
    if runs is None and len({len(strata) for strata in families}) != 1:
        raise ValueError(f"Expected families with the same strata; got {[len(strata) for strata in families]} of them.")
    places = [range(len(strata)) for strata in families] if runs is None else runs
    prepared = [_Family.of(*family) for family in zip(families, places, statistics, strict=True)]
    sizes: dict[int, int] = {}
    for run, n in (pair for family in prepared for pair in zip(family.scores.runs, family.scores.sizes, strict=True)):
        if sizes.setdefault(run, n) != n:
            raise ValueError(f"Expected the strata of a run to have one size; run {run} has {sizes[run]} and {n} backdoors.")
    generators = generators_of(sizes, rng) if isinstance(rng, np.random.Generator) else rng
    tested = [family for family in prepared if family.can_be_tested]
    exact = [family for family in tested if family.relabellings(permutations)[1]]
    sampled = [family for family in tested if family not in exact]
    counts: dict[int, tuple[Array, Array]] = {}
    for together in [*_sharing_runs(exact), *_sharing_runs(sampled)]:
        # Families of one small run are held against all its relabellings.
        count, every = together[0].relabellings(permutations)
        found = _count_extreme(together, count, dict.fromkeys(generators) if every else generators, alternative)
        counts |= {id(family): each for family, each in zip(together, found, strict=True)}
    return [family.result(counts.get(id(family)), *family.relabellings(permutations)) for family in prepared]


def _sharing_runs(families: Sequence[_Family]) -> list[list[_Family]]:
    return [[families[place] for place in places] for places in connected([family.scores.runs for family in families])]


@dataclass(frozen=True, eq=False)
class _Family:
    """What a family's observed correlations are, and what permuting needs of it.

    Attributes:
        scores: of the defined predictors and the response, in each stratum; empty where the response has none.
        by_stratum: correlations, shape (n_predictors, n_strata).
        rho: pooled, shape (n_predictors,); NaN where undefined.
        defined: which of the predictors have a correlation in every stratum.
        notes: why the others have not.
        note: why none has: the response.
    """

    scores: Scores
    by_stratum: Array
    rho: Array
    defined: npt.NDArray[np.bool_]
    notes: tuple[str, ...]
    note: str

    @classmethod
    def of(cls, strata: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], runs: Sequence[int], statistic: Statistic) -> _Family:
        sizes, predictors, responses = pairs_of_strata(strata)
        reasons = _reasons(sizes, predictors)
        notes = tuple(first_note(of_predictor) for of_predictor in zip(*reasons, strict=True))
        note = first_note([why_undefined(n, y) for n, y in zip(sizes, responses, strict=True)], "response: ")
        here = np.array([[not reason for reason in of_stratum] for of_stratum in reasons])
        defined = np.asarray(here.all(axis=0))
        n_pairs = sum(map(len, responses))
        weights = np.array([len(pairs) / max(n_pairs, 1) for pairs in responses])
        by_stratum, rho = np.full(here.T.shape, np.nan), np.full(len(notes), np.nan)
        x_scores: dict[int, Array] = {}
        y_scores: dict[int, Array] = {}
        for n in () if note else dict.fromkeys(sizes):  # strata of one size at once
            alike = [s for s, size in enumerate(sizes) if size == n]
            y = pair_scores(np.stack([responses[s] for s in alike]), statistic)
            x = np.zeros((len(alike), len(notes), y.shape[1]))
            x[here[alike]] = pair_scores(np.stack([predictors[s] for s in alike])[here[alike]], statistic)
            by_stratum[:, alike] = np.where(here[alike], np.clip(np.einsum("svc,sc->sv", x, y), -1, 1), np.nan).T
            x_scores |= dict(zip(alike, x[:, defined], strict=True))
            y_scores |= dict(zip(alike, y, strict=True))
        rho[defined] = by_stratum[defined] @ weights
        x_in_order, y_in_order = ([scores[s] for s in sorted(scores)] for scores in (x_scores, y_scores))
        scores = Scores(tuple(runs), tuple(sizes), x_in_order, y_in_order)
        return cls(scores, by_stratum, rho, defined, notes, note)

    def relabellings(self, permutations: int) -> tuple[int, bool]:
        """How many it is held against, and whether these are all there are: with one stratum, if there are few."""
        sizes = self.scores.sizes
        return count_permutations(sizes[0], permutations) if len(sizes) == 1 else (permutations, False)

    @property
    def can_be_tested(self) -> bool:
        return not self.note and bool(self.defined.any())

    def result(self, counts: tuple[Array, Array] | None, count: int, exact: bool) -> FamilyResult:
        """With the numbers of permutations in which each predictor, and in which any, was at least as extreme."""
        alone, corrected = np.full(len(self.rho), np.nan), np.full(len(self.rho), np.nan)
        if counts is not None:
            alone[self.defined] = [p_value(int(b), count, exact) for b in counts[0]]
            corrected[self.defined] = [p_value(int(b), count, exact) for b in counts[1]]
        return FamilyResult(
            rho=self.rho,
            rho_by_stratum=self.by_stratum,
            p_value=alone,
            p_corrected=corrected,
            q_value=benjamini_hochberg(alone),
            n=self.scores.sizes,
            n_pairs=self.scores.n_pairs,
            permutations=count if counts is not None else 0,
            exact=exact and counts is not None,
            notes=self.notes,
            note=limit_note(count, exact) if counts is not None else self.note,
        )


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


def _reasons(sizes: Sequence[int], predictors: Sequence[Array]) -> list[list[str]]:
    """Of each stratum and predictor why it has no correlation, "" where it may have one."""
    found = []
    for n, xs in zip(sizes, predictors, strict=True):
        fine = (n >= 3) & np.isfinite(xs).all(axis=1) & (xs.min(axis=1, initial=np.inf) < xs.max(axis=1, initial=-np.inf))
        found.append(["" if good else why_undefined(n, pairs) for good, pairs in zip(fine, xs, strict=True)])
    return found


def _count_extreme(
    families: Sequence[_Family], count: int, generators: Mapping[int, np.random.Generator | None], alternative: Alternative
) -> list[tuple[Array, Array]]:
    """For each predictor the permutations in which it, and in which any of its family, is at least as extreme as observed."""
    thresholds = [extremeness(family.rho[family.defined], alternative) - TIE_TOLERANCE for family in families]
    extreme, extreme_any = ([np.zeros(len(each)) for each in thresholds] for _ in range(2))
    for pooled in permuted_correlations([family.scores for family in families], count, generators):
        for place, correlations in enumerate(pooled):
            permuted = extremeness(correlations, alternative)
            extreme[place] += (permuted >= thresholds[place][:, None]).sum(axis=1)
            # How many maxima are at least each threshold: those that do not sort before it.
            largest = np.sort(permuted.max(axis=0))
            extreme_any[place] += len(largest) - np.searchsorted(largest, thresholds[place], side="left")
    return list(zip(extreme, extreme_any, strict=True))
