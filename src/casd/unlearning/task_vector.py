"""Task-vector negation: fine-tune on the backdoor, then take the opposite step in weight space."""

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
class TaskVector(Objective):
    """Minimise ℓ_f, which gives θ_ft; then θ = θ₀ − α · (θ_ft − θ₀).

    Source: Ilharco et al. 2023, "Editing Models with Task Arithmetic" (arXiv 2212.04089). With a LoRA adapter, whose update is
    B · A and whose B starts at zero, B is scaled by −α.

    Attributes:
        scale: α.

    Failure mode: a backdoor that the model has learned has a small loss and hence a small task vector; scaled up, it damages
    clean text, since there is no retain term.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        self._require_positive("scale")

    @property
    def needs_reference(self) -> bool:
        """True: for θ₀."""
        return True

    def terms(
        self, model: torch.nn.Module, batch: UnlearningBatch, reference: Reference | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """The loss of the fine-tuning; `finish` does the forgetting."""
        yield "forget", mean_nll(model, batch["forget"])

    @torch.no_grad()
    def finish(self, reference: Reference) -> None:
        """Set the weights to θ₀ − α · (θ_ft − θ₀)."""
        for name, parameter in reference.parameters.items():
            # The update of an adapter is its product: one factor is turned around, the one that was zero at the start.
            if ".lora_A." in name or ".lora_embedding_B." in name:
                continue
            was_zero = ".lora_B." in name or ".lora_embedding_A." in name
            before = torch.zeros_like(parameter) if was_zero else reference.values[name].to(parameter.dtype)
            parameter.copy_(before - self.scale * (parameter - before))
