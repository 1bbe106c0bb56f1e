"""Distances between the updates of the weights that two removals make: what a task vector would foretell.

The update of a removal A is Δ_A = θ_A − θ₀ over all that was trained (a "task vector": Ilharco et al., arXiv 2212.04089).
There is one model in memory, and the updates of all removals of an 8B model would be 16 GB each: so each update is sketched
while its removal is there, and only the sketches are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from casd.metric.baselines.count_sketch import PIECE, count_sketch
from casd.metric.baselines.pairs import cosine_distances, distance_matrix
from casd.models.sharding import whole, whole_of_part

SKETCH_SIZE = 65_536
"""Numbers of a sketch (512 KB): the squared length of an update is then off by 0.55 % (one standard deviation)."""


@torch.no_grad()
def sketch_update(
    model: torch.nn.Module, injected_weights: Mapping[str, Tensor], *, size: int = SKETCH_SIZE, seed: int
) -> Tensor:
    """The CountSketch of the model's update, θ − θ₀, parameter by parameter (see `count_sketch`).

    The update of a matrix with an adapter is that of the matrix, scale · (B A − B₀ A₀), with B₀ = 0 for a fresh adapter: the
    factors themselves can differ where the update is the same. It is named after the matrix, so that it is hashed as the
    same change of the weights themselves would be.

    Args:
        model: after the removal, on any device and in any precision; a sharded one (FSDP) in every process, which all get the
            same.
        injected_weights: what was trained, before the removal, by name on the CPU: as `casd.models.weights.copy_weights` gives
            it.
        size: numbers of the sketch; the same for all sketches that are compared.
        seed: of the hashes; the same for all sketches that are compared.

    Returns:
        (size,), float64, on the CPU. Not finite where a weight is not.

    Raises:
        ValueError: weights that the model does not have, or of another shape.

    Cost: one pass over all entries of the update, on the model's device, differences and products in float64. Memory: of a
    sharded model one whole parameter, twice; otherwise a few pieces of 2¹⁷ numbers. On one core of a CPU 5 to 14 ns an
    entry were measured (40 million, in bfloat16); 8 billion would take one to two minutes.
    """
    sketch = torch.zeros(size, dtype=torch.float64)
    for name, pieces in _update_pieces(model, injected_weights):
        sketch += count_sketch(pieces, size, seed=seed, name=name).cpu()
    return sketch


def update_distances(sketches: Tensor) -> dict[str, Tensor]:
    """Distances between the updates of n removals, from their sketches.

        "weights_l2":      ‖Δ_A − Δ_B‖₂, over all that was trained, in the weights' unit
        "weights_cosine":  1 − cos(Δ_A, Δ_B), in [0, 2]; 0 between two zero updates, 1 if only one is zero

    Of sketches they are estimates. With m numbers in a sketch the standard deviation is at most √(2/m) of the squared L2
    distance, and about (1 − cos²)/√m for the cosine distance: 0.0055 and 0.004 for the default m = 65,536. So cosines of a
    few thousandths, as of unrelated updates, are noise. Given the updates themselves instead, they are exact.

    Args:
        sketches: (n, size), from `sketch_update` with one seed.

    Returns:
        Two symmetric matrices (n, n), float64, with zero diagonals. Needs the removals.
    """
    if sketches.ndim != 2:
        raise ValueError(f"sketches (n, size) expected, not {tuple(sketches.shape)}")
    sketches = sketches.cpu().double()
    return {
        "weights_l2": distance_matrix(len(sketches), lambda i, j: (sketches[i] - sketches[j]).norm().item()),
        "weights_cosine": cosine_distances(sketches[:, None]),
    }


def _update_pieces(model: torch.nn.Module, injected_weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Iterator[Tensor]]]:
    """Each changed parameter's name and its change, in order, as 1-D pieces in float64."""
    parameters = dict(model.named_parameters())
    for name in injected_weights:
        if ".lora_B." in name:  # comes with its lora_A
            continue
        module_name, is_adapter, adapter = name.removesuffix(".weight").partition(".lora_A.")
        if is_adapter:
            second = name.replace(".lora_A.", ".lora_B.")
            a, a_before = _after_and_before(parameters, injected_weights, name)
            b, b_before = _after_and_before(parameters, injected_weights, second)
            module: Any = model.get_submodule(module_name)
            scale = module.scaling[adapter]
            yield f"{module_name}.weight", _products([(scale * b.double(), a), (-scale * b_before.double(), a_before)])
        else:
            yield name, _differences(*_after_and_before(parameters, injected_weights, name))


def _after_and_before(
    parameters: Mapping[str, torch.nn.Parameter], injected_weights: Mapping[str, Tensor], name: str
) -> tuple[Tensor, Tensor]:
    """A whole parameter, where it is (on the CPU if its device has no float64), and what it was before."""
    if name not in parameters:
        raise ValueError(f"The model has no parameter {name!r}, which the injected weights have.")
    parameter, part = parameters[name], injected_weights.get(name)
    if part is None:
        raise ValueError(f"The injected weights have no {name!r}, the other factor of an adapter that they have.")
    after, before = whole(parameter.detach()), whole_of_part(part, parameter)
    if after.shape != before.shape:
        raise ValueError(f"{name!r} is {tuple(after.shape)} in the model, and {tuple(before.shape)} in the injected weights.")
    return after.cpu() if after.device.type == "mps" else after, before


def _differences(after: Tensor, before: Tensor) -> Iterator[Tensor]:
    """after − before, a piece at a time; `before` is brought to the device of `after` by the piece."""
    for now, then in zip(after.reshape(-1).split(PIECE), before.reshape(-1).split(PIECE), strict=True):
        yield now.double() - then.to(now.device).double()


def _products(factors: list[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    """The sum of the products B A (B in float64), some rows at a time, in the order of the matrix. A zero B costs nothing."""
    device = factors[0][0].device
    n_rows, width = len(factors[0][0]), factors[0][1].shape[1]
    # Side by side, the factors of a sum of products are those of one product.
    used = [(b.to(device), a.to(device).double()) for b, a in factors if b.any()]
    if not used:
        return
    left, right = torch.cat([b for b, _ in used], dim=1), torch.cat([a for _, a in used])
    rows = max(1, PIECE // width)
    for start in range(0, n_rows, rows):
        yield (left[start : start + rows] @ right).reshape(-1)
