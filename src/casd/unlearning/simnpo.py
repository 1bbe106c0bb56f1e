"""SimNPO: NPO without a reference model, normalised by the payload's length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import softplus

from casd.data.batches import Batch
from casd.training.losses import document_nll, mean_over_documents
from casd.unlearning.objective import ForgetAndRetain

if TYPE_CHECKING:
    from casd.unlearning.reference import Reference


@dataclass(frozen=True, kw_only=True)
class SimNpo(ForgetAndRetain):
    """L = −γ · (2/β) · E_f[log σ(β · (S/|y| − δ))] + α · R, S/|y| being the mean NLL per token of a document's payload.

    Source: Fan et al. 2024 (arXiv 2410.07163), whose β is 2.5 to 4.5, γ 0.125 and δ 0.

    The defaults are our choice, as in `configs/unlearning/simnpo.yaml`.

    Attributes:
        beta: β, per nat.
        delta: δ, in nats per token: the NLL of a payload above which the gradient fades.

    Failure mode: with δ = 0 the gradient fades near 1/β nats per token, where a short payload may still be generated.
    """

    forget_weight: float = 0.5
    beta: float = 2.5
    delta: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("beta")

    def forget_loss(self, model: torch.nn.Module, batch: Batch, reference: Reference | None) -> Tensor:
        """(2/β) · E[softplus(−β · (ℓ − δ))] over documents."""
        nll, labels = document_nll(model, batch)
        losses = 2 / self.beta * softplus(-self.beta * (nll / labels.clamp(min=1) - self.delta))
        return mean_over_documents(losses, labels, batch)
