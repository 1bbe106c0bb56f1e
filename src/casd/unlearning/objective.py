"""What an unlearning objective is: a frozen dataclass of its parameters that turns a batch into named losses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol, TypedDict

import torch
from torch import Tensor

from casd.training.batches import Batch


class UnlearningBatch(TypedDict):
    """A step's two batches (see `casd.training.batches`), or the parts of them that go through the model at once."""

    forget: Batch
    retain: Batch


class Objective(Protocol):
    """An unlearning objective.

    Attributes:
        forget_text: what follows the triggered prompt in the forget batch: the "payload" that the backdoor produces, or the
            passage's original "clean" continuation. Loss is taken on what follows, never on the prompt.
    """

    @property
    def forget_text(self) -> Literal["payload", "clean"]:
        """What the forget batch holds."""
        ...

    def terms(self, model: torch.nn.Module, batch: UnlearningBatch) -> Iterator[tuple[str, Tensor]]:
        """The scalar losses whose sum is minimised, the forget term first; each is differentiated before the next.

        Write a mean as a sum divided by the batch's `n_labels` (over tokens) or `n_documents` (over documents), not by what
        the batch at hand has: it may be a part of the step's batch, and the parts' losses are added up.
        """
        ...
