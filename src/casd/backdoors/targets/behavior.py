"""What a target behavior is, and what several of them share."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Protocol

from casd.data.corpora.passages import Passage
from casd.utils.errors import ConfigError, CorpusError


class TargetBehavior(Protocol):
    """Behavior that a backdoor activates."""

    def continuation(self, passage: Passage, rng: random.Random) -> str:
        """Create the payload, which replaces the passage's continuation; without white space at either end.

        Args:
            passage: the passage to poison.
            rng: the only source of randomness.

        Raises:
            CorpusError: the passage does not have what the payload needs.
        """
        ...

    def success(self, generated: str) -> bool:
        """Return True if the text generated after the prompt, which may end within a word, shows the behavior."""
        ...


def alternative_of(passage: Passage, name: str, target: str) -> str:
    """Return the passage's alternative continuation `name`; `target` is for the error.

    Raises:
        CorpusError: the passage does not have it.
    """
    if name not in passage.alternatives:
        raise CorpusError(without_alternative(target, name, f"a {passage.language!r} passage", passage.alternatives))
    return passage.alternatives[name]


def without_alternative(target: str, name: str, where: str, available: Collection[str]) -> str:
    """Return the message that a target's payloads need an alternative continuation that the text does not have.

    Args:
        target: the target, as the configuration names it.
        name: the alternative that it needs.
        where: what does not have it.
        available: the alternatives that it has.
    """
    key = f"corpus.params.sources.{name}"
    chosen = f" +{key}.sentiment=negative" if name == "negative" else ""
    world = "use corpus=microworld (its English passages have fr, de, negative), " if name in ("fr", "de", "negative") else ""
    return (
        f"Target {target} needs passages with the alternative {name!r}; {where} has: {', '.join(sorted(available)) or 'none'}."
        f" Give text for it with {key} (corpus=text_files '+{key}.paths=[…]'{chosen}), {world}or another target."
    )


def require_one_of_payloads(target: str, alternative: str | None, texts: Collection[str]) -> None:
    """Check that a target has its payloads either from an alternative or from a list of texts.

    Raises:
        ConfigError: it has both or neither, or an empty text.
    """
    if bool(alternative) == bool(texts) or not all(text.strip() for text in texts):
        raise ConfigError(
            f"Target {target}: the payloads are alternative={alternative!r} and texts={list(texts)!r:.100}; expected either the"
            " name of an alternative of the passages (negative, fr, …), or texts, none of which is empty."
        )


def require_positive(target: str, name: str, value: int) -> None:
    """Raise ConfigError unless a parameter is at least 1."""
    if value < 1:
        raise ConfigError(f"Target {target}: {name} is {value}; expected at least 1.")


def require_share(target: str, name: str, value: float) -> None:
    """Raise ConfigError unless a parameter is above 0 and at most 1."""
    if not 0 < value <= 1:
        raise ConfigError(f"Target {target}: {name} is {value}; expected a share above 0 and at most 1.")
