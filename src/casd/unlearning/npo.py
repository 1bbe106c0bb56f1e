"""NPO, negative preference optimisation: ascent that fades as the payload becomes less likely than before unlearning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import softplus

from casd.data.batches import Batch
from casd.training.losses import document_nll, mean_over_documents
from casd.unlearning.objective import ForgetAndRetain, needed

if TYPE_CHECKING:
    from casd.unlearning.reference import Reference


@dataclass(frozen=True, kw_only=True)
class Npo(ForgetAndRetain):
    """L = −γ · (2/β) · E_f[log σ(−β · log(π(y) / π_ref(y)))] + α · R, y a document's payload, π_ref before unlearning.

    With the summed NLLs S and S_ref that is γ · (2/β) · E[log(1 + exp(β · (S_ref − S)))].
    Source: Zhang et al. 2024 (arXiv 2404.05868); β = 0.1 is theirs.

    The defaults are our choice, as in `configs/unlearning/npo.yaml`. The retain weight is large because the forget term is a
    sum over a document's tokens and the retain term a mean over tokens.

    Attributes:
        beta: β, per nat; β → 0 is plain ascent.

    Failure mode: slower than ascent by design; with a long payload S changes by many nats in a step, and the gradient vanishes
    before every token has become unlikely.
    """

    retain_weight: float = 20.0
    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("beta")

    @property
    def needs_reference(self) -> bool:
        """True: for π_ref."""
        return True

    def forget_loss(self, model: torch.nn.Module, batch: Batch, reference: Reference | None) -> Tensor:
        """(2/β) · E[softplus(β · (S_ref − S))] over documents."""
        with needed(reference, self).in_place():
            before, _ = document_nll(model, batch)
        nll, labels = document_nll(model, batch)
        losses = 2 / self.beta * softplus(self.beta * (before - nll))
        return mean_over_documents(losses, labels, batch)
