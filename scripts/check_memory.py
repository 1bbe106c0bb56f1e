"""How near the estimates of `casd.planning.memory` come to what a training really takes on this machine.

    python scripts/check_memory.py [--device cpu|cuda] [--dtype float32] [--steps 3]

Two sizes of a llama-like model from random weights are trained for a few steps, in full and by an adapter, with and without
gradient checkpointing, each in a fresh process. Measured is, on the CPU, the largest resident set (ru_maxrss; the estimate is
the need, what the process had before the model was made, and the allowance for the allocator); on CUDA it is
torch.cuda.max_memory_allocated.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, int]] = {
    "31M": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8},
    "117M": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 8, "num_attention_heads": 16},
}
VOCABULARY = 8000
ROWS, TOKENS = 4, 128


def architecture(size: str) -> dict[str, Any]:
    shape = SIZES[size]
    return {
        **shape,
        "num_key_value_heads": shape["num_attention_heads"] // 2,
        "head_dim": 64,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "max_position_embeddings": 512,
    }


def terms(model: Any, batch: Any) -> Iterator[tuple[str, Any]]:
    from casd.training.losses import mean_nll

    yield "nll", mean_nll(model, batch)


def estimate(size: str, dtype: str, lora: bool, checkpointing: bool) -> tuple[int, int]:
    """Parameters of the model, and bytes that its training is estimated to need."""
    from casd.config import LoraConfig, TrainingConfig
    from casd.models.load import transformers_config
    from casd.planning.blueprint import Blueprint
    from casd.planning.memory import Rows, training_need

    blueprint = Blueprint(transformers_config("llama", architecture(size)), dtype)
    adapters: Any = [(LoraConfig(), "injection")] if lora else []
    rows = Rows(ROWS, TOKENS)
    need = training_need(blueprint, TrainingConfig(), rows, adapters=adapters, gradient_checkpointing=checkpointing)
    return blueprint.parameters, need.total


def measure(size: str, dtype: str, lora: bool, checkpointing: bool, device: str, steps: int) -> dict[str, int]:
    """Train in this process; bytes before the model was made, and at most."""
    import accelerate  # noqa: F401  # what a training imports late belongs to the process, not to the model
    import peft  # noqa: F401
    import torch
    from psutil import Process
    from transformers import AutoModelForCausalLM

    from casd.config import LoraConfig, TrainingConfig
    from casd.models.load import DTYPES, transformers_config
    from casd.models.weights import attach_lora
    from casd.planning.memory import Rows
    from casd.training.loop import train
    from casd.utils.runtime import Runtime, give_freed_memory_back

    config = transformers_config("llama", architecture(size))
    with torch.device("meta"):  # imports the model's own modules
        AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    before = Process().memory_info().rss
    model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype], trust_remote_code=False)
    give_freed_memory_back(model, torch.device(device))
    if lora:
        attach_lora(model, LoraConfig(), "injection", seed=0)
    batch = Rows(ROWS, TOKENS).batch()
    batch["input_ids"] = batch["labels"] = torch.randint(0, VOCABULARY, (ROWS, TOKENS))
    # Rows of different lengths, as documents have them: without padding transformers would leave out the mask.
    batch["attention_mask"][0, TOKENS // 2 :] = 0
    runtime = Runtime(device=device, gradient_checkpointing=checkpointing)
    train(model, lambda step: batch, terms, TrainingConfig(steps=steps, learning_rate=1e-5), runtime=runtime)
    return {"before": 0 if device == "cuda" else before, "peak": peak_bytes(device)}


def peak_bytes(device: str) -> int:
    """The most bytes that this process has taken so far: of tensors on CUDA, elsewhere its largest resident set."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(**json.loads(options.one), device=options.device, steps=options.steps)))
        return
    from casd.planning.machine import CPU_ALLOCATOR

    mebi = 2**20
    print(
        f"{'model':<6}{'trained':<9}{'checkpointing':<15}{'process':>9}{'need':>9}{'estimate':>10}{'measured':>10}{'ratio':>7}"
    )
    for size in SIZES:
        for lora in (False, True):
            for checkpointing in (False, True):
                case = {"size": size, "dtype": options.dtype, "lora": lora, "checkpointing": checkpointing}
                _, need = estimate(**case)
                command = [sys.executable, str(Path(__file__)), "--device", options.device, "--steps", str(options.steps)]
                done = subprocess.run([*command, "--one", json.dumps(case)], capture_output=True, text=True)
                if done.returncode:
                    sys.exit(done.stderr)
                found = json.loads(done.stdout.splitlines()[-1])
                taken = found["before"] + (CPU_ALLOCATOR if options.device == "cpu" else 0)
                whole = taken + need
                print(
                    f"{size:<6}{'adapter' if lora else 'all':<9}{'yes' if checkpointing else 'no':<15}"
                    f"{taken / mebi:>9.0f}{need / mebi:>9.0f}{whole / mebi:>10.0f}{found['peak'] / mebi:>10.0f}"
                    f"{whole / found['peak']:>7.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
