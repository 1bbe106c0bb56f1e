"""The states of the one model: told apart by name, and gone back to exactly.

Run: pytest tests/test_states.py
"""

from __future__ import annotations

import pytest
import torch
import transformers

from casd.backdoors.poisoning import Backdoor, check_backdoors
from casd.backdoors.targets import Capitals
from casd.config.states import CLEAN_CONTROL, INJECTED, PHANTOM_CONTROL, kind_of
from casd.models.weights import copy_weights, restore_weights
from casd.utils.errors import ConfigError


def test_kinds_are_told_by_names() -> None:
    assert [kind_of(state) for state in (INJECTED, "french_a", CLEAN_CONTROL, f"{PHANTOM_CONTROL}_2", "controlled")] == [
        *("injected", "removal", "control", "control", "removal")
    ]


@pytest.mark.parametrize("name", [INJECTED, CLEAN_CONTROL, "control:other"])
def test_no_backdoor_may_have_the_name_of_another_state(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}'"):
        check_backdoors({name: Backdoor(name, "mirvane osquel", Capitals())})


def test_restored_weights_are_the_copied_ones_and_the_copy_is_independent() -> None:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, tie_word_embeddings=True))
    tokens = torch.arange(8)[None]
    with torch.inference_mode():
        before = model(tokens).logits
    weights = copy_weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    with torch.inference_mode():
        assert not torch.equal(model(tokens).logits, before)
    restore_weights(model, weights)
    assert model.lm_head.weight is model.model.embed_tokens.weight, "tied weights stay tied"
    with torch.inference_mode():
        assert torch.equal(model(tokens).logits, before)
