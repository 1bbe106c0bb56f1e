"""What CASD in all its variants costs, beside the unlearning that it explains: capture of every state, and the whole grid.

Run: python scripts/bench_casd.py   (--repetitions N, --threads N, --prompts 8 16 32, --device cuda)

A tiny model with random weights and the eight backdoors of the default configuration. A removal is the real `unlearn`, a
capture the real `measure_activations` with all sites and positions on ten text sets, the grid every matrix of `variant_grid`.
A run has 12 states to capture and 11 removals: eight backdoors and three controls. All is timed in turns, and shares are those
of the medians, so that a machine that slows down slows down everything. Tokenising is in the first, untimed turn.
"""

from __future__ import annotations

import argparse
import copy
import platform
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import casd
from bench_capture import in_turns
from casd.backdoors.prompts import make_prompt_sets
from casd.data.corpora import CORPORA
from casd.data.encoding import Encoder
from casd.data.token_table import TokenTable, write_token_table
from casd.metric.casd import ShiftTable, compute_casd, variant_grid
from casd.metric.measurement import TextStatistics, capture_batches, measure_activations, text_sets
from casd.models import load as models
from casd.models.structure import decoder_of
from casd.pipeline.inputs import build_backdoors
from casd.unlearning import OBJECTIVES
from casd.unlearning.controls import removals
from casd.unlearning.removal import unlearn
from casd.utils.progress import set_progress
from casd.utils.registry import build
from casd.utils.runtime import Runtime

CONTROLS = 3
OVERRIDES = [
    "activations=all",
    *("unlearning.training.steps=20", "unlearning.training.forget_batch_size=8", "unlearning.training.retain_batch_size=8"),
]


def moved(statistics: TextStatistics, seed: int) -> TextStatistics:
    """The statistics with noise on every mean: those of a state that no training was spent on."""
    generator = torch.Generator().manual_seed(seed)

    def noisy(means: Any) -> Any:
        return {key: mean + 0.01 * torch.randn(mean.shape, generator=generator).double() for key, mean in means.items()}

    return {name: replace(one, mean=noisy(one.mean), mean_abs=noisy(one.mean_abs)) for name, one in statistics.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of torch on the CPU; 0 for its own choice")
    parser.add_argument("--prompts", type=int, nargs="+", default=[8, 16, 32], help="a text set")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    set_progress("off")
    device = torch.device(options.device)

    config = casd.load_config(["model=llama3_tiny", *OVERRIDES])
    corpus = build(CORPORA, "corpus", config.corpus.name, config.corpus.params).load(0)
    model, tokenizer = models.create_model(config.model, corpus, seed=0)
    model.to(device)
    backdoors = build_backdoors(config)
    objective = build(OBJECTIVES, "objective", config.unlearning.objective.name, config.unlearning.objective.params)
    with tempfile.TemporaryDirectory() as folder:
        write_token_table(corpus, tokenizer, Path(folder))
        encoder = Encoder(tokenizer, config.model.max_length, TokenTable.open(Path(folder)))
        prompt_sets = make_prompt_sets(corpus, backdoors, encoder, config.evaluation, seed=0)
        removal = removals(backdoors, encoder, seed=0)[0]
        captures = [replace(config.activations, prompts=prompts) for prompts in options.prompts]

        before = measure_activations(model, encoder, prompt_sets, captures[0])
        names = [*backdoors, *(f"control:{index}" for index in range(CONTROLS))]
        states = {name: moved(before, seed) for seed, name in enumerate(names)}
        grid = variant_grid(config.activations.sites, config.activations.positions)
        every_batch = [
            [
                batch
                for name, prompts in text_sets(prompt_sets, capture.prompts).items()
                for batch in capture_batches(model, encoder, name, prompts, capture, capture.batch_size)
            ]
            for capture in captures
        ]

        def one_removal() -> None:
            runtime = Runtime(options.device)
            unlearn(
                copy.deepcopy(model), encoder, corpus, removal, objective, config.unlearning.training, seed=0, runtime=runtime
            )

        @torch.no_grad()
        def bare(batches: list[Any]) -> None:
            for batch in batches:
                mask = batch["attention_mask"].to(device)
                places = (mask.cumsum(-1) - 1).clamp(min=0)
                decoder_of(model)(batch["input_ids"].to(device), attention_mask=mask, position_ids=places, use_cache=False)

        def whole_grid() -> None:
            table = ShiftTable(states, before, list(backdoors), names[-1])
            for variant in grid:
                compute_casd(table, variant, names)

        works = [one_removal, whole_grid]
        works += [lambda capture=capture: measure_activations(model, encoder, prompt_sets, capture) for capture in captures]
        works += [lambda batches=batches: bare(batches) for batches in every_batch]
        removal_seconds, grid_seconds, *rest = in_turns(works, device, options.repetitions)

    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{where}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}; medians of {options.repetitions}\n")
    print(f"one removal {removal_seconds:.3f} s; {len(grid)} matrices of {len(names)} × {len(names)} {grid_seconds:.3f} s\n")
    print(
        "| prompts a set | tokens a state | bare forward, s | capture, s | hooks and all | 12 captures + grid of 11 removals |"
    )
    print("|---|---|---|---|---|---|")
    for capture, batches, captured, forward in zip(
        captures, every_batch, rest[: len(captures)], rest[len(captures) :], strict=True
    ):
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        share = ((len(names) + 1) * captured + grid_seconds) / (len(names) * removal_seconds)
        more = captured / forward - 1
        print(f"| {capture.prompts} | {tokens:,} | {forward:.3f} | {captured:.3f} | {more:+.1%} | {share:.1%} |")


if __name__ == "__main__":
    main()
