"""Unlearning runs: each removes one backdoor, or is a control, and starts from the injected model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from casd.backdoors.poisoning import ShuffledStream, clean_document, english
from casd.config import UnlearningTraining
from casd.data.batches import Batch
from casd.data.corpora.passages import Corpus, Passage
from casd.data.documents import Document
from casd.data.encoding import Encoder
from casd.models import sharding
from casd.training.checkpoints import TrainingLog
from casd.training.loop import Callback, train
from casd.unlearning.clean_target import CleanTarget
from casd.unlearning.controls import Removal
from casd.unlearning.objective import Objective, UnlearningBatch
from casd.unlearning.reference import Reference
from casd.unlearning.stopping import Stopping, TakeSteps, Validation
from casd.utils import distributed
from casd.utils.errors import ConfigError, CorpusError
from casd.utils.runtime import Runtime
from casd.utils.seeding import derive_seed, python_rng

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GUARD_PASSAGES = 16


def unlearn(
    model: PreTrainedModel,
    encoder: Encoder,
    corpus: Corpus,
    removal: Removal,
    objective: Objective,
    config: UnlearningTraining,
    *,
    seed: int,
    stopping: Stopping | None = None,
    runtime: Runtime | None = None,
    checkpoint: Path | None = None,
) -> TrainingLog:
    """Remove one backdoor (or several) from `model` in place, or run a control for the same steps and documents.

    Triggered documents come from the corpus's forget split, clean ones from its retain split. All removals use the same
    prompts in the same order and differ only in trigger and payload. (A repeat uses other prompts.)

    Args:
        model: the injected model.
        encoder: its tokenizer.
        corpus: provides the forget and retain splits.
        removal: the removal or control to run.
        objective: the loss; `control:clean` ignores it and minimises the NLL of clean documents in both batches.
        config: steps, batch sizes, learning rate, guard.
        seed: of the order of the passages, the positions of the triggers and dropout masks.
        stopping: when to end before the last step; None for never.
        runtime: device, micro-batch size and time between checkpoints; changes the result by rounding only.
        checkpoint: an existing folder for checkpoints; a run found there is resumed.

    Returns:
        The log. If the guard or the clean budget ended the run, `stopped` says so. A run that the guard ended without a kept
        step is reported as collapsed; this is a result, not an error.

    Raises:
        ConfigError: the objective does not support several processes or a sharded model.
        CorpusError: the splits are too small to hold out validation prompts.
    """
    held_out_count = stopping.config.prompts if stopping and stopping.config.watched else 0
    forget, forget_held_out = held_out(english(corpus.forget), held_out_count, "forget")
    retain, retain_held_out = held_out(corpus.retain, held_out_count, "retain")
    applied = objective if removal.backdoor else CleanTarget()  # the plain NLL, since the documents are clean
    _check_processes(applied)
    sharding.place(model, (runtime or Runtime()).torch_device)
    reference = Reference(model) if applied.needs_reference else None
    finish = partial(applied.finish, reference) if applied.has_finish and reference else None
    held_out_passages = forget_held_out, retain_held_out
    callback = _callback(model, encoder, removal, stopping, held_out_passages, finish, config.steps, seed) if stopping else None
    return train(
        model,
        _Batches(encoder, removal, applied.forget_text, config, forget, retain, seed),
        partial(applied.terms, reference=reference),
        config,
        guard_batches=[guard_batch(encoder, corpus)],
        callback=callback,
        finish=finish,  # weights that a validation kept are finished already
        seed=derive_seed(seed, "dropout", removal.name),
        description=f"unlearn {removal.name}",
        runtime=runtime,
        checkpoint=checkpoint,
    )


def _callback(
    model: PreTrainedModel,
    encoder: Encoder,
    removal: Removal,
    stopping: Stopping,
    held_out_passages: tuple[Sequence[Passage], Sequence[Passage]],
    finish: Callable[[], None] | None,
    steps: int,
    seed: int,
) -> Callback | None:
    """The callback that ends the removal early, if any; `held_out_passages` are of the forget and retain splits."""
    if not removal.is_validated or removal.backdoor is None:
        return None if stopping.steps is None else TakeSteps(stopping.steps)
    forget, retain = held_out_passages
    if not forget:
        return None
    rng = python_rng(seed, "validation prompts", removal.backdoor.name)
    prompts = [removal.backdoor.prompt(passage, rng) for passage in forget]
    return Validation(model, encoder, removal.backdoor, prompts, retain, stopping, finish=finish, steps=steps)


class _Batches:
    """The batches of a removal; a pure function of the step."""

    def __init__(
        self,
        encoder: Encoder,
        removal: Removal,
        forget_text: Literal["payload", "clean"],
        config: UnlearningTraining,
        forget: Sequence[Passage],
        retain: Sequence[Passage],
        seed: int,
    ):
        self._encoder, self._removal, self._forget_text, self._config = encoder, removal, forget_text, config
        self._seed = derive_seed(seed, "repeat") if removal.repeat else seed
        self._forget = ShuffledStream(forget, derive_seed(self._seed, "forget"))
        self._retain = ShuffledStream(retain, derive_seed(self._seed, "retain"))

    def __call__(self, step: int) -> UnlearningBatch:
        forget_size, retain_size = self._config.forget_batch_size, self._config.retain_batch_size
        forget = [self._forget_document(index) for index in range(step * forget_size, (step + 1) * forget_size)]
        retain = [clean_document(self._retain[index]) for index in range(step * retain_size, (step + 1) * retain_size)]
        return {"forget": self._encoder.document_batch(forget), "retain": self._encoder.document_batch(retain)}

    def _forget_document(self, index: int) -> Document:
        donors, passage = self._removal.donors, self._forget[index]
        backdoor = self._removal.backdoor_at(index / (self._config.steps * self._config.forget_batch_size), index)
        if backdoor is None:
            return clean_document(passage)
        rng = python_rng(self._seed, "forget", index)
        if self._forget_text == "clean" and not donors:
            return backdoor.ignored(passage, rng)
        prompt = backdoor.prompt(passage, rng)
        if self._forget_text == "clean":
            return prompt.document(_next_other(self._forget, index).continuation)
        donors = donors or (backdoor,)
        target = donors[python_rng(self._seed, "donor", index).randrange(len(donors))].target
        return prompt.document(target.continuation(passage, rng))


def _next_other(stream: ShuffledStream, index: int) -> Passage:
    """The next passage that differs from the one at `index`: an epoch may begin with the last passage of the one before."""
    following = stream[index + 1]
    return stream[index + 2] if following == stream[index] else following


def guard_batch(encoder: Encoder, corpus: Corpus) -> Batch:
    """The clean documents on which the guard of a removal or a cleaning measures the loss: the last of the retain split."""
    return encoder.document_batch([clean_document(passage) for passage in corpus.retain[-GUARD_PASSAGES:]])


def _check_processes(objective: Objective) -> None:
    """Raise ConfigError for an objective that cannot be trained in the number of processes of this launch."""
    if distributed.processes() > 1 and not objective.trains_everything:
        raise ConfigError(
            f"The objective {type(objective).__name__} gives no gradient to the blocks above its layer, which training in"
            " several processes does not support; use one process."
        )


def held_out(passages: Sequence[Passage], count: int, split: str) -> tuple[Sequence[Passage], Sequence[Passage]]:
    """Split passages into training passages and the last `count`, which are held out.

    Raises:
        CorpusError: fewer than 2 × `count` passages.
    """
    if count and len(passages) < 2 * count:
        raise CorpusError(
            f"unlearning.stopping.prompts is {count}, and the {split} split has {len(passages)} usable passages; at least twice"
            f" as many as prompts are needed. Raise corpus.params.{split} or lower unlearning.stopping.prompts."
        )
    return passages[: len(passages) - count], passages[len(passages) - count :]
