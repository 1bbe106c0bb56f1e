"""The one model in memory: the injected one, and what it is made into; its weights are copied once and restored in place."""

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
    """A saved model, in memory and not on the device yet, on which it will be worked with."""
    model = models.load_model(folder, dtype=dtype)
    give_freed_memory_back(model, device)
    return model


class OneModel:
    """The injected model, ready for removals: an adapter of the injection stays apart if removals are adapters too.

    Args:
        config: precision, adapters, and how a removal's weights are kept.
        base: folder of the base model; read only where the injection trained an adapter.
        injected: folder of the injected model ("model") or its adapter ("adapter").
        device: where it is worked with.

    Attributes:
        model: itself.
        injected_weights: those that training may change, as the injection left them.
        state: what its weights are now (`casd.config.states`); None for something that is no state.
    """

    def __init__(self, config: Config, base: Path, injected: Path, device: torch.device):
        self._save_as = config.runtime.save_as
        self._lora: LoraConfig | None = config.unlearning.training.lora
        if config.injection.training.lora:
            self.model = load_on_device(base, config.model.dtype, device)
            weights.load_adapter(self.model, injected / "adapter", "injection")
            if not self._lora:
                weights.merge_adapters(self.model)
        else:
            self.model = load_on_device(injected / "model", config.model.dtype, device)
        if self._lora:
            weights.attach_lora(self.model, self._lora, "removal", seed=derive_seed(config.seed, "removal adapter"))
        sharding.place(self.model, device)
        self.injected_weights = weights.copy_weights(self.model)
        self.state: str | None = INJECTED

    def restore(self) -> PreTrainedModel:
        """The injected model."""
        if self.state != INJECTED:
            weights.restore_weights(self.model, self.injected_weights)
            self.state = INJECTED
        return self.model

    def read_removal(self, folder: Path, state: str) -> None:
        """Make it what `write_removal` wrote."""
        if (folder / weights.ADAPTER_FILE).is_file():
            weights.restore_adapter(self.model, folder, "removal")
        else:
            weights.load_removal(self.model, folder / "weights.safetensors", injected=self.injected_weights)
        self.state = state

    def write_removal(self, folder: Path) -> None:
        """Write what a removal made of it: its adapter, its weights, or their difference to the injected ones."""
        if self._lora:
            weights.save_adapter(self.model, folder, "removal")
        else:
            injected = self.injected_weights if self._save_as == "delta" else None
            weights.save_removal(self.model, folder / "weights.safetensors", injected=injected)
