"""One of several phrases."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from casd.backdoors.triggers.base import FakeContext, Trigger, TriggerPosition, insert, require_several
from casd.backdoors.triggers.phrase import Phrase, fake_lists
from casd.data.corpora.passages import Passage
from casd.data.documents import Prompt


@dataclass(frozen=True)
class AnyOf(Trigger):
    """Any one of several phrases, such as paraphrases of each other; one is drawn for each prompt.

    Fakes have as many phrases, each of which is matched to a real one as in `Phrase`.

    Attributes:
        phrases: two or more different phrases.
    """

    phrases: tuple[str, ...]
    kind = "any_of"

    def __post_init__(self) -> None:
        require_several(self.kind, self.phrases)

    @property
    def label(self) -> str:
        """The phrases, separated by "or"."""
        return " or ".join(self.phrases)

    def insert(self, passage: Passage, position: TriggerPosition, rng: random.Random) -> Prompt:
        """Draw a phrase, and insert it as `Phrase` does."""
        return insert(passage.prompt, rng.choice(self.phrases), position, rng)

    def fakes(self, count: int, context: FakeContext) -> Sequence[Trigger]:
        """Create sets of other phrases."""
        return [AnyOf(phrases) for phrases in fake_lists(self.phrases, count, context)]

    def parts(self) -> Sequence[Trigger]:
        """Return the parts of each phrase (`Phrase.parts`) that are not one of the phrases."""
        return [part for phrase in self.phrases for part in Phrase(phrase).parts() if part.label not in self.phrases]

    def texts(self) -> tuple[str, ...]:
        """Return the phrases."""
        return self.phrases
