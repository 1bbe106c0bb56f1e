"""Distances between removals from the activations of single prompts, before and after: CKA, and the angle of linear probes.

CASD compares mean shifts. These two see more of each removal: how its shift varies from prompt to prompt (CKA), and in which
direction a classifier would tell the removed model from the injected one (probes). Both need every prompt's activation, not
the mean, and so few prompts: k = 8 of each backdoor's triggered ones, at the last token, after each block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from casd.activations.hooks import capture
from casd.activations.statistics import collect_statistics
from casd.data.encoding import Encoder, Prompt
from casd.data.shrinking import in_batches
from casd.metric.baselines.pairs import cosine_distances
from casd.models.probe import measured_together
from casd.utils import distributed

PROMPTS_PER_SET = 8
RIDGE = 0.1

_SITE, _POSITION = "resid_post", "last"
# Below this share of its own size, what is left of a quantity after centring is rounding (float64).
_ROUNDING = 1e-12


def last_token_activations(
    model: torch.nn.Module,
    encoder: Encoder,
    prompts_by_set: Mapping[str, Sequence[Prompt]],
    *,
    batch_size: int,
    prompts_per_set: int = PROMPTS_PER_SET,
) -> Tensor:
    """The residual stream after each block (`resid_post`) at each prompt's last token.

    Run as `collect_statistics` runs a model: without its LM head, in evaluation mode, padding changing nothing. Rows do not
    depend on the batch size, which is halved where memory runs out.

    Args:
        model: on its device.
        encoder: its tokenizer.
        prompts_by_set: such as `PromptSets.triggered`; the same for all states of the model.
        batch_size: prompts at once, at most.
        prompts_per_set: the first so many of each set are taken, set after set.

    Returns:
        (n_layers, n_prompts, d_model), float32, on the CPU. For an 8B model (32 layers × 4096) and 8 prompts of each of 8
        backdoors that is 33.6 MB, and as much again for each removal.

    Raises:
        ValueError: no prompts.
        ModelError: blocks that cannot be found or captured, or too little memory for a single prompt.
    """
    prompts = [prompt for each in prompts_by_set.values() for prompt in each[:prompts_per_set]]
    if not prompts:
        raise ValueError("no prompts to capture activations on")
    mine = distributed.share(prompts)
    found: dict[int, Tensor] = {}

    def work(indices: list[int]) -> None:
        for rows in measured_together(model, encoder, [mine[index] for index in indices]):
            batch = [indices[row] for row in rows]
            activations = _last_tokens(model, encoder.capture_batch([mine[index] for index in batch]))
            found.update(zip(batch, activations, strict=True))

    in_batches(work, [len(prompt.text) for prompt in mine], batch_size, "the capture of activations")
    return torch.stack(distributed.gather([found[index] for index in range(len(mine))]), dim=1)


def _last_tokens(model: torch.nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """(batch, n_layers, d_model), float32, on the CPU."""
    rows = batch["position_masks"][_POSITION].flatten().nonzero().squeeze(-1)
    by_layer: dict[int, Tensor] = {}

    def keep(site: str, layer_idx: int, activation: Tensor) -> None:
        by_layer[layer_idx] = activation.flatten(0, 1).index_select(0, rows.to(activation.device)).float()

    # The statistics run the batch and see that every block ran once; beside them each prompt's own activation is kept.
    with capture(model, (_SITE,), on_activation=keep):
        collect_statistics(model, [batch], (_SITE,), (_POSITION,))
    return torch.stack([by_layer[layer].cpu() for layer in sorted(by_layer)], dim=1)


def cka_distances(shifts: Tensor) -> Tensor:
    """1 − linear CKA between the shifts of two removals, the mean over the layers.

    With X the shifts of the prompts (n_prompts × d_model) after one removal at one layer, and K = X Xᵀ, L = Y Yᵀ:

        CKA(X, Y) = HSIC(K, L) / √(HSIC(K, K) · HSIC(L, L))

    (Kornblith et al., "Similarity of neural network representations revisited", arXiv 1905.00414, in its Gram form.)

    Centred over the prompts, as there. So the mean shift, which is what CASD compares, plays no part: two removals are alike
    if they move the same prompts alike, in whatever directions. The value is unchanged by rotating either removal's shifts,
    scaling them, or adding one vector to all of them.

    HSIC is the unbiased estimator (Song et al., "Feature selection via dependence maximization", JMLR 2012; for CKA: Nguyen
    et al., arXiv 2010.15327). The plain one is biased upwards where prompts are fewer than features, as here: of unrelated
    shifts it says CKA near 1. The unbiased estimator is the inner product of the two Gram matrices, without their diagonals,
    that were U-centred (Székely and Rizzo, Annals of Statistics 42, 2014), so this CKA is the cosine between those, and
    lies in [−1, 1].

    Args:
        shifts: (n_removals, n_layers, n_prompts, d_model): activations after each removal − those before, of the same
            prompts in the same order.

    Returns:
        (n_removals, n_removals), float64, in [0, 2]; symmetric, zero diagonal. A layer at which a removal moves all prompts
        alike (or not at all), or all pairs of them equally differently, has no structure to compare: there it is 0 between
        two such removals, and 1 between one of them and another. Not finite where a shift is not.

    Raises:
        ValueError: another shape, or fewer than four prompts, for which the estimator is not defined.

    Needs the removals. Cost: n_removals · n_layers · n_prompts² · d_model multiplications, n_removals · n_layers ·
    n_prompts² numbers.
    """
    if shifts.ndim != 4:
        raise ValueError(f"shifts (n_removals, n_layers, n_prompts, d_model) expected, not {tuple(shifts.shape)}")
    if shifts.shape[2] < 4:
        raise ValueError(f"unbiased HSIC needs at least 4 prompts, not {shifts.shape[2]}")
    by_layer = [_u_centered_gram(layer.cpu().double()).flatten(1) for layer in shifts.unbind(1)]
    return cosine_distances(torch.stack(by_layer, dim=1))


def _u_centered_gram(shifts: Tensor) -> Tensor:
    """The U-centred Gram matrices, without diagonals, of (n_removals, n_prompts, d_model); zero where they are rounding."""
    n = shifts.shape[1]
    # U-centring would undo any mean by itself; taken out first, it does not cost digits.
    centered = shifts - shifts.mean(1, keepdim=True)
    gram = centered @ centered.mT
    off_diagonal = gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
    rows = off_diagonal.sum(2, keepdim=True)
    total = rows.sum(1, keepdim=True)
    u_centered = off_diagonal - (rows + rows.mT) / (n - 2) + total / ((n - 1) * (n - 2))
    u_centered = u_centered - torch.diag_embed(u_centered.diagonal(dim1=1, dim2=2))
    size, spread, structure = (each.flatten(1).norm(dim=1) for each in (shifts, centered, u_centered))
    is_rounding = (spread <= _ROUNDING * size) | (structure <= _ROUNDING * gram.flatten(1).norm(dim=1))
    return torch.where(is_rounding[:, None, None], 0.0, u_centered)


def probe_distances(before: Tensor, after: Tensor, *, ridge: float = RIDGE) -> Tensor:
    """1 − cos of the angle between the normals of two removals' linear probes, the mean over the layers.

    A removal's probe at a layer tells its activations from the injected model's, on the same prompts. It is Fisher's linear
    discriminant with a ridge, whose normal is that of a ridge-regularised least-squares classifier with labels ±1 (Hastie,
    Tibshirani and Friedman, "The Elements of Statistical Learning", sections 4.3 and 18.3):

        w = (S + λ I)⁻¹ δ,    δ the mean shift, S the scatter of the activations around their two class means

    computed in dual form, λ w = δ − Zᵀ (Z Zᵀ + λ I)⁻¹ Z δ, with Z the 2 n_prompts centred activations.

    λ = `ridge` × the mean of S's up to 2 n_prompts − 2 non-zero eigenvalues. Some ridge is needed: with fewer prompts than
    features the classes are always separable, and without one w is the part of δ, however small, outside the prompts' own
    spread. A large one leaves w = δ and so the cosine of mean shifts, that is CASD with the cosine distance. At the default,
    0.1 (our choice), directions in which S has more than a tenth of that mean are discounted, and the others are not. Relative
    to S, so that the unit of the activations does not matter.

    Args:
        before: (n_layers, n_prompts, d_model), of the injected model.
        after: (n_removals, n_layers, n_prompts, d_model), of the same prompts.
        ridge: greater than 0.

    Returns:
        (n_removals, n_removals), float64, in [0, 2]; symmetric, zero diagonal. A removal with no mean shift at a layer has
        nothing to be told by, and the normal 0: there the distance is 0 between two such removals, and 1 between one of them
        and another. Not finite where an activation is not.

    Raises:
        ValueError: other shapes, fewer than two prompts, or a ridge that is not positive.

    Needs the removals. Cost: n_removals · n_layers · (4 n_prompts² · d_model + 8 n_prompts³ / 3) multiplications.
    """
    if after.ndim != 4 or before.shape != after.shape[1:]:
        raise ValueError(
            "before (n_layers, n_prompts, d_model) and after (n_removals, n_layers, n_prompts, d_model) expected,"
            f" not {tuple(before.shape)} and {tuple(after.shape)}"
        )
    if before.shape[1] < 2:
        raise ValueError("a probe needs at least 2 prompts, by which its activations spread")
    if not ridge > 0:
        raise ValueError(f"ridge is {ridge}; it must be greater than 0")
    layers = zip(before, after.unbind(1), strict=True)
    normals = [_normals(injected.cpu().double(), removed.cpu().double(), ridge) for injected, removed in layers]
    return cosine_distances(torch.stack(normals, dim=1))


def _normals(before: Tensor, after: Tensor, ridge: float) -> Tensor:
    """λ times the normals at one layer, (n_removals, d_model); before (n_prompts, d_model), after (n_removals, …)."""
    n_prompts = len(before)
    shift = (after - before).mean(1)
    spread_before = (before - before.mean(0)).expand_as(after)
    centered = torch.cat([spread_before, after - after.mean(1, keepdim=True)], dim=1)
    gram = centered @ centered.mT
    penalty = ridge * gram.diagonal(dim1=1, dim2=2).sum(1) / (2 * n_prompts - 2)
    # Prompts that do not differ, but for rounding, leave w = δ.
    size = torch.linalg.vector_norm(before) + torch.linalg.vector_norm(after, dim=(1, 2))
    least = (_ROUNDING * size).square().clamp(min=torch.finfo(torch.float64).tiny)
    penalty = torch.maximum(penalty, least)
    matrix = gram + penalty[:, None, None] * torch.eye(2 * n_prompts, dtype=torch.float64)
    # Without checks: a removal that diverged gives NaN for itself, and no error for all.
    weights, _ = torch.linalg.solve_ex(matrix, centered @ shift[:, :, None])
    return shift - (centered.mT @ weights).squeeze(-1)
