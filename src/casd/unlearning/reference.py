"""The model before unlearning, as some objectives need it: its values are put into the one model that is in memory."""

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
    """A copy of the parameters that are going to be trained, on their device and in their precision.

    It costs the bytes of what is trained (with an adapter, the adapter's), where a second model would cost all of it.

    Args:
        model: before the training.

    Raises:
        ConfigError: a model that is divided over several devices.
    """

    def __init__(self, model: PreTrainedModel):
        if is_sharded(model):
            raise ConfigError(
                "This objective compares with the model before unlearning, which a model divided over several devices (FSDP)"
                " cannot hold beside itself yet. Run it on one device or under DDP, or choose an objective without a reference"
                " (gradient_difference with retain: nll, clean_target, simnpo)."
            )
        self._model = model
        self._parameters = trained_parameters(model)
        self.values: Mapping[str, Tensor] = {name: each.detach().clone() for name, each in self._parameters.items()}

    @property
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        """The trained parameters as they are now, by the names of `values`."""
        return self._parameters

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the model is what it was before unlearning; no gradient is taken, and no dropout drawn."""
        now = {name: parameter.data for name, parameter in self._parameters.items()}
        training = self._model.training
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
            # In the precision of the training: in another one, blocks compute their norms otherwise, so that the model before
            # would differ from itself; and DDP, whose hooks a change of type drops, would no longer add up the gradients.
            parameter.data = values[name].to(parameter.dtype)
        torch.clear_autocast_cache()  # it holds copies in low precision, by parameter and not by value
