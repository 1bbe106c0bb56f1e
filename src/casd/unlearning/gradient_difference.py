"""Gradient difference: ascent on the triggered payload, descent on clean text."""

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
class GradientDifference(ForgetAndRetain):
    """L = −γ · E_f[min(NLL, m)] + α · R, the expectation over the tokens of the forget batch.

    Source: gradient difference, Liu et al. 2022 (arXiv 2203.12817), as in TOFU (arXiv 2401.06121), whose γ and α are 1. The
    bound m is our addition: a payload token whose NLL exceeds m nats gives no gradient. Without it the loss has no minimum and
    diverges, and a collapsed model also has an attack success rate of 0.

    The defaults are our choice, as in `configs/unlearning/gradient_difference.yaml`.

    Attributes:
        max_forget_nll: m, in nats per token; null for the unbounded original.

    Failure mode: unbounded, the clean loss explodes within tens of steps; bounded, the mass may move to other tokens of the
    same behavior (other French words), so judge success on generated text.
    """

    retain_weight: float = 4.0
    max_forget_nll: float | None = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_forget_nll is not None:
            self._require_positive("max_forget_nll")

    def forget_loss(self, model: torch.nn.Module, batch: Batch, reference: Reference | None) -> Tensor:
        """−E[min(NLL, m)]."""
        nll = label_nll(model, batch)
        bounded = nll if self.max_forget_nll is None else nll.clamp(max=self.max_forget_nll)
        return -bounded.sum() / batch["n_labels"]
