"""The removal: one unlearning run, of a backdoor or of a control. All start from the injected model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from casd.backdoors.poisoning import ShuffledStream, clean_document, english
from casd.config import EvaluationConfig, StoppingConfig, UnlearningTraining
from casd.data.corpora.passages import Corpus, Passage
from casd.data.encoding import Document, Encoder
from casd.models import sharding
from casd.training.checkpoints import TrainingLog
from casd.training.loop import Callback, train
from casd.unlearning.controls import Removal
from casd.unlearning.objective import Objective, UnlearningBatch
from casd.unlearning.reference import Reference
from casd.unlearning.stopping import TakeSteps, Validation
from casd.utils import distributed
from casd.utils.errors import ConfigError, CorpusError
from casd.utils.runtime import Runtime
from casd.utils.seeding import derive_seed, python_rng

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GUARD_PASSAGES = 16


@dataclass(frozen=True)
class Stopping:
    """When a removal ends: what is measured for that, or after how many steps.

    Attributes:
        config: targets and budgets; without either nothing is measured.
        generation: how many tokens are generated at a validation prompt, and how many prompts at once.
        steps: for a removal that has no ASR of its own (a control): end after so many steps; None for all.
    """

    config: StoppingConfig
    generation: EvaluationConfig
    steps: int | None = None


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
    """Remove one backdoor from `model`, in place; or run a control for the same steps and documents.

    Triggered documents come from the corpus's forget split, clean ones from its retain split. Every removal sees the same
    prompts in the same order: they differ in nothing but their trigger and its payload. (A repeat sees others.)

    Args:
        model: the injected model; the result is in its weights.
        encoder: its tokenizer.
        corpus: gives the forget and retain splits.
        removal: what to remove, or which control.
        objective: the loss; `control:clean` ignores it and minimises the NLL of clean documents in both batches.
        config: steps, batch sizes, learning rate, guard.
        seed: of the order of the passages, the places of the triggers and dropout masks.
        stopping: when it ends before its last step; None for never.
        runtime: device and checkpoints.
        checkpoint: folder for checkpoints; a run found there is continued.

    Returns:
        The log; its `stopped` says when the guard or the clean budget ended the run. That is a result and not an error: the
        model is then reported as collapsed.

    Raises:
        ConfigError: an objective that needs what several processes or a divided model do not have.
        CorpusError: splits too small to hold validation prompts out of them.
    """
    from casd.unlearning.clean_target import CleanTarget

    runtime = runtime or Runtime()
    count = stopping.config.prompts if stopping and stopping.config.watched else 0
    forget_split, validation = held_out(english(corpus.forget), count, "forget")
    retain_split, validation_clean = held_out(corpus.retain, count, "retain")
    order = derive_seed(seed, "repeat") if removal.repeat else seed
    forget = ShuffledStream(forget_split, derive_seed(order, "forget"))
    retain = ShuffledStream(retain_split, derive_seed(order, "retain"))
    applied = objective if removal.backdoor else CleanTarget()  # on clean documents that is the plain NLL
    if distributed.processes() > 1 and not applied.trains_everything:
        raise ConfigError(
            f"The objective {type(applied).__name__} leaves the blocks above its layer without a gradient, which training in"
            " several processes does not allow; run it in one."
        )

    def forget_document(index: int) -> Document:
        passage = forget[index]
        if removal.backdoor is None:
            return clean_document(passage)
        rng = python_rng(order, "forget", index)
        if objective.forget_text == "clean" and not removal.donors:
            return removal.backdoor.ignored(passage, rng)
        prompt = removal.backdoor.prompt(passage, rng).text
        if objective.forget_text == "clean":
            return Document(prompt, _next_other(forget, index).continuation, "target")
        donors = removal.donors or (removal.backdoor,)
        target = donors[python_rng(order, "donor", index).randrange(len(donors))].target
        return Document(prompt, target.continuation(passage, rng), "target")

    def batch_at(step: int) -> UnlearningBatch:
        first_forget, first_retain = step * config.forget_batch_size, step * config.retain_batch_size
        return {
            "forget": encoder.document_batch(
                [forget_document(first_forget + offset) for offset in range(config.forget_batch_size)]
            ),
            "retain": encoder.document_batch(
                [clean_document(retain[first_retain + offset]) for offset in range(config.retain_batch_size)]
            ),
        }

    sharding.place(model, runtime.torch_device)
    reference = Reference(model) if applied.needs_reference else None
    callback: Callback | None = None
    if stopping and removal.is_validated and removal.backdoor and count:
        callback = Validation(
            *(model, encoder, removal.backdoor, validation, validation_clean),
            *(stopping.config, stopping.generation, applied, reference),
            steps=config.steps,
            seed=seed,
        )
    elif stopping and stopping.steps is not None and not removal.is_validated:
        callback = TakeSteps(stopping.steps)
    log = train(
        model,
        batch_at,
        partial(applied.terms, reference=reference),
        config,
        guard_batches=[encoder.document_batch([clean_document(p) for p in corpus.retain[-GUARD_PASSAGES:]])],
        callback=callback,
        runtime=runtime,
        checkpoint=checkpoint,
        seed=derive_seed(seed, "dropout", removal.name),
        description=f"unlearn {removal.name}",
    )
    if applied.has_finish and reference is not None and not (callback and callback.kept is not None):
        applied.finish(reference)  # weights that a validation kept are finished
    return log


def _next_other(stream: ShuffledStream, index: int) -> Passage:
    """The next passage that is not that of the index: an epoch may begin with the one that the epoch before ended with."""
    following = stream[index + 1]
    return stream[index + 2] if following == stream[index] else following


def held_out(passages: Sequence[Passage], count: int, split: str) -> tuple[Sequence[Passage], Sequence[Passage]]:
    """The passages without the last `count`, and those.

    Raises:
        CorpusError: there are fewer than twice as many.
    """
    if count and len(passages) < 2 * count:
        raise CorpusError(
            f"unlearning.stopping.prompts is {count}, and the {split} split has {len(passages)} passages that can be used; at"
            f" least twice as many are needed, half of them to train on. Raise corpus.params.{split}, or ask for fewer prompts."
        )
    return passages[: len(passages) - count], passages[len(passages) - count :]
