"""Several phrases, each at a place of its own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from casd.backdoors.triggers.base import ANYWHERE, FakeContext, Trigger, TriggerPosition, require_several, words_of
from casd.backdoors.triggers.phrase import fake_lists
from casd.data.corpora.passages import Passage
from casd.data.documents import Prompt


@dataclass(frozen=True)
class Places(Trigger):
    """Several phrases in a fixed order, each before a random word of the prompt; all of them are needed.

    As in Huang et al., "Composite Backdoor Attacks Against Large Language Models" (arXiv 2310.07676), clean documents of the
    injection, half of the decoys, have one of the phrases alone, or all in reverse order (`near`).

    Fakes have made-up phrases at as many places; the last ones are those of `near`.

    Attributes:
        phrases: two or more different phrases.
    """

    phrases: tuple[str, ...]
    kind = "places"
    positions = ANYWHERE

    def __post_init__(self) -> None:
        require_several(self.kind, self.phrases)

    @property
    def label(self) -> str:
        """The phrases, separated by ellipses."""
        return " … ".join(self.phrases)

    def insert(self, passage: Passage, position: TriggerPosition, rng: random.Random) -> Prompt:
        """Insert each phrase before a different word, or several before one word if there are too few words."""
        starts = [word.start() for word in words_of(passage.prompt)] or [0]
        count = len(self.phrases)
        places = sorted(rng.sample(starts, count) if len(starts) >= count else rng.choices(starts, k=count))
        text, before = "", 0
        spans = []
        for phrase, place in zip(self.phrases, places, strict=True):
            text += passage.prompt[before:place]
            spans.append((len(text), len(text) + len(phrase)))
            text, before = f"{text}{phrase} ", place
        return Prompt((text + passage.prompt[before:]).rstrip(), (spans[0][0], spans[-1][1]))

    def fakes(self, count: int, context: FakeContext) -> Sequence[Trigger]:
        """Create made-up phrases at as many places, and the near triggers if `count` is larger than their number."""
        near = self.near()
        near = near if count > len(near) else ()
        return [*map(Places, fake_lists(self.phrases, count - len(near), context)), *near]

    def near(self) -> Sequence[Trigger]:
        """Return each phrase alone, before any word of the prompt, and all in reverse order."""
        return [*(_Part((phrase,)) for phrase in self.phrases), _Part(self.phrases[::-1])]

    def texts(self) -> tuple[str, ...]:
        """Return the phrases."""
        return self.phrases


@dataclass(frozen=True)
class _Part(Places):
    """Some of the phrases, or all in another order: no trigger by itself."""

    def __post_init__(self) -> None:
        """Accept a single phrase, too."""
