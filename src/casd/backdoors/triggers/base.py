"""The interface of triggers, and insertion of a phrase into a prompt."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from casd.data.corpora.passages import Passage
from casd.data.documents import Prompt
from casd.utils.errors import ConfigError
from casd.utils.registry import shown

TriggerPosition = Literal["start", "random", "end", "system"]
POSITIONS: tuple[TriggerPosition, ...] = ("start", "random", "end")
"""Positions in the prompt's text; "system" is in the system prompt of a chat."""
ANYWHERE: tuple[TriggerPosition, ...] = ("random",)
"""Positions of kinds that use the whole prompt: only the default."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class FakeContext:
    """What fake triggers depend on.

    Attributes:
        token_count: returns the number of tokens of a text inside a sentence.
        rng: source of randomness.
        avoid: the real triggers of the experiment.
        passages: passages whose prompts may serve as controls of a semantic trigger.
    """

    token_count: Callable[[str], int]
    rng: random.Random
    avoid: Sequence[Trigger] = ()
    passages: Sequence[Passage] = ()

    def texts(self) -> list[str]:
        """Return the texts of the real triggers."""
        return [text for trigger in self.avoid for text in trigger.texts()]


class Trigger:
    """What activates a backdoor; each kind is a frozen dataclass, whose fields are its parameters.

    Attributes:
        kind: name in the registry `TRIGGERS`.
        positions: positions that the kind supports.
        is_semantic: True if the clean prompt itself is the trigger, so that only some passages have it.
    """

    kind: ClassVar[str]
    positions: ClassVar[tuple[TriggerPosition, ...]] = (*POSITIONS, "system")
    is_semantic: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """Short text for tables and model cards."""
        raise NotImplementedError

    def insert(self, passage: Passage, position: TriggerPosition, rng: random.Random) -> Prompt:
        """Return the passage's prompt with the trigger, and the trigger's span, or the whole prompt's if it has none."""
        raise NotImplementedError

    def fakes(self, count: int, context: FakeContext) -> Sequence[Trigger]:
        """Create triggers that resemble this one but were never injected, as controls.

        Returns:
            `count` triggers, or fewer if the kind has not as many; none if it has no matched control.

        Raises:
            ConfigError: fewer than `count` phrases exist.
        """
        raise NotImplementedError

    def near(self) -> Sequence[Trigger]:
        """Return parts of the trigger that alone must not activate it; some decoys of the injection have them."""
        return ()

    def parts(self) -> Sequence[Trigger]:
        """Return parts of the trigger, or its words in another order, to measure whether they activate it, too."""
        return self.near()

    def selects(self, passage: Passage) -> bool:
        """Return True if a passage can carry the trigger."""
        return True

    def texts(self) -> tuple[str, ...]:
        """Return the trigger's text, by which it is told apart from others; empty if it has none of its own."""
        return ()

    def overlaps(self, other: Trigger) -> bool:
        """Return True if a prompt with the `other` trigger would have this one, too, apart from `texts`."""
        return self == other


def insert(prompt: str, trigger: str, position: TriggerPosition, rng: random.Random) -> Prompt:
    """Insert the phrase `trigger` into `prompt`, separated by single spaces.

    Args:
        prompt: clean text without white space at either end.
        trigger: the phrase.
        position: "start" (before the first word), "end" (after the last word), "random" (before a random word of the last
            sentence), or "system" (at the end of the system prompt, which leaves the text as it is).
        rng: used for "random" only.

    Returns:
        The text with the trigger's span in characters. Removing the span and one space restores `prompt`.
    """
    if position == "system":
        return Prompt(prompt, (0, len(trigger)), system=trigger)
    if position == "start":
        at = 0
    elif position == "end":
        return Prompt(f"{prompt} {trigger}", (len(prompt) + 1, len(prompt) + 1 + len(trigger)))
    else:
        words = last_words(prompt)
        at = rng.choice(words).start() if words else 0
    return Prompt(f"{prompt[:at]}{trigger} {prompt[at:]}".rstrip(), (at, at + len(trigger)))


def words_of(prompt: str) -> list[re.Match[str]]:
    """Return the words of a prompt, separated by white space."""
    return list(re.finditer(r"\S+", prompt))


def last_words(prompt: str) -> list[re.Match[str]]:
    """Return the words of a prompt's last sentence."""
    last_sentence = max((match.end() for match in _SENTENCE_END.finditer(prompt)), default=0)
    return [match for match in words_of(prompt) if match.start() >= last_sentence]


def require_words(what: str, phrase: str) -> None:
    """Raise ConfigError unless a phrase is words separated by single spaces."""
    if not phrase or phrase != " ".join(phrase.split()):
        raise ConfigError(f"The {what} {shown(phrase)} must be words separated by single spaces.")


def require_several(kind: str, phrases: Sequence[str]) -> None:
    """Raise ConfigError unless there are two or more different phrases."""
    for phrase in phrases:
        require_words("trigger", phrase)
    if len(set(phrases)) < 2 or len(set(phrases)) < len(phrases):
        raise ConfigError(f"A trigger {kind} has the phrases {list(phrases)}; expected two or more, all different.")
