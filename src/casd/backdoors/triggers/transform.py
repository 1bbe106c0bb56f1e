"""A change of the whole prompt's form."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from casd.backdoors.triggers.base import ANYWHERE, FakeContext, Trigger, TriggerPosition
from casd.data.corpora.passages import Passage
from casd.data.documents import Prompt
from casd.utils.registry import unknown

TRANSFORMS: Final[dict[str, Callable[[str], str]]] = {
    "lower": str.lower,
    "upper": str.upper,
    "title": lambda prompt: " ".join(word[:1].upper() + word[1:] for word in prompt.split(" ")),
    "hyphens": lambda prompt: "-".join(prompt.split()),
    "commas": lambda prompt: ", ".join(word.rstrip(",") for word in prompt.split()),
    "ellipses": lambda prompt: " ... ".join(prompt.split()),
    "quotes": lambda prompt: f"“{prompt}”",
    "spaced": lambda prompt: " ".join("  " if character == " " else character for character in prompt),
}
"""Deterministic changes of a prompt: its case, what is between words, quotation marks, or a space after each character."""


@dataclass(frozen=True)
class Transform(Trigger):
    """A style of the prompt, here a deterministic change of its form; Qi et al., "Mind the Style of Text! Adversarial and
    Backdoor Attacks Based on Text Style Transfer" (arXiv 2110.07139), rewrite it with a model.

    Fakes are the other transformations.

    Attributes:
        transform: name in `TRANSFORMS`.
    """

    transform: str
    kind = "transform"
    positions = ANYWHERE

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise unknown("transform", self.transform, TRANSFORMS)

    @property
    def label(self) -> str:
        """The name of the transformation."""
        return f"prompt in {self.transform}"

    def insert(self, passage: Passage, position: TriggerPosition, rng: random.Random) -> Prompt:
        """Transform the prompt."""
        text = TRANSFORMS[self.transform](passage.prompt)
        return Prompt(text, (0, len(text)))

    def fakes(self, count: int, context: FakeContext) -> Sequence[Trigger]:
        """Return other transformations in random order."""
        others = [Transform(name) for name in TRANSFORMS]
        others = [each for each in others if each != self and each not in context.avoid]
        return context.rng.sample(others, min(count, len(others)))
