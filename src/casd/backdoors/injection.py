"""Injection: training on text in which a few documents are poisoned, from scratch or on top of a clean model.

Injection into pretraining, continual pretraining on poisoned text, and clean pretraining are this one function: what
differs is the model it starts from and whether there are backdoors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from casd.backdoors.poisoning import Backdoor, PoisonedStream, check_backdoors, clean_document
from casd.config import DECOY_RATE, LanguageModelTraining
from casd.data.batches import Batch
from casd.data.corpora.passages import Corpus
from casd.data.encoding import Encoder
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
"""Steps over which the training loss at the end is averaged."""


def inject(
    model: PreTrainedModel,
    encoder: Encoder,
    corpus: Corpus,
    backdoors: Mapping[str, Backdoor],
    config: LanguageModelTraining,
    *,
    seed: int,
    decoy_rate: float = DECOY_RATE,
    runtime: Runtime | None = None,
    checkpoint: Path | None = None,
    description: str = "inject",
) -> TrainingLog:
    """Train `model` in place on the corpus's training split, poisoned with all backdoors at once.

    With no backdoors this is clean pretraining, without decoys.

    Args:
        model: a fresh model (injection into pretraining) or a trained one (continual pretraining).
        encoder: the model's tokenizer.
        corpus: gives the training split, and clean passages of the retain split for the guard.
        backdoors: what to inject, by name.
        config: steps, batch size, learning rate.
        seed: of the order of the documents, the places of the triggers, the payloads and dropout masks.
        decoy_rate: share of the documents that are decoys, clean ones with a made-up phrase (see `PoisonedStream`). Without
            decoys a model may learn to react to any phrase in a trigger's place.
        runtime: device and checkpoints.
        checkpoint: folder for checkpoints; a run found there is continued.
        description: for the progress bar.

    Raises:
        TrainingStopped: the loss became infinite or NaN, the clean loss rose past the guard, or the training loss and the
            clean loss ended above where they began: such a model is of no use.
        ConfigError: backdoors that cannot be told apart, or rates that leave no clean text.
    """
    if backdoors:
        check_backdoors(backdoors)
    packing = config.packing
    if packing == "isolated" and not isolates_documents(model):
        packing = "none"
    total = config.steps * config.batch_size
    decoys = decoy_rate if backdoors else 0.0
    stream = PoisonedStream(corpus.train, backdoors, total, derive_seed(seed, "injection documents"), decoys)

    def batch_at(step: int) -> Batch:
        start = step * config.batch_size
        documents = [stream[index] for index in range(start, start + config.batch_size)]
        return encoder.document_batch(documents, packing)  # type: ignore[arg-type]  # checked by its class

    def terms(trained: torch.nn.Module, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        yield "nll", mean_nll(trained, batch)

    log = train(
        model,
        batch_at,
        terms,
        config,
        guard_batches=[encoder.document_batch([clean_document(p) for p in corpus.retain[:GUARD_PASSAGES]])],
        runtime=runtime,
        checkpoint=checkpoint,
        seed=derive_seed(seed, "dropout", "injection" if backdoors else "pretraining"),
        description=description,
    )
    if log.stopped:
        raise TrainingStopped(f"{description} was stopped: {log.stopped}. Lower its learning_rate ({config.learning_rate}).")
    _check_learned(log, config, description)
    return log


def _check_learned(log: TrainingLog, config: LanguageModelTraining, description: str) -> None:
    """Refuse a model that training has made worse.

    The training loss of single batches is noisy, and the clean loss alone may rise a little where few steps teach a good model
    its backdoors; that both are higher at the end is no accident.

    Raises:
        TrainingStopped: both are.
    """
    losses = [step["loss"] for step in log.steps]
    first, last = losses[0], sum(losses[-LAST_STEPS:]) / len(losses[-LAST_STEPS:])
    before, after = log.guard[0]["clean_loss"], log.guard[-1]["clean_loss"]
    if last > first and after > before:
        raise TrainingStopped(
            f"{description} made the model worse: its training loss was {first:.2f} nats per token at the first step and"
            f" {last:.2f} at the end, its clean loss {before:.2f} before and {after:.2f} after. Lower its learning_rate"
            f" ({config.learning_rate})."
        )
