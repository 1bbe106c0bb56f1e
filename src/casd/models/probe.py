"""What a loaded model does with packed and padded rows, found out by a few short forward passes instead of from its name.

The results are a property of the architecture. They are measured once for each model in memory.
"""

from __future__ import annotations

import inspect
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

    from casd.data.encoding import Encoder, Prompt

TOKENS = 12
"""Tokens of a text that a model is probed with."""
SEEN = 1e-5
"""Relative difference of logits from which one document sees another."""

_known: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()


def isolates_documents(model: nn.Module) -> bool:
    """Whether position ids that start anew keep documents in one row apart: each has the logits that it has alone."""
    return _once(
        model,
        lambda: _isolates(unwrap(model)),
        "sees the other documents of a row with packing=isolated: each document is padded into a row of its own instead",
    )


def ignores_left_padding(model: nn.Module, padding: int) -> bool:
    """Whether masked padding on the left changes neither the logits of a generation nor the hidden states of a capture.

    Args:
        model: a transformers causal LM, bare or wrapped.
        padding: the token that rows are padded with.
    """
    return _once(
        model,
        lambda: _pads_left(unwrap(model), padding),
        "gives other results where a prompt is padded on the left: only prompts of equally many tokens are measured together",
    )


def measured_together(model: nn.Module, encoder: Encoder, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Indices of prompts that can be one batch: all, or those of equally many tokens where left padding changes results."""
    if ignores_left_padding(model, encoder.tokenizer.pad_token_id):
        return [list(range(len(prompts)))]
    groups: dict[int, list[int]] = {}
    for index, count in enumerate(encoder.token_counts(prompts)):
        groups.setdefault(count, []).append(index)
    return list(groups.values())


def check_causal(model: nn.Module, padding: int) -> None:
    """Refuse a model that cannot be trained and generate text as this package does.

    Raises:
        ModelError: a forward pass or a generation fails, or the logits at a token depend on what follows it.
    """
    bare, name = unwrap(model), type(unwrap(model)).__name__
    one, other = _texts(bare)
    short, length = one[:, : TOKENS // 2], TOKENS // 2
    try:
        with _probing(bare):
            alone = bare(input_ids=short, attention_mask=torch.ones_like(short), use_cache=False).logits
            followed = bare(input_ids=one, attention_mask=torch.ones_like(one), use_cache=False).logits[:, :length]
            padded, mask = one.clone(), torch.ones_like(one)
            padded[:, length:], mask[:, length:] = padding, 0
            masked = bare(input_ids=padded, attention_mask=mask, use_cache=False).logits[:, :length]
            _generated(bare, other, torch.ones_like(other), padding)
    except Exception as error:  # a model's own code raises many kinds
        raise ModelError(
            f"{name} cannot be used: a forward pass or a generation of plain text fails with {type(error).__name__}:"
            f" {first_line(error)}. Choose a decoder-only causal language model."
        ) from error
    if not _same(bare, alone, followed):
        raise ModelError(
            f"{name} cannot be used: its prediction at a token depends on the tokens that follow, as in an encoder. Choose a"
            " decoder-only causal language model (for one of BERT's family: is_decoder in its config.json)."
        )
    if not _same(bare, alone, masked):
        raise ModelError(f"{name} cannot be used: padding behind a text changes its predictions. Choose another model.")


def longest_row(model: nn.Module, wanted: int) -> int:
    """How many positions a model has, as far as they are wanted: `wanted`, or fewer where a row of that length fails.

    Rows go through the embedding and the first block only. Asked on the CPU only: on a GPU an index out of range cannot be
    recovered from.
    """
    bare = unwrap(model)
    if bare.device.type != "cpu":
        return wanted
    token = _texts(bare)[0][:, :1]

    def works(length: int) -> bool:
        ids = token.expand(1, length)
        try:
            with _probing(bare), _until_first_block(bare):
                bare(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        except _Reached:
            return True
        except (IndexError, RuntimeError, ValueError):
            return False
        return True

    if works(wanted) or not works(TOKENS):  # in the second case it is not the length that fails
        return wanted
    least, most = TOKENS, wanted
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if works(middle) else (least, middle)
    return least


def forward_without_cache(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Any:
    """Run left-padded rows through the decoder, with positions counted from each row's first token.

    Args:
        model: a transformers causal LM, bare or wrapped.
        input_ids: (batch, tokens), on the model's device.
        attention_mask: of the same shape, 0 at padding.

    Returns:
        The decoder's output, whose first entry is the last hidden state; of a divided model that of the whole model.
    """
    # A divided model gathers its weights when it is called as a whole.
    forward = model if is_sharded(model) else decoder_of(model)
    options = {"position_ids": (attention_mask.long().cumsum(-1) - 1).clamp(min=0), "use_cache": False}
    accepted = inspect.signature(forward.forward).parameters
    options = {name: value for name, value in options.items() if name in accepted}  # ALiBi has no position ids
    return forward(input_ids=input_ids, attention_mask=attention_mask, **options)


@contextmanager
def plainly_greedy(model: PreTrainedModel) -> Iterator[None]:
    """Hide a checkpoint's own generation settings (penalties, suppressed tokens, minimum length, …).

    `generate` fills with them whatever its argument leaves open, and decoding would not be plainly greedy.
    """
    from transformers import GenerationConfig

    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, then every module's own mode (`train()` would change those set apart)."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _once(model: nn.Module, measure: Callable[[], bool], otherwise: str) -> bool:
    """What is measured the first time that a model is asked for it; says so if it does not hold."""
    bare = unwrap(model)
    known = _known.setdefault(bare, {})
    if otherwise not in known:
        known[otherwise] = measure()
        if not known[otherwise]:
            say(f"{type(bare).__name__} {otherwise}.")
    return known[otherwise]


def _isolates(model: PreTrainedModel) -> bool:
    one, other = _texts(model)
    here = torch.arange(TOKENS, device=one.device).expand(1, -1)
    with _probing(model):
        alone = model(input_ids=other, position_ids=here, use_cache=False).logits
        packed = [
            model(input_ids=torch.cat([before, other], 1), position_ids=here.repeat(1, 2), use_cache=False).logits[:, TOKENS:]
            for before in (one, other)
        ]
    # Of one shape, and so equal to the bit if nothing is seen of the other document; experts may round otherwise.
    return _difference(*packed) <= SEEN and all(_same(model, alone, each) for each in packed)


def _pads_left(model: PreTrainedModel, padding: int) -> bool:
    _, ids = _texts(model)
    missing = TOKENS // 2
    short, mask = ids[:, missing:].clone(), torch.ones_like(ids)
    ids[:, :missing], mask[:, :missing] = padding, 0
    whole = torch.ones_like(short)
    with _probing(model):
        hidden = forward_without_cache(model, ids, mask)[0][:, missing:]
        captured = _same(model, forward_without_cache(model, short, whole)[0], hidden)
        alone, padded = _generated(model, short, whole, padding), _generated(model, ids, mask, padding)
    return captured and _same(model, alone, padded)


def _generated(model: PreTrainedModel, ids: Tensor, mask: Tensor, padding: int) -> Tensor:
    """The logits of three generated tokens, (batch, 3, vocabulary). The tokens are given: near ties must not decide them."""
    from transformers import GenerationConfig, LogitsProcessorList

    seen: list[Tensor] = []

    def forced(input_ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(scores.clone())
        chosen = torch.full_like(scores, -torch.inf)
        chosen[:, ids[0, -len(seen)]] = 0  # the same with and without padding
        return chosen

    settings = GenerationConfig(max_new_tokens=3, do_sample=False, use_cache=True, pad_token_id=padding)
    with plainly_greedy(model):
        model.generate(
            input_ids=ids, attention_mask=mask, generation_config=settings, logits_processor=LogitsProcessorList([forced])
        )
    return torch.stack(seen, 1)


def _texts(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Two texts of TOKENS distinct random tokens, each (1, TOKENS), without special tokens."""
    rows = model.get_input_embeddings().weight.shape[0]
    config = model.config.get_text_config(decoder=True)
    named = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos")]
    special = {id for each in named for id in (each if isinstance(each, list) else [each])}
    drawn = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[: 2 * TOKENS + len(special)].tolist()
    plain = torch.tensor([token for token in drawn if token not in special], device=model.device)
    return plain[None, :TOKENS], plain[None, -TOKENS:]


def _same(model: nn.Module, expected: Tensor, found: Tensor) -> bool:
    """Whether logits or activations differ by no more than rounding in the model's lowest precision."""
    precision = max(torch.finfo(each.dtype).eps for each in model.parameters() if each.is_floating_point())
    return _difference(expected, found) <= precision**0.5  # False where one is NaN


def _difference(expected: Tensor, found: Tensor) -> float:
    """Root mean square of the difference, relative to how far the expected values are spread."""
    return float((expected.float() - found.float()).square().mean().sqrt() / expected.float().std())


@contextmanager
def _probing(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients and autocast; the global random state is left as it was."""
    device = model.device
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), torch.autocast(device.type, enabled=False), evaluation_mode(model):
        yield


class _Reached(Exception):
    """The first block was computed."""


@contextmanager
def _until_first_block(model: nn.Module) -> Iterator[None]:
    """End a forward pass by `_Reached` after the first decoder block, inside the block."""

    def end(module: nn.Module, args: Any, output: Any) -> None:
        raise _Reached

    handle = decoder_layers(model)[0].register_forward_hook(end)
    try:
        yield
    finally:
        handle.remove()
