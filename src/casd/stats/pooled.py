"""Correlations pooled over runs, after relabelling the runs' backdoors: of many families at once, what they share once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from casd.stats.matrices import Array
from casd.stats.permutations import Moves, chunk_size, moved_cells, moved_pairs, random_moves, relabellings


@dataclass(frozen=True, eq=False)
class Scores:
    """What permuting needs of a family: scores (`casd.stats.permutations.pair_scores`) in each of its strata.

    Attributes:
        runs: which run each stratum is of.
        sizes: the number of backdoors of each.
        x: of each the scores of the predictors, shape (v, cells).
        y: of each those of the response, shape (cells,).
    """

    runs: tuple[int, ...]
    sizes: tuple[int, ...]
    x: Sequence[Array]
    y: Sequence[Array]

    @property
    def n_pairs(self) -> int:
        """Of all strata together."""
        return sum(n * (n - 1) // 2 for n in self.sizes)


def permuted_correlations(
    families: Sequence[Scores], count: int, generators: Mapping[int, np.random.Generator | None]
) -> Iterator[list[Array]]:
    """The pooled correlations of each family after relabelling its runs, in chunks of shape (v, m).

    Args:
        families: the scores of each.
        count: the number of relabellings.
        generators: by run, the source of its random ones; None for all there are.
    """
    bundles = _bundles(families)
    widths = [len(family.x[0]) for family in families]
    at_once = chunk_size(sum(widths) + max(part.x_scores.shape[1] for bundle in bundles for part in bundle.parts))
    draws = {run: _moves(n, count, at_once, generators[run]) for each in bundles for run, n in each.sizes.items()}
    for start in range(0, count, at_once):
        m = min(at_once, count - start)
        pooled = [np.zeros((width, m)) for width in widths]
        for bundle in bundles:
            moved = [next(draws[run]).astype(np.intp, order="C") for run in bundle.sizes]  # as `take` would, for each part
            for part in bundle.parts:
                correlations = part.x_scores @ _permuted(part.y_scores, moved, m)
                for rows, places in part.uses:
                    for place in places:
                        pooled[place] += correlations[rows] / families[place].n_pairs
        yield pooled


@dataclass(frozen=True, eq=False)
class _Part:
    """One response of the runs of a bundle, and whatever is held against it.

    Attributes:
        y_scores: of each run those of the response, shape (cells,).
        x_scores: those of all its predictors, times the run's number of pairs, the runs side by side: (rows, cells of all).
        uses: which rows the families at some places have.
    """

    y_scores: Sequence[Array]
    x_scores: Array
    uses: Sequence[tuple[slice, tuple[int, ...]]]


@dataclass(frozen=True, eq=False)
class _Bundle:
    """Runs that go into the same families in the same way: the sum of their correlations is one matrix product.

    Attributes:
        sizes: the number of backdoors of each run.
        parts: what has to be permuted.
    """

    sizes: dict[int, int]
    parts: Sequence[_Part]


def _bundles(families: Sequence[Scores]) -> list[_Bundle]:
    """The runs of all families, each once: what several families have in common is permuted, and multiplied, once."""
    # By run: each response, for it each set of predictors, and for these the families that have them.
    work: dict[int, dict[bytes, tuple[Array, dict[bytes, tuple[Array, list[int]]]]]] = {}
    sizes: dict[int, int] = {}
    for place, family in enumerate(families):
        sizes |= dict(zip(family.runs, family.sizes, strict=True))
        for run, x, y in zip(family.runs, family.x, family.y, strict=True):
            _, predictors = work.setdefault(run, {}).setdefault(y.tobytes(), (y, {}))
            predictors.setdefault(x.tobytes(), (x, []))[1].append(place)
    alike: dict[tuple[tuple[tuple[int, ...], ...], ...], list[int]] = {}
    for run, responses in work.items():
        uses = tuple(tuple(tuple(places) for _, places in predictors.values()) for _, predictors in responses.values())
        alike.setdefault(uses, []).append(run)
    bundles = []
    for of_bundle, runs in alike.items():
        parts = []
        for number, of_part in enumerate(of_bundle):
            found = [list(work[run].values())[number] for run in runs]
            ends = np.cumsum([0, *(len(x) for x, _ in found[0][1].values())]).tolist()
            weighted = [
                np.concatenate([x for x, _ in predictors.values()]) * (sizes[run] * (sizes[run] - 1) // 2)
                for run, (_, predictors) in zip(runs, found, strict=True)
            ]
            rows = itertools.starmap(slice, itertools.pairwise(ends))
            parts.append(_Part([y for y, _ in found], np.concatenate(weighted, axis=1), list(zip(rows, of_part, strict=True))))
        bundles.append(_Bundle({run: sizes[run] for run in runs}, parts))
    return bundles


def _permuted(scores: Sequence[Array], moved: Sequence[Moves], m: int) -> Array:
    """Scores of some runs, (cells,) each, after m moves of their pairs, the runs one below the other: (cells of all, m)."""
    ends = np.cumsum([0, *(of_run.size for of_run in scores)]).tolist()
    permuted = np.empty((ends[-1], m))
    for of_run, pairs, (start, end) in zip(scores, moved, itertools.pairwise(ends), strict=True):
        # "clip", since to raise an error `take` would first write elsewhere; there is nothing to clip.
        of_run.take(moved_cells(pairs, of_run.size), out=permuted[start:end], mode="clip")
    return permuted


def _moves(n: int, count: int, at_once: int, rng: np.random.Generator | None) -> Iterator[Moves]:
    """Which pair stands at the place of each after relabelling n backdoors, at random or, without `rng`, in all ways."""
    return random_moves(n, count, at_once, rng) if rng else map(moved_pairs, relabellings(n, count, at_once, None))
