"""What an unlearning objective is: a frozen dataclass of its parameters that turns a batch into named losses.

Most objectives add a retain term to what they do to the forget batch; they derive from `ForgetAndRetain` and give the
forget term alone. Below ℓ is the mean NLL per token in nats, S the summed NLL of a document, f the forget and r the retain
batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypedDict

import torch
from torch import Tensor

from casd.data.batches import Batch
from casd.training.losses import batch_logits, mean_nll, mean_reference_kl
from casd.utils.errors import ConfigError
from casd.utils.registry import unknown

if TYPE_CHECKING:
    from casd.unlearning.reference import Reference


class UnlearningBatch(TypedDict):
    """A step's two batches (see `casd.data.batches`), or the parts of them that go through the model at once."""

    forget: Batch
    retain: Batch


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """An unlearning objective.

    Attributes:
        forget_text: what follows the triggered prompt in the forget batch: the "payload" that the backdoor produces, or the
            passage's original "clean" continuation. Loss is taken on what follows, never on the prompt.
        trains_everything: whether every trained parameter gets a gradient in each step, which several processes need.
    """

    forget_text: ClassVar[Literal["payload", "clean"]] = "payload"
    trains_everything: ClassVar[bool] = True

    @property
    def needs_reference(self) -> bool:
        """Whether `terms` or `finish` look at the model before unlearning."""
        return False

    @abstractmethod
    def terms(
        self, model: torch.nn.Module, batch: UnlearningBatch, reference: Reference | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """The scalar losses whose sum is minimised, the forget term first; each is differentiated before the next.

        Write a mean as a sum divided by the batch's `n_labels` (over tokens) or `n_documents` (over documents), not by what
        the batch at hand has: it may be a part of the step's batch, and the parts' losses are added up. A row of it may
        carry no label at all and must then count nothing.
        """

    @property
    def has_finish(self) -> bool:
        """Whether it has a `finish` of its own."""
        return type(self).finish is not Objective.finish

    def finish(self, reference: Reference) -> None:  # noqa: B027  # most objectives have nothing left to do
        """What is done to the weights after the training, in place; `reference` holds those before it."""

    def check_layers(self, n_layers: int) -> None:  # noqa: B027  # most objectives have no layer
        """Refuse a parameter that a model of so many layers cannot serve.

        Raises:
            ConfigError: such a parameter.
        """

    def _require_positive(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{type(self).__name__}: {name} is {getattr(self, name)}; it must be greater than 0.")


def needed(reference: Reference | None, objective: Objective) -> Reference:
    """The reference of an objective that cannot do without.

    Raises:
        ConfigError: there is none.
    """
    if reference is None:
        raise ConfigError(
            f"{type(objective).__name__} compares with the model before unlearning, and was given none. Make"
            " casd.unlearning.reference.Reference(model) before the training and pass it to terms (casd.unlearn does so)."
        )
    return reference


@dataclass(frozen=True, kw_only=True)
class Retaining(Objective):
    """An objective with a term R on clean text: the NLL ℓ_r, or KL(before unlearning ‖ now).

    Attributes:
        retain_weight: α, the weight of R; 0 leaves it out.
        retain: "nll" or "kl". The KL (used for unlearning in TOFU, arXiv 2401.06121) holds the model to what it said before
            rather than to the text; it needs a second forward pass and the weights before unlearning.
    """

    retain_weight: float = 1.0
    retain: Literal["nll", "kl"] = "nll"

    def __post_init__(self) -> None:
        if self.retain not in ("nll", "kl"):
            raise unknown(f"{type(self).__name__} retain:", self.retain, ("nll", "kl"))
        if not self.retain_weight >= 0:
            raise ConfigError(f"{type(self).__name__}: retain_weight is {self.retain_weight}; it must be 0 or more.")

    @property
    def needs_reference(self) -> bool:
        """For the KL."""
        return self.retain == "kl" and self.retain_weight > 0

    def retain_loss(self, model: torch.nn.Module, batch: Batch, reference: Reference | None) -> Tensor:
        """R; a scalar."""
        if self.retain == "nll":
            return mean_nll(model, batch)
        with needed(reference, self).in_place():
            before = batch_logits(model, batch)
        return mean_reference_kl(batch_logits(model, batch), before, batch)


@dataclass(frozen=True, kw_only=True)
class ForgetAndRetain(Retaining):
    """L = γ · forget term + α · R.

    Attributes:
        forget_weight: γ.
    """

    forget_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("forget_weight")

    def terms(
        self, model: torch.nn.Module, batch: UnlearningBatch, reference: Reference | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """The two terms of the formula."""
        yield "forget", self.forget_weight * self.forget_loss(model, batch["forget"], reference)
        if self.retain_weight:
            yield "retain", self.retain_weight * self.retain_loss(model, batch["retain"], reference)

    @abstractmethod
    def forget_loss(self, model: torch.nn.Module, batch: Batch, reference: Reference | None) -> Tensor:
        """The forget term without its weight γ; a scalar."""
