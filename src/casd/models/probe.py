"""Measure how a loaded model treats packed and padded rows, by a few short forward passes instead of by its name.

The results are properties of the architecture and are measured once per model in memory.
"""

from __future__ import annotations

import inspect
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from casd.models.sharding import is_sharded
from casd.models.structure import decoder_layers, decoder_of, unwrap
from casd.utils.errors import ModelError, first_line
from casd.utils.progress import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from casd.data.documents import Prompt
    from casd.data.encoding import Encoder

TOKENS = 12
"""Length of the texts that a model is probed with, in tokens."""
SEEN = 1e-5
"""Relative difference of logits above which one document is taken to see another."""

_known: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()


def isolates_documents(model: nn.Module) -> bool:
    """Return True if restarting position ids isolate the documents of a packed row: each has the logits it has alone."""
    return measured_once(
        model,
        lambda: _isolates(unwrap(model)),
        "sees the other documents of a row with packing=isolated: each document is padded into a row of its own instead",
    )


def ignores_left_padding(model: nn.Module, padding: int) -> bool:
    """Return True if left padding changes neither the logits of a generation nor the hidden states of a capture.

    Args:
        model: a transformers causal LM, bare or wrapped.
        padding: id of the padding token.
    """
    return measured_once(
        model,
        lambda: _pads_left(unwrap(model), padding),
        "gives different results when a prompt is left-padded: only prompts with equally many tokens share a batch",
    )


def measured_together(model: nn.Module, encoder: Encoder, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Group prompts that can share a batch: all of them, or those of equal length if left padding changes results.

    Returns:
        Groups of indices into `prompts`.
    """
    if ignores_left_padding(model, encoder.padding):
        return [list(range(len(prompts)))]
    groups: dict[int, list[int]] = {}
    for index, count in enumerate(encoder.token_counts(prompts)):
        groups.setdefault(count, []).append(index)
    return list(groups.values())


def check_causal(model: nn.Module, padding: int) -> None:
    """Check that a model works as a causal LM: it runs and generates, and its logits do not depend on later tokens.

    Args:
        model: a transformers causal LM, bare or wrapped.
        padding: id of the padding token.

    Raises:
        ModelError: if a forward pass or a generation fails, or logits depend on later tokens or on padding after the text.
    """
    bare, name = unwrap(model), type(unwrap(model)).__name__
    one, other = random_texts(bare)
    short, length = one[:, : TOKENS // 2], TOKENS // 2
    try:
        with probing(bare):
            alone = bare(input_ids=short, attention_mask=torch.ones_like(short), use_cache=False).logits
            followed = bare(input_ids=one, attention_mask=torch.ones_like(one), use_cache=False).logits[:, :length]
            padded, mask = one.clone(), torch.ones_like(one)
            padded[:, length:], mask[:, length:] = padding, 0
            masked = bare(input_ids=padded, attention_mask=mask, use_cache=False).logits[:, :length]
            _generated(bare, other, torch.ones_like(other), padding)
    except Exception as error:  # the model's own code raises errors of many types
        raise ModelError(
            f"{name} cannot be used: a forward pass or a generation of plain text fails with {type(error).__name__}:"
            f" {first_line(error)}. Choose a decoder-only causal language model."
        ) from error
    if not _same(bare, alone, followed):
        raise ModelError(
            f"{name} cannot be used: its prediction at a token depends on the tokens that follow, as in an encoder. Choose a"
            " decoder-only causal language model (for the BERT family: set is_decoder in config.json)."
        )
    if not _same(bare, alone, masked):
        raise ModelError(f"{name} cannot be used: padding after a text changes its predictions. Choose another model.")


def longest_row(model: nn.Module, wanted: int) -> int:
    """Return the longest row that a model accepts, up to `wanted` tokens.

    Rows go through the embedding and the first block only. Off the CPU, `wanted` is returned without a check: an index out of
    range on a GPU cannot be recovered from.
    """
    bare = unwrap(model)
    if bare.device.type != "cpu":
        return wanted
    token = random_texts(bare)[0][:, :1]
    first_block = decoder_layers(bare)[0]

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        raise _Reached

    def works(length: int) -> bool:
        ids = token.expand(1, length)
        try:
            with probing(bare), first_block.register_forward_hook(stop):
                bare(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        except _Reached:
            return True
        except (IndexError, RuntimeError, ValueError):
            return False
        return True

    if works(wanted) or not works(TOKENS):  # if even a short row fails, the length is not the cause
        return wanted
    return TOKENS + bisect_left(range(TOKENS + 1, wanted), True, key=lambda length: not works(length))


def forward_without_cache(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Any:
    """Run left-padded rows through the decoder, with positions counted from each row's first real token.

    Args:
        model: a transformers causal LM, bare or wrapped.
        input_ids: token ids, (batch, tokens), on the model's device.
        attention_mask: mask, (batch, tokens), 0 at padding.

    Returns:
        The decoder's output, whose first entry is the last hidden state; for a sharded model, the output of the whole model.
    """
    # A sharded model gathers its weights only if the root module is called.
    forward = model if is_sharded(model) else decoder_of(model)
    options = {"position_ids": (attention_mask.long().cumsum(-1) - 1).clamp(min=0), "use_cache": False}
    accepted = inspect.signature(forward.forward).parameters
    options = {name: value for name, value in options.items() if name in accepted}  # ALiBi has no position ids
    return forward(input_ids=input_ids, attention_mask=attention_mask, **options)


@contextmanager
def plainly_greedy(model: PreTrainedModel) -> Iterator[None]:
    """Disable a checkpoint's own generation settings (penalties, suppressed tokens, minimum length, …) inside the block.

    `generate` uses them for whatever its argument leaves unset, and decoding would not be purely greedy.
    """
    from transformers import GenerationConfig

    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside the block, then restore each module's own mode (`train()` would set one mode for all)."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def measured_once(model: nn.Module, measure: Callable[[], bool], message: str) -> bool:
    """Call `measure` once per model and cache its result; print `message` if it is False."""
    bare = unwrap(model)
    known = _known.setdefault(bare, {})
    if message not in known:
        known[message] = measure()
        if not known[message]:
            say(f"{type(bare).__name__} {message}.")
    return known[message]


def _isolates(model: PreTrainedModel) -> bool:
    one, other = random_texts(model)
    positions = torch.arange(TOKENS, device=one.device).expand(1, -1)
    with probing(model):
        alone = model(input_ids=other, position_ids=positions, use_cache=False).logits
        packed = [
            model(input_ids=torch.cat([first, other], 1), position_ids=positions.repeat(1, 2), use_cache=False).logits
            for first in (one, other)
        ]
    # Rows of one shape give bit-identical logits if the first document is not seen, except that experts may round differently.
    second = [logits[:, TOKENS:] for logits in packed]
    return _difference(*second) <= SEEN and all(_same(model, alone, logits) for logits in second)


def _pads_left(model: PreTrainedModel, padding: int) -> bool:
    _, ids = random_texts(model)
    missing = TOKENS // 2
    short, mask = ids[:, missing:].clone(), torch.ones_like(ids)
    ids[:, :missing], mask[:, :missing] = padding, 0
    whole = torch.ones_like(short)
    with probing(model):
        hidden = forward_without_cache(model, ids, mask)[0][:, missing:]
        captured = _same(model, forward_without_cache(model, short, whole)[0], hidden)
        alone, padded = _generated(model, short, whole, padding), _generated(model, ids, mask, padding)
    return captured and _same(model, alone, padded)


def _generated(model: PreTrainedModel, ids: Tensor, mask: Tensor, padding: int) -> Tensor:
    """Return the logits of three generated tokens, (batch, 3, vocab_size). Forced tokens, so near ties do not matter."""
    from transformers import GenerationConfig, LogitsProcessorList

    logits: list[Tensor] = []

    def forced(input_ids: Tensor, scores: Tensor) -> Tensor:
        logits.append(scores.clone())
        chosen = torch.full_like(scores, -torch.inf)
        chosen[:, ids[0, -len(logits)]] = 0  # the same token with and without padding
        return chosen

    settings = GenerationConfig(max_new_tokens=3, do_sample=False, use_cache=True, pad_token_id=padding)
    with plainly_greedy(model):
        model.generate(
            input_ids=ids, attention_mask=mask, generation_config=settings, logits_processor=LogitsProcessorList([forced])
        )
    return torch.stack(logits, 1)


def random_texts(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Draw two texts of distinct random tokens, each (1, TOKENS), without special tokens."""
    vocab_size = model.get_input_embeddings().weight.shape[0]
    config = model.config.get_text_config(decoder=True)
    ids = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")]
    special = {token for entry in ids for token in (entry if isinstance(entry, list) else [entry])}
    drawn = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(0))[: 2 * TOKENS + len(special)].tolist()
    plain = torch.tensor([token for token in drawn if token not in special], device=model.device)
    return plain[None, :TOKENS], plain[None, -TOKENS:]


def _same(model: nn.Module, expected: Tensor, actual: Tensor) -> bool:
    """Return True if logits or activations are equal up to rounding in the model's lowest precision."""
    precision = max(torch.finfo(weight.dtype).eps for weight in model.parameters() if weight.is_floating_point())
    return _difference(expected, actual) <= precision**0.5  # False if any is NaN


def _difference(expected: Tensor, actual: Tensor) -> float:
    """Return the root mean square difference relative to the standard deviation of the expected values."""
    return float((expected.float() - actual.float()).square().mean().sqrt() / expected.float().std())


@contextmanager
def probing(model: PreTrainedModel) -> Iterator[None]:
    """Set evaluation mode without gradients and autocast; the global random state is unchanged."""
    device = model.device
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), torch.autocast(device.type, enabled=False), evaluation_mode(model):
        yield


class _Reached(Exception):
    """Raised when the first block has run."""
