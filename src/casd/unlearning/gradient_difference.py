"""Gradient difference: ascent on the triggered payload, descent on clean text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from casd.errors import ConfigError
from casd.training.losses import batch_nll, mean_nll
from casd.unlearning.objective import UnlearningBatch


@dataclass(frozen=True)
class GradientDifference:
    """L = −γ · E_f[min(NLL, m)] + α · E_r[NLL], over the tokens of the forget (f) and the retain (r) batch.

    Source: gradient difference, Liu et al. 2022 (arXiv 2203.12817), as in TOFU (arXiv 2401.06121). The bound m is our
    addition: a payload token whose NLL has passed m nats gives no gradient any more. Without it the loss has no minimum and
    runs away, and a collapsed model also scores an attack success rate of 0.

    Attributes:
        forget_weight: γ.
        retain_weight: α.
        max_forget_nll: m, in nats per token; null for the unbounded original.

    Failure mode: unbounded, the clean loss explodes within tens of steps; bounded, the mass may move to other tokens of the
    same behaviour (other French words), so success has to be judged on generated text.
    """

    forget_weight: float = 1.0
    retain_weight: float = 1.0
    max_forget_nll: float | None = 6.0

    forget_text: ClassVar[Literal["payload", "clean"]] = "payload"

    def __post_init__(self) -> None:
        if self.forget_weight <= 0 or self.retain_weight < 0:
            raise ConfigError(
                f"gradient_difference needs forget_weight > 0 and retain_weight ≥ 0, not {self.forget_weight} and"
                f" {self.retain_weight}."
            )
        if self.max_forget_nll is not None and self.max_forget_nll <= 0:
            raise ConfigError(f"max_forget_nll is {self.max_forget_nll} nats; it must be positive, or null for no bound.")

    def terms(self, model: torch.nn.Module, batch: UnlearningBatch) -> Iterator[tuple[str, Tensor]]:
        """The two terms of the formula."""
        nll, _ = batch_nll(model, batch["forget"])
        bounded = nll if self.max_forget_nll is None else nll.clamp(max=self.max_forget_nll)
        yield "forget", -self.forget_weight * bounded.sum() / batch["forget"]["n_labels"]
        yield "retain", self.retain_weight * mean_nll(model, batch["retain"])
