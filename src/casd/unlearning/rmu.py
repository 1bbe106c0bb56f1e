"""RMU, representation misdirection: push hidden states of the forget text towards a random direction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from casd.activations.hooks import outputs_of
from casd.data.batches import Batch, predicting
from casd.models.structure import decoder_layers
from casd.training.losses import label_logits
from casd.unlearning.objective import Objective, UnlearningBatch, needed
from casd.utils.errors import ConfigError

if TYPE_CHECKING:
    from casd.unlearning.reference import Reference


@dataclass(frozen=True, kw_only=True)
class Rmu(Objective):
    """L = E_f[‖h − c·u‖²] / d + α · E_r[‖h − h_ref‖²] / d, h being a block's output (d numbers), u a random unit vector.

    The expectations are over the positions that predict a labelled token (in the retain batch, all of them). u is fixed: drawn
    with `direction_seed` uniformly from [0, 1)^d and normalised, as in the authors' code.
    Source: Li et al. 2024, "The WMDP Benchmark" (arXiv 2403.03218), with c 2 to 6.5 and α 1 to 1200 for models of 7B; they
    train three matrices below the block, here everything below it is trained.

    Attributes:
        steering: c, in the unit of the activations; must be large compared with the component of h along u.
        retain_weight: α.
        layer: index of the block, from 0; null for the middle one.
        direction_seed: of u; shared by all removals.

    Failure mode: with a small c nothing happens; with a large one the model writes gibberish at the trigger, so that the attack
    fails but so does the answer. All removals push towards one u, so their shifts are similar whatever was removed.
    """

    steering: float = 6.5
    retain_weight: float = 100.0
    layer: int | None = None
    direction_seed: int = 0

    trains_everything: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._require_positive("steering", "retain_weight")
        if self.direction_seed < 0:
            raise ConfigError(f"Rmu: direction_seed is {self.direction_seed}; it must be 0 or more.")

    def check_layers(self, n_layers: int) -> None:
        """Raise ConfigError if the model has no such layer."""
        if self.layer is not None and not 0 <= self.layer < n_layers:
            raise ConfigError(f"rmu: layer is {self.layer}; expected null or one of the model's layers 0 to {n_layers - 1}.")

    @property
    def needs_reference(self) -> bool:
        """True: for h_ref."""
        return True

    def terms(
        self, model: torch.nn.Module, batch: UnlearningBatch, reference: Reference | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """The forget and retain terms."""
        hidden = self._hidden(model, batch["forget"])
        direction = torch.rand(hidden.shape[-1], generator=torch.Generator().manual_seed(self.direction_seed))
        goal = (self.steering * direction / direction.norm()).to(hidden)
        yield "forget", (hidden - goal).square().mean(-1).sum() / batch["forget"]["n_labels"]
        with needed(reference, self).in_place():
            before = self._hidden(model, batch["retain"])
        moved = self._hidden(model, batch["retain"]) - before
        yield "retain", self.retain_weight * moved.square().mean(-1).sum() / batch["retain"]["n_labels"]

    def _hidden(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """The block's output at positions that predict a labelled token: (n_labels, d_model), float32."""
        blocks = decoder_layers(model)
        self.check_layers(len(blocks))
        places = predicting(batch)
        with outputs_of([blocks[len(blocks) // 2 if self.layer is None else self.layer]]) as outputs:
            label_logits(model, {**batch, "predicting": places[:0]})  # no logits are needed
        return outputs[0].flatten(0, 1).index_select(0, places).float()
