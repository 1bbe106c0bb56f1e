"""Tune an objective over a small grid, using only the removed backdoors' own validation ASR and the clean budget.

The other backdoors are never measured here: transfer to them is what objectives are compared by.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pandas as pd

from casd.config import Choice, UnlearningConfig
from casd.training.checkpoints import TrainingLog
from casd.unlearning import OBJECTIVES
from casd.utils.errors import ConfigError
from casd.utils.registry import build, look_up, unknown

Setting = dict[str, Any]
"""One combination of grid values, by name."""


@dataclass(frozen=True)
class Trial:
    """Validation of one setting on one backdoor, at the step that was kept.

    Attributes:
        setting: the values tried.
        backdoor: the removed backdoor.
        reached: True if its validation ASR reached the target within the clean budget.
        asr: its validation ASR.
        clean_loss_ratio: validation clean loss divided by that of the injected model.
        step: the kept step.
    """

    setting: Setting
    backdoor: str
    reached: bool
    asr: float
    clean_loss_ratio: float
    step: int


def settings(grid: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """Every combination of the grid's values; those of the last name vary fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def with_setting(config: UnlearningConfig, setting: Setting, key: str = "unlearning.tuning.grid") -> UnlearningConfig:
    """Return the configuration with the values of `setting`, which is one of the grid in the configuration's `key`.

    Raises:
        ConfigError: a name is neither learning_rate nor a parameter of the objective, or a value is invalid.
    """
    chosen = {name: value for name, value in setting.items() if name != "learning_rate"}
    known = {field.name for field in fields(look_up(OBJECTIVES, "objective", config.objective.name))}
    for name in chosen:
        if name not in known:
            raise unknown(f"name in {key}:", name, {*known, "learning_rate"})
    params = {**config.objective.params, **chosen}
    build(OBJECTIVES, "objective", config.objective.name, params)
    rate = setting.get("learning_rate", config.training.learning_rate)
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise ConfigError(f"{key}: learning_rate is {rate!r}; expected a number greater than 0.")
    training = replace(config.training, learning_rate=rate)
    return replace(config, objective=Choice(config.objective.name, params), training=training)


def reached_target(log: TrainingLog, target_asr: float | None) -> bool | None:
    """True if a removal reached its target within its budget; None if it was not validated."""
    if not log.validation or target_asr is None:
        return None
    return not log.stopped and log.kept["asr"] <= target_asr


def tune(
    config: UnlearningConfig, backdoors: Sequence[str], remove: Callable[[UnlearningConfig, str], TrainingLog]
) -> tuple[Setting, list[Trial]]:
    """Try every setting on every backdoor and choose the best.

    The best setting is the one with which the most backdoors reach the target; ties are broken by the lowest mean clean-loss
    ratio at the kept steps, then by the fewest steps. If no backdoor reaches the target, the lowest mean ASR comes first.

    Args:
        config: grid and target.
        backdoors: backdoors to try the settings on.
        remove: runs a removal from the injected model and returns its log.

    Returns:
        The best setting, and all trials.
    """
    trials = []
    for setting in settings(config.tuning.grid):
        tried = with_setting(config, setting)
        for backdoor in backdoors:
            log = remove(tried, backdoor)
            kept, start = log.kept, log.validation[0]
            reached = bool(reached_target(log, config.stopping.target_asr))
            ratio = kept["clean_loss"] / start["clean_loss"]
            trials.append(Trial(setting, backdoor, reached, kept["asr"], ratio, int(kept["step"])))

    def rank(setting: Setting) -> tuple[float, ...]:
        own = [trial for trial in trials if trial.setting == setting]
        reached = sum(trial.reached for trial in own)
        asr = 0.0 if reached else sum(trial.asr for trial in own)
        return -reached, asr, sum(trial.clean_loss_ratio for trial in own), sum(trial.step for trial in own)

    return min(settings(config.tuning.grid), key=rank), trials


def tuning_table(chosen: Setting, trials: Sequence[Trial]) -> pd.DataFrame:
    """One row per trial: `setting` as text, `backdoor`, `reached`, `asr`, `clean_loss_ratio`, `step`, and `chosen`."""
    return pd.DataFrame(
        [
            {
                "setting": ", ".join(f"{name}={value}" for name, value in trial.setting.items()),
                "backdoor": trial.backdoor,
                "reached": trial.reached,
                "asr": trial.asr,
                "clean_loss_ratio": trial.clean_loss_ratio,
                "step": trial.step,
                "chosen": trial.setting == chosen,
            }
            for trial in trials
        ]
    )
