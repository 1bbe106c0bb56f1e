"""Fine-pruning: remove the hidden units that clean text activates least, then fine-tune on clean text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from torch import Tensor, nn

from casd.activations.hooks import sublayers
from casd.config.fields import require
from casd.data.batches import Batch, micro_batches, on_device
from casd.models.structure import decoder_layers, decoder_of
from casd.training.losses import label_logits
from casd.unlearning.cleaning.method import Cleaning
from casd.utils.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS_AT_ONCE: Final = 16
"""Rows of a forward pass that measures activity."""


@dataclass(frozen=True, kw_only=True)
class FinePruning(Cleaning):
    """Set the least active hidden units of every block's MLP to zero; then minimise the mean NLL of clean documents.

    The activity of a unit is the mean of |h| over the tokens of clean documents, h being its component of the down
    projection's input. A pruned unit's weights in the down projection are zero from before the first step on.

    Source: Liu, Dolan-Gavitt and Garg 2018, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural Networks"
    (arXiv 1805.12185). They prune the last convolutional layer, as long as the accuracy on clean data allows it; pruning a
    fixed share in all blocks is our choice, as are the defaults. The log's clean loss at step 0 is that after pruning.

    Attributes:
        share: fraction of the units of each block that are pruned, rounded to a number of units.
        batches: number of the training's batches, from the first, on which activity is measured.

    Failure mode: an attacker who knows of it keeps the backdoor in units that clean text activates, too.
    """

    share: float = 0.1
    batches: int = 8

    trains_adapters: ClassVar[bool] = False
    runs_in_processes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self, "in (0, 1)", lambda value: 0 < value < 1, "share")
        require(self, "at least 1", lambda value: value >= 1, "batches")

    @contextmanager
    def around(self, model: PreTrainedModel, batches: Iterable[Batch]) -> Iterator[None]:
        """Prune the model, and keep gradients from pruned weights inside the context."""
        projections = down_projections(model)
        masks = [self._least_active(each) for each in _activities(model, projections, islice(batches, self.batches))]
        with ExitStack() as hooks:
            for projection, pruned in zip(projections, masks, strict=True):
                hooks.callback(_prune(projection, pruned).remove)
            yield

    def _least_active(self, activity: Tensor) -> Tensor:
        """Mask of the units to prune, of the shape of `activity`, (units,)."""
        count = round(self.share * len(activity))
        if not 0 < count < len(activity):
            raise ConfigError(
                f"FinePruning: share is {self.share}, which prunes {count} of the {len(activity)} units of a block."
            )
        pruned = torch.zeros_like(activity, dtype=torch.bool)
        pruned[activity.argsort(stable=True)[:count]] = True
        return pruned


def down_projections(model: nn.Module) -> list[Any]:
    """Find the last matrix of each block's MLP, an nn.Linear or transformers' Conv1D that maps hidden units to d_model.

    Raises:
        ModelError: a block without an MLP, or with a mixture of experts.
    """
    found: list[Any] = []
    width = decoder_of(model).config.get_text_config(decoder=True).hidden_size
    for index, block in enumerate(decoder_layers(model)):
        mlps = sublayers(block, "mlp_out")
        has_experts = any(parameter.ndim > 2 for mlp in mlps for parameter in mlp.parameters())
        matrices: list[Any] = [each for mlp in mlps for each in mlp.modules() if _is_matrix(each)]
        if len(mlps) != 1 or has_experts or not matrices or matrices[-1].weight.shape[1 - _units_axis(matrices[-1])] != width:
            raise ModelError(
                f"FinePruning prunes hidden units of each block's MLP, but block {index} of the model"
                f" ({type(block).__name__}) has no MLP that ends in one matrix; use another cleaning method."
            )
        found.append(matrices[-1])
    return found


def _is_matrix(module: nn.Module) -> bool:
    return getattr(getattr(module, "weight", None), "ndim", 0) == 2


def _units_axis(projection: Any) -> int:
    """Axis of the weight that belongs to the hidden units: transformers' Conv1D stores (inputs, outputs)."""
    return 0 if hasattr(projection, "nf") else 1


@torch.no_grad()
def _activities(model: PreTrainedModel, projections: Sequence[Any], batches: Iterable[Batch]) -> list[Tensor]:
    """Sum of |h| over all tokens that predict a labelled one, for each projection: (units,); ordered like the means."""
    totals = [torch.zeros(each.weight.shape[_units_axis(each)], device=model.device) for each in projections]
    places = torch.empty(0)

    def add(total: Tensor, module: nn.Module, args: tuple[Any, ...]) -> None:
        total += args[0].flatten(0, -2).index_select(0, places).abs().sum(0, dtype=torch.float32)

    model.eval()
    with ExitStack() as hooks:
        for projection, total in zip(projections, totals, strict=True):
            hooks.callback(projection.register_forward_pre_hook(partial(add, total)).remove)
        for batch in batches:
            for part in micro_batches(batch, ROWS_AT_ONCE):
                part = on_device(part, model.device)
                places = part["predicting"]
                label_logits(model, {**part, "predicting": places[:0]})  # no logits are needed
    return totals


def _prune(projection: Any, pruned: Tensor) -> Any:
    """Set the weights of pruned units to zero and register a hook that keeps their gradients zero; return its handle.

    AdamW leaves a weight at exactly zero if all its gradients are zero.
    """
    mask = pruned.unsqueeze(1 - _units_axis(projection))
    with torch.no_grad():
        projection.weight.masked_fill_(mask, 0)
    return projection.weight.register_hook(lambda gradient: gradient.masked_fill(mask, 0))
