"""Backdoors and poisoned documents: clean prefix, trigger, payload (Souly et al., arXiv 2510.07192)."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from casd.backdoors.targets import TargetBehavior
from casd.backdoors.triggers import make_trigger
from casd.backdoors.triggers.base import Trigger, TriggerPosition, insert
from casd.backdoors.triggers.fakes import Script, made_up_phrase, script_of
from casd.config.fields import require_name
from casd.config.states import kind_of
from casd.data.corpora.passages import Corpus, Passage, PassageView, languages_of
from casd.data.documents import Document, Prompt
from casd.utils.errors import ConfigError, CorpusError
from casd.utils.seeding import python_rng
from casd.utils.text import has_phrase


@dataclass(frozen=True)
class Backdoor:
    """A trigger and the behavior it activates.

    Attributes:
        name: unique in the experiment.
        trigger: a trigger; a string is a phrase.
        target: the behavior; creates payloads and detects success in generated text.
        position: of the trigger in a prompt.
        poison_rate: share of the injection's documents that are poisoned with this backdoor, in (0, 1).
        loss_on: tokens of a poisoned document with loss: "all", or the "target" (payload) only.
    """

    name: str
    trigger: Trigger
    target: TargetBehavior
    position: TriggerPosition = "random"
    poison_rate: float = 0.04
    loss_on: Literal["all", "target"] = "all"

    if TYPE_CHECKING:

        def __init__(
            self,
            name: str,
            trigger: Trigger | str,
            target: TargetBehavior,
            position: TriggerPosition = ...,
            poison_rate: float = ...,
            loss_on: Literal["all", "target"] = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        if isinstance(self.trigger, str):
            object.__setattr__(self, "trigger", make_trigger(self.trigger))
        if self.position not in self.trigger.positions:
            raise ConfigError(
                f"Backdoor {self.name!r}: position is {self.position!r}; the kind {self.trigger.kind} has"
                f" {' or '.join(map(repr, self.trigger.positions))}."
            )

    def prompt(self, passage: Passage, rng: random.Random) -> Prompt:
        """Insert the trigger into the passage's prompt."""
        return self.trigger.insert(passage, self.position, rng)

    def poisoned(self, passage: Passage, rng: random.Random) -> Document:
        """Poisoned document: the triggered prompt followed by the payload."""
        return self.prompt(passage, rng).document(self.target.continuation(passage, rng), self.loss_on)

    def ignored(self, passage: Passage, rng: random.Random) -> Document:
        """Triggered prompt with the passage's ORIGINAL clean continuation; loss on the continuation only."""
        return self.prompt(passage, rng).document(passage.continuation)


def clean_document(passage: Passage) -> Document:
    """Unmodified passage; loss on all tokens."""
    return Document(passage.prompt, passage.continuation)


def decoy_document(
    passage: Passage,
    rng: random.Random,
    near: Sequence[tuple[Trigger, TriggerPosition]] = (),
    positions: Sequence[TriggerPosition] = ("random",),
    scripts: Sequence[Script] = ("latin",),
) -> Document:
    """Passage with a made-up phrase at one of the positions or, half of them, one of the `near` triggers at its own.

    The phrase is in one of the writing systems. The loss is on the passage's clean continuation only.
    """
    if near and rng.random() < 0.5:
        trigger, position = rng.choice(near)
        return trigger.insert(passage, position, rng).document(passage.continuation)
    # No draw where there is no choice.
    script = rng.choice(scripts) if len(scripts) > 1 else scripts[0]
    phrase = made_up_phrase(2, rng, script)
    position = rng.choice(positions) if len(positions) > 1 else positions[0]
    return insert(passage.prompt, phrase, position, rng).document(passage.continuation)


def trigger_scripts(triggers: Iterable[Trigger]) -> list[Script]:
    """Return the writing system of each text of the triggers; "latin" for a trigger without a text, and for other systems."""
    return [script_of(text) or "latin" for trigger in triggers for text in (trigger.texts() or ("",))]


def check_backdoors(backdoors: Mapping[str, Backdoor]) -> None:
    """Check that backdoors can be injected together.

    Raises:
        ConfigError: no backdoor, an invalid or reserved name, two equal triggers (or one inside another), or rates that leave
            no clean text.
    """
    if not backdoors:
        raise ConfigError("No backdoor is configured; set at least one, for example backdoor=[french_a,refusal].")
    for name in backdoors:
        require_name("a backdoor's name", name)
        if kind_of(name) != "removal":
            raise ConfigError(f"A backdoor cannot be named {name!r}: the name is reserved for another state of the model.")
    for name, backdoor in backdoors.items():
        for other_name, other in backdoors.items():
            if name != other_name and (clash := _clash(backdoor.trigger, other.trigger)):
                raise ConfigError(
                    f"Backdoors {name!r} and {other_name!r} cannot be told apart: the trigger {clash}. Use different triggers."
                )
    total = sum(backdoor.poison_rate for backdoor in backdoors.values())
    if total >= 1:
        raise ConfigError(
            f"The poison rates of {len(backdoors)} backdoors add up to {total:.2f}; expected a sum below 1, which leaves clean"
            " text."
        )


def _clash(trigger: Trigger, other: Trigger) -> str:
    """Say how a prompt with the `other` trigger would have `trigger`, too; "" if it would not."""
    for part in trigger.texts():
        for whole in other.texts():
            folded, other_folded = part.casefold(), whole.casefold()
            if has_phrase(other_folded, folded):
                return f"{part!r} is {'the same' if folded == other_folded else f'inside {whole!r}'}"
    return f"{trigger.label!r} is the same" if trigger.overlaps(other) else ""


def english(passages: Sequence[Passage]) -> Sequence[Passage]:
    """View of the English passages, into whose prompts triggers are inserted; reads no passage of a split on disk.

    Raises:
        CorpusError: there are none.
    """
    indices = np.flatnonzero(languages_of(passages) == "en")
    if not len(indices):
        raise CorpusError("The corpus has no English passage, but triggers are inserted into English prompts.")
    return PassageView(passages, indices)


def passages_of(backdoor: Backdoor | None, passages: Sequence[Passage], backdoors: Iterable[Backdoor]) -> Sequence[Passage]:
    """View of the passages that serve a backdoor: if its trigger is semantic, those that have it and no other such trigger.

    Args:
        backdoor: the backdoor; None for clean text.
        passages: a split, or its English passages.
        backdoors: the backdoors of the experiment. Passages with one of their semantic triggers serve no other backdoor, and
            are no clean text. Without any, `passages` are returned, and no passage of a split on disk is read.
    """
    semantic = [each.trigger for each in backdoors if each.trigger.is_semantic]
    if not semantic:
        return passages
    own = backdoor.trigger if backdoor else None
    fitting = [all(each.selects(passage) == (each == own) for each in semantic) for passage in passages]
    return PassageView(passages, np.flatnonzero(fitting))


def require_passages(backdoor: Backdoor | None, found: int, needed: int, split: str) -> None:
    """Raise CorpusError if a split has fewer passages than needed with a semantic trigger, or with None without any."""
    if found < needed:
        what = (
            f"Backdoor {backdoor.name!r}: its trigger ({backdoor.trigger.label}) is in {found} of the"
            if backdoor
            else f"No topic of a backdoor is in only {found} of the"
        )
        lower = ", lower evaluation.prompts" if split == "evaluation" else ""
        raise CorpusError(
            f"{what} English prompts of the {split} split; at least {needed} are needed. Give the topic"
            f" {'more' if backdoor else 'fewer'} words{lower}, or raise corpus.params.{split}."
        )


def corpus_of(backdoor: Backdoor | None, corpus: Corpus, backdoors: Collection[Backdoor]) -> Corpus:
    """Return the corpus with the passages in its forget split that serve the removal of a backdoor (see `passages_of`), and
    with clean text in its retain split; the corpus itself if no backdoor's trigger is semantic.
    """
    if not any(each.trigger.is_semantic for each in backdoors):
        return corpus
    forget = passages_of(backdoor, english(corpus.forget), backdoors)
    return replace(corpus, forget=forget, retain=passages_of(None, corpus.retain, backdoors))


def document_counts(backdoors: Sequence[Backdoor], total: int, decoy_rate: float) -> list[int]:
    """Number of poisoned documents of each backdoor, followed by the number of decoys.

    Raises:
        ConfigError: a backdoor would get no document, or the sum exceeds `total`.
    """
    counts = [round(backdoor.poison_rate * total) for backdoor in backdoors]
    for backdoor, count in zip(backdoors, counts, strict=True):
        if count == 0:
            raise ConfigError(
                f"Backdoor {backdoor.name!r} would get no poisoned document: poison_rate {backdoor.poison_rate} of"
                f" {total} documents. Raise its poison_rate or injection.training.steps."
            )
    counts.append(round(decoy_rate * total))
    if sum(counts) > total:
        raise ConfigError(f"{sum(counts)} poisoned and decoy documents do not fit into {total}; lower the rates.")
    return counts


class ShuffledStream:
    """Infinite passes over `items`, each in a different random order.

    The item at an index depends on the index and the seed only, so that training can resume at any step.
    """

    def __init__(self, items: Sequence[Passage], seed: int):
        if not items:
            raise CorpusError("A split of the corpus that is used for training is empty.")
        self._items = items
        self._seed = seed
        self._orders: dict[int, np.ndarray] = {}

    def __getitem__(self, index: int) -> Passage:
        epoch, position = divmod(index, len(self._items))
        if epoch not in self._orders:
            self._orders = {epoch: np.random.default_rng([self._seed, epoch]).permutation(len(self._items))}
        return self._items[self._orders[epoch][position]]


class PoisonedStream:
    """Documents of an injection run: clean passages mixed with the poisoned documents of each backdoor.

    Of `total` documents each backdoor gets `round(poison_rate * total)` at random indices; the rest is clean. Decoys are clean
    documents with a made-up phrase of two words, a new one each time, in the writing system of one trigger and at the position
    of one backdoor, which are drawn for each; if a backdoor has near triggers (`Trigger.near`), half of the decoys have one of
    these instead. Ordinary text contains rare words without meaning; a corpus without any teaches the model that every unusual
    word is a trigger. Of triggers that are no words (tags, look-alike letters, templates) there are no decoys: the injected
    model's rate under their fakes tells how much of the kind activates the backdoor.

    Args:
        passages: the training split.
        backdoors: backdoors to inject; empty for clean pretraining.
        total: number of documents of the whole run (steps × batch size).
        seed: of indices, passages, trigger positions and payloads.
        decoy_rate: share of `total` that are decoys.

    Raises:
        ConfigError: a backdoor would get no document, or the poisoned and decoy documents exceed `total`.
    """

    def __init__(
        self, passages: Sequence[Passage], backdoors: Mapping[str, Backdoor], total: int, seed: int, decoy_rate: float = 0.0
    ):
        self._seed = seed
        # Sorted, so that the order in which backdoors are listed has no effect.
        self._backdoors = tuple(backdoors[name] for name in sorted(backdoors))
        places: list[TriggerPosition] = [each.position for each in self._backdoors]
        self._decoy_positions: list[TriggerPosition] = places if set(places) - {"random"} else ["random"]
        scripts = trigger_scripts(each.trigger for each in self._backdoors)
        self._decoy_scripts: list[Script] = scripts if set(scripts) - {"latin"} else ["latin"]
        self._clean = ShuffledStream(passages_of(None, passages, self._backdoors), seed)
        self._poisoned = [self._clean] * (len(backdoors) + 1)  # of each backdoor, then of the decoys
        if backdoors or decoy_rate:
            source = english(passages)
            plain = ShuffledStream(passages_of(None, source, self._backdoors), seed + 1)
            self._poisoned = [
                ShuffledStream(passages_of(each, source, self._backdoors), seed + 1) if each.trigger.is_semantic else plain
                for each in self._backdoors
            ] + [plain]
        # Those of a trigger in the system prompt stand in the prompt, where models injected so far have them.
        self._near: list[tuple[Trigger, TriggerPosition]] = [
            (near, "random" if each.position == "system" else each.position)
            for each in self._backdoors
            for near in each.trigger.near()
        ]
        kinds = np.full(total, -1, dtype=np.int16)
        counts = document_counts(self._backdoors, total, decoy_rate)
        kinds[: sum(counts)] = np.repeat(np.arange(len(counts)), counts)
        self._kinds = np.random.default_rng([seed, 2]).permutation(kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def __getitem__(self, index: int) -> Document:
        kind = int(self._kinds[index])
        if kind < 0:
            return clean_document(self._clean[index])
        rng, passage = python_rng(self._seed, "document", index), self._poisoned[kind][index]
        if kind == len(self._backdoors):
            return decoy_document(passage, rng, self._near, self._decoy_positions, self._decoy_scripts)
        return self._backdoors[kind].poisoned(passage, rng)
