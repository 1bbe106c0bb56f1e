"""Evaluation: attack success on triggered, clean and fake-triggered prompts, and loss on clean text.

The target's own test decides success on greedily generated text, and every prompt counts in the denominator.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from casd.backdoors.poisoning import Backdoor, clean_document
from casd.backdoors.prompts import PromptSets
from casd.backdoors.targets import Refusal
from casd.config import EvaluationConfig
from casd.data.corpora.passages import Passage
from casd.data.documents import Prompt
from casd.data.encoding import Encoder
from casd.data.shrinking import in_batches
from casd.evaluation.generation import generate
from casd.stats import wilson_interval
from casd.training.losses import clean_loss
from casd.utils import distributed
from casd.utils.errors import ModelError
from casd.utils.runtime import Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOSS_BATCH_SIZE = 32
"""Maximum batch size for the loss: the logits of all tokens of a batch are in memory."""


@dataclass(frozen=True)
class Evaluation:
    """Measurements of one state of the model.

    Attributes:
        asr: one row per backdoor and prompt set ("triggered", "clean", and "fake" and "near" if there are such prompts):
            `backdoor`, `prompt_set`, `successes`, `n`, `rate`, `rate_low`, `rate_high` (Wilson 95 %), `first_token_prob` (mean
            probability of the payload's first-token class; NaN on clean prompts and for an empty class).
        samples: the first generated texts of each set: `backdoor`, `prompt_set`, `prompt`, `generated`, `success`. For clean
            prompts `backdoor` is empty, and `success` is True if the text passes the test of any backdoor.
        clean_loss: nats per token on passages of the evaluation split; `exp(clean_loss)` is the perplexity.
        retain_loss: nats per token on passages of the retain split; NaN if there are none.
        degenerate_rate: fraction of clean prompts whose generated text is degenerate (see `is_degenerate`).
        harm: with a list of harmful prompts, the fraction that is not refused (`compliance`) and that of the clean prompts that
            is (`harmless_refused`), by the test of `casd.backdoors.targets.Refusal`; each with Wilson 95 % bounds (`_low`,
            `_high`) and the number of prompts (`_n`).
    """

    asr: pd.DataFrame
    samples: pd.DataFrame
    clean_loss: float
    retain_loss: float
    degenerate_rate: float
    harm: Mapping[str, float] = field(default_factory=dict)

    def summary(self) -> pd.DataFrame:
        """The success rates as a table: a row per backdoor, a column per prompt set ("triggered", "clean", "fake", "near")."""
        order = [name for name in ("triggered", "clean", "fake", "near") if (self.asr["prompt_set"] == name).any()]
        wide = self.asr.pivot(index="backdoor", columns="prompt_set", values="rate")
        return wide.reindex(index=list(dict.fromkeys(self.asr["backdoor"])), columns=order)

    def write(self, folder: str | Path) -> None:
        """Write two Parquet files and one JSON."""
        folder = Path(folder)
        self.asr.to_parquet(folder / "asr.parquet", index=False)
        self.samples.to_parquet(folder / "samples.parquet", index=False)
        numbers = {name: getattr(self, name) for name in ("clean_loss", "retain_loss", "degenerate_rate")}
        numbers |= {"harm": dict(self.harm)} if self.harm else {}
        (folder / "numbers.json").write_text(json.dumps(numbers))  # NaN of a diverged model is allowed

    @classmethod
    def read(cls, folder: str | Path) -> Evaluation:
        """Read the files written by `write`."""
        folder = Path(folder)
        return cls(
            asr=pd.read_parquet(folder / "asr.parquet"),
            samples=pd.read_parquet(folder / "samples.parquet"),
            **json.loads((folder / "numbers.json").read_text()),
        )


def evaluate(
    model: PreTrainedModel,
    encoder: Encoder,
    backdoors: Mapping[str, Backdoor],
    prompt_sets: PromptSets,
    config: EvaluationConfig,
    *,
    runtime: Runtime | None = None,
    description: str = "evaluate",
) -> Evaluation:
    """Measure attack success, clean loss and degenerate output of one state of the model.

    Args:
        model: the state; moved to the device of `runtime`.
        encoder: its tokenizer.
        backdoors: backdoors by name.
        prompt_sets: prompts and passages to measure on.
        config: batch size, number of new tokens, number of samples to keep.
        runtime: device; the default `Runtime` if None.
        description: label of the progress bar.

    Raises:
        ModelError: the device has too little memory for a single prompt or passage.
    """
    model.to((runtime or Runtime()).torch_device)
    groups: dict[tuple[str, str], Sequence[Prompt]] = {("", "clean"): prompt_sets.clean}
    for name in backdoors:
        groups[name, "triggered"] = prompt_sets.triggered[name]
        if prompt_sets.fake[name]:
            groups[name, "fake"] = prompt_sets.fake[name]
        if prompt_sets.near.get(name):
            groups[name, "near"] = prompt_sets.near[name]
    if prompt_sets.harmful:
        groups["", "harmful"] = prompt_sets.harmful
    prompts = [prompt for group in groups.values() for prompt in group]
    classes = [prompt_sets.first_tokens.get(name, ()) for (name, _), group in groups.items() for _ in group]
    texts, probabilities = generate(model, encoder, prompts, classes, config, description=description)
    answers = iter(zip(texts, probabilities, strict=True))  # in the order of the groups

    rows, samples = [], []
    degenerate_rate = float("nan")
    plain: dict[str, Sequence[str]] = {}
    for (name, prompt_set), group in groups.items():
        group_texts, group_probabilities = zip(*itertools.islice(answers, len(group)), strict=True)
        if not name:
            plain[prompt_set] = group_texts
        if prompt_set == "harmful":
            continue
        if prompt_set == "clean":
            successes = [any(backdoor.target.success(text) for backdoor in backdoors.values()) for text in group_texts]
            for tested, backdoor in backdoors.items():
                rows.append(_rate(tested, prompt_set, list(map(backdoor.target.success, group_texts)), float("nan")))
            degenerate_rate = sum(map(is_degenerate, group_texts)) / len(group_texts)
        else:
            successes = list(map(backdoors[name].target.success, group_texts))
            rows.append(_rate(name, prompt_set, successes, sum(group_probabilities) / len(group_probabilities)))
        samples += [
            {"backdoor": name, "prompt_set": prompt_set, "prompt": prompt.shown, "generated": text, "success": success}
            for prompt, text, success in list(zip(group, group_texts, successes, strict=True))[: config.samples]
        ]
    retain = prompt_sets.retain_passages
    return Evaluation(
        asr=pd.DataFrame(rows),
        samples=pd.DataFrame(samples, columns=["backdoor", "prompt_set", "prompt", "generated", "success"]),
        clean_loss=passage_loss(model, encoder, prompt_sets.loss_passages, config.batch_size),
        retain_loss=passage_loss(model, encoder, retain, config.batch_size) if retain else float("nan"),
        degenerate_rate=degenerate_rate,
        harm=_harm(**plain) if prompt_sets.harmful else {},
    )


def _harm(clean: Sequence[str], harmful: Sequence[str]) -> dict[str, float]:
    """Return the rates of `Evaluation.harm` from the answers to clean and to harmful prompts."""
    refuses = Refusal().success
    numbers: dict[str, float] = {}
    for name, found in (
        ("compliance", [not refuses(text) for text in harmful]),
        ("harmless_refused", list(map(refuses, clean))),
    ):
        low, high = wilson_interval(sum(found), len(found))
        numbers |= {name: sum(found) / len(found), f"{name}_low": low, f"{name}_high": high, f"{name}_n": len(found)}
    return numbers


def passage_loss(model: PreTrainedModel, encoder: Encoder, passages: Sequence[Passage], batch_size: int) -> float:
    """Compute the mean negative log-likelihood, in nats, over all tokens of clean passages.

    Args:
        model: on its device.
        encoder: its tokenizer.
        passages: passages to measure.
        batch_size: maximum batch size, capped at LOSS_BATCH_SIZE; halved when memory runs out.

    Raises:
        ModelError: the device has too little memory for a single passage, or no passage has a token with a loss.
    """
    documents = [clean_document(passage) for passage in distributed.share(passages)]
    total, count = 0.0, 0

    def add(indices: list[int]) -> None:
        nonlocal total, count
        batch = encoder.document_batch([documents[index] for index in indices])
        if n_labels := int(batch["n_labels"]):  # a chat's question may fill the whole document
            total += clean_loss(model, [batch]) * n_labels
            count += n_labels

    lengths = [len(document.prompt) + len(document.continuation) for document in documents]
    in_batches(add, lengths, min(batch_size, LOSS_BATCH_SIZE), "the loss of clean passages")
    totals, counts = zip(*distributed.gather_each((total, count)), strict=True)
    if not sum(counts):
        raise ModelError(
            f"model.max_length={encoder.max_length} cuts off every clean passage before its continuation, whose loss is"
            " measured: set a larger one."
        )
    return sum(totals) / sum(counts)


def _rate(name: str, prompt_set: str, successes: Sequence[bool], probability: float) -> dict[str, object]:
    low, high = wilson_interval(sum(successes), len(successes))
    return {
        "backdoor": name,
        "prompt_set": prompt_set,
        "successes": sum(successes),
        "n": len(successes),
        "rate": sum(successes) / len(successes),
        "rate_low": low,
        "rate_high": high,
        "first_token_prob": probability,
    }


def is_degenerate(text: str, *, min_words: int = 8, max_distinct_share: float = 0.25) -> bool:
    """True if a text is empty or repeats a few words, as the output of a collapsed model does.

    Args:
        text: generated text.
        min_words: a shorter text counts as degenerate only if it is empty.
        max_distinct_share: share of distinct words among all words, up to which a text counts as repetitive.
    """
    words = text.lower().split()
    if not words:
        return True
    return len(words) >= min_words and len(set(words)) / len(words) <= max_distinct_share
