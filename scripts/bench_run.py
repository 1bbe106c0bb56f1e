"""What a whole run or sweep costs beyond its bare arithmetic.

Run: python scripts/bench_run.py [OVERRIDES …]   (default: experiment=demo; --threads N)

The bare arithmetic is the number of tokens of every stage (`casd.planning.costs`), those of trainings at the rate of a bare
loop without padding (`bench_training.py`), and those of evaluations and captures at the rate of a forward pass
(`bench_generation.py`). The rates are measured in this process before and after the run, and averaged, since a machine's speed
drifts. Everything else is overhead: corpus, tokenizer, generation token by token, statistics, and the report.
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from typing import Any

import torch

from bench_generation import forward_pass
from bench_training import bare_loop, tokenized
from casd.backdoors.poisoning import PoisonedStream
from casd.backdoors.prompts import make_prompt_sets
from casd.cli.sweep import sweep
from casd.config import Config
from casd.config.compose import jobs
from casd.data.corpora import CORPORA
from casd.data.encoding import Encoder
from casd.models.load import create_model
from casd.pipeline.inputs import build_backdoors
from casd.planning.plan import plans
from casd.utils.registry import build

STEPS = 8
"""Training steps of a measurement."""
TRAININGS = ("base", "inject", "tune", "unlearn")


class Rates:
    """Tokens per second of a bare training loop and of a forward pass, on a new model of the configuration."""

    def __init__(self, config: Config):
        corpus = build(CORPORA, "corpus", config.corpus.name, config.corpus.params).load(0)
        self.model: Any
        self.model, tokenizer = create_model(config.model, corpus, seed=0)
        self.config, training, backdoors = config, config.injection.training, build_backdoors(config)
        self.encoder = Encoder(tokenizer, config.model.max_length)
        stream = PoisonedStream(corpus.train, backdoors, STEPS * training.batch_size, 0, config.injection.decoy_rate)
        self.rows = tokenized(self.encoder, [stream[index] for index in range(len(stream))])
        sets = make_prompt_sets(corpus, backdoors, self.encoder, config.evaluation, seed=0)
        self.prompts = [prompt for group in sets.triggered.values() for prompt in group]
        self.measured: list[tuple[float, float]] = []

    def measure(self) -> None:
        """Measure both rates once, after a short warm-up."""
        size, settings = self.config.injection.training.batch_size, self.config.evaluation
        bare_loop(copy.deepcopy(self.model), self.rows[:size], size, 1e-4)
        start = time.perf_counter()
        bare_loop(copy.deepcopy(self.model), self.rows, size, 1e-4)
        trained = time.perf_counter()
        forward_pass(self.model, self.encoder, self.prompts, settings.max_new_tokens, settings.batch_size)
        end = time.perf_counter()
        documents = sum(len(row["input_ids"]) for row in self.rows)
        prompts = sum(self.encoder.token_counts(self.prompts)) + len(self.prompts) * settings.max_new_tokens
        self.measured.append((documents / (trained - start), prompts / (end - trained)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", default=["experiment=demo"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as output:
        overrides = [*options.overrides, f"runtime.output={output}"]
        configs = [job.config for job in jobs(overrides)]
        rates = Rates(configs[0])
        rates.measure()
        start = time.perf_counter()
        sweep(overrides)
        seconds = time.perf_counter() - start
        rates.measure()
        stages = {cost.stage.key: cost for plan in plans(configs) for cost in plan.stages}  # shared ones are made once
        tokens: dict[str, float] = defaultdict(float)
        for cost in stages.values():
            tokens[cost.stage.name] += cost.work.tokens if cost.work else 0
    training, forward = (statistics.mean(column) for column in zip(*rates.measured, strict=True))
    print(f"\n{' '.join(options.overrides)}; {options.threads} CPU threads; rates before and after, in tokens/s:")
    print("; ".join(f"training {train:,.0f}, forward pass {read:,.0f}" for train, read in rates.measured))
    print("\n| stages | tokens | bare seconds |\n|---|---|---|")
    bare = 0.0
    for name, number in tokens.items():
        if number:
            least = number / (training if name in TRAININGS else forward)
            bare += least
            print(f"| {name} | {number:,.0f} | {least:.1f} |")
    print(f"\nwhole: {seconds:.0f} s, bare: {bare:.0f} s, ratio {seconds / bare:.2f};", end=" ")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
