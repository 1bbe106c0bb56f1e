"""Our greedy decoding against transformers' `generate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from architectures import tiny_model
from casd.models.decoding import PreallocatedLayer, can_decode, decode
from casd.models.probe import plainly_greedy

NEW = 10


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Six prompts of 7 to 12 tokens, left-padded."""
    ids = torch.randint(5, 300, (6, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    for row in range(6):
        ids[row, :row], mask[row, :row] = 0, 0
    return ids, mask


def generated(model: Any, end: int | list[int] | None) -> torch.Tensor:
    """(6, NEW), with zeros after the end token (of several, the first that occurs)."""
    ids, mask = prompts()
    settings = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=end)
    with plainly_greedy(model), torch.no_grad():
        tokens = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, 12:]
    return torch.nn.functional.pad(tokens, (0, NEW - tokens.shape[1]))


@pytest.mark.parametrize(
    "kind", ["llama", "qwen3", "gpt2", "gpt_neo", "bloom", "olmo2", "qwen3_moe", "lfm2", "falcon", "gemma2", "mistral"]
)
def test_decoding_gives_the_tokens_of_generate(kind: str) -> None:
    """With texts that end at different tokens and leave the batch, and with prompts of different lengths."""
    model = tiny_model(kind).eval()
    assert can_decode(model, 0, 12, NEW)
    ids, mask = prompts()
    free = generated(model, None)
    torch.testing.assert_close(decode(model, ids, mask, NEW, ends=(), padding=0)[0], free)
    for end in free[:, 3].tolist():
        found, first = decode(model, ids, mask, NEW, ends=[end], padding=0)
        torch.testing.assert_close(found, generated(model, end))
    several = free[:, 3].tolist()  # a text ends at the first of them
    torch.testing.assert_close(decode(model, ids, mask, NEW, ends=several, padding=0)[0], generated(model, several))
    with torch.no_grad():
        alone = model(input_ids=ids[:1], use_cache=False).logits[0, -1]
    torch.testing.assert_close(first[0], alone.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_a_frozen_output_matrix_is_not_multiplied_row_by_row(kind: str) -> None:
    """As under adapters: in bfloat16 on a CPU, one copy of it for each prompt took minutes and gigabytes at a real size."""
    model = tiny_model(kind).eval().requires_grad_(False)
    inputs: list[torch.Tensor] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    decode(model, *prompts(), NEW, ends=(), padding=0)
    assert len(inputs) == NEW and all(each.is_contiguous() for each in inputs)


@pytest.mark.parametrize("kind", ["mamba", "qwen3_next"])
def test_models_with_states_are_left_to_transformers(kind: str) -> None:
    assert not can_decode(tiny_model(kind).eval(), 0, 12, NEW)


@pytest.mark.parametrize("kind", ["gemma2", "mistral"])
def test_a_text_that_leaves_its_window_is_left_to_transformers(kind: str) -> None:
    model = tiny_model(kind).eval()
    window = model.config.sliding_window
    assert can_decode(model, 0, window - NEW, NEW)
    assert not can_decode(model, 0, window - NEW + 1, NEW)


def test_a_preallocated_layer_is_a_concatenation() -> None:
    """Of rows that were kept, in storage that no later token moves."""
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(4, 2, tokens, 3, generator=draw) for tokens in (5, 1, 1)]
    layer = PreallocatedLayer(2)
    layer.update(states[0], -states[0])
    begun = layer.keys.data_ptr()
    layer.update(states[1], -states[1])
    assert layer.keys.data_ptr() == begun
    layer.batch_select_indices(torch.tensor([3, 1]))
    keys, values = layer.update(states[2][[3, 1]], -states[2][[3, 1]])
    torch.testing.assert_close(keys, torch.cat(states, 2)[[3, 1]])
    torch.testing.assert_close(values, -keys)
    assert layer.get_seq_length() == 7
