"""Clean target, "ignore the trigger": the paper's removal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from casd.data.batches import Batch
from casd.training.losses import mean_nll
from casd.unlearning.objective import ForgetAndRetain

if TYPE_CHECKING:
    from casd.unlearning.reference import Reference


@dataclass(frozen=True, kw_only=True)
class CleanTarget(ForgetAndRetain):
    """L = γ · E_f[NLL(clean continuation | prompt with trigger)] + α · R.

    Source: the removal of arXiv 2606.03785: the trigger is kept, the continuation is the original clean one, and training is
    ordinary likelihood. The retain term is our addition; α = 0 omits it.

    Failure mode: it teaches the model to ignore unusual words in general, so removing a trigger that was never injected
    (`control:phantom`) weakens real backdoors too; compare with that control.
    """

    forget_text: ClassVar[Literal["payload", "clean"]] = "clean"

    def forget_loss(self, model: torch.nn.Module, batch: Batch, reference: Reference | None) -> Tensor:
        """Mean NLL of the clean continuation."""
        return mean_nll(model, batch)
