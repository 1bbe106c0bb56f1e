"""Hinge (bounded) ascent: a document's payload is made unlikely up to a margin, then left alone."""

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
    (arXiv 2408.06621), there on probabilities; here on the NLL and a document at a time. `gradient_difference` bounds each
    token instead.

    The defaults are ours, those of `configs/unlearning/hinge_ascent.yaml`.

    Attributes:
        margin: m, in nats per token.

    Failure mode: a document may reach the margin by one or two very unlikely tokens, the rest of its payload being kept; a
    payload that lies above the margin from the start gives no gradient at all.
    """

    retain_weight: float = 4.0
    margin: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("margin")

    def forget_loss(self, model: torch.nn.Module, batch: Batch, reference: Reference | None) -> Tensor:
        """E[max(0, m − ℓ)] over documents."""
        nll, labels = document_nll(model, batch)
        below = (self.margin - nll / labels.clamp(min=1)).clamp(min=0)
        return mean_over_documents(below, labels, batch)
