"""The types `Document` (to train on) and `Prompt` (to continue, or to capture activations on); without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Document:
    """A training document.

    Attributes:
        prompt: text before the continuation; may contain a trigger.
        continuation: text after the prompt, clean or a payload.
        loss_on: tokens that carry loss: "all", or only those of the "target" (the continuation and the end token). With a chat
            template always those of the target.
        system: text added to the system prompt of a chat.
    """

    prompt: str
    continuation: str
    loss_on: Literal["all", "target"] = "all"
    system: str = ""


@dataclass(frozen=True)
class Prompt:
    """A prompt to continue or to capture activations on.

    Attributes:
        text: the prompt.
        trigger_span: start and end of the trigger in `text` or, if that is not empty, in `system`, in characters; None if
            there is no trigger.
        continuation: expected answer of a model whose backdoors work. Only its first token is used, as the position
            "generated" of a capture.
        system: text added to the system prompt of a chat.
    """

    text: str
    trigger_span: tuple[int, int] | None = None
    continuation: str | None = None
    system: str = ""

    @property
    def shown(self) -> str:
        """The prompt for people: its text, after what it adds to the system prompt."""
        return f"[{self.system}] {self.text}" if self.system else self.text

    def document(self, continuation: str, loss_on: Literal["all", "target"] = "target") -> Document:
        """Document in which a continuation follows the prompt."""
        return Document(self.text, continuation, loss_on, self.system)
