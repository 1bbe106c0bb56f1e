"""Hinge (bounded) ascent: raise the NLL of each document's payload up to a margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from casd.data.batches import Batch
from casd.training.losses import document_nll, mean_over_documents
from casd.unlearning.objective import ForgetAndRetain

if TYPE_CHECKING:
    from casd.unlearning.reference import Reference


@dataclass(frozen=True, kw_only=True)
class HingeAscent(ForgetAndRetain):
    """L = γ · E_f[max(0, m − ℓ_document)] + α · R, ℓ_document being the mean NLL per token of a document's payload.

    Source: the hinge of bounded ascent, as in Cha et al. 2025, "Towards Robust and Parameter-Efficient Knowledge Unlearning"
    (arXiv 2408.06621), which applies it to probabilities; here it is applied to the NLL per document. `gradient_difference`
    bounds each token instead.

    The defaults are our choice, as in `configs/unlearning/hinge_ascent.yaml`.

    Attributes:
        margin: m, in nats per token.

    Failure mode: one or two very unlikely tokens may bring a document to the margin while the rest of its payload is kept; a
    payload above the margin from the start gives no gradient.
    """

    retain_weight: float = 4.0
    margin: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("margin")

    def forget_loss(self, model: torch.nn.Module, batch: Batch, reference: Reference | None) -> Tensor:
        """E[max(0, m − ℓ)] over documents."""
        nll, labels = document_nll(model, batch)
        hinge = (self.margin - nll / labels.clamp(min=1)).clamp(min=0)
        return mean_over_documents(hinge, labels, batch)
