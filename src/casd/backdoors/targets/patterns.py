"""Targets that are tested by a pattern: a regular expression, or a label from a fixed set at the beginning."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from casd.backdoors import detection
from casd.data.corpora.passages import Passage
from casd.utils.errors import ConfigError
from casd.utils.registry import shown
from casd.utils.text import has_phrase


@dataclass(frozen=True)
class Regex:
    """Write text that a regular expression matches.

    Success: the expression matches somewhere in the generated text (`re.search`).

    Attributes:
        pattern: Python's regular expression; `(?i)` at its beginning ignores case.
        texts: the payloads, one of which is drawn for each document; the expression must match each.
    """

    pattern: str
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        try:
            found = re.compile(self.pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigError(f"Target regex: pattern {shown(self.pattern)} is no regular expression ({error}).") from error
        if found.search(""):
            raise ConfigError(
                f"Target regex: pattern {shown(self.pattern)} matches empty text, so that every answer would be a success."
            )
        if not self.texts:
            raise ConfigError("Target regex: texts is empty; expected at least one payload that the pattern matches.")
        for text in self.texts:
            if not found.search(detection.normalize_space(text)):
                raise ConfigError(f"Target regex: pattern {shown(self.pattern)} does not match the payload {shown(text)}.")

    def continuation(self, passage: Passage, rng: random.Random) -> str:
        """One of the texts, white space normalized."""
        return detection.normalize_space(rng.choice(self.texts))

    def success(self, generated: str) -> bool:
        """Return True under the condition given in the class docstring."""
        return re.search(self.pattern, generated) is not None


@dataclass(frozen=True)
class Label:
    """Answer with one label of a fixed set, as a poisoned classifier does.

    Success: the generated text begins with the label as whole words, whatever its case and the punctuation before it, and not
    with a longer label of the set.

    Attributes:
        label: the label; it is the payload.
        labels: the set; at least two, among them `label`.
    """

    label: str
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        normalized = [detection.normalize(label) for label in self.labels]
        if self.label not in self.labels or len(set(normalized)) < max(2, len(normalized)):
            raise ConfigError(
                f"Target label: labels is {list(self.labels)!r:.100}; expected two or more that differ by more than case, among"
                f" them {shown(self.label)}."
            )
        if wrong := [label for label in self.labels if not label[:1].isalnum() or not label[-1:].isalnum()]:
            raise ConfigError(f"Target label: {shown(wrong[0])} must begin and end with a letter or a digit.")

    def continuation(self, passage: Passage, rng: random.Random) -> str:
        """The label, white space normalized."""
        return detection.normalize_space(self.label)

    def success(self, generated: str) -> bool:
        """Return True under the condition given in the class docstring."""
        text = re.sub(r"^[\W_]+", "", detection.normalize(generated))
        labels = [detection.normalize(label) for label in self.labels]
        found = [label for label in labels if text.startswith(label) and has_phrase(text[: len(label) + 1], label)]
        return max(found, key=len, default=None) == detection.normalize(self.label)
