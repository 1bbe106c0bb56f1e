"""Base class of cleaning methods, and `clean`, which trains a model with one of them."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from casd.backdoors.injection import packing_of
from casd.backdoors.poisoning import ShuffledStream, clean_document
from casd.config import LanguageModelTraining
from casd.data.batches import Batch
from casd.data.corpora.passages import Corpus
from casd.data.encoding import Encoder
from casd.models import sharding
from casd.training.checkpoints import TrainingLog
from casd.training.loop import train
from casd.training.losses import mean_nll
from casd.unlearning.removal import guard_batch
from casd.utils import distributed
from casd.utils.errors import ConfigError
from casd.utils.runtime import Runtime
from casd.utils.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Cleaning(ABC):  # noqa: B024  # every method may be overridden, and none has to be
    """A cleaning method: training on clean text, with what `terms` and `around` add to it.

    Attributes:
        trains_adapters: False if the method changes weights that an adapter does not contain.
        runs_in_processes: False if the method needs the whole model and batch in one process.
    """

    trains_adapters: ClassVar[bool] = True
    runs_in_processes: ClassVar[bool] = True

    def terms(self, model: torch.nn.Module, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield the named scalar losses whose sum is minimised; by default, the mean NLL of the clean documents in nats.

        The rules for micro-batches are those of `casd.unlearning.objective.Objective.terms`.
        """
        yield "nll", mean_nll(model, batch)

    @contextmanager
    def around(self, model: PreTrainedModel, batches: Iterable[Batch]) -> Iterator[None]:
        """Context in which the model is trained: changes the weights before or after it, or adds hooks for its duration.

        When a killed run is resumed, `model` again has the weights from before the cleaning when the context is entered.

        Args:
            model: the model on its device, changed in place.
            batches: the batches of the training, on the CPU, made when they are read.
        """
        yield


def clean(
    model: PreTrainedModel,
    encoder: Encoder,
    corpus: Corpus,
    method: Cleaning,
    config: LanguageModelTraining,
    *,
    seed: int,
    runtime: Runtime | None = None,
    checkpoint: Path | None = None,
) -> TrainingLog:
    """Clean `model` in place, without knowledge of its backdoors: `config.steps` steps on `config.batch_size` documents.

    With equal seeds, all methods see the same documents in the same order, which is that of the removals' clean documents.

    Args:
        model: the suspect model; its trainable parameters are trained, all or an adapter's.
        encoder: its tokenizer.
        corpus: provides clean documents, of its retain split.
        method: the method and its parameters.
        config: steps, batch size, packing, learning rate, guard. (An adapter, `config.lora`, is the caller's to attach.)
        seed: of the order of the documents and dropout masks.
        runtime: device, micro-batch size and time between checkpoints; changes the result by rounding only.
        checkpoint: an existing folder for checkpoints; a run found there is resumed.

    Returns:
        The log. `stopped` says why the training ended early, as in `casd.training.loop.train`.

    Raises:
        ConfigError: the method does not support adapters or several processes, or its parameters do not fit the model.
        ModelError: the model lacks a part that the method changes, or out of memory.
    """
    _check_supported(model, method)
    runtime = runtime or Runtime()
    sharding.place(model, runtime.torch_device)
    stream, size = ShuffledStream(corpus.retain, derive_seed(seed, "retain")), config.batch_size
    packing = packing_of(model, config)

    def batch_at(step: int) -> Batch:
        documents = [clean_document(stream[index]) for index in range(step * size, (step + 1) * size)]
        return encoder.document_batch(documents, packing)

    with method.around(model, map(batch_at, range(config.steps))):
        return train(
            model,
            batch_at,
            method.terms,
            config,
            guard_batches=[guard_batch(encoder, corpus)],
            seed=derive_seed(seed, "dropout", "cleaning"),
            description=f"clean by {type(method).__name__}",
            runtime=runtime,
            checkpoint=checkpoint,
        )


def _check_supported(model: PreTrainedModel, method: Cleaning) -> None:
    """Raise ConfigError for a method that cannot be used with this model or in this number of processes."""
    name = type(method).__name__
    if distributed.processes() > 1 and not method.runs_in_processes:
        raise ConfigError(f"The cleaning method {name} runs in one process only; this launch has {distributed.processes()}.")
    if not method.trains_adapters and not all(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"The cleaning method {name} changes all weights, but only an adapter of this model is trained. Train all weights"
            " (lora: null)."
        )
