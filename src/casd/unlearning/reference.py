"""The weights before unlearning, for objectives that compare with them; swapped into the one model in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from casd.models.sharding import is_sharded
from casd.models.weights import trained_parameters
from casd.utils.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Reference:
    """A copy of the trained parameters, on their device and in the precision in which they are trained: 4 bytes for each.

    With an adapter that is far less than a second model.

    Args:
        model: the model before training.

    Raises:
        ConfigError: the model is sharded over several devices.
    """

    def __init__(self, model: PreTrainedModel):
        if is_sharded(model):
            raise ConfigError(
                "This objective compares with the model before unlearning, which is not supported for a model sharded over"
                " several devices (FSDP). Run it on one device or under DDP, or choose an objective without a reference"
                " (gradient_difference with retain: nll, clean_target, simnpo)."
            )
        self._model = model
        self._parameters = trained_parameters(model)
        self.values: Mapping[str, Tensor] = {name: value.detach().clone() for name, value in self._parameters.items()}

    @property
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        """The current trained parameters, by the names of `values`."""
        return self._parameters

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block, give the model its weights before unlearning, without gradients or dropout."""
        now = {name: parameter.data for name, parameter in self._parameters.items()}
        training = self._model.training
        # In training precision: in another one norms are computed differently, so that the result would differ even without
        # training, and DDP would stop adding up gradients, since a change of dtype drops its hooks. Converted once.
        self.values = {name: self.values[name].to(parameter.dtype) for name, parameter in self._parameters.items()}
        self._put(self.values)
        self._model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._put(now)
            self._model.train(training)

    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.data = values[name]
        torch.clear_autocast_cache()  # it caches low-precision copies by parameter, not by value
