"""Tuning an objective: a small grid, judged by the removed backdoors' own validation ASR and the clean budget alone.

What happens to the other backdoors is never looked at: an objective is to be compared by that, not chosen by it.
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
"""One combination of the grid's values, by name."""


@dataclass(frozen=True)
class Trial:
    """One setting on one backdoor: what its validation saw at the step that was kept.

    Attributes:
        setting: the values that were tried.
        backdoor: the one that was removed.
        reached: whether its validation ASR came down to the target within the clean budget.
        asr: its validation ASR at the kept step.
        clean_loss_ratio: validation clean loss at that step to that of the injected model.
        step: the kept step.
    """

    setting: Setting
    backdoor: str
    reached: bool
    asr: float
    clean_loss_ratio: float
    step: int


def settings(grid: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """Every combination of the grid's values, the last name's varying fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def with_setting(config: UnlearningConfig, setting: Setting) -> UnlearningConfig:
    """The configuration with those values in it.

    Raises:
        ConfigError: a name that is neither learning_rate nor a parameter of the objective, or a value that it cannot have.
    """
    chosen = {name: value for name, value in setting.items() if name != "learning_rate"}
    known = {each.name for each in fields(look_up(OBJECTIVES, "objective", config.objective.name))}
    for name in chosen:
        if name not in known:
            raise unknown("name in unlearning.tuning.grid:", name, {*known, "learning_rate"})
    params = {**config.objective.params, **chosen}
    build(OBJECTIVES, "objective", config.objective.name, params)
    rate = setting.get("learning_rate", config.training.learning_rate)
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise ConfigError(f"unlearning.tuning.grid: learning_rate is {rate!r}; expected a number greater than 0.")
    training = replace(config.training, learning_rate=rate)
    return replace(config, objective=Choice(config.objective.name, params), training=training)


def reached_target(log: TrainingLog, target_asr: float | None) -> bool | None:
    """Whether a validated removal came down to its target before its budget was spent; None if nothing was validated."""
    if not log.validation or target_asr is None:
        return None
    return not log.stopped and log.kept["asr"] <= target_asr


def tune(
    config: UnlearningConfig, backdoors: Sequence[str], remove: Callable[[UnlearningConfig, str], TrainingLog]
) -> tuple[Setting, list[Trial]]:
    """Try every setting on every backdoor and choose one.

    Chosen is the setting with which the most backdoors reach the target; of several, that with the lowest mean clean-loss ratio
    at the kept steps, and then the fewest steps. Where none reaches it at all, the lowest mean ASR decides before those.

    Args:
        config: the grid, and the target.
        backdoors: those to try on.
        remove: does a removal from the injected model and gives its log.
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
        mine = [trial for trial in trials if trial.setting == setting]
        reached = sum(trial.reached for trial in mine)
        asr = 0.0 if reached else sum(trial.asr for trial in mine)
        return -reached, asr, sum(trial.clean_loss_ratio for trial in mine), sum(trial.step for trial in mine)

    return min(settings(config.tuning.grid), key=rank), trials


def tuning_table(chosen: Setting, trials: Sequence[Trial]) -> pd.DataFrame:
    """A row per trial: `setting` in words, `backdoor`, `reached`, `asr`, `clean_loss_ratio`, `step`, and `chosen`."""
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
