"""Find the parts of a transformers causal LM by structure, not by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from casd.utils.errors import ModelError


def unwrap(model: Any) -> Any:
    """Return the transformers model inside torch.compile (`_orig_mod`), DDP (`module`) and peft wrappers, in any order."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def decoder_of(model: nn.Module) -> Any:
    """Return the module that maps tokens to hidden states: a causal LM without its head or other towers.

    Raises:
        ModelError: if the model is not a transformers causal LM.
    """
    unwrapped = unwrap(model)
    if not hasattr(unwrapped, "get_decoder") or not hasattr(unwrapped, "config"):
        raise ModelError(f"{type(unwrapped).__name__} has no config or no get_decoder(); expected a transformers causal LM.")
    decoder = unwrapped.get_decoder()
    return decoder if hasattr(decoder, "config") else unwrapped.base_model  # ModernBERT calls its output matrix "decoder"


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the decoder blocks of a transformers causal LM, bare or wrapped by peft, DDP or torch.compile.

    They are the outermost ModuleList of composite modules in the decoder whose length is `num_hidden_layers` of the (text)
    config. Prompt-learning adapters of peft are not part of the blocks.

    Raises:
        ModelError: if there is no such list, or more than one.
    """
    decoder = decoder_of(model)
    n_layers = decoder.config.get_text_config(decoder=True).num_hidden_layers
    candidates: list[nn.ModuleList] = []
    level: list[nn.Module] = [decoder]
    while level and not candidates:  # stop above the blocks, which contain most modules
        level = list(dict.fromkeys(child for module in level for child in module.children()))
        candidates = [module for module in level if isinstance(module, nn.ModuleList) and _are_blocks(module, n_layers)]
    if len(candidates) != 1:
        raise ModelError(
            f"{type(unwrap(model)).__name__}: expected one list of {n_layers} decoder blocks, found {len(candidates)}. "
            "Activations can be captured from decoder-only transformers whose blocks are in an nn.ModuleList."
        )
    return candidates[0]


def _are_blocks(modules: nn.ModuleList, n_layers: int) -> bool:
    """Return True for a list of `n_layers` composite modules; norms and projections are not blocks."""
    return len(modules) == n_layers and all(len(module._modules) > 0 for module in modules)
