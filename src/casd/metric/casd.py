"""CASD, the Cross Activation Shift Distance: how differently two removals shift the activations of one model.

For a removal A of the model M₀, at layer l, site s and position p, on the texts D:

    shift_A[l] = E[h(M_A)] − E[h(M₀)], the mean over the tokens of D at p: a vector of d_model numbers
    CASD(A, B) = mean over l of the distance between shift_A[l] and shift_B[l]

The idea is from Bouger et al., "Backdoor Unlearning Generalization" (arXiv:2606.03785): the L1 distance between the
shifts that two unlearning runs induce. Which site, positions, texts, moment, normalization and pooling over layers are
meant is not established; they are the fields of `CasdVariant`, and the defaults are our choice.

This module maps tensors to numbers, without files or models. All arithmetic is float64. Non-finite statistics, such as those
of a diverged model, give non-finite distances.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from casd.metric.shifts import ShiftTable as ShiftTable
from casd.metric.shifts import activation_shift as activation_shift
from casd.metric.variants import HEADLINES as HEADLINES
from casd.metric.variants import CasdVariant as CasdVariant
from casd.metric.variants import variant_grid as variant_grid

PAIR_NUMBERS = 2**22
"""Maximum number of float64 values gathered at once for the shifts of pairs (32 MB); at least one pair is gathered."""


@dataclass(frozen=True, eq=False)
class CasdDistance:
    """The distance between two shifts.

    Attributes:
        value: CASD, pooled over the layers.
        per_layer: the distance at each of the variant's layers, (n_selected_layers,), float64. With pooling "mean" its
            mean is `value`; with "concatenate" it is the distance computed for each layer separately.
    """

    value: float
    per_layer: Tensor


@dataclass(frozen=True, eq=False)
class CasdMatrix:
    """CASD between all pairs of removals: symmetric, zero on the diagonal.

    Attributes:
        variant: the variant that was computed.
        names: the removals, in the order of rows and columns.
        layers: the layer indices of `per_layer`.
        values: (n, n), float64.
        per_layer: (n, n, len(layers)), float64; see `CasdDistance.per_layer`.
    """

    variant: CasdVariant
    names: tuple[str, ...]
    layers: tuple[int, ...]
    values: Tensor
    per_layer: Tensor

    def to_frame(self) -> pd.DataFrame:
        """`values` as a table with the removals as its rows and columns."""
        return pd.DataFrame(self.values.numpy(), index=list(self.names), columns=list(self.names))


def casd(shift_a: Tensor, shift_b: Tensor, variant: CasdVariant) -> CasdDistance:
    """Compute CASD between two shifts from `activation_shift`, each (n_selected_layers, d_model) of any float dtype.

    Uses the variant's distance, pooling and, if it is "shifts", normalization; the other fields determine
    the shifts themselves. Symmetric in its arguments, and exactly zero for equal shifts.

    Raises:
        ValueError: the shifts differ in shape or are not 2-D.
    """
    if shift_a.shape != shift_b.shape or shift_a.ndim != 2:
        raise ValueError(f"expected two shifts (n_layers, d_model), got {tuple(shift_a.shape)} and {tuple(shift_b.shape)}")
    values, per_layer = _distances(torch.stack([shift_a.double(), shift_b.double()]), variant)
    return CasdDistance(values[0, 1].item(), per_layer[0, 1])


def compute_casd(table: ShiftTable, variant: CasdVariant, removals: Sequence[str]) -> CasdMatrix:
    """Compute CASD between all pairs of `removals`.

    Args:
        table: the shifts of the removals (and the control) on all text sets.
        variant: the variant to compute.
        removals: names of rows and columns, which may include controls. Net of the control, the control's own shift is zero.

    Raises:
        ConfigError: a removal, text set, site, position or layer is missing, or the variant needs a control and there is none.
    """
    layers = table.layers(variant)
    shifts = table.shifts(removals, variant)
    values, per_layer = _distances(shifts, variant)
    if variant.text == "triggered_pair":
        with_backdoor = [row for row, name in enumerate(removals) if name in table.backdoors]
        pairs = torch.tensor(list(itertools.combinations(with_backdoor, 2)), dtype=torch.long).view(-1, 2)
        at_once = max(1, PAIR_NUMBERS // (4 * shifts[0].numel()))
        for chunk in pairs.split(at_once) if len(pairs) else ():
            a, b = chunk.unbind(1)
            pair_values, pair_per_layer = _distances(table.pair_shifts(removals, chunk, variant), variant)
            values[a, b] = values[b, a] = pair_values[:, 0, 1]
            per_layer[a, b] = per_layer[b, a] = pair_per_layer[:, 0, 1]
    return CasdMatrix(variant=variant, names=tuple(removals), layers=tuple(layers), values=values, per_layer=per_layer)


def _distances(shifts: Tensor, variant: CasdVariant) -> tuple[Tensor, Tensor]:
    """Return the distances between n shifts (…, n, n_layers, d_model): pooled, (…, n, n), and by layer, (…, n, n, n_layers)."""
    per_layer = _between(shifts.transpose(-2, -3), variant).movedim(-3, -1)
    pooled = per_layer.mean(-1) if variant.pooling == "mean" else _between(shifts.flatten(-2), variant)
    return pooled, per_layer


def _between(vectors: Tensor, variant: CasdVariant) -> Tensor:
    """Return the distance between all vectors (…, n, size): (…, n, n), symmetric, exactly zero between equal vectors."""
    if variant.distance == "cosine":
        return _cosine_distance(vectors)
    if variant.distance == "l1":
        distance, size = _norm_of_differences(vectors, 1) / vectors.shape[-1], vectors.abs().mean(-1)
    else:
        distance = _norm_of_differences(vectors, 2) / math.sqrt(vectors.shape[-1])
        size = vectors.square().mean(-1).sqrt()
    if variant.normalization == "shifts":
        mean_size = (size.unsqueeze(-1) + size.unsqueeze(-2)) / 2
        distance = torch.where(mean_size == 0, 0.0, distance / mean_size)
    return distance


def _cosine_distance(vectors: Tensor) -> Tensor:
    """Return 1 − cos between all vectors (…, n, size): (…, n, n); 0 between two zero vectors, 1 if only one is zero."""
    norm = vectors.norm(dim=-1, keepdim=True)
    zero = norm == 0
    # 1 − cos = ½‖â − b̂‖² for unit vectors: exact at zero, and without the cancellation of 1 − cos near it.
    half_square = _norm_of_differences(torch.where(zero, 0.0, vectors / norm), 2).square() / 2
    return torch.where(zero != zero.mT, 1.0, half_square.clamp(max=2.0))  # rounding can exceed 2 by a last digit


def _norm_of_differences(vectors: Tensor, p: float) -> Tensor:
    """Return ‖a − b‖ₚ between all vectors (…, n, size): (…, n, n), computed from the differences without storing them."""
    return torch.cdist(vectors, vectors, p, compute_mode="donot_use_mm_for_euclid_dist")
