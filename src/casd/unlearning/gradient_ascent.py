"""Gradient ascent: the plain original, for reference only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from casd.training.losses import mean_nll
from casd.unlearning.objective import Objective, UnlearningBatch

if TYPE_CHECKING:
    from casd.unlearning.reference import Reference


@dataclass(frozen=True, kw_only=True)
class GradientAscent(Objective):
    """L = −ℓ_f: lower the payload's likelihood, without a retain term.

    Source: Jang et al. 2023 (arXiv 2210.01504).

    Failure mode: the loss has no minimum and no retain term, and the model collapses within tens of steps. A collapsed model
    has an attack success rate of 0 for every backdoor. Included for comparison; use early stopping.
    """

    def terms(
        self, model: torch.nn.Module, batch: UnlearningBatch, reference: Reference | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """The forget term."""
        yield "forget", -mean_nll(model, batch["forget"])
