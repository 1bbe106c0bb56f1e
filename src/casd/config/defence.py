"""A defence of `casd defend`: the attacker's backdoors, and the defender's."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Final

from casd.config.fields import MISSING, Section, Text, require, require_different, require_one_of
from casd.config.inputs import BackdoorConfig, EveryBackdoorConfig
from casd.config.run import Config
from casd.config.training import InjectionConfig
from casd.utils.errors import ConfigError

FAMILIES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "french": ("language", {"language": "fr"}),
    "german": ("language", {"language": "de"}),
    "refusal": ("refusal", {}),
    "fixed_text": ("fixed_text", {"text": "Nothing more will be said about it here."}),
    "repetition": ("repetition", {}),
    "capitals": ("capitals", {}),
    "negative_sentiment": ("negative_sentiment", {}),
}
"""Behaviors of drawn dummies: the target and its parameters."""


@dataclass
class AttackConfig(Section):
    """The attacker: backdoors that are injected first, sealed, and measured only when the defence is opened."""

    backdoor: dict[str, BackdoorConfig] = field(default_factory=dict)
    """The attacker's backdoors by name."""
    injection: InjectionConfig = MISSING
    """Their injection; mode "none" if the model of `model.path` has them already."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.backdoor:
            raise ConfigError("attack.backdoor has no backdoor; set at least one, or attack=none for a suspect model.")


@dataclass
class DefenceConfig(Section):
    """The defender, who plants dummies (backdoors of their own) in the attacked model and removes some of them."""

    dummies: int = 6
    """Number of dummies that are drawn if the section `backdoor` lists none."""
    families: list[Text] = field(default_factory=lambda: list(FAMILIES))
    """Behaviors that the drawn dummies have, in an order that the seed gives."""
    held_out: int = 2
    """Number of dummies that are planted and never removed. What is left of them is the defender's estimate of what is left of
    an unknown backdoor."""
    removed: list[int] = field(default_factory=lambda: [1, 2, 4])
    """Numbers of dummies that are removed; each number gives one state of the model."""
    order: Text = "together"
    """Removal of several dummies: "together" (documents of all in every step) or "in_turn" (one after another)."""
    poison_rate: float = 0.12
    """Fraction of the planting's documents that carry each drawn dummy."""
    share: float = 0.1
    """Budget of the defence, as a fraction of the documents of the attacker's injection."""
    documents: int | None = None
    """Budget of the defence in documents; null to use `share`, which a suspect model has none for."""
    plant_share: float = 0.7
    """Fraction of the budget that plants the dummies; the rest removes them. Other cleanings have the whole budget."""
    clean_budget: float = 1.1
    """A removal may be chosen if its clean loss is at most this multiple of the attacked model's."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Values to try for parameters of the objective and learning_rate, by name; the held-out dummies decide."""
    cleanings: dict[str, dict[str, Any]] = field(default_factory=lambda: {"fine_tuning": {}, "fine_pruning": {}, "crow": {}})
    """Cleanings without dummies that are compared, with their parameters (`casd.unlearning.cleaning`)."""
    cleaning_learning_rate: float = 3e-4
    """Learning rate of the cleanings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "at least 2", lambda value: value >= 2, "dummies")
        require(self, "at least 1, or there is no estimate", lambda value: value >= 1, "held_out")
        for family in self.families:
            require_one_of("defence.families:", family, FAMILIES)
        require_different(self, "families", "removed")
        require(self, "a list with at least one entry", bool, "families", "removed")
        require_one_of("defence.order", self.order, ("together", "in_turn"))
        require(self, "numbers of at least 1", lambda value: all(each >= 1 for each in value), "removed")
        require(self, "in (0, 1)", lambda value: 0 < value < 1, "poison_rate", "plant_share")
        require(self, "greater than 0", lambda value: value > 0, "share", "cleaning_learning_rate")
        require(self, "at least 1, or null", lambda value: value is None or value >= 1, "documents")
        require(self, "at least 1", lambda value: value >= 1, "clean_budget")


@dataclass
class DefendConfig(Config):
    """One defence. `model` is the model that the attacker poisons or, without an attack, the suspect model; `backdoor` lists
    the dummies, or is empty to draw them; `injection` plants them, for as many steps as the budget allows."""

    attack: AttackConfig | None = None
    """The attacker; null if `model` is a suspect model."""
    defence: DefenceConfig = field(default_factory=DefenceConfig)
    """The defender."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.injection.mode != "continual":
            raise ConfigError(f"injection.mode is {self.injection.mode}; dummies are planted with injection=continual.")
        if self.persistence.states:
            raise ConfigError("persistence.states is not empty, but persistence is measured by casd run and sweep only.")
        if self.attack is None:
            self._check_suspect()
        planted = len(self.backdoor) or self.defence.dummies
        most = planted - self.defence.held_out
        if most < 1:
            raise ConfigError(
                f"defence.held_out is {self.defence.held_out}, and {planted} dummies are planted: none is left to remove."
            )
        if too_many := [number for number in self.defence.removed if number > most]:
            raise ConfigError(
                f"defence.removed has {too_many[0]}, but of {planted} dummies {self.defence.held_out} are held out, so that at"
                f" most {most} can be removed: raise defence.dummies, or lower it."
            )

    def _check_suspect(self) -> None:
        """Check what a defence without an attacker needs."""
        if self.model.source == "scratch":
            raise ConfigError(
                "There is no model to defend: give a suspect model, model=hub model.path=FOLDER, or an attacker, attack=NAME"
                " (`casd list attack`)."
            )
        if self.defence.documents is None:
            raise ConfigError(
                "defence.documents is null. The budget of a suspect model cannot be a share of its attacker's, whose"
                " training is unknown: give a number of documents, such as defence.documents=2000."
            )

    def run(self, **changed: Any) -> Config:
        """Return the configuration of an ordinary run with these settings, with some `changed`.

        `every_backdoor` was applied to listed dummies, and is not to the attacker's backdoors.
        """
        own = {each.name: getattr(self, each.name) for each in fields(Config)}
        return Config(**own | {"every_backdoor": EveryBackdoorConfig()} | changed)
