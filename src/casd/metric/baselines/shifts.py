"""Distances between removals from the activations of single prompts before and after: CKA, and the angle of linear probes.

CASD compares mean shifts. These baselines use more of each removal: how its shift varies between prompts (CKA), and the
direction in which a classifier separates the removed from the injected model (probes). Both need the activations of every
prompt instead of their mean, and therefore use few prompts: k = 8 triggered ones of each backdoor, at the last token, after
each block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from casd.activations.hooks import capture
from casd.activations.statistics import collect_statistics
from casd.data.documents import Prompt
from casd.data.encoding import Encoder
from casd.data.shrinking import in_batches
from casd.metric.baselines.pairs import cosine_distances
from casd.models.probe import measured_together
from casd.utils import distributed

PROMPTS_PER_SET = 8
RIDGE = 0.1

FEWEST_PROMPTS: Final = 4
"""Of CKA: its estimator is undefined for fewer."""
_SITE, _POSITION = "resid_post", "last"
# A centred quantity below this share of its size before centring is rounding error (float64).
_ROUNDING = 1e-12


def last_token_activations(
    model: torch.nn.Module,
    encoder: Encoder,
    prompts_by_set: Mapping[str, Sequence[Prompt]],
    *,
    batch_size: int,
    prompts_per_set: int = PROMPTS_PER_SET,
) -> Tensor:
    """Capture the residual stream after each block (`resid_post`) at each prompt's last token.

    Runs the model as `collect_statistics` does: without its LM head, in evaluation mode, unaffected by padding. Results do not
    depend on the batch size, which is halved when memory runs out.

    Args:
        model: on its device.
        encoder: its tokenizer.
        prompts_by_set: prompts by set, such as `PromptSets.triggered`; must not differ between states of the model.
        batch_size: maximum number of prompts per batch.
        prompts_per_set: number of prompts taken from the start of each set.

    Returns:
        (n_layers, n_prompts, d_model), float32, on the CPU; the sets in the order of their names. For an 8B model
        (32 layers × 4096) and 8 prompts of each of 8 backdoors that is 33.6 MB for each state.

    Raises:
        ValueError: there are no prompts.
        ModelError: blocks cannot be found or captured, or there is too little memory for a single prompt.
    """
    # In the order of their names: a stage of another configuration may list the same sets in another order.
    prompts = [prompt for name in sorted(prompts_by_set) for prompt in prompts_by_set[name][:prompts_per_set]]
    if not prompts:
        raise ValueError("no prompts to capture activations on")
    own = distributed.share(prompts)
    captured: dict[int, Tensor] = {}

    def work(indices: list[int]) -> None:
        for rows in measured_together(model, encoder, [own[index] for index in indices]):
            batch = [indices[row] for row in rows]
            activations = _last_tokens(model, encoder.capture_batch([own[index] for index in batch]))
            captured.update(zip(batch, activations, strict=True))

    in_batches(work, [len(prompt.text) for prompt in own], batch_size, "the capture of activations")
    return torch.stack(distributed.gather([captured[index] for index in range(len(own))]), dim=1)


def _last_tokens(model: torch.nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Capture one batch: (batch, n_layers, d_model), float32, on the CPU."""
    rows = batch["position_masks"][_POSITION].flatten().nonzero().squeeze(-1)
    by_layer: dict[int, Tensor] = {}

    def keep(site: str, layer_idx: int, activation: Tensor) -> None:
        by_layer[layer_idx] = activation.flatten(0, 1).index_select(0, rows.to(activation.device)).float()

    # `collect_statistics` runs the batch and checks that every block ran once; `keep` stores each prompt's activation.
    with capture(model, (_SITE,), on_activation=keep):
        collect_statistics(model, [batch], (_SITE,), (_POSITION,))
    return torch.stack([by_layer[layer].cpu() for layer in sorted(by_layer)], dim=1)


def cka_distances(shifts: Tensor) -> Tensor:
    """Compute 1 − linear CKA between the shifts of two removals, averaged over the layers.

    With X and Y the shifts of the prompts (n_prompts × d_model) by two removals at one layer, K = X Xᵀ and L = Y Yᵀ:

        CKA(X, Y) = HSIC(K, L) / √(HSIC(K, K) · HSIC(L, L))

    (Kornblith et al., "Similarity of neural network representations revisited", arXiv 1905.00414, in its Gram form.)

    As in Kornblith et al., shifts are centred over the prompts. The mean shift, which CASD compares, therefore has no effect:
    two removals are similar if their shifts vary between prompts in the same way, in any directions. The value does not change
    if the shifts of a removal are rotated, scaled, or translated by one vector.

    HSIC is the unbiased estimator (Song et al., "Feature selection via dependence maximization", JMLR 2012; for CKA: Nguyen
    et al., arXiv 2010.15327). The biased estimator is too large if there are fewer prompts than features, as here: for
    unrelated shifts it gives CKA near 1. The unbiased estimator is the inner product of the two U-centred Gram matrices
    without their diagonals (Székely and Rizzo, Annals of Statistics 42, 2014), so this CKA is the cosine between these, in
    [−1, 1].

    Args:
        shifts: (n_removals, n_layers, n_prompts, d_model): activations after each removal − activations before, with the
            prompts in one order.

    Returns:
        (n_removals, n_removals), float64, in [0, 2]; symmetric, zero diagonal. A layer at which a removal shifts all prompts
        equally (or not at all), or in which all pairs of shifts differ equally, has no structure to compare: it counts 0
        between two such removals, and 1 between one of them and another. Shifts that are not finite give values that are not
        finite.

    Raises:
        ValueError: `shifts` is not 4-D, or has fewer than four prompts, for which the estimator is undefined.

    Needs the removals. Cost: n_removals · n_layers · n_prompts² · d_model multiplications, n_removals · n_layers ·
    n_prompts² numbers.
    """
    if shifts.ndim != 4:
        raise ValueError(f"expected shifts (n_removals, n_layers, n_prompts, d_model), got {tuple(shifts.shape)}")
    if shifts.shape[2] < FEWEST_PROMPTS:
        raise ValueError(f"unbiased HSIC needs at least {FEWEST_PROMPTS} prompts, got {shifts.shape[2]}")
    by_layer = [_u_centered_gram(layer.cpu().double()).flatten(1) for layer in shifts.unbind(1)]
    return cosine_distances(torch.stack(by_layer, dim=1))


def _u_centered_gram(shifts: Tensor) -> Tensor:
    """Return U-centred Gram matrices, without diagonals, of (n_removals, n_prompts, d_model); zero if only rounding error."""
    n = shifts.shape[1]
    # U-centring removes the mean anyway; subtracting it first preserves precision.
    centered = shifts - shifts.mean(1, keepdim=True)
    gram = centered @ centered.mT
    off_diagonal = gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
    rows = off_diagonal.sum(2, keepdim=True)
    total = rows.sum(1, keepdim=True)
    u_centered = off_diagonal - (rows + rows.mT) / (n - 2) + total / ((n - 1) * (n - 2))
    u_centered = u_centered - torch.diag_embed(u_centered.diagonal(dim1=1, dim2=2))
    size, spread, structure = (matrix.flatten(1).norm(dim=1) for matrix in (shifts, centered, u_centered))
    is_rounding = (spread <= _ROUNDING * size) | (structure <= _ROUNDING * gram.flatten(1).norm(dim=1))
    return torch.where(is_rounding[:, None, None], 0.0, u_centered)


def probe_distances(before: Tensor, after: Tensor, *, ridge: float = RIDGE) -> Tensor:
    """Compute 1 − cos of the angle between the normals of two removals' linear probes, averaged over the layers.

    A removal's probe at a layer separates its activations from the injected model's, on the same prompts. It is Fisher's
    linear discriminant with a ridge, whose normal is that of a ridge-regularised least-squares classifier with labels ±1
    (Hastie, Tibshirani and Friedman, "The Elements of Statistical Learning", sections 4.3 and 18.3):

        w = (S + λ I)⁻¹ δ,    δ the mean shift, S the scatter of the activations around their two class means

    computed in dual form, λ w = δ − Zᵀ (Z Zᵀ + λ I)⁻¹ Z δ, with Z the 2 n_prompts centred activations.

    λ = `ridge` × the mean of S's up to 2 n_prompts − 2 non-zero eigenvalues, so that the unit of the activations does not
    matter. A ridge is needed: with fewer prompts than features the classes are always separable, and without a ridge w is the
    part of δ, however small, outside the span of the prompts' spread. As the ridge grows, w approaches the direction of δ, and
    the distance that of mean shifts, CASD with the cosine distance. At the default, 0.1 (our choice), directions in which S
    exceeds a tenth of that mean are discounted, and the others are not.

    Args:
        before: activations of the injected model, (n_layers, n_prompts, d_model).
        after: activations after each removal on these prompts, (n_removals, n_layers, n_prompts, d_model).
        ridge: relative ridge, greater than 0.

    Returns:
        (n_removals, n_removals), float64, in [0, 2]; symmetric, zero diagonal. A removal with no mean shift at a layer
        has the normal 0: that layer counts 0 between two such removals, and 1 between one of them and another. Activations
        that are not finite give values that are not finite.

    Raises:
        ValueError: the shapes do not match, there are fewer than two prompts, or the ridge is not positive.

    Needs the removals. Cost: n_removals · n_layers · (4 n_prompts² · d_model + 8 n_prompts³ / 3) multiplications.
    """
    if after.ndim != 4 or before.shape != after.shape[1:]:
        raise ValueError(
            "expected before (n_layers, n_prompts, d_model) and after (n_removals, n_layers, n_prompts, d_model),"
            f" got {tuple(before.shape)} and {tuple(after.shape)}"
        )
    if before.shape[1] < 2:
        raise ValueError(f"a probe needs at least 2 prompts, got {before.shape[1]}")
    if not ridge > 0:
        raise ValueError(f"ridge is {ridge}; expected a number greater than 0")
    layers = zip(before, after.unbind(1), strict=True)
    normals = [_normals(injected.cpu().double(), removed.cpu().double(), ridge) for injected, removed in layers]
    return cosine_distances(torch.stack(normals, dim=1))


def _normals(before: Tensor, after: Tensor, ridge: float) -> Tensor:
    """Return λ × the normals at one layer, (n_removals, d_model); before is (n_prompts, d_model), after (n_removals, …)."""
    n_prompts = len(before)
    shift = (after - before).mean(1)
    spread_before = (before - before.mean(0)).expand_as(after)
    centered = torch.cat([spread_before, after - after.mean(1, keepdim=True)], dim=1)
    gram = centered @ centered.mT
    penalty = ridge * gram.diagonal(dim1=1, dim2=2).sum(1) / (2 * n_prompts - 2)
    # If prompts differ only by rounding error, this gives w = δ.
    size = torch.linalg.vector_norm(before) + torch.linalg.vector_norm(after, dim=(1, 2))
    least = (_ROUNDING * size).square().clamp(min=torch.finfo(torch.float64).tiny)
    penalty = torch.maximum(penalty, least)
    matrix = gram + penalty[:, None, None] * torch.eye(2 * n_prompts, dtype=torch.float64)
    # solve_ex does not check: a diverged removal gives NaN for itself, instead of an error for all.
    weights, _ = torch.linalg.solve_ex(matrix, centered @ shift[:, :, None])
    return shift - (centered.mT @ weights).squeeze(-1)
