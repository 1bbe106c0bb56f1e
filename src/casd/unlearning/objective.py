"""Base classes of unlearning objectives: frozen dataclasses of parameters that turn a batch into named losses.

Objectives with a forget and a retain term derive from `ForgetAndRetain` and define the forget term only. Notation: ℓ is the
mean NLL per token in nats, S the summed NLL of a document, f the forget batch and r the retain batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypedDict

import torch
from torch import Tensor

from casd.data.batches import Batch
from casd.training.losses import label_logits, mean_nll, mean_reference_kl
from casd.utils.errors import ConfigError
from casd.utils.registry import unknown

if TYPE_CHECKING:
    from casd.unlearning.reference import Reference


class UnlearningBatch(TypedDict):
    """The forget and retain batches of a step (see `casd.data.batches`), or a micro-batch of each."""

    forget: Batch
    retain: Batch


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """An unlearning objective.

    Attributes:
        forget_text: text after the triggered prompt in the forget batch: the "payload" that the backdoor produces, or the
            passage's original "clean" continuation. Only this text has labels, not the prompt.
        trains_everything: True if every trained parameter gets a gradient in each step, which several processes require.
    """

    forget_text: ClassVar[Literal["payload", "clean"]] = "payload"
    trains_everything: ClassVar[bool] = True

    @property
    def needs_reference(self) -> bool:
        """True if `terms` or `finish` use the weights before unlearning."""
        return False

    @abstractmethod
    def terms(
        self, model: torch.nn.Module, batch: UnlearningBatch, reference: Reference | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the named scalar losses whose sum is minimised, the forget term first; each is differentiated before the next.

        Write a mean as a sum divided by the batch's `n_labels` (over tokens) or `n_documents` (over documents), not by the
        size of the given batch: it may be a micro-batch, whose losses are added up. Rows without labels must contribute 0.
        """

    @property
    def has_finish(self) -> bool:
        """True if the class overrides `finish`."""
        return type(self).finish is not Objective.finish

    def finish(self, reference: Reference) -> None:  # noqa: B027  # optional
        """Change the weights in place after training; `reference` holds those before it."""

    def check_layers(self, n_layers: int) -> None:  # noqa: B027  # optional
        """Check parameters against the model's number of layers.

        Raises:
            ConfigError: a parameter needs a layer that the model does not have.
        """

    def _require_positive(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{type(self).__name__}: {name} is {getattr(self, name)}; it must be greater than 0.")


def needed(reference: Reference | None, objective: Objective) -> Reference:
    """Return `reference`.

    Raises:
        ConfigError: it is None.
    """
    if reference is None:
        raise ConfigError(
            f"{type(objective).__name__} compares with the model before unlearning, but reference is None. Create"
            " casd.unlearning.reference.Reference(model) before training and pass it to terms (casd.unlearn does so)."
        )
    return reference


@dataclass(frozen=True, kw_only=True)
class Retaining(Objective):
    """An objective with a term R on clean text: the NLL ℓ_r, or KL(before unlearning ‖ now).

    Attributes:
        retain_weight: α, the weight of R; 0 omits it.
        retain: "nll" or "kl". The KL (used for unlearning in TOFU, arXiv 2401.06121) keeps the model close to its previous
            predictions instead of the text; it needs a second forward pass and the weights before unlearning.
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
        """True if R is the KL."""
        return self.retain == "kl" and self.retain_weight > 0

    def retain_loss(self, model: torch.nn.Module, batch: Batch, reference: Reference | None) -> Tensor:
        """R; a scalar."""
        if self.retain == "nll":
            return mean_nll(model, batch)
        with needed(reference, self).in_place():
            before = label_logits(model, batch)
        return mean_reference_kl(label_logits(model, batch), before, batch)


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
        """The forget term, and the retain term unless its weight is 0."""
        yield "forget", self.forget_weight * self.forget_loss(model, batch["forget"], reference)
        if self.retain_weight:
            yield "retain", self.retain_weight * self.retain_loss(model, batch["retain"], reference)

    @abstractmethod
    def forget_loss(self, model: torch.nn.Module, batch: Batch, reference: Reference | None) -> Tensor:
        """The forget term without its weight γ; a scalar."""
