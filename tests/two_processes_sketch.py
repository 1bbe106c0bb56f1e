"""Sketches the same update of a whole and of a divided model, and writes both (two_processes)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from casd.config import LoraConfig
from casd.metric.baselines.updates import sketch_update
from casd.models.sharding import is_sharded, local_part, place
from casd.models.weights import attach_lora, copy_weights, restore_weights, trained_parameters
from casd.utils import distributed

# An odd width: parts of a parameter are not equally large.
SHAPE = {"hidden_size": 30, "intermediate_size": 47, "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 61}


def build(kind: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=1))
    if kind == "lora":
        attach_lora(model, LoraConfig(rank=3), "removal", seed=0)
    return model


def sketch(model: PreTrainedModel) -> list[float]:
    """Of an update that is drawn whole, name by name."""
    injected = copy_weights(model)
    generator = torch.Generator().manual_seed(1)
    drawn = {name: torch.randn(parameter.shape, generator=generator) for name, parameter in trained_parameters(model).items()}
    restore_weights(model, {name: local_part(value, trained_parameters(model)[name]) for name, value in drawn.items()})
    return sketch_update(model, injected, size=100, seed=0).tolist()


def main(out: Path) -> None:
    whole, divided, sharded = {}, {}, {}
    for kind in ("full", "lora"):
        whole[kind] = sketch(build(kind))
    for kind in ("full", "lora"):
        model = place(build(kind), torch.device("cpu"))
        sharded[kind] = is_sharded(model)
        divided[kind] = sketch(model)
    from accelerate.utils import gather_object

    everyone = gather_object([divided])
    if distributed.is_main():
        out.write_text(json.dumps({"whole": whole, "divided": everyone, "sharded": sharded}))
