"""What the capture of activations costs: the decoder's forward pass with streaming hooks, against the same pass without.

Run: python scripts/bench_capture.py   (on this machine's CPU; --device cuda, --repetitions N, --threads N)

Both are timed in turns, and the ratio is that of the medians, so that a machine that slows down slows down both.
"""

from __future__ import annotations

import argparse
import inspect
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers

import casd
from casd.activations.hooks import SITES
from casd.activations.statistics import collect_statistics
from casd.config import ModelConfig
from casd.models.load import DTYPES
from casd.models.structure import decoder_of
from casd.planning.blueprint import blueprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCHES = 2
"""Forward passes a measurement."""
MODELS = {
    "llama3_tiny": ["model=llama3_tiny"],
    "6 layers of width 384": [
        "model=llama3_tiny",
        *("model.architecture.hidden_size=384", "model.architecture.intermediate_size=1152"),
        *("model.architecture.num_hidden_layers=6", "model.architecture.num_attention_heads=6"),
        *("model.architecture.num_key_value_heads=6", "model.architecture.head_dim=64"),
    ],
}


def random_model(config: ModelConfig, device: torch.device) -> PreTrainedModel:
    """A model of the configuration's shape and precision with random weights; nothing is downloaded."""
    with torch.device(device):
        torch.manual_seed(0)
        shape, dtype = blueprint(config).config, DTYPES[config.dtype]
        return transformers.AutoModelForCausalLM.from_config(shape, dtype=dtype, trust_remote_code=False).eval()


def random_rows(rows: int, tokens: int, vocabulary: int, seed: int) -> dict[str, torch.Tensor]:
    """Rows of random tokens without padding: `input_ids` and `attention_mask`."""
    ids = torch.randint(vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def synchronize(device: torch.device) -> None:
    """Wait for the device to be done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(works: Sequence[Callable[[], Any]], device: torch.device, repetitions: int) -> list[float]:
    """The median seconds of each work; they are done in turns, after each was done once."""
    seconds: list[list[float]] = [[] for _ in works]
    for repetition in range(repetitions + 1):
        for work, mine in zip(works, seconds, strict=True):
            synchronize(device)
            start = time.perf_counter()
            work()
            synchronize(device)
            if repetition:
                mine.append(time.perf_counter() - start)
    return [statistics.median(each) for each in seconds]


def capture_seconds(
    model: PreTrainedModel, rows: int, tokens: int, sites: Sequence[str], repetitions: int
) -> tuple[float, float]:
    """Median seconds of the bare forward pass over BATCHES batches, and of the same with streaming hooks at `sites`.

    Positions are the defaults: the last token, and all of the prompt.
    """
    decoder, device = decoder_of(model), model.device
    batches: list[dict[str, Any]] = [random_rows(rows, tokens, decoder.config.vocab_size, seed) for seed in range(BATCHES)]
    for batch in batches:
        last = torch.zeros(rows, tokens, dtype=torch.bool)
        last[:, -1] = True
        batch["position_masks"] = {"last": last, "prompt": batch["attention_mask"].bool()}
    takes_positions = "position_ids" in inspect.signature(decoder.forward).parameters

    @torch.no_grad()
    def bare() -> None:
        for batch in batches:
            mask = batch["attention_mask"]
            places = {"position_ids": (mask.cumsum(-1) - 1).to(device)} if takes_positions else {}
            decoder(input_ids=batch["input_ids"].to(device), attention_mask=mask.to(device), use_cache=False, **places)

    forward, captured = in_turns([bare, lambda: collect_statistics(model, batches, sites)], device, repetitions)
    return forward, captured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--threads", type=int, default=0, help="of torch on the CPU; 0 for its own choice")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{where}, {torch.get_num_threads()} CPU threads; {versions}")
    print(f"{options.rows} × {options.tokens} tokens a pass, median of {options.repetitions} × {BATCHES} passes\n")
    print("| model | sites | bare forward, tokens/s | with hooks, tokens/s | ratio |\n|---|---|---|---|---|")
    for name, overrides in MODELS.items():
        model = random_model(casd.load_config(overrides).model, device)
        for sites in (["resid_post"], list(SITES)):
            forward, captured = capture_seconds(model, options.rows, options.tokens, sites, options.repetitions)
            speeds = [BATCHES * options.rows * options.tokens / seconds for seconds in (forward, captured)]
            print(f"| {name} | {', '.join(sites)} | {speeds[0]:,.0f} | {speeds[1]:,.0f} | {speeds[1] / speeds[0]:.3f} |")


if __name__ == "__main__":
    main()
