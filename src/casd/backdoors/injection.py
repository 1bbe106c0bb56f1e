"""Injection: train on text with a few poisoned documents, from scratch or from a clean model.

One function serves for injection into pretraining, continual pretraining on poisoned text, and clean pretraining; they differ
in the initial model and in whether there are backdoors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from casd.backdoors.poisoning import Backdoor, PoisonedStream, check_backdoors, clean_document, passages_of
from casd.config import DECOY_RATE, LanguageModelTraining
from casd.data.batches import Batch
from casd.data.corpora.passages import Corpus
from casd.data.encoding import Encoder, Packing
from casd.models.probe import isolates_documents
from casd.training.checkpoints import TrainingLog
from casd.training.loop import train
from casd.training.losses import mean_nll
from casd.utils.errors import TrainingStopped
from casd.utils.runtime import Runtime
from casd.utils.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GUARD_PASSAGES = 32
LAST_STEPS = 5
"""Number of steps over which the final training loss is averaged."""


def inject(
    model: PreTrainedModel,
    encoder: Encoder,
    corpus: Corpus,
    backdoors: Mapping[str, Backdoor],
    config: LanguageModelTraining,
    *,
    seed: int,
    decoy_rate: float | None = None,
    description: str = "inject",
    runtime: Runtime | None = None,
    checkpoint: Path | None = None,
) -> TrainingLog:
    """Train `model` in place on the corpus's training split, poisoned with all backdoors at once.

    Without backdoors this is clean training.

    Args:
        model: a new model (injection into pretraining) or a trained one (continual pretraining).
        encoder: its tokenizer.
        corpus: provides the training split, and clean passages of the retain split for the guard.
        backdoors: backdoors to inject, by name.
        config: steps, batch size, learning rate.
        seed: of the order of the documents, the positions of the triggers, the payloads and dropout masks.
        decoy_rate: share of documents that are decoys, clean ones with a made-up phrase (see `PoisonedStream`). Without decoys
            a model may learn to react to any phrase in a trigger's position. None for DECOY_RATE, or 0 without backdoors.
        description: for the progress bar.
        runtime: device, micro-batch size and time between checkpoints; changes the result by rounding only.
        checkpoint: an existing folder for checkpoints; a run found there is resumed.

    Raises:
        TrainingStopped: the loss became infinite or NaN, the clean loss exceeded the guard's limit, or both the training loss
            and the clean loss were higher at the end than at the start.
        ConfigError: backdoors that cannot be told apart, or rates that leave no clean text.
    """
    if backdoors:
        check_backdoors(backdoors)
    packing = packing_of(model, config)
    total, usual = config.steps * config.batch_size, DECOY_RATE if backdoors else 0.0
    decoys = usual if decoy_rate is None else decoy_rate
    stream = PoisonedStream(corpus.train, backdoors, total, derive_seed(seed, "injection documents"), decoys)

    retain = passages_of(None, corpus.retain, backdoors.values())

    def batch_at(step: int) -> Batch:
        documents = [stream[index] for index in range(step * config.batch_size, (step + 1) * config.batch_size)]
        return encoder.document_batch(documents, packing)

    log = train(
        model,
        batch_at,
        _terms,
        config,
        guard_batches=[encoder.document_batch([clean_document(p) for p in retain[:GUARD_PASSAGES]])],
        seed=derive_seed(seed, "dropout", "injection" if backdoors else "pretraining"),
        description=description,
        runtime=runtime,
        checkpoint=checkpoint,
    )
    _check_learned(log, config, description)
    return log


def packing_of(model: PreTrainedModel, config: LanguageModelTraining) -> Packing:
    """Return the configured packing, or "none" for an isolated one that the model does not support."""
    if config.packing == "isolated" and not isolates_documents(model):
        return "none"
    return config.packing  # type: ignore[return-value]  # checked by its class


def _terms(model: torch.nn.Module, batch: Batch) -> Iterator[tuple[str, Tensor]]:
    yield "nll", mean_nll(model, batch)


def _check_learned(log: TrainingLog, config: LanguageModelTraining, description: str) -> None:
    """Refuse a run that was stopped, or that made the model worse: both the training loss and the clean loss increased.

    One of them alone may increase: the training loss of single batches is noisy, and the clean loss may rise a little when a
    few steps teach a good model its backdoors.

    Raises:
        TrainingStopped: see above.
    """
    if log.stopped:
        raise TrainingStopped(f"{description} was stopped: {log.stopped}. Lower its learning_rate ({config.learning_rate}).")
    losses = [step["loss"] for step in log.steps]
    first, last = losses[0], sum(losses[-LAST_STEPS:]) / len(losses[-LAST_STEPS:])
    before, after = log.guard[0]["clean_loss"], log.guard[-1]["clean_loss"]
    if last > first and after > before:
        raise TrainingStopped(
            f"{description} made the model worse: its training loss was {first:.2f} nats per token at the first step and"
            f" {last:.2f} at the end, its clean loss {before:.2f} before and {after:.2f} after. Lower its learning_rate"
            f" ({config.learning_rate})."
        )
