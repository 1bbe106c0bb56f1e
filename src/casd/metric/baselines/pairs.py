"""Pairwise distances: the matrix of a symmetric distance, and the cosine distance averaged over layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from casd.metric.casd import CasdVariant, casd

_COSINE = CasdVariant("cosine", distance="cosine")


def distance_matrix(n: int, distance: Callable[[int, int], float]) -> Tensor:
    """Return the matrix (n, n), float64, of a symmetric distance between items i and j, with a zero diagonal."""
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for i, j in itertools.combinations(range(n), 2):
        matrix[i, j] = matrix[j, i] = distance(i, j)
    return matrix


def cosine_distances(vectors: Tensor) -> Tensor:
    """Compute 1 − cos between all pairs, averaged over the layers: (n, n_layers, d) to (n, n).

    The values are in [0, 2]. As for CASD, a layer counts 0 if both vectors are zero and 1 if only one is. Vectors that are
    not finite give values that are not finite.

    Raises:
        ValueError: `vectors` is not 3-D.
    """
    if vectors.ndim != 3:
        raise ValueError(f"expected vectors (n, n_layers, d), got {tuple(vectors.shape)}")
    return distance_matrix(len(vectors), lambda i, j: casd(vectors[i], vectors[j], _COSINE).value)
