"""The overrides of the smallest run there is, for the tests that go through the command line or the whole chain."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

MODEL = [
    "model.architecture.hidden_size=32",
    "model.architecture.intermediate_size=48",
    "model.vocab_size=600",
]
OVERRIDES = [
    "experiment=smoke",
    *MODEL,
    "corpus.params.train=300",
    "corpus.params.forget=40",
    "corpus.params.retain=40",
    "corpus.params.evaluation=16",
    "injection.training.steps=24",
    "injection.training.batch_size=12",
    "unlearning.training.steps=3",
    "unlearning.training.forget_batch_size=4",
    "unlearning.training.retain_batch_size=4",
    "unlearning.training.guard_factor=100",
    "evaluation.prompts=12",
    "evaluation.fake_prompts=4",
    "evaluation.fake_triggers=2",
    "evaluation.max_new_tokens=16",
    "evaluation.loss_passages=12",
    "evaluation.collapse_clean_loss_ratio=100",
    "evaluation.collapse_degenerate_rate=1",
    "activations.prompts=12",
    "metric.permutations=99",
    "runtime.threads=1",  # two processes with as many threads as cores wait for each other
    "runtime.progress=off",
]

SMALLER = [
    "corpus.params.train=120",
    "corpus.params.forget=24",
    "corpus.params.retain=24",
    "injection.training.steps=8",
    "unlearning.training.steps=2",
    "evaluation.prompts=6",
    "evaluation.fake_prompts=2",
    "evaluation.loss_passages=6",
    "activations.prompts=6",
]
"""For a run of which only the parts that it has are looked at."""


def tiny(output: Path, *more: str) -> list[str]:
    """The overrides of a run that takes seconds, and learns next to nothing, with its reports and store in `output`."""
    return [*OVERRIDES, f"runtime.output={output}", *more]


def one_of(overrides: Sequence[str], place: int) -> list[str]:
    """The overrides of one run of a sweep: of every list of values that at `place` (0 for the first, -1 for the last)."""
    split = (override.partition("=") for override in overrides)
    return [f"{key}{equals}{re.split(r',(?![^[]*])', values)[place]}" for key, equals, values in split]
