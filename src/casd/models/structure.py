"""The parts of a transformers causal LM, found by structure and not by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from casd.utils.errors import ModelError


def unwrap(model: Any) -> Any:
    """The transformers model inside torch.compile (`_orig_mod`), DDP (`module`) and peft, in any order."""
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
    """What maps tokens to hidden states: a causal LM without its head, and without a composite model's other towers."""
    unwrapped = unwrap(model)
    if not hasattr(unwrapped, "get_decoder") or not hasattr(unwrapped, "config"):
        raise ModelError(f"{type(unwrapped).__name__} has no config or no get_decoder(); expected a transformers causal LM.")
    decoder = unwrapped.get_decoder()
    return decoder if hasattr(decoder, "config") else unwrapped.base_model  # ModernBERT calls its output matrix "decoder"


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a transformers causal LM, bare or wrapped by peft, DDP or torch.compile.

    Found by structure, not by name: the outermost list of composite modules in the decoder that is as long as the
    (text) config's `num_hidden_layers`. Prompt-learning adapters of peft are not part of the blocks and so not seen.

    Raises:
        ModelError: no such list, or more than one.
    """
    decoder = decoder_of(model)
    n_layers = decoder.config.get_text_config(decoder=True).num_hidden_layers
    found: list[nn.ModuleList] = []
    level: list[nn.Module] = [decoder]
    while level and not found:  # not into the blocks, which hold nearly all there is
        level = list(dict.fromkeys(child for module in level for child in module.children()))
        found = [module for module in level if isinstance(module, nn.ModuleList) and _are_blocks(module, n_layers)]
    if len(found) != 1:
        raise ModelError(
            f"{type(unwrap(model)).__name__}: expected one list of {n_layers} decoder blocks, found {len(found)}. "
            "Activations can be captured from decoder-only transformers whose blocks are in an nn.ModuleList."
        )
    return found[0]


def _are_blocks(modules: nn.ModuleList, n_layers: int) -> bool:
    """Whether it is as long as the model is deep, and of composite modules: norms and projections are no blocks."""
    return len(modules) == n_layers and all(len(module._modules) > 0 for module in modules)
