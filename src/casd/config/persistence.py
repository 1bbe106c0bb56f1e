"""Whether removed backdoors stay removed: treatments of chosen states of the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from casd.config.fields import Section, Text, require, require_different

ALL_REMOVALS: Final = "removals"
"""Word for all removals in `PersistenceConfig.states`."""
OWN, OTHER = "own", "other"
"""Words in `PersistenceConfig.relearn`: the removed backdoor, and the first other backdoor by name."""


@dataclass
class PersistenceConfig(Section):
    """Treatments of states of the model after which all backdoors are measured (`casd.unlearning.persistence`)."""

    states: list[Text] = field(default_factory=list)
    """Removals and controls to treat; "removals" for all removals; an empty list for none."""
    clean_steps: int = 20
    """Steps of training on clean text only; 0 for none."""
    relearn: list[Text] = field(default_factory=lambda: [OWN, OTHER])
    """Backdoors whose poisoned documents are trained on: "own" (the removed one), "other" (the first other one by name), or
    names. States that have no backdoor of their own are not trained on any."""
    relearn_documents: list[int] = field(default_factory=lambda: [1, 5, 20])
    """Numbers of different poisoned documents; each is a training of its own."""
    steps: int = 20
    """Steps of each training on poisoned documents."""
    every: int = 2
    """Steps between two measurements."""
    batch_size: int = 8
    """Poisoned documents per step, with repeats if there are fewer different ones, and as many clean ones."""
    learning_rate: float | None = None
    """Learning rate; null for that of `unlearning.training`."""
    prompts: int = 32
    """Prompts per backdoor and measurement; at most evaluation.prompts."""
    bits: list[int] = field(default_factory=lambda: [8, 4])
    """Numbers of bits to which the weights are rounded (`casd.models.quantization`), from 2 to 8."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_different(self, "states", "relearn", "relearn_documents", "bits")
        require(self, "0 or more", lambda value: value >= 0, "clean_steps")
        require(self, "at least 1", lambda value: value >= 1, "steps", "every", "batch_size", "prompts")
        require(self, "greater than 0, or null", lambda value: value is None or value > 0, "learning_rate")
        require(self, "numbers of at least 1", lambda value: all(each >= 1 for each in value), "relearn_documents")
        require(self, "numbers from 2 to 8", lambda value: all(2 <= each <= 8 for each in value), "bits")

    def sources(self, own: str, backdoors: Iterable[str]) -> list[str]:
        """Return the backdoors from whose documents a state is trained; none if `own`, its removed backdoor, is ""."""
        if not own:
            return []
        first = min((name for name in backdoors if name != own), default="")
        words = {OWN: own, OTHER: first}
        return list(dict.fromkeys(name for name in (words.get(each, each) for each in self.relearn) if name))
