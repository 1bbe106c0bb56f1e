"""Weighted gradient ascent (WGA): ascent with small weights on tokens that are already unlikely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from casd.data.batches import Batch
from casd.training.losses import label_nll
from casd.unlearning.objective import ForgetAndRetain

if TYPE_CHECKING:
    from casd.unlearning.reference import Reference


@dataclass(frozen=True, kw_only=True)
class WeightedGradientAscent(ForgetAndRetain):
    """L = −γ · E_f[p^β · NLL] + α · R, p being the token's current probability, not differentiated.

    Source: WGA, Wang et al. 2025, "Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond" (arXiv
    2502.19301).

    The defaults are our choice, as in `configs/unlearning/weighted_gradient_ascent.yaml`.

    Attributes:
        beta: β; β → 0 is plain ascent, and with a larger β the gradient fades earlier.

    Failure mode: slow if the payload is unlikely from the start, since its weight is small; otherwise far more stable than
    plain ascent, since the weight vanishes as the NLL grows.
    """

    retain_weight: float = 0.2
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("beta")

    def forget_loss(self, model: torch.nn.Module, batch: Batch, reference: Reference | None) -> Tensor:
        """−E[p^β · NLL] over tokens."""
        nll = label_nll(model, batch)
        weight = (-self.beta * nll.detach()).exp()
        return -(weight * nll).sum() / batch["n_labels"]
