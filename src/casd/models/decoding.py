"""Greedy decoding with a key-value cache that is allocated once.

transformers' `generate` copies the whole cache at every token, and computes texts that have ended until the last one of the
batch ends. `decode` does neither, and gives the same tokens. It serves models whose blocks all attend to the whole text, and
those with windows while the text is within them; `casd.evaluation.generation` uses `generate` for the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from casd.models.probe import measured_once, plainly_greedy, probing, random_texts
from casd.models.sharding import is_sharded
from casd.models.structure import unwrap

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPACTED = 0.1
"""Share of ended texts above which these leave the batch."""


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one block, in tensors with room for `room` tokens after the prompt."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room, self._length = room, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values, each (batch, heads, new tokens, head size), and return all of them."""
        begin, self._length = self._length, self._length + key_states.shape[2]
        if not begin:
            self._storage = [self._allocate(states) for states in (key_states, value_states)]
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        for storage, states in zip(self._storage, (key_states, value_states), strict=True):
            storage[:, :, begin : self._length] = states
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows of the batch."""
        for place in range(2):  # one after the other, so that the old keys are freed before the values are copied
            self.keys = self.values = None
            self._storage[place] = self._storage[place].index_select(0, indices)
        self._show()

    def _allocate(self, states: Tensor) -> Tensor:
        batch, heads, tokens, size = states.shape
        return states.new_empty(batch, heads, tokens + self._room, size)

    def _show(self) -> tuple[Tensor, Tensor]:
        states: list[Any] = [storage[:, :, : self._length] for storage in self._storage]
        self.keys, self.values = states
        return states[0], states[1]


def preallocated_cache(model: nn.Module, prompt_tokens: int, new_tokens: int) -> DynamicCache | None:
    """Return an empty cache with room for `new_tokens` tokens after a prompt; None if a block keeps something else than all.

    A window that is shorter than the text and recurrent states are such cases.
    """
    cache = DynamicCache(config=unwrap(model).config)
    layers = getattr(cache, "layers", [])

    def keeps_all(layer: object) -> bool:
        if isinstance(layer, DynamicSlidingWindowLayer):
            return bool(layer.sliding_window >= prompt_tokens + new_tokens)
        return type(layer) is DynamicLayer

    if not layers or not all(map(keeps_all, layers)):
        return None
    cache.layers = [PreallocatedLayer(new_tokens) for _ in layers]
    return cache


def can_decode(model: nn.Module, padding: int, prompt_tokens: int, new_tokens: int) -> bool:
    """Return True if `decode` serves a model: a short text gets the tokens that transformers' `generate` gives it.

    Args:
        model: a transformers causal LM, bare or wrapped.
        padding: id of the padding token.
        prompt_tokens: length of the prompts.
        new_tokens: number of tokens to generate.
    """
    # Processes that share the weights of a model have to generate equally many tokens, which `generate` sees to.
    if is_sharded(model) or preallocated_cache(model, prompt_tokens, new_tokens) is None:
        return False
    return measured_once(
        model, lambda: _same_tokens(unwrap(model), padding), "is decoded by transformers' generate, which is slower"
    )


def _same_tokens(model: PreTrainedModel, padding: int) -> bool:
    """Return True if `decode` gives a left-padded prompt the tokens that transformers' `generate` gives it."""
    ids = random_texts(model)[0].clone()
    mask = torch.ones_like(ids)
    ids[:, : ids.shape[1] // 2], mask[:, : ids.shape[1] // 2] = padding, 0
    settings = GenerationConfig(max_new_tokens=3, do_sample=False, use_cache=True, pad_token_id=padding)
    with probing(model), plainly_greedy(model):
        expected = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, ids.shape[1] :]
        try:
            tokens, _ = decode(model, ids, mask, 3, ends=(), padding=padding)
        except Exception:  # the model's own code raises errors of many types
            return False
    return torch.equal(tokens, expected)


@torch.no_grad()
def decode(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, new_tokens: int, *, ends: Sequence[int], padding: int
) -> tuple[Tensor, Tensor]:
    """Decode greedily, until `new_tokens` tokens or an end token.

    Args:
        model: a model for which `can_decode` is True.
        input_ids: left-padded prompts, (batch, tokens), on the model's device.
        attention_mask: mask, (batch, tokens), 0 at padding.
        new_tokens: maximum number of generated tokens.
        ends: ids of the end tokens; empty for none.
        padding: id of the padding token, which fills the result after the end token.

    Returns:
        The generated tokens, (batch, new_tokens), and the logits of the first one, (batch, vocabulary) in float32.
    """
    cache = preallocated_cache(model, input_ids.shape[1], new_tokens)
    takes_positions = "position_ids" in inspect.signature(unwrap(model).forward).parameters
    result = input_ids.new_full((len(input_ids), new_tokens), padding)
    first: Tensor | None = None
    places = torch.arange(len(input_ids), device=input_ids.device)  # of the rows that go on
    positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    ended = torch.zeros_like(places, dtype=torch.bool)
    end_tokens = torch.tensor(ends, dtype=input_ids.dtype, device=input_ids.device)
    tokens = input_ids
    # For a number of logits models take a view, whose rows are not adjacent in memory. With those PyTorch multiplies a frozen
    # matrix row by row, in bfloat16 on a CPU with a copy of the matrix each time; an index gives adjacent rows.
    last = torch.tensor([-1], device=input_ids.device)
    for step in range(new_tokens):
        options = {"position_ids": positions} if takes_positions else {}
        output = model(
            input_ids=tokens,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=last,
            **options,
        )
        logits = output.logits[:, -1]
        if first is None:
            first = logits.float()
        following = logits.argmax(-1).masked_fill(ended, padding)
        result[places, step] = following
        if step + 1 == new_tokens:
            break
        if len(ends):
            ended = ended | torch.isin(following, end_tokens)
            number = int(ended.sum())
            if number == len(ended):
                break
            if number > COMPACTED * len(ended):
                left = (~ended).nonzero().squeeze(-1)
                cache.batch_select_indices(left)  # type: ignore[union-attr]
                places, following, ended = places[left], following[left], ended[left]
                positions, attention_mask = positions[left], attention_mask[left]
        tokens, positions = following[:, None], positions[:, -1:] + 1
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(tokens), 1)], 1)
    assert first is not None
    return result, first
