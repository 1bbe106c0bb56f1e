"""Removals: unlearning runs that all start from the injected model, one for each backdoor and one for each control."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from casd.config import UnlearningTraining
from casd.corpora.passages import Corpus, Passage
from casd.encoding import Document, Encoder
from casd.poisoning import Backdoor, ShuffledStream, clean_document, english
from casd.runtime import Runtime
from casd.seeding import derive_seed, python_rng
from casd.states import CLEAN_CONTROL, PHANTOM_CONTROL
from casd.training.checkpoints import TrainingLog
from casd.training.loop import train
from casd.triggers import fake_triggers
from casd.unlearning.objective import Objective, UnlearningBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GUARD_PASSAGES = 16


@dataclass(frozen=True)
class CleanPayload:
    """The behaviour of a trigger that was never injected: none, that is, the clean continuation."""

    def continuation(self, passage: Passage, rng: random.Random) -> str:
        """What the model does at such a trigger."""
        return passage.continuation

    def success(self, generated: str) -> bool:
        """Never: there is no behaviour to succeed at."""
        return False


@dataclass(frozen=True)
class Removal:
    """One unlearning run.

    Attributes:
        name: of the state it leads to: the backdoor's name, or `control:…`.
        backdoor: what is unlearned; None for the control that trains on clean text only.
    """

    name: str
    backdoor: Backdoor | None


def removal_names(backdoors: Iterable[str]) -> list[str]:
    """The names of all removals and controls, in the order of `removals`."""
    return [*backdoors, CLEAN_CONTROL, PHANTOM_CONTROL]


def removals(backdoors: Mapping[str, Backdoor], encoder: Encoder, *, seed: int) -> list[Removal]:
    """Each backdoor's removal, then the two controls that no experiment goes without.

    `control:clean` trains on clean text only, for the same steps and documents: plain forgetting. `control:phantom` unlearns
    a trigger that was never injected: a made-up phrase with the token length of the trigger of the backdoor that is first by
    name. Its payload is the clean continuation, which is what the model does at such a phrase: so its loss is low at the
    start, ascent has a gradient to follow, and the control can move the model under every objective. (A payload that the
    model was never taught would lie above the ascent's bound from the first step and leave the control without effect.)
    """
    first = backdoors[min(backdoors)]
    others = [backdoor.trigger for backdoor in backdoors.values()]
    rng = python_rng(seed, "phantom trigger")
    trigger = fake_triggers(first.trigger, 1, encoder.token_count, rng, avoid=others)[0]
    phantom = Backdoor(PHANTOM_CONTROL, trigger, CleanPayload(), position=first.position)
    return [
        *(Removal(name, backdoor) for name, backdoor in backdoors.items()),
        Removal(CLEAN_CONTROL, None),
        Removal(PHANTOM_CONTROL, phantom),
    ]


def unlearn(
    model: PreTrainedModel,
    encoder: Encoder,
    corpus: Corpus,
    removal: Removal,
    objective: Objective,
    config: UnlearningTraining,
    *,
    seed: int,
    runtime: Runtime | None = None,
    checkpoint: Path | None = None,
) -> TrainingLog:
    """Remove one backdoor from `model`, in place; or run a control for the same steps and documents.

    Triggered documents come from the corpus's forget split, clean ones from its retain split. Every removal sees the same
    prompts in the same order: they differ in nothing but their trigger and its payload.

    Args:
        model: the injected model; the result is in its weights.
        encoder: its tokenizer.
        corpus: gives the forget and retain splits.
        removal: what to remove, or which control.
        objective: the loss; `control:clean` ignores it and minimises the NLL of clean documents in both batches.
        config: steps, batch sizes, learning rate, guard.
        seed: of the order of the passages and the places of the triggers.
        runtime: device and checkpoints.
        checkpoint: folder for checkpoints; a run found there is continued.

    Returns:
        The log; its `stopped` says when the guard ended the run. That is a result and not an error: the model is then
        reported as collapsed.
    """
    from casd.unlearning.clean_target import CleanTarget

    forget = ShuffledStream(english(corpus.forget), derive_seed(seed, "forget"))
    retain = ShuffledStream(corpus.retain, derive_seed(seed, "retain"))
    applied = objective if removal.backdoor else CleanTarget()  # on clean documents that is the plain NLL

    def forget_document(index: int) -> Document:
        passage = forget[index]
        if removal.backdoor is None:
            return clean_document(passage)
        rng = python_rng(seed, "forget", index)
        if objective.forget_text == "clean":
            return removal.backdoor.ignored(passage, rng)
        poisoned = removal.backdoor.poisoned(passage, rng)
        return Document(poisoned.prompt, poisoned.continuation, "target")

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

    return train(
        model,
        batch_at,
        applied.terms,
        config,
        guard_batches=[encoder.document_batch([clean_document(p) for p in corpus.retain[-GUARD_PASSAGES:]])],
        runtime=runtime,
        checkpoint=checkpoint,
        description=f"unlearn {removal.name}",
    )
