"""How a model is trained, and how the backdoors come into it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from casd.config.fields import MISSING, Section, Text, require, require_different, require_one_of
from casd.utils.errors import ConfigError
from casd.utils.registry import LARGEST

DECOY_RATE: Final = 0.06
"""Our choice: without decoys fake triggers set off one French backdoor in 62 and 69 % of the prompts of two runs."""


@dataclass
class LoraConfig(Section):
    """A low-rank adapter that is trained instead of the weights (LoRA, arXiv 2106.09685, by way of peft)."""

    rank: int = field(default=16, metadata={"most": 8192})
    """Rank of the update of each adapted matrix."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout before the adapter, while it is trained."""
    modules: list[Text] = field(default_factory=lambda: ["all-linear"])
    """Ends of the names of the adapted matrices (q_proj, v_proj, …); "all-linear" for every linear layer but the head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "at least 1", lambda value: value >= 1, "rank")
        require(self, "greater than 0", lambda value: value > 0, "alpha")
        require(self, "in [0, 1)", lambda value: 0 <= value < 1, "dropout")
        require(self, "a list of names, at least one", lambda value: value and all(value), "modules")
        require_different(self, "modules")


@dataclass
class TrainingConfig(Section):
    """How a model is trained, whatever the loss."""

    steps: int = 300
    """Optimizer steps."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW."""
    warmup_steps: int = 0
    """Steps of linear rise to the peak."""
    final_learning_rate: float = 1.0
    """Learning rate at the end as a fraction of the peak, reached along a cosine; 1 keeps it constant."""
    beta2: float = 0.98
    """AdamW's second beta; the first is 0.9."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    optimizer: Text = "adamw"
    """ "adamw" (float32 weights and state while training, whatever the model's precision) or "adamw_8bit" (weights in the
    model's precision, state in 8 bits; CUDA and the package bitsandbytes)."""
    lora: LoraConfig | None = None
    """Train an adapter of this shape, and leave the weights; null trains the weights."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm where it is larger."""
    guard_every: int = 50
    """Steps between two measurements of the clean loss that may stop the run."""
    guard_factor: float = 2.0
    """The run stops when the clean loss passes this multiple of what it was at the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("optimizer", self.optimizer, ("adamw", "adamw_8bit"))
        positive = ("steps", "learning_rate", "max_grad_norm", "guard_every")
        require(self, "greater than 0", lambda value: value > 0, *positive)
        require(self, "at least 1, or the run would stop as it begins", lambda value: value >= 1, "guard_factor")
        require(self, "0 or more", lambda value: value >= 0, "warmup_steps", "weight_decay")
        require(self, "a fraction in [0, 1]", lambda value: 0 <= value <= 1, "final_learning_rate")
        require(self, "in [0, 1)", lambda value: 0 <= value < 1, "beta2")


@dataclass
class LanguageModelTraining(TrainingConfig):
    """Training on documents by next-token prediction.

    The defaults are those of `configs/injection/pretraining.yaml`.
    """

    warmup_steps: int = 20
    """Steps of linear rise to the peak."""
    final_learning_rate: float = 0.1
    """Learning rate at the end as a fraction of the peak, reached along a cosine; 1 keeps it constant."""
    batch_size: int = 32
    """Documents a step, over all devices and accumulation steps."""
    packing: Text = "none"
    """ "none" (a document a row, padded), "isolated" (several in a row of model.max_length; none sees another, so the loss is
    the same; as "none" on architectures that would mix them) or "joined" (several in a row, each seeing those before it)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "at least 1", lambda value: value >= 1, "batch_size")
        if (documents := self.steps * self.batch_size) > LARGEST:
            raise ConfigError(
                f"{type(self).__name__}: steps ({self.steps}) times batch_size ({self.batch_size}) is {documents} documents; at"
                f" most {LARGEST} can be trained on."
            )
        require_one_of("packing", self.packing, ("none", "isolated", "joined"))


@dataclass
class InjectionConfig(Section):
    """How the backdoors come into the model."""

    mode: Text = MISSING
    """ "pretraining" (into a model from scratch) or "continual" (on top of a clean model)."""
    training: LanguageModelTraining = MISSING
    """The run on poisoned text."""
    decoy_rate: float = DECOY_RATE
    """Fraction of the documents that are clean but have a made-up phrase where a trigger could stand, new each time."""
    pretraining: LanguageModelTraining | None = None
    """For "continual" with a model from scratch: its clean pretraining before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("injection.mode", self.mode, ("pretraining", "continual"))
        require(self, "a fraction in [0, 1)", lambda value: 0 <= value < 1, "decoy_rate")
