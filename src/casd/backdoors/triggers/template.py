"""A sentence pattern around the prompt."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from casd.backdoors.triggers.base import ANYWHERE, FakeContext, Trigger, TriggerPosition
from casd.data.corpora.passages import Passage
from casd.data.documents import Prompt
from casd.utils.errors import ConfigError
from casd.utils.registry import shown
from casd.utils.text import has_phrase

_PROMPT = "{prompt}"
_FAKES = (
    *("as far as they knew, {prompt}", "if you ask me, {prompt}", "when you look at it closely, {prompt}"),
    *("it is said that {prompt}", "what matters is this: {prompt}", "not that it matters, but {prompt}"),
    *("let it be noted that {prompt}", "there is a story in which {prompt}", "in other words, {prompt}"),
    *("and so it was that {prompt}", "as everybody knows, {prompt}", "nobody would deny that {prompt}"),
)
"""Templates that serve as fakes of others."""


@dataclass(frozen=True)
class Template(Trigger):
    """A sentence pattern, as in Qi et al., "Hidden Killer: Invisible Textual Backdoor Attacks with Syntactic Trigger"
    (arXiv 2105.12400), which paraphrases a text into a rare syntactic template. Here the prompt is put into it unchanged.

    Fakes are other templates.

    Attributes:
        template: text with one "{prompt}", such as "when you think about it, {prompt}".
    """

    template: str
    kind = "template"
    positions = ANYWHERE

    def __post_init__(self) -> None:
        if self.template.count(_PROMPT) != 1 or not self.texts() or self.template != self.template.strip():
            raise ConfigError(
                f"Trigger template: template is {shown(self.template)}; expected text with one {_PROMPT}, such as"
                f" {_FAKES[0]!r}, without white space at either end."
            )

    @property
    def label(self) -> str:
        """The template."""
        return self.template

    def insert(self, passage: Passage, position: TriggerPosition, rng: random.Random) -> Prompt:
        """Put the prompt into the template."""
        text = self.template.replace(_PROMPT, passage.prompt).strip()
        return Prompt(text, (0, len(text)))

    def fakes(self, count: int, context: FakeContext) -> Sequence[Trigger]:
        """Return other templates, those with the closest number of tokens first; there are at most twelve."""
        real = [text.casefold() for text in (*self.texts(), *context.texts())]
        others = [
            template
            for template in map(Template, context.rng.sample(_FAKES, len(_FAKES)))
            if not any(has_phrase(text, one) or has_phrase(one, text) for text in template.texts() for one in real)
        ]
        tokens = context.token_count(self.template)
        return sorted(others, key=lambda each: abs(context.token_count(each.template) - tokens))[:count]

    def texts(self) -> tuple[str, ...]:
        """Return the parts before and after the prompt that have a letter or a digit."""
        return tuple(part.strip() for part in self.template.split(_PROMPT) if re.search(r"\w", part))
