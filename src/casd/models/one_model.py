"""Hold the injected model in memory; removals change it in place, and its weights are restored from one copy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from casd.config import Config, LoraConfig
from casd.config.states import INJECTED
from casd.models import load as models
from casd.models import sharding, weights
from casd.utils.runtime import give_freed_memory_back
from casd.utils.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_on_device(folder: Path, dtype: str, device: torch.device) -> PreTrainedModel:
    """Load a saved model into CPU memory, and tune the allocator for computing on `device`."""
    model = models.load_model(folder, dtype=dtype)
    give_freed_memory_back(model, device)
    return model


class OneModel:
    """The injected model, ready for removals.

    An adapter of the injection stays separate if removals train adapters too; otherwise it is merged into the weights.

    Args:
        config: precision, adapters, and the format of saved removals.
        base: folder of the base model; read only if the injection trained an adapter.
        injected: folder of the injected model, or of the adapter that the injection trained.
        device: device to compute on.

    Attributes:
        model: the model.
        injected_weights: copy of the trainable weights after the injection.
        state: state whose weights the model has now (`casd.config.states`); None if they belong to no state.
    """

    def __init__(self, config: Config, base: Path, injected: Path, device: torch.device):
        self._save_as = config.runtime.save_as
        self._lora: LoraConfig | None = config.unlearning.training.lora
        if config.injection.lora:
            self.model = load_on_device(base, config.model.dtype, device)
            weights.load_adapter(self.model, injected, "injection")
            if not self._lora:
                weights.merge_adapters(self.model)
        else:
            self.model = load_on_device(injected, config.model.dtype, device)
        if self._lora:
            weights.attach_lora(self.model, self._lora, "removal", seed=derive_seed(config.seed, "removal adapter"))
        sharding.place(self.model, device)
        self.injected_weights = weights.copy_weights(self.model)
        self.state: str | None = INJECTED

    def restore(self) -> PreTrainedModel:
        """Restore the injected weights in place and return the model."""
        if self.state != INJECTED:
            weights.restore_weights(self.model, self.injected_weights)
            self.state = INJECTED
        return self.model

    def read_removal(self, folder: Path, state: str) -> None:
        """Load the weights that `write_removal` wrote to `folder`, and set `state`."""
        if (folder / weights.ADAPTER_FILE).is_file():
            weights.restore_adapter(self.model, folder, "removal")
        else:
            weights.load_removal(self.model, folder / "weights.safetensors", injected=self.injected_weights)
        self.state = state

    def write_removal(self, folder: Path) -> None:
        """Write the result of a removal to `folder`: its adapter, its weights, or their difference to the injected weights."""
        if self._lora:
            weights.save_adapter(self.model, folder, "removal")
        else:
            injected = self.injected_weights if self._save_as == "delta" else None
            weights.save_removal(self.model, folder / "weights.safetensors", injected=injected)
