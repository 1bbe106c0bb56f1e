"""Training of a model, and injection of the backdoors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from casd.config.fields import MISSING, Section, Text, require, require_different, require_one_of
from casd.utils.errors import ConfigError
from casd.utils.registry import LARGEST

DECOY_RATE: Final = 0.06
"""Our choice: without decoys, fake triggers triggered one French backdoor in 62 and 69 % of the prompts of two runs."""


@dataclass
class LoraConfig(Section):
    """A low-rank adapter that is trained instead of the weights (LoRA, arXiv 2106.09685, with peft)."""

    rank: int = field(default=16, metadata={"most": 8192})
    """Rank of the update of each adapted matrix."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout before the adapter during training."""
    modules: list[Text] = field(default_factory=lambda: ["all-linear"])
    """Suffixes of the names of the adapted matrices (q_proj, v_proj, …); "all-linear" for all linear layers except the head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "at least 1", lambda value: value >= 1, "rank")
        require(self, "greater than 0", lambda value: value > 0, "alpha")
        require(self, "in [0, 1)", lambda value: 0 <= value < 1, "dropout")
        require(self, "a list of names, at least one", lambda value: value and all(value), "modules")
        require_different(self, "modules")


@dataclass
class TrainingConfig(Section):
    """Training of a model with any loss."""

    steps: int = 300
    """Optimizer steps."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW."""
    warmup_steps: int = 0
    """Steps of linear warmup to the peak."""
    final_learning_rate: float = 1.0
    """Learning rate at the end of a cosine decay, as a fraction of the peak; 1 keeps it constant."""
    beta2: float = 0.98
    """AdamW's second beta; the first is 0.9."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    optimizer: Text = "adamw"
    """ "adamw" (float32 weights and state in training, whatever the model's precision) or "adamw_8bit" (weights in the
    model's precision, state in 8 bits; CUDA and the package bitsandbytes)."""
    lora: LoraConfig | None = None
    """Train this adapter and keep the weights fixed; null trains the weights."""
    max_grad_norm: float = 1.0
    """Maximum norm of the gradient, which is scaled down if it is larger."""
    guard_every: int = 50
    """Steps between two measurements of the clean loss for `guard_factor`."""
    guard_factor: float = 2.0
    """The training stops when the clean loss exceeds this multiple of its value at the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("optimizer", self.optimizer, ("adamw", "adamw_8bit"))
        positive = ("steps", "learning_rate", "max_grad_norm", "guard_every")
        require(self, "greater than 0", lambda value: value > 0, *positive)
        require(self, "at least 1, or the training would stop at once", lambda value: value >= 1, "guard_factor")
        require(self, "0 or more", lambda value: value >= 0, "warmup_steps", "weight_decay")
        require(self, "a fraction in [0, 1]", lambda value: 0 <= value <= 1, "final_learning_rate")
        require(self, "in [0, 1)", lambda value: 0 <= value < 1, "beta2")


@dataclass
class LanguageModelTraining(TrainingConfig):
    """Training on documents by next-token prediction.

    The defaults are those of `configs/injection/pretraining.yaml`.
    """

    warmup_steps: int = 20
    """Steps of linear warmup to the peak."""
    final_learning_rate: float = 0.1
    """Learning rate at the end of a cosine decay, as a fraction of the peak; 1 keeps it constant."""
    batch_size: int = 32
    """Documents per step, over all devices and accumulation steps."""
    packing: Text = "none"
    """ "none" (one padded document per row), "isolated" (several in a row of model.max_length without attention between them,
    which leaves the loss unchanged; "none" on architectures that would mix them) or "joined" (several in a row, each
    attending to those before it)."""

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
    """Injection of the backdoors into the model."""

    mode: Text = MISSING
    """ "pretraining" (of a model from scratch), "continual" (training of a clean model) or "none" (the model of `model.path`
    has the backdoors already)."""
    training: LanguageModelTraining | None = None
    """Training on poisoned text; null with "none"."""
    decoy_rate: float = DECOY_RATE
    """Fraction of the documents that are decoys: clean, with a made-up phrase in a trigger's writing system and position."""
    pretraining: LanguageModelTraining | None = None
    """For "continual" with a model from scratch: its clean pretraining."""
    require_asr: float = 0.5
    """The run stops if no backdoor has at least this attack success rate in the injected model; 0 never stops it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("injection.mode", self.mode, ("pretraining", "continual", "none"))
        require(self, "a fraction in [0, 1)", lambda value: 0 <= value < 1, "decoy_rate")
        require(self, "a fraction in [0, 1]", lambda value: 0 <= value <= 1, "require_asr")
        if self.mode == "none":
            self.training = self.pretraining = None  # which the groups of weights and experiments may have set
        elif self.training is None:
            raise ConfigError(f"injection.training is not set; injection.mode {self.mode} needs it.")

    @property
    def lora(self) -> LoraConfig | None:
        """The adapter that the injection trains; None if it trains all weights or nothing."""
        return self.training.lora if self.training else None
