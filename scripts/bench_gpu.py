"""Speed and memory of training, generation and capture on a GPU, with models of real shapes and random weights, as Markdown.

Run: python scripts/bench_gpu.py                    (needs CUDA, downloads nothing; --quick for fewer steps)
     python scripts/bench_gpu.py --models qwen3_0_6b --gradient-checkpointing --compile
     python scripts/bench_gpu.py --device cpu --tiny   (the same code on toy sizes; its numbers mean nothing)

Everything goes through casd's own functions: `training.train`, `evaluation.generate`, `collect_statistics`. The shapes are
those of configs/model. The share is of a measured bfloat16 matrix product, not of a datasheet's; operations are counted as in
`casd.planning.workload`, without those that gradient checkpointing repeats.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import transformers

import casd
from bench_capture import BATCHES, capture_seconds, random_model, random_rows, synchronize
from casd.config import EvaluationConfig, LoraConfig, ModelConfig, TrainingConfig
from casd.data.documents import Prompt
from casd.data.shrinking import is_out_of_memory
from casd.evaluation.generation import generate
from casd.models.weights import AdapterName, attach_lora
from casd.planning.blueprint import Blueprint, blueprint
from casd.planning.workload import forward_flops, training_flops
from casd.training.loop import train
from casd.training.losses import mean_nll
from casd.utils.progress import set_progress
from casd.utils.runtime import Runtime

MODELS = ("qwen3_0_6b", "llama3_2_1b", "qwen3_8b")
ADAPTER: AdapterName = "injection"
LORA_FROM = 3e9
"""Parameters from which an adapter is trained and not the weights."""
TINY = (
    *("model.architecture.hidden_size=64", "model.architecture.intermediate_size=96", "model.architecture.num_hidden_layers=2"),
    *("model.architecture.num_attention_heads=4", "model.architecture.num_key_value_heads=2", "model.architecture.head_dim=16"),
    *("model.architecture.vocab_size=300", "model.max_length=32"),
)


@dataclass(frozen=True)
class Sizes:
    """How much is measured. `rows` of model.max_length tokens make a training step, `micro` of them go through at once."""

    matrix: int = 8192
    steps: int = 12
    rows: int = 16
    micro: int = 8
    prompts: int = 64
    prompt_tokens: int = 64
    new_tokens: int = 64
    capture_rows: int = 32
    capture_tokens: int = 128
    repetitions: int = 9


QUICK = Sizes(steps=4, new_tokens=24, repetitions=3)
TOY = Sizes(matrix=128, steps=2, rows=4, micro=2, prompts=3, prompt_tokens=8, new_tokens=4, capture_rows=2, repetitions=1)


@dataclass(frozen=True)
class Row:
    """A line of the table: `speed` in tokens per second, `operations` per token."""

    work: str
    shape: str
    speed: float
    operations: float
    memory: float
    note: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="options of the group `model` that have an architecture")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that this runs")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile")
    parser.add_argument("--optimizer", default="adamw", help="adamw or adamw_8bit")
    options = parser.parse_args()
    try:
        runtime = Runtime(options.device, gradient_checkpointing=options.gradient_checkpointing, compile=options.compile)
        configs = {name: casd.load_config([f"model={name}", "injection=continual"]).model for name in options.models}
        adapted = {name for name, config in configs.items() if blueprint(config).parameters >= LORA_FROM}
        if options.tiny:
            configs = {name: casd.load_config([f"model={name}", "injection=continual", *TINY]).model for name in configs}
    except casd.CasdError as error:
        sys.exit(f"{error}")
    set_progress("off")
    transformers.utils.logging.set_verbosity_error()
    sizes = TOY if options.tiny else QUICK if options.quick else Sizes()
    peak = matrix_product(sizes.matrix, runtime.torch_device)
    print(machine(runtime.torch_device))
    print(f"bfloat16 product of two {sizes.matrix} × {sizes.matrix} matrices: {peak / 1e12:,.3g} TFLOP/s\n")
    print("| model | work | shape | tokens/s | share of peak | peak memory, GiB | notes |\n|---|---|---|---|---|---|---|")
    for name, config in configs.items():
        lora = LoraConfig() if name in adapted else None
        for row in rows_of(config, sizes, runtime, options.optimizer, lora):
            memory = f"{row.memory:.1f}" if row.memory else "–"
            speed, share = (f"{row.speed:,.0f}", f"{row.speed * row.operations / peak:.1%}") if row.speed else ("–", "–")
            print(f"| {name} | {row.work} | {row.shape} | {speed} | {share} | {memory} | {row.note} |", flush=True)


def machine(device: torch.device) -> str:
    """The device and the versions, in words."""
    versions = [f"torch {torch.__version__}", f"transformers {transformers.__version__}", f"Python {platform.python_version()}"]
    if device.type != "cuda":
        return ", ".join([f"{platform.machine()}, {torch.get_num_threads()} CPU threads", *versions])
    properties = torch.cuda.get_device_properties(device)
    name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return ", ".join([name, *versions[:1], f"CUDA {torch.version.cuda}", *versions[1:]])


def matrix_product(size: int, device: torch.device) -> float:
    """Operations per second of a bfloat16 matrix product of random matrices: the best of five times ten products."""
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(6):  # the first one is slower, and never the best
        synchronize(device)
        start = time.perf_counter()
        for _ in range(10):
            torch.mm(a, b)
        synchronize(device)
        best = min(best, (time.perf_counter() - start) / 10)
    return 2 * size**3 / best


def rows_of(config: ModelConfig, sizes: Sizes, runtime: Runtime, optimizer: str, lora: LoraConfig | None) -> Iterator[Row]:
    """All measurements of one model; a work that does not fit says so in its row."""
    shape = blueprint(config)
    trained = "LoRA" if lora else "all weights"
    works: list[tuple[str, str, Callable[[Any], Row]]] = [
        (
            f"training, {trained}",
            f"{sizes.rows} × {config.max_length}, {sizes.micro} rows at once",
            lambda model: training(model, shape, config, sizes, runtime, optimizer, lora),
        ),
        (
            "generation",
            f"{sizes.prompts} × ({sizes.prompt_tokens} + {sizes.new_tokens})",
            lambda model: generation(model, shape, sizes),
        ),
        ("capture", f"{sizes.capture_rows} × {sizes.capture_tokens}", lambda model: capturing(model, shape, sizes)),
    ]
    for work, numbers, measure in works:
        model = random_model(config, runtime.torch_device)
        reset_memory(runtime.torch_device)
        try:
            row = measure(model)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            row = Row("", "", 0.0, 0.0, 0.0, "out of memory")
        yield Row(work, numbers, row.speed, row.operations, row.memory, row.note)
        del model


def training(
    model: Any, shape: Blueprint, config: ModelConfig, sizes: Sizes, runtime: Runtime, optimizer: str, lora: LoraConfig | None
) -> Row:
    """Steps of `casd.training.loop.train` on random tokens, after two that are not counted."""
    if lora:
        attach_lora(model, lora, ADAPTER, seed=0)
    divided = Runtime(
        runtime.device,
        micro_batch_size=sizes.micro,
        gradient_checkpointing=runtime.gradient_checkpointing,
        compile=runtime.compile,
    )

    def batch_at(step: int) -> dict[str, torch.Tensor]:
        batch = random_rows(sizes.rows, config.max_length, shape.vocab_size, step)
        labels = batch["input_ids"].clone()
        labels[:, 0] = -100
        return {**batch, "labels": labels, "n_labels": (labels >= 0).sum(), "n_documents": torch.tensor(sizes.rows)}

    def terms(trained: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        yield "nll", mean_nll(trained, batch)

    def run(steps: int) -> float:
        settings = TrainingConfig(steps=steps, learning_rate=1e-6, optimizer=optimizer)
        return train(model, batch_at, terms, settings, runtime=divided).seconds

    run(2)
    seconds = run(sizes.steps)
    notes = ["gradient checkpointing"] if runtime.gradient_checkpointing else []
    notes += ["compiled"] if runtime.compile else []
    return Row(
        "",
        "",
        sizes.steps * sizes.rows * config.max_length / seconds,
        training_flops(shape, 1, config.max_length, adapters=[(lora, ADAPTER)] if lora else []),
        peak_memory(runtime.torch_device),
        ", ".join([optimizer, *notes]),
    )


def generation(model: Any, shape: Blueprint, sizes: Sizes) -> Row:
    """Greedy generation in one batch (`casd.evaluation.generation`), the second of two. Prompt tokens are not counted."""
    settings = EvaluationConfig(batch_size=sizes.prompts, max_new_tokens=sizes.new_tokens)
    prompts, classes = [Prompt("")] * sizes.prompts, [()] * sizes.prompts
    for _ in range(2):
        synchronize(model.device)
        start = time.perf_counter()
        generate(model, RandomPrompts(sizes.prompt_tokens, shape.vocab_size), prompts, classes, settings)  # type: ignore[arg-type]
        synchronize(model.device)
        seconds = time.perf_counter() - start
    read = forward_flops(shape, sizes.prompt_tokens, sizes.prompt_tokens) - head_flops(shape, sizes.prompt_tokens - 1)
    written = forward_flops(shape, sizes.new_tokens - 1, sizes.prompt_tokens + sizes.new_tokens / 2)
    operations = (read + written) / sizes.new_tokens
    return Row("", "", sizes.prompts * sizes.new_tokens / seconds, operations, peak_memory(model.device))


def capturing(model: Any, shape: Blueprint, sizes: Sizes) -> Row:
    """Statistics of the residual stream after every block, and how fast that is beside the bare forward pass."""
    rows, tokens = sizes.capture_rows, sizes.capture_tokens
    forward, captured = capture_seconds(model, rows, tokens, ["resid_post"], sizes.repetitions)
    operations = forward_flops(shape, 1, tokens) - head_flops(shape, 1)
    speed = BATCHES * rows * tokens / captured
    return Row(
        "", "", speed, operations, peak_memory(model.device), f"{forward / captured:.3f} of the bare forward pass's speed"
    )


class RandomPrompts:
    """In the place of an encoder: prompts of random tokens, and no end token, so that every text has its full length."""

    tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=None, pad_token_id=0)
    ends: tuple[int, ...] = ()

    def __init__(self, tokens: int, vocabulary: int) -> None:
        self.tokens, self.vocabulary = tokens, vocabulary

    def prompt_batch(self, prompts: list[Prompt]) -> dict[str, torch.Tensor]:
        return random_rows(len(prompts), self.tokens, self.vocabulary, 0)

    def decode(self, tokens: torch.Tensor) -> str:
        return ""


def head_flops(shape: Blueprint, tokens: float) -> float:
    """Operations of the logits of so many tokens."""
    return 2 * shape.head_parameters * tokens


def reset_memory(device: torch.device) -> None:
    """Count the peak of memory from here."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> float:
    """The most GiB that tensors took on the GPU since `reset_memory`, weights included; 0 on the CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


if __name__ == "__main__":
    main()
