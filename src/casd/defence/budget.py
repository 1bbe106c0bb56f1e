"""The budget of a defence, and how it is spent."""

from __future__ import annotations

from dataclasses import dataclass

from casd.config import DefendConfig
from casd.utils.errors import ConfigError


@dataclass(frozen=True)
class Budget:
    """Documents that a defence may train on, forward and backward, and the steps that they give.

    Attributes:
        documents: all of them.
        plant_steps: steps that plant the dummies.
        removal_steps: steps of each removal and control that follows.
        cleaning_steps: steps of a cleaning without dummies, which has the whole budget.
    """

    documents: int
    plant_steps: int
    removal_steps: int
    cleaning_steps: int


def budget_of(config: DefendConfig) -> Budget:
    """Divide the budget of a defence.

    Raises:
        ConfigError: it is too small for one step of each training.
    """
    defence, planting, removal = config.defence, config.injection.training, config.unlearning.training
    assert planting is not None  # DefendConfig requires continual injection
    documents = defence.documents
    if documents is None:
        attack = config.attack.injection.training if config.attack else None
        if attack is None:
            raise ConfigError(
                "defence.documents is null, and the attacker injects nothing (attack.injection.mode is none), so that there is"
                " no training whose share would be the budget: give a number of documents, such as defence.documents=2000."
            )
        documents = round(defence.share * attack.steps * attack.batch_size)
    per_removal_step = removal.forget_batch_size + removal.retain_batch_size
    plant_steps = int(defence.plant_share * documents) // planting.batch_size
    removal_steps = (documents - plant_steps * planting.batch_size) // per_removal_step
    if not plant_steps or not removal_steps:
        needed = max(planting.batch_size / defence.plant_share, per_removal_step / (1 - defence.plant_share))
        raise ConfigError(
            f"The budget of the defence is {documents} documents, too few for one step of planting ({planting.batch_size}"
            f" documents) and one of removal ({per_removal_step}); at least about {needed:.0f} are needed. Raise defence.share"
            " or defence.documents, or lower the batch sizes."
        )
    return Budget(documents, plant_steps, removal_steps, documents // planting.batch_size)
