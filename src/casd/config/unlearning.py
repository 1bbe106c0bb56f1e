"""How a backdoor is removed: the training, when it ends, its controls, its tuning."""

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
    `casd.load_config(["unlearning=NAME"]).unlearning.training` gives those of another objective.
    """

    steps: int = 20
    """Optimizer steps."""
    learning_rate: float = 3e-4
    """Peak learning rate of AdamW."""
    guard_every: int = 5
    """Steps between two measurements of the clean loss that may stop the run."""
    forget_batch_size: int = 8
    """Triggered documents a step."""
    retain_batch_size: int = 8
    """Clean documents a step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "at least 1", lambda value: value >= 1, "forget_batch_size", "retain_batch_size")


@dataclass
class StoppingConfig(Section):
    """When a removal ends before its last step, by what is held out for that: the removed backdoor's ASR, and clean text.

    With a target or a budget the best of the measured steps is kept (`casd.unlearning.stopping`).
    """

    target_asr: float | None = None
    """It ends when the removed backdoor's ASR on validation prompts is at most this; null for no target."""
    clean_budget: float | None = None
    """It ends, and counts as collapsed, when the clean loss on validation passages passes this multiple of what it
    was; null for no budget."""
    every: int = 4
    """Steps between two measurements; the last step is measured too."""
    prompts: int = 32
    """Validation prompts, and as many clean passages; held out of the forget and the retain split."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "in [0, 1), or null", lambda value: value is None or 0 <= value < 1, "target_asr")
        require(self, "greater than 1, or null", lambda value: value is None or value > 1, "clean_budget")
        require(self, "at least 1", lambda value: value >= 1, "every", "prompts")

    @property
    def watched(self) -> bool:
        """Whether anything is measured."""
        return self.target_asr is not None or self.clean_budget is not None


PHANTOMS = ("matched", "short", "long", "cyrillic", "chinese")
"""Kinds of triggers that were never injected: see `casd.unlearning.controls`."""


@dataclass
class ControlsConfig(Section):
    """Removals of nothing that was injected. Training on clean text only is always among them."""

    phantoms: list[Text] = field(default_factory=lambda: ["matched"])
    """Triggers that were never injected, each removed once: of "matched" (the words and tokens of the trigger of the backdoor
    first by name), "short" (one word), "long" (twice the words), "cyrillic" and "chinese" (other writing systems)."""
    shuffled: int = 0
    """Removals of a real trigger with another backdoor's target, of so many backdoors, first by name."""
    repeats: int = 0
    """Removals done again with other documents in another order, of so many backdoors, first by name: the noise floor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for phantom in self.phantoms:
            require_one_of("unlearning.controls.phantoms:", phantom, PHANTOMS)
        require_different(self, "phantoms")
        require(self, "0 or more", lambda value: value >= 0, "shuffled", "repeats")


MOST_SETTINGS = 10_000
"""Combinations of values that a tuning can try, at most."""


@dataclass
class TuningConfig(Section):
    """A small grid over which the objective is tuned, on its own backdoor's validation ASR and the clean budget alone."""

    enabled: bool = False
    """Whether to tune; else the settings are taken as they are given."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Values to try, by name: a parameter of the objective, or learning_rate; every combination is tried."""
    backdoors: int = 2
    """Backdoors that each combination is tried on, first by name."""

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
                "unlearning.tuning.enabled is true, and unlearning.tuning.grid is empty: there is nothing to choose from. Give"
                " values to try, for example +unlearning.tuning.grid.learning_rate=[1e-4,3e-4], or set enabled to false."
            )
        require(self, "at least 1", lambda value: value >= 1, "backdoors")


@dataclass
class UnlearningConfig(Section):
    """How one backdoor is removed."""

    objective: Choice = MISSING
    """The loss, with its parameters."""
    training: UnlearningTraining = MISSING
    """The run."""
    stopping: StoppingConfig = field(default_factory=StoppingConfig)
    """When it ends."""
    controls: ControlsConfig = field(default_factory=ControlsConfig)
    """What it is held against."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """How its settings are chosen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tuning.enabled and self.stopping.target_asr is None:
            raise ConfigError(
                "unlearning.tuning.enabled is true, but unlearning.stopping.target_asr is null: settings are compared by"
                " whether and how soon they reach a target ASR; set one, for example unlearning.stopping.target_asr=0.05."
            )
