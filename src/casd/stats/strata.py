"""Validate the matrices of several runs (strata) and extract their pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from casd.stats.matrices import Array, backdoors_of_pairs, upper_pairs


def pairs_of_strata(strata: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]) -> tuple[list[int], list[Array], list[Array]]:
    """Extract the pairs of strata that have the same predictors.

    Args:
        strata: one (xs, y) per run: symmetric matrices of shape (v, n, n) and (n, n), or their upper triangles, of shape
            (v, n_pairs) and (n_pairs,).

    Returns:
        Three lists with an entry per stratum: the number of backdoors n, the pairs of the predictors, shape (v, n_pairs), and
        the pairs of the response, shape (n_pairs,).

    Raises:
        ValueError: there is no stratum or no predictor; matrices are not square, symmetric and of one size within a stratum;
            numbers of predictors differ.
    """
    sizes, predictors, responses = [], [], []
    for s, (xs, y) in enumerate(strata):
        x_shape, y_shape = np.shape(xs), np.shape(y)
        if len(x_shape) not in (2, 3) or x_shape[1:] != y_shape:
            raise ValueError(f"Expected shapes (v, n, n) and (n, n); stratum {s} has {x_shape} and {y_shape}.")
        if len(y_shape) == 1:
            sizes.append(backdoors_of_pairs(*y_shape))
            predictors.append(np.asarray(xs, dtype=float))
            responses.append(np.asarray(y, dtype=float))
        else:
            sizes.append(y_shape[0])
            predictors.append(upper_pairs(xs, f"a predictor of stratum {s}"))
            responses.append(upper_pairs(y, f"the response of stratum {s}"))
    if {len(xs) for xs in predictors} in (set(), {0}):
        raise ValueError("Expected at least one stratum and one predictor.")
    if len({len(xs) for xs in predictors}) > 1:
        raise ValueError(f"Expected the same predictors in every stratum; got {[len(xs) for xs in predictors]} of them.")
    return sizes, predictors, responses


def first_note(reasons: Sequence[str], prefix: str = "") -> str:
    """Return the first non-empty reason, with its stratum if there are several strata; "" if all are empty."""
    for s, reason in enumerate(reasons):
        if reason:
            return prefix + (f"stratum {s}: {reason}" if len(reasons) > 1 else reason)
    return ""
