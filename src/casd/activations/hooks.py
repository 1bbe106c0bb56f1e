"""Capture activations of decoder blocks with forward hooks.

`capture` passes each activation to a function during the forward pass and does not store it.

Sites of a block: `resid_post` is the block's output, the residual stream after it; `attn_out` and `mlp_out` are the
outputs of the block's attention and MLP modules. Most families add these outputs to the residual stream unchanged.
OLMo-2 and Gemma 2 and 3 normalize a sublayer's output before adding it; the captured activation is the output BEFORE
that norm. Families that add sublayers in parallel (GPT-NeoX, GPT-J) or scale them (Granite) are captured the same way:
the module's own, unscaled output.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from casd.models.structure import decoder_layers
from casd.utils.errors import ConfigError, ModelError
from casd.utils.registry import unknown

SITES = ("resid_post", "attn_out", "mlp_out")

OnActivation = Callable[[str, int, Tensor], None]

# Parts of transformers' names of sublayers: self_attn, attn, attention, self_attention, linear_attn;
# mlp, ffn, feed_forward, block_sparse_moe.
_SUBLAYER_NAMES = {"attn_out": ("attn", "attention"), "mlp_out": ("mlp", "ffn", "feed_forward", "moe")}
_ATTENTION_TO_AN_ENCODER = ("cross", "encoder")


def sublayers(block: nn.Module, site: str) -> list[nn.Module]:
    """Return the modules of `block` that may be its attention ("attn_out") or its MLP ("mlp_out"): usually one."""
    candidates = [
        module
        for name, module in block.named_children()
        if any(part in name for part in _SUBLAYER_NAMES[site])
        and not any(part in name for part in _ATTENTION_TO_AN_ENCODER)
        and len(module._modules) > 0  # not a norm or a dropout named after the sublayer
    ]
    if site == "mlp_out" and not candidates:
        # In OPT, XGLM and BioGPT, the MLP's projections are children of the block; the last one gives the MLP's output.
        candidates = [module for module in block.children() if hasattr(module, "out_features")][-1:]
    return candidates


def _site_module(block: nn.Module, site: str) -> nn.Module:
    """Return the module of `block` whose output is the activation at `site`.

    Raises:
        ModelError: if there is no such module, more than one, or it adds the residual stream itself (Bloom, MPT).
    """
    if site == "resid_post":
        return block
    candidates = sublayers(block, site)
    if len(candidates) != 1:
        raise ModelError(
            f"{type(block).__name__}: expected one module for {site!r}, found {len(candidates)}. Leave this site out."
        )
    [module] = candidates
    if "residual" in inspect.signature(module.forward).parameters:
        raise ModelError(
            f"{type(module).__name__} adds the residual stream to its own output, so {site!r} cannot be "
            "captured. Leave this site out."
        )
    return module


@contextmanager
def outputs_of(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the modules' outputs inside the `with` block, in the order of computation and with their graph.

    A tuple's first entry is taken. Use `capture` for activations that are not differentiated.
    """
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(keep).remove)
        yield outputs


@contextmanager
def capture(
    model: nn.Module, sites: Iterable[str], layers: Iterable[int] | None = None, *, on_activation: OnActivation
) -> Iterator[None]:
    """Call `on_activation(site, layer_idx, activation)` at every forward pass inside the `with` block.

    `activation` is (batch, pos, d_model), detached, in the model's dtype, on the layer's device, and is not stored. The
    hooks are removed when the block exits, also on an exception. Inside the block, run the model itself and not its
    torch.compile wrapper: code compiled earlier does not call the hooks.

    Args:
        model: a transformers causal LM, bare or wrapped (see `decoder_layers`).
        sites: names from SITES.
        layers: indices of decoder blocks, from 0; None for all. Negative indices are out of range.
        on_activation: function called during the forward pass; it must not change the tensor in place.

    Raises:
        ConfigError: if a site is unknown or a layer out of range.
        ModelError: if the blocks or their sublayers cannot be found, or (during a forward pass) an output is not
            (batch, pos, d_model).
    """
    sites = checked_choices("site", sites, SITES)
    blocks = decoder_layers(model)
    indices = range(len(blocks)) if layers is None else sorted(set(layers))
    if outside := [index for index in indices if not 0 <= index < len(blocks)]:
        raise ConfigError(f"Layer {outside[0]} is out of range: the model has layers 0 to {len(blocks) - 1}.")
    with ExitStack() as hooks:
        for index in indices:
            input_shape: list[torch.Size] = []
            recorder = _shape_recorder(input_shape)
            hooks.callback(blocks[index].register_forward_pre_hook(recorder, with_kwargs=True).remove)
            for site in sites:
                hook = _forward_hook(site, index, input_shape, on_activation)
                hooks.callback(_site_module(blocks[index], site).register_forward_hook(hook).remove)
        yield


def _shape_recorder(input_shape: list[torch.Size]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    """Return a forward pre-hook that stores the shape of a block's input, (batch, pos, d_model), in `input_shape`."""

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_shape[:] = [(args[0] if args else kwargs["hidden_states"]).shape]

    return record


def _forward_hook(site: str, layer_idx: int, input_shape: list[torch.Size], on_activation: OnActivation) -> Callable[..., None]:
    """Return a forward hook that passes a module's output to `on_activation`, in the shape of the block's input."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        activation = output[0] if isinstance(output, tuple | list) else output
        shape = input_shape[0]
        if activation.ndim == 2 and activation.numel() == shape.numel():
            # OPT's projections and some mixtures of experts flatten the batch to (batch · pos, d_model).
            activation = activation.view(shape)
        if activation.shape != shape or activation.ndim != 3:
            raise ModelError(
                f"{type(module).__name__} has an output of shape {tuple(activation.shape)} for {site!r}; "
                "expected (batch, pos, d_model). Leave this site out, or use another model."
            )
        on_activation(site, layer_idx, activation.detach())

    return hook


def checked_choices(kind: str, names: Iterable[str], choices: Sequence[str]) -> tuple[str, ...]:
    """Return `names` without repeats, in the order of `choices`.

    Raises:
        ConfigError: if there are no names, or one is not a choice.
    """
    names = tuple(names)
    for name in names:
        if name not in choices:
            raise unknown(kind, name, choices)
    if not names:
        raise ConfigError(f"No {kind} to capture. Choices: {', '.join(choices)}.")
    return tuple(choice for choice in choices if choice in names)
