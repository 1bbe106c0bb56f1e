"""All pairs of a set of things: the matrix of a symmetric distance, and the cosine distance of vectors in layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from casd.metric.casd import CasdVariant, casd

_COSINE = CasdVariant("cosine", distance="cosine")


def distance_matrix(n: int, distance: Callable[[int, int], float]) -> Tensor:
    """The matrix (n, n), float64, of a distance between the things number i and j; symmetric, zero on the diagonal."""
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for i, j in itertools.combinations(range(n), 2):
        matrix[i, j] = matrix[j, i] = distance(i, j)
    return matrix


def cosine_distances(vectors: Tensor) -> Tensor:
    """1 − cos between all pairs, the mean over the layers: (n, n_layers, d) to (n, n).

    In [0, 2]. At a layer where both vectors are zero it is 0, where only one is, 1 (as CASD's). Not finite where a vector is
    not.
    """
    if vectors.ndim != 3:
        raise ValueError(f"vectors (n, n_layers, d) expected, not {tuple(vectors.shape)}")
    return distance_matrix(len(vectors), lambda i, j: casd(vectors[i], vectors[j], _COSINE).value)
