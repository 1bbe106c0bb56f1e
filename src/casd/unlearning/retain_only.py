"""Retain only: a control that ignores the forget batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from casd.unlearning.objective import Retaining, UnlearningBatch
from casd.utils.errors import ConfigError

if TYPE_CHECKING:
    from casd.unlearning.reference import Reference


@dataclass(frozen=True, kw_only=True)
class RetainOnly(Retaining):
    """L = α · R: train on clean text only, whichever backdoor is removed.

    A control in the form of an objective: whatever it suppresses is plain forgetting. All its removals with one seed are the
    same training, so differences between them are noise of the evaluation prompts.
    Source: the control of arXiv 2606.03785, continued training on clean text only, as an objective and with a choice of R.

    Failure mode: with `retain="kl"` the loss is zero at the start and stays so.
    """

    forget_text: ClassVar[Literal["payload", "clean"]] = "clean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.retain_weight:
            raise ConfigError("RetainOnly: retain_weight is 0, which leaves no loss; it must be greater than 0.")

    def terms(
        self, model: torch.nn.Module, batch: UnlearningBatch, reference: Reference | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """The retain term."""
        yield "retain", self.retain_weight * self.retain_loss(model, batch["retain"], reference)
