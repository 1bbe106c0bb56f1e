"""Evaluation: what a model generates at triggers, at clean prompts and at fake triggers, and its loss on clean text.

Success is decided on greedily generated text, by the target's own test, and every prompt counts in the denominator.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

from casd.backdoors.poisoning import Backdoor, clean_document
from casd.backdoors.prompts import PromptSets
from casd.config import EvaluationConfig
from casd.data.corpora.passages import Passage
from casd.data.encoding import Encoder, Prompt
from casd.data.shrinking import in_batches
from casd.models.probe import measured_together, plainly_greedy
from casd.stats import wilson_interval
from casd.training.losses import clean_loss
from casd.utils import distributed
from casd.utils.progress import track
from casd.utils.runtime import Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOSS_BATCH_SIZE = 32
"""Passages whose loss is computed at once, at most: the logits of all their tokens are in memory."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured on one state of the model.

    Attributes:
        asr: one row per backdoor and prompt set ("triggered", "clean", and "fake" if there are fake triggers): `backdoor`,
            `prompt_set`, `successes`, `n`, `rate`, `rate_low`, `rate_high` (Wilson 95 %), `first_token_prob` (mean probability
            of the payload's first-token class; NaN if no token is in it).
        samples: some generated texts: `backdoor`, `prompt_set`, `prompt`, `generated`, `success`. Clean prompts have no
            backdoor of their own; there `backdoor` is empty and `success` says whether any backdoor's test fired.
        clean_loss: nats per token on passages of the evaluation split; `exp` of it is the perplexity.
        retain_loss: the same on passages of the retain split.
        degenerate_rate: fraction of clean prompts answered with nothing or with a loop.
    """

    asr: pd.DataFrame
    samples: pd.DataFrame
    clean_loss: float
    retain_loss: float
    degenerate_rate: float

    def write(self, folder: Path) -> None:
        """Write two Parquet files and one JSON."""
        self.asr.to_parquet(folder / "asr.parquet", index=False)
        self.samples.to_parquet(folder / "samples.parquet", index=False)
        numbers = {name: getattr(self, name) for name in ("clean_loss", "retain_loss", "degenerate_rate")}
        (folder / "numbers.json").write_text(json.dumps(numbers))  # a broken model's NaN included

    @classmethod
    def read(cls, folder: Path) -> Evaluation:
        """Read what `write` wrote."""
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
    """Measure every backdoor on one state of the model.

    Raises:
        ModelError: the device has too little memory for a single prompt or passage.
    """
    model.to((runtime or Runtime()).torch_device)
    groups: list[tuple[str, str, Sequence[Prompt]]] = [("", "clean", prompt_sets.clean)]
    for name in backdoors:
        groups.append((name, "triggered", prompt_sets.triggered[name]))
        if prompt_sets.fake[name]:
            groups.append((name, "fake", prompt_sets.fake[name]))
    prompts = [prompt for _, _, members in groups for prompt in members]
    classes = [prompt_sets.first_tokens.get(name, ()) for name, _, members in groups for _ in members]
    generated, class_probabilities = generate(model, encoder, prompts, classes, config, description=description)

    rows, samples, start = [], [], 0
    degenerate_rate = float("nan")
    for name, prompt_set, members in groups:
        texts = generated[start : start + len(members)]
        probabilities = class_probabilities[start : start + len(members)]
        start += len(members)
        if prompt_set == "clean":
            fired = {tested: [backdoor.target.success(text) for text in texts] for tested, backdoor in backdoors.items()}
            for tested, successes in fired.items():
                rows.append(_rate(tested, prompt_set, successes, float("nan")))
            shown = [any(successes[index] for successes in fired.values()) for index in range(len(texts))]
            degenerate_rate = sum(map(is_degenerate, texts)) / len(texts)
        else:
            shown = [backdoors[name].target.success(text) for text in texts]
            rows.append(_rate(name, prompt_set, shown, sum(probabilities) / len(probabilities)))
        samples += [
            {"backdoor": name, "prompt_set": prompt_set, "prompt": prompt.text, "generated": text, "success": success}
            for prompt, text, success in list(zip(members, texts, shown, strict=True))[: config.samples]
        ]
    return Evaluation(
        asr=pd.DataFrame(rows),
        samples=pd.DataFrame(samples, columns=["backdoor", "prompt_set", "prompt", "generated", "success"]),
        clean_loss=passage_loss(model, encoder, prompt_sets.loss_passages, config.batch_size),
        retain_loss=passage_loss(model, encoder, prompt_sets.retain_passages, config.batch_size),
        degenerate_rate=degenerate_rate,
    )


def passage_loss(model: PreTrainedModel, encoder: Encoder, passages: Sequence[Passage], batch_size: int) -> float:
    """Mean NLL in nats over all tokens of clean passages, each token counted once.

    Args:
        model: on its device.
        encoder: its tokenizer.
        passages: the texts.
        batch_size: passages at once, at most; LOSS_BATCH_SIZE if that is less. Halved where memory runs out.

    Raises:
        ModelError: the device has too little memory for a single passage.
    """
    documents = [clean_document(passage) for passage in distributed.share(passages)]
    total, count = 0.0, 0

    def add(indices: list[int]) -> None:
        nonlocal total, count
        batch = encoder.document_batch([documents[index] for index in indices])
        n_labels = int(batch["n_labels"])
        total += clean_loss(model, [batch]) * n_labels
        count += n_labels

    lengths = [len(document.prompt) + len(document.continuation) for document in documents]
    in_batches(add, lengths, min(batch_size, LOSS_BATCH_SIZE), "the loss of clean passages")
    sums = distributed.gather_each((total, count))
    return sum(total for total, _ in sums) / sum(count for _, count in sums)


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
    """Whether a text is what a collapsed model gives: nothing, or few words over and over.

    Args:
        text: generated text.
        min_words: a shorter text that is not empty is not judged.
        max_distinct_share: of distinct words among all words; at most this is a loop.
    """
    words = text.lower().split()
    if not words:
        return True
    return len(words) >= min_words and len(set(words)) / len(words) <= max_distinct_share


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    encoder: Encoder,
    prompts: Sequence[Prompt],
    classes: Sequence[Sequence[int]],
    config: EvaluationConfig,
    *,
    description: str = "generate",
) -> tuple[list[str], list[float]]:
    """Greedy continuation of each prompt, in batches of similar length, with a key-value cache.

    Batches are padded on the left, unless that changes what the model computes (`casd.models.probe`).

    Args:
        model: on its device.
        encoder: its tokenizer.
        prompts: what to continue.
        classes: for each prompt, the tokens whose total probability as the first generated token is wanted.
        config: batch size (halved where memory runs out) and number of new tokens.
        description: for the progress bar.

    Returns:
        The generated texts and those probabilities, in the order of the prompts; NaN for a prompt without such tokens.

    Raises:
        ModelError: the device has too little memory for a single prompt.
    """
    from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

    class FirstLogits(LogitsProcessor):
        """Keeps the logits of the first generated token and changes nothing."""

        logits: torch.Tensor | None = None

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if self.logits is None:
                self.logits = scores.float()
            return scores

    settings = GenerationConfig(
        max_new_tokens=config.max_new_tokens,
        do_sample=False,
        use_cache=True,
        bos_token_id=encoder.tokenizer.bos_token_id,
        eos_token_id=encoder.tokenizer.eos_token_id,
        pad_token_id=encoder.tokenizer.pad_token_id,
    )
    mine = distributed.share(range(len(prompts)))
    made: dict[int, tuple[str, float]] = {}

    def add(places: list[int]) -> None:
        for rows in measured_together(model, encoder, [prompts[mine[place]] for place in places]):
            generate_batch([mine[places[row]] for row in rows])
        advance(len(places))

    def generate_batch(indices: list[int]) -> None:
        batch = encoder.prompt_batch([prompts[index] for index in indices]).items()
        inputs = {name: tensor.to(model.device) for name, tensor in batch}
        first = FirstLogits()
        output = model.generate(**inputs, generation_config=settings, logits_processor=LogitsProcessorList([first]))
        assert first.logits is not None
        distribution = first.logits.softmax(-1).cpu()
        continuations = output[:, inputs["input_ids"].shape[1] :].cpu()
        for row, index in enumerate(indices):
            probability = float(distribution[row, list(classes[index])].sum()) if classes[index] else float("nan")
            made[index] = (encoder.decode(continuations[row]), probability)

    with track(description, total=len(mine)) as advance, plainly_greedy(model):
        in_batches(add, [len(prompts[index].text) for index in mine], config.batch_size, "generation")
    whole = distributed.gather([made[index] for index in mine])
    return [text for text, _ in whole], [probability for _, probability in whole]
