"""Ranks, as `scipy.stats.rankdata` gives them; importing that takes longer than everything else a comparison of runs does."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from casd.stats.matrices import Array


def rankdata(values: npt.ArrayLike, method: Literal["average", "min", "max"] = "average") -> Array:
    """Ranks from 1 along the last axis.

    Args:
        values: finite numbers, shape (…, m).
        method: what equal values get: the mean of their ranks, the lowest or the highest of them.

    Returns:
        Shape (…, m).
    """
    array = np.asarray(values, dtype=float)
    order = np.argsort(array, axis=-1, kind="stable")
    ascending = np.take_along_axis(array, order, axis=-1)
    differs = ascending[..., 1:] != ascending[..., :-1]
    edge = np.ones((*array.shape[:-1], 1), dtype=bool)
    places = np.arange(1, array.shape[-1] + 1, dtype=float)
    # Along a run of equal values: its first place carried on, its last place carried back.
    low = np.maximum.accumulate(np.where(np.concatenate([edge, differs], axis=-1), places, 0.0), axis=-1)
    last = np.where(np.concatenate([differs, edge], axis=-1), places, np.inf)
    high = np.minimum.accumulate(last[..., ::-1], axis=-1)[..., ::-1]
    ranks = np.empty_like(array)
    np.put_along_axis(ranks, order, {"average": (low + high) / 2, "min": low, "max": high}[method], axis=-1)
    return ranks
