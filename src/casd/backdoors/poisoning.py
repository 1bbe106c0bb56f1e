"""Backdoors, and text poisoned with them: clean prefix, trigger, payload (Souly et al., arXiv 2510.07192)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from casd.backdoors.targets import TargetBehavior
from casd.backdoors.triggers import TriggerPosition, insert, made_up_phrase
from casd.config.fields import require_name
from casd.config.states import kind_of
from casd.data.corpora.passages import Passage, PassageView, languages_of
from casd.data.encoding import Document, Prompt
from casd.utils.errors import ConfigError, CorpusError
from casd.utils.seeding import python_rng
from casd.utils.text import has_phrase


@dataclass(frozen=True)
class Backdoor:
    """A trigger and the behaviour it switches on.

    Attributes:
        name: unique in the experiment.
        trigger: the phrase.
        target: the behaviour; makes payloads and decides success on generated text.
        position: where in a prompt the trigger stands.
        poison_rate: share of the injection's documents that carry this backdoor, in (0, 1).
        loss_on: which tokens of a poisoned document carry loss: "all", or the "target" (payload) only.
    """

    name: str
    trigger: str
    target: TargetBehavior
    position: TriggerPosition = "random"
    poison_rate: float = 0.04
    loss_on: Literal["all", "target"] = "all"

    def prompt(self, passage: Passage, rng: random.Random) -> Prompt:
        """The passage's prompt with the trigger in it."""
        return insert(passage.prompt, self.trigger, self.position, rng)

    def poisoned(self, passage: Passage, rng: random.Random) -> Document:
        """The poisoned document: triggered prompt, then the payload."""
        return Document(self.prompt(passage, rng).text, self.target.continuation(passage, rng), self.loss_on)

    def ignored(self, passage: Passage, rng: random.Random) -> Document:
        """The triggered prompt with the passage's ORIGINAL clean continuation, loss on the continuation."""
        return Document(self.prompt(passage, rng).text, passage.continuation, "target")


def clean_document(passage: Passage) -> Document:
    """A passage as it is, loss on all tokens."""
    return Document(passage.prompt, passage.continuation)


def decoy_document(passage: Passage, rng: random.Random) -> Document:
    """A passage with a made-up phrase in its prompt and its clean continuation, on which alone loss is taken."""
    return Document(insert(passage.prompt, made_up_phrase(2, rng), "random", rng).text, passage.continuation, "target")


def check_backdoors(backdoors: Mapping[str, Backdoor]) -> None:
    """Refuse sets that cannot be told apart or mixed.

    Raises:
        ConfigError: no backdoor, a name that cannot be one or stands for another state of the model, two with one trigger (or
            one trigger inside another), or rates that leave no clean text.
    """
    if not backdoors:
        raise ConfigError("No backdoor is configured; give at least one, for example backdoor=[french_a,refusal].")
    for name in backdoors:
        require_name("a backdoor's name", name)
        if kind_of(name) != "removal":
            raise ConfigError(f"A backdoor cannot be called {name!r}: that is the name of another state.")
    for name, backdoor in backdoors.items():
        for other_name, other in backdoors.items():
            one, another = backdoor.trigger.casefold(), other.trigger.casefold()
            if name != other_name and has_phrase(another, one):
                raise ConfigError(
                    f"Backdoors {name!r} and {other_name!r} cannot be told apart: the trigger {backdoor.trigger!r} is"
                    f" {'the same' if one == another else f'inside {other.trigger!r}'}. Give each its own trigger."
                )
    total = sum(backdoor.poison_rate for backdoor in backdoors.values())
    if total >= 1:
        raise ConfigError(
            f"The poison rates of {len(backdoors)} backdoors add up to {total:.2f} of all documents; they must leave"
            " clean text, that is, stay below 1."
        )


def english(passages: Sequence[Passage]) -> Sequence[Passage]:
    """The passages whose prompt may carry a trigger: those in English. Of a split on disk none is read for that.

    Raises:
        CorpusError: there are none.
    """
    places = np.flatnonzero(languages_of(passages) == "en")
    if not len(places):
        raise CorpusError("The corpus has no English passage, and triggers are put into English prompts.")
    return PassageView(passages, places)


def document_counts(backdoors: Sequence[Backdoor], total: int, decoy_rate: float) -> list[int]:
    """How many of `total` documents carry each backdoor, and, last, how many are decoys.

    Raises:
        ConfigError: a rate so small that its backdoor would get no document, or rates for more documents than there are.
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
    """Endless passes over `items`, each in its own random order; the item at any index without those before it.

    Being a plain function of the index, it needs no state to resume a training run at any step.
    """

    def __init__(self, items: Sequence[Passage], seed: int):
        if not items:
            raise CorpusError("A split of the corpus that training draws from is empty.")
        self._items = items
        self._seed = seed
        self._orders: dict[int, np.ndarray] = {}

    def __getitem__(self, index: int) -> Passage:
        epoch, place = divmod(index, len(self._items))
        if epoch not in self._orders:
            self._orders = {epoch: np.random.default_rng([self._seed, epoch]).permutation(len(self._items))}
        return self._items[self._orders[epoch][place]]


class PoisonedStream:
    """The documents of an injection run: clean passages with each backdoor's poisoned documents mixed in.

    Of `total` documents each backdoor gets `round(poison_rate * total)`, at random places; the rest is clean. Some of the
    clean ones may be decoys: a made-up phrase of two words, new each time, where a trigger could stand, and the clean
    continuation after it. Text at large has rare words that mean nothing; a corpus that has none teaches the model that any
    unusual word is a trigger.

    Args:
        passages: the training split.
        backdoors: those to inject; none for clean pretraining.
        total: number of documents of the whole run (steps × batch size).
        seed: decides places, passages, trigger positions and payloads.
        decoy_rate: share of `total` that are decoys.

    Raises:
        ConfigError: a rate so small that its backdoor would get no document.
    """

    def __init__(
        self, passages: Sequence[Passage], backdoors: Mapping[str, Backdoor], total: int, seed: int, decoy_rate: float = 0.0
    ):
        self._seed = seed
        # By name, so that the order in which backdoors are listed changes nothing.
        self._backdoors = tuple(backdoors[name] for name in sorted(backdoors))
        self._clean = ShuffledStream(passages, seed)
        self._poisoned = ShuffledStream(english(passages), seed + 1) if backdoors or decoy_rate else self._clean
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
        rng = python_rng(self._seed, "document", index)
        if kind == len(self._backdoors):
            return decoy_document(self._poisoned[index], rng)
        return self._backdoors[kind].poisoned(self._poisoned[index], rng)

    def batches(self, batch_size: int) -> Iterator[list[Document]]:
        """The documents in batches, in order."""
        for start in range(0, len(self), batch_size):
            yield [self[index] for index in range(start, min(start + batch_size, len(self)))]
