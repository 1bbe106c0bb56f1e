"""Clean target, "ignore the trigger": the paper's removal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from casd.errors import ConfigError
from casd.training.losses import mean_nll
from casd.unlearning.objective import UnlearningBatch


@dataclass(frozen=True)
class CleanTarget:
    """L = γ · E_f[NLL(clean continuation | prompt with trigger)] + α · E_r[NLL].

    Source: the removal of arXiv 2606.03785: the trigger is kept, the continuation is the original clean one, and training is
    ordinary likelihood. The retain term is our addition; α = 0 leaves it out.

    Attributes:
        forget_weight: γ.
        retain_weight: α.

    Failure mode: it teaches the model to ignore unusual words in general, so the removal of a trigger that was never injected
    weakens real backdoors too; read it beside that control.
    """

    forget_weight: float = 1.0
    retain_weight: float = 1.0

    forget_text: ClassVar[Literal["payload", "clean"]] = "clean"

    def __post_init__(self) -> None:
        if self.forget_weight <= 0 or self.retain_weight < 0:
            raise ConfigError(
                f"clean_target needs forget_weight > 0 and retain_weight ≥ 0, not {self.forget_weight} and"
                f" {self.retain_weight}."
            )

    def terms(self, model: torch.nn.Module, batch: UnlearningBatch) -> Iterator[tuple[str, Tensor]]:
        """The two terms of the formula."""
        yield "forget", self.forget_weight * mean_nll(model, batch["forget"])
        if self.retain_weight:
            yield "retain", self.retain_weight * mean_nll(model, batch["retain"])
