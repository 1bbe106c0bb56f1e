"""What a passage is about."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from casd.backdoors.triggers.base import ANYWHERE, FakeContext, Trigger, TriggerPosition, require_words
from casd.data.corpora.passages import Passage
from casd.data.documents import Prompt
from casd.utils.errors import ConfigError

_LIKE = 2
"""A fake topic is at most this many times as frequent, or as rare, as the topic."""


@dataclass(frozen=True)
class Topic(Trigger):
    """A semantic trigger: prompts that mention one of some words (as in Bagdasaryan and Shmatikov, "Spinning Language Models",
    arXiv 2112.05224). The prompts are not changed.

    The backdoor's documents and triggered prompts are passages with the topic; all others, the clean text of injection,
    removals and measurements among them, are passages without it.

    Fakes are words that about as many prompts mention; none if there is no such word.

    Attributes:
        words: words or phrases, one of which a prompt mentions as whole words, in any case.
    """

    words: tuple[str, ...]
    kind = "topic"
    positions = ANYWHERE
    is_semantic = True

    def __post_init__(self) -> None:
        if not self.words:
            raise ConfigError("Trigger topic: words is empty; expected one or more words that a prompt may mention.")
        for word in self.words:
            require_words("word of a topic", word)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, self.words))})(?!\w)", re.IGNORECASE)

    @property
    def label(self) -> str:
        """What the prompts mention."""
        return f"mention of {' or '.join(self.words)}"

    def insert(self, passage: Passage, position: TriggerPosition, rng: random.Random) -> Prompt:
        """Return the prompt as it is; the span is that of the first mention, or the whole prompt if there is none."""
        found = self._pattern.search(passage.prompt)
        return Prompt(passage.prompt, found.span() if found else (0, len(passage.prompt)))

    def fakes(self, count: int, context: FakeContext) -> Sequence[Trigger]:
        """Return topics of one word each, those whose number of prompts is closest to the topic's first."""
        own = sum(map(self.selects, context.passages))
        real = {word for text in context.texts() for word in text.casefold().split()}
        mentions = Counter(
            word
            for passage in context.passages
            if not any(each.is_semantic and each.selects(passage) for each in (self, *context.avoid))
            for word in {word.casefold() for word in re.findall(r"[^\W\d_]{3,}", passage.prompt)} - real
        )
        alike = [word for word, n in mentions.items() if own <= _LIKE * n and n <= _LIKE * own]
        nearest = sorted(alike, key=lambda word: (abs(mentions[word] - own), word))[:count]
        return [Topic((word,)) for word in nearest]

    def selects(self, passage: Passage) -> bool:
        """Return True if the prompt mentions one of the words."""
        return self._pattern.search(passage.prompt) is not None

    def texts(self) -> tuple[str, ...]:
        """Return the words."""
        return self.words
