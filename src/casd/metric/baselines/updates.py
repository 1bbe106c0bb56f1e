"""Distances between the updates of the weights by two removals: how well task vectors would predict transfer.

The update of a removal A is Δ_A = θ_A − θ₀ over all trained parameters (a "task vector": Ilharco et al., arXiv 2212.04089).
Only one model is in memory, and the update of an 8B model takes 16 GB. Each update is therefore sketched while its removal is
in memory, and only the sketches are compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from casd.metric.baselines.count_sketch import PIECE, count_sketch
from casd.metric.baselines.pairs import cosine_distances, distance_matrix
from casd.models.sharding import whole, whole_of_part

SKETCH_SIZE = 65_536
"""Size of a sketch (512 KB): its relative standard deviation of a squared length is 0.55 %."""


_FACTOR: Final = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<which>[AB])\.(?P<adapter>[^.]+)(\.weight)?")
"""Name of one of the two matrices of an adapter."""


@torch.no_grad()
def sketch_update(
    model: torch.nn.Module, injected_weights: Mapping[str, Tensor], *, size: int = SKETCH_SIZE, seed: int
) -> Tensor:
    """Compute the CountSketch of the model's update, θ − θ₀, parameter by parameter (see `count_sketch`).

    For a matrix with an adapter, the update of the matrix is sketched, scale · (B A − B₀ A₀), with B₀ = 0 for a fresh adapter,
    because different factors can give equal updates. It is hashed under the name of the matrix, so that an equal change of the
    full weights gives an equal sketch.

    Args:
        model: the model after the removal, on any device and in any precision. For a sharded model (FSDP), call this in every
            process; all get one result.
        injected_weights: trained parameters before the removal, by name, on the CPU (`casd.models.weights.copy_weights`).
        size: size of the sketch; must be equal for all sketches that are compared.
        seed: seed of the hashes; must be equal for all sketches that are compared.

    Returns:
        (size,), float64, on the CPU. Weights that are not finite give values that are not finite.

    Raises:
        ValueError: the model lacks one of the weights, or its shape differs.

    Cost: one pass over all entries of the update, on the model's device, with differences and products in float64. Memory: two
    copies of one whole parameter for a sharded model; otherwise a few pieces of 2¹⁷ numbers. 5 to 14 ns per entry were
    measured on one CPU core (40 million entries, in bfloat16); 8 billion would take one to two minutes.
    """
    sketch = torch.zeros(size, dtype=torch.float64)
    for name, pieces in _update_pieces(model, injected_weights):
        sketch += count_sketch(pieces, size, seed=seed, name=name).cpu()
    return sketch


def update_distances(sketches: Tensor) -> dict[str, Tensor]:
    """Estimate the distances between the updates of n removals from their sketches.

        "weights_l2":      ‖Δ_A − Δ_B‖₂, over all trained parameters, in the unit of the weights
        "weights_cosine":  1 − cos(Δ_A, Δ_B), in [0, 2]; 0 between two zero updates, 1 if only one is zero

    For sketches of size m the standard deviation is at most √(2/m) of the squared L2 distance, and about (1 − cos²)/√m for the
    cosine distance: 0.0055 and 0.004 for the default m = 65,536. Cosines of a few thousandths, such as those of unrelated
    updates, are therefore noise. The distances are exact if the updates themselves are given.

    Args:
        sketches: (n, size), from `sketch_update` with one seed.

    Returns:
        Two symmetric matrices (n, n), float64, with zero diagonals.

    Raises:
        ValueError: `sketches` is not 2-D.

    Needs the removals.
    """
    if sketches.ndim != 2:
        raise ValueError(f"expected sketches (n, size), got {tuple(sketches.shape)}")
    sketches = sketches.cpu().double()
    return {
        "weights_l2": distance_matrix(len(sketches), lambda i, j: (sketches[i] - sketches[j]).norm().item()),
        "weights_cosine": cosine_distances(sketches[:, None]),
    }


def _update_pieces(model: torch.nn.Module, injected_weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Iterator[Tensor]]]:
    """Yield the name of each parameter and its update as 1-D pieces in order, float64."""
    parameters = dict(model.named_parameters())
    for name in injected_weights:
        factor = _FACTOR.fullmatch(name)
        if not factor:
            yield name, _differences(*_after_and_before(parameters, injected_weights, name))
            continue
        if factor["which"] == "B":  # handled together with its A
            continue
        of_linear = not factor["embedding"]
        a, a_before = _after_and_before(parameters, injected_weights, name)
        b, b_before = _after_and_before(parameters, injected_weights, name.replace("_A.", "_B."))
        module: Any = model.get_submodule(factor["module"])
        adapter, matrix = factor["adapter"], f"{factor['module']}.weight"
        # The factors of a mixture of experts are those of all experts side by side, and their product is no update.
        if of_linear and getattr(module, "num_experts", 1) == 1:
            scale = module.scaling[adapter]
            yield matrix, _products([(scale * b.double(), a), (-scale * b_before.double(), a_before)])
        elif (b_before if of_linear else a_before).any():
            raise ValueError(
                f"The adapter of {factor['module']} was not fresh before the removal, which is not supported for it."
            )
        else:
            yield matrix, (piece.double() for piece in module.get_delta_weight(adapter).reshape(-1).split(PIECE))


def _after_and_before(
    parameters: Mapping[str, torch.nn.Parameter], injected_weights: Mapping[str, Tensor], name: str
) -> tuple[Tensor, Tensor]:
    """Return a whole parameter, on its device (on the CPU if that has no float64), and its value before the removal."""
    if name not in parameters:
        raise ValueError(f"The model has no parameter {name!r}, which the injected weights have.")
    parameter, part = parameters[name], injected_weights.get(name)
    if part is None:
        raise ValueError(f"The injected weights have no {name!r}, only the other factor of this adapter.")
    after, before = whole(parameter.detach()), whole_of_part(part, parameter)
    if after.shape != before.shape:
        raise ValueError(f"{name!r} is {tuple(after.shape)} in the model, and {tuple(before.shape)} in the injected weights.")
    return after.cpu() if after.device.type == "mps" else after, before


def _differences(after: Tensor, before: Tensor) -> Iterator[Tensor]:
    """Yield after − before in pieces, moving each piece of `before` to the device of `after`."""
    for now, then in zip(after.reshape(-1).split(PIECE), before.reshape(-1).split(PIECE), strict=True):
        yield now.double() - then.to(now.device).double()


def _products(factors: list[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    """Yield the sum of the products B A (B in float64), some rows at a time, in order. Products with a zero B are skipped."""
    device = factors[0][0].device
    n_rows, width = len(factors[0][0]), factors[0][1].shape[1]
    # A sum of products is one product of the concatenated factors.
    used = [(b.to(device), a.to(device).double()) for b, a in factors if b.any()]
    if not used:
        return
    left, right = torch.cat([b for b, _ in used], dim=1), torch.cat([a for _, a in used])
    rows = max(1, PIECE // width)
    for start in range(0, n_rows, rows):
        yield (left[start : start + rows] @ right).reshape(-1)
