"""What padding costs the injection: training steps on the whole batch, and on parts of few rows of similar length.

Run: python scripts/bench_padding.py   (on this machine's CPU; --model NAME, --steps N, --threads N)

The same documents are trained on in turns with each size, and the ratios are those of the medians. "padded" is the number of
tokens that are computed for each token of a document.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from casd.backdoors.poisoning import PoisonedStream
from casd.config.compose import load_config
from casd.data.batches import micro_batches
from casd.data.corpora import CORPORA
from casd.data.encoding import Encoder
from casd.models.load import create_model
from casd.pipeline.inputs import build_backdoors
from casd.training.losses import mean_nll
from casd.utils.registry import build

ROWS = (0, 16, 8, 4)
"""Rows in one forward pass; 0 for the whole batch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama3_tiny")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = load_config([f"model={options.model}"])
    corpus = build(CORPORA, "corpus", config.corpus.name, config.corpus.params).load(0)
    model, tokenizer = create_model(config.model, corpus, seed=0)
    encoder = Encoder(tokenizer, config.model.max_length)
    size = config.injection.training.batch_size
    stream = PoisonedStream(corpus.train, build_backdoors(config), options.steps * size, 0, config.injection.decoy_rate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    seconds: dict[int, list[float]] = {rows: [] for rows in ROWS}
    tokens = dict.fromkeys(ROWS, 0)
    real = 0
    for step in range(options.steps):
        batch = encoder.document_batch([stream[index] for index in range(step * size, (step + 1) * size)])
        real += int(batch["attention_mask"].sum())
        for rows in ROWS:
            parts = micro_batches(batch, rows) if rows else [batch]
            begun = time.perf_counter()
            for part in parts:
                mean_nll(model, part).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds[rows].append(time.perf_counter() - begun)
            tokens[rows] += sum(part["input_ids"].numel() for part in parts)
    whole = statistics.median(seconds[0])
    print(f"{options.model}: {options.steps} steps of {size} documents, {real / options.steps:.0f} tokens each")
    for rows in ROWS:
        median = statistics.median(seconds[rows])
        name = f"{rows} rows at once" if rows else "whole batch"
        print(f"{name:16} {median:.3f} s a step, {whole / median:.2f} times as fast, padded {tokens[rows] / real:.2f}")


if __name__ == "__main__":
    main()
