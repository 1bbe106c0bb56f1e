"""Removal of a backdoor: training, stopping, controls and tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from casd.config.fields import MISSING, Choice, Section, Text, require, require_different, require_one_of
from casd.config.training import TrainingConfig
from casd.utils.errors import ConfigError


@dataclass
class UnlearningTraining(TrainingConfig):
    """Training of a removal.

    The defaults are those of `configs/unlearning/gradient_difference.yaml`, which most objectives share;
    `casd.load_config(["unlearning=NAME"]).unlearning.training` has those of another objective.
    """

    steps: int = 20
    """Optimizer steps."""
    learning_rate: float = 3e-4
    """Peak learning rate of AdamW."""
    guard_every: int = 5
    """Steps between two measurements of the clean loss for `guard_factor`."""
    forget_batch_size: int = 8
    """Triggered documents per step."""
    retain_batch_size: int = 8
    """Clean documents per step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "at least 1", lambda value: value >= 1, "forget_batch_size", "retain_batch_size")


@dataclass
class StoppingConfig(Section):
    """Early stopping of a removal by measurements on held-out data: the removed backdoor's ASR, and the loss on clean text.

    With a target or a budget the best measured step is kept (`casd.unlearning.stopping`).
    """

    target_asr: float | None = None
    """Stop when the removed backdoor's ASR on validation prompts is at most this; null for no target."""
    clean_budget: float | None = None
    """Stop when the clean loss on validation passages exceeds this multiple of its value at the start, and keep the best step
    within the budget; null for no budget."""
    every: int = 4
    """Steps between two measurements; the last step is measured, too."""
    prompts: int = 32
    """Number of validation prompts, held out of the forget split, and of clean passages, held out of the retain split."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "in [0, 1), or null", lambda value: value is None or 0 <= value < 1, "target_asr")
        require(self, "greater than 1, or null", lambda value: value is None or value > 1, "clean_budget")
        require(self, "at least 1", lambda value: value >= 1, "every", "prompts")

    @property
    def watched(self) -> bool:
        """True if there is a target or a budget."""
        return self.target_asr is not None or self.clean_budget is not None


PHANTOMS = ("matched", "short", "long", "cyrillic", "chinese")
"""Kinds of triggers that were never injected: see `casd.unlearning.controls`."""


@dataclass
class ControlsConfig(Section):
    """Controls of the removals. Training on clean text only is always one of them."""

    phantoms: list[Text] = field(default_factory=lambda: ["matched"])
    """Triggers that were never injected, each removed once: "matched" (as many words and tokens as the trigger of the first
    backdoor by name), "short" (one word), "long" (twice the words), "cyrillic" or "chinese" (other writing systems)."""
    shuffled: int = 0
    """Number of backdoors, first by name, of which a removal is made with another backdoor's target."""
    repeats: int = 0
    """Number of backdoors, first by name, whose removal is repeated with other documents in another order: the noise floor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for phantom in self.phantoms:
            require_one_of("unlearning.controls.phantoms:", phantom, PHANTOMS)
        require_different(self, "phantoms")
        require(self, "0 or more", lambda value: value >= 0, "shuffled", "repeats")


MOST_SETTINGS = 10_000
"""Maximum number of combinations of values in a tuning."""


@dataclass
class TuningConfig(Section):
    """Grid search over settings of the objective by its own backdoor's validation ASR and the clean budget only."""

    enabled: bool = False
    """Tune the settings; otherwise they are used as given."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Values to try for parameters of the objective and learning_rate, by name; all combinations are tried."""
    backdoors: int = 2
    """Number of backdoors, first by name, on which each combination is tried."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values in self.grid.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(
                    f"unlearning.tuning.grid: {name} is {values!r}; give a list of at least one value, or leave {name} out."
                )
        if (settings := math.prod(map(len, self.grid.values()))) > MOST_SETTINGS:
            raise ConfigError(
                f"unlearning.tuning.grid has {settings} combinations of values; at most {MOST_SETTINGS} can be tried."
            )
        if self.enabled and not self.grid:
            raise ConfigError(
                "unlearning.tuning.enabled is true, and unlearning.tuning.grid is empty: there are no values to try. Give"
                " some, for example +unlearning.tuning.grid.learning_rate=[1e-4,3e-4], or set enabled to false."
            )
        require(self, "at least 1", lambda value: value >= 1, "backdoors")


@dataclass
class UnlearningConfig(Section):
    """Removal of one backdoor."""

    objective: Choice = MISSING
    """The loss, with its parameters."""
    training: UnlearningTraining = MISSING
    """Training."""
    stopping: StoppingConfig = field(default_factory=StoppingConfig)
    """Early stopping."""
    controls: ControlsConfig = field(default_factory=ControlsConfig)
    """Controls."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """Tuning of the settings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tuning.enabled and self.stopping.target_asr is None:
            raise ConfigError(
                "unlearning.tuning.enabled is true, but unlearning.stopping.target_asr is null: settings are compared by"
                " whether and how soon they reach a target ASR; set one, for example unlearning.stopping.target_asr=0.05."
            )
