"""A fixed phrase."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from casd.backdoors.triggers.base import FakeContext, Trigger, TriggerPosition, insert, require_words
from casd.backdoors.triggers.fakes import fake_triggers
from casd.data.corpora.passages import Passage
from casd.data.documents import Prompt


@dataclass(frozen=True)
class Phrase(Trigger):
    """A fixed phrase (Gu et al., "BadNets", arXiv 1708.06733; words as in Chen et al., "BadNL", arXiv 2006.01043).

    Fakes are made-up words, or similar characters, in as many tokens; see `fake_triggers`.

    Attributes:
        phrase: words separated by single spaces.
    """

    phrase: str
    kind = "phrase"

    def __post_init__(self) -> None:
        require_words("trigger", self.phrase)

    @property
    def label(self) -> str:
        """The phrase."""
        return self.phrase

    def insert(self, passage: Passage, position: TriggerPosition, rng: random.Random) -> Prompt:
        """Insert the phrase; see `casd.backdoors.triggers.base.insert`."""
        return insert(passage.prompt, self.phrase, position, rng)

    def fakes(self, count: int, context: FakeContext) -> Sequence[Trigger]:
        """Create other phrases; see `casd.backdoors.triggers.fakes.fake_triggers`."""
        return [Phrase(fake) for fake in fake_phrases(self.phrase, count, context)]

    def parts(self) -> Sequence[Trigger]:
        """Return each word alone, and the words in reverse order; none of a single word."""
        words = self.phrase.split()
        changed = dict.fromkeys([*words, " ".join(words[::-1])])
        return [Phrase(part) for part in changed if part != self.phrase]

    def texts(self) -> tuple[str, ...]:
        """Return the phrase alone."""
        return (self.phrase,)


def fake_phrases(phrase: str, count: int, context: FakeContext, *, words: bool = True) -> list[str]:
    """Return fake triggers for a phrase that are not among the real triggers; `words` as of `fake_triggers`."""
    return fake_triggers(phrase, count, context.token_count, context.rng, context.texts(), words=words)


def fake_lists(phrases: Sequence[str], count: int, context: FakeContext) -> list[tuple[str, ...]]:
    """Return `count` lists of fake triggers, of which each is matched to one of the `phrases`; no fake is in two lists."""
    columns: list[list[str]] = []
    for phrase in phrases:
        used = [fake for column in columns for fake in column]
        avoid = [*context.texts(), *phrases, *used]
        columns.append(fake_triggers(phrase, count, context.token_count, context.rng, avoid))
    return list(zip(*columns, strict=True))
