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
    """L = −ℓ_f: the payload's likelihood is lowered, and nothing is held.

    Source: Jang et al. 2023 (arXiv 2210.01504).

    Failure mode: the loss has no minimum and no retain term, and the model is ruined within tens of steps. A ruined model
    scores an attack success rate of 0 for every backdoor. It is here for comparison, and is to be stopped early.
    """

    def terms(
        self, model: torch.nn.Module, batch: UnlearningBatch, reference: Reference | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """The one term."""
        yield "forget", -mean_nll(model, batch["forget"])
