"""Weighted gradient ascent (WGA): ascent that lets go of tokens that are unlikely already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from casd.data.batches import Batch
from casd.training.losses import batch_nll
from casd.unlearning.objective import ForgetAndRetain

if TYPE_CHECKING:
    from casd.unlearning.reference import Reference


@dataclass(frozen=True, kw_only=True)
class WeightedGradientAscent(ForgetAndRetain):
    """L = −γ · E_f[p^β · NLL] + α · R, p being the token's probability now, not differentiated.

    Source: WGA, Wang et al. 2025, "Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond" (arXiv
    2502.19301).

    The defaults are ours, those of `configs/unlearning/weighted_gradient_ascent.yaml`.

    Attributes:
        beta: β; towards 0 this is plain ascent, larger lets go earlier.

    Failure mode: slow where the payload is unlikely from the start, since its weight is small; otherwise far steadier than
    plain ascent, since the weight vanishes as the NLL grows.
    """

    retain_weight: float = 0.2
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("beta")

    def forget_loss(self, model: torch.nn.Module, batch: Batch, reference: Reference | None) -> Tensor:
        """−E[p^β · NLL] over tokens."""
        nll, _ = batch_nll(model, batch)
        weight = (-self.beta * nll.detach()).exp()  # where there is no label the NLL is 0, and so is the product
        return -(weight * nll).sum() / batch["n_labels"]
