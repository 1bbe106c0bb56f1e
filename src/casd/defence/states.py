"""The states of the model that a defence measures, and the stages that make them. Nothing is run here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from casd.config import Config, DefendConfig, LanguageModelTraining, ModelConfig, UnlearningConfig
from casd.config.states import CLEAN_CONTROL, INJECTED, PHANTOM_CONTROL
from casd.defence.budget import Budget
from casd.models import load as models
from casd.pipeline.graph import StageGraph, measurement_stages
from casd.pipeline.stage import Stage
from casd.unlearning.tuning import Setting, settings, with_setting

GRID: Final = "defence.grid"

Kind = Literal["suspect", "planted", "control", "removal", "cleaning"]


@dataclass(frozen=True)
class State:
    """A state of the model in a defence.

    Attributes:
        name: "suspect", "planted", "control:clean", "control:phantom", "removed_2", or the name of a cleaning.
        kind: what it is; a cleaning starts from the suspect model, a control or removal from the planted one.
        stage: the stage that makes the model.
        weights: the stage that has its weights; None for the suspect and the planted model.
        evaluation: its attack success rates for the dummies, and its clean loss.
        utility: its benchmarks; None without any.
        steps: steps of the training that made it.
        removed: the dummies that are removed.
        unlearning: settings of the removal.
        setting: the values of `defence.grid` in them.
    """

    name: str
    kind: Kind
    stage: Stage
    weights: Stage | None
    evaluation: Stage
    utility: Stage | None = None
    steps: int = 0
    removed: tuple[str, ...] = ()
    unlearning: UnlearningConfig | None = None
    setting: Setting = field(default_factory=dict)


def states_of(config: DefendConfig, budget: Budget, suspect: StageGraph, planted: StageGraph) -> list[State]:
    """Return the states of a defence: the suspect, cleanings of it, the planted model, controls and removals from it.

    Args:
        config: of the defence, whose `backdoor` are all dummies.
        budget: steps of the trainings.
        suspect: stages of the run whose injected model is the suspect.
        planted: stages of the run that plants the dummies.
    """
    states = [_given("suspect", suspect)]
    for name, params in config.defence.cleanings.items():
        training = cleaning_training(config, budget)
        described = {"method": name, **identified(params), "training": dataclasses.asdict(training), "seed": config.seed}
        states.append(_trained(config, name, "cleaning", Stage("cleaning", 1, described, (suspect.inject,), name)))
    states.append(_given("planted", planted))
    for name in (CLEAN_CONTROL, PHANTOM_CONTROL):
        if name in planted.unlearn:
            states.append(_trained(config, name, "control", planted.unlearn[name]))
    states += _removals(config, planted)
    steps = {"cleaning": budget.cleaning_steps, "planted": budget.plant_steps, "suspect": 0}
    return [replace(state, steps=steps.get(state.kind, budget.removal_steps)) for state in states]


def identified(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a cleaning; a base model is identified by its files, wherever they are."""
    if "base" not in params:
        return {"params": dict(params)}
    base = ModelConfig(name="base", source="pretrained", path=params["base"])
    others = {name: value for name, value in params.items() if name != "base"}
    return {"params": others, "base": models.fingerprint(base)}


def cleaning_training(config: DefendConfig, budget: Budget) -> LanguageModelTraining:
    """Return the training of the cleanings: as the planting, without a warmup, for the whole budget."""
    planting = config.injection.training
    assert planting is not None
    rate = config.defence.cleaning_learning_rate
    return replace(planting, steps=budget.cleaning_steps, learning_rate=rate, warmup_steps=0, final_learning_rate=1.0)


def _removals(config: DefendConfig, planted: StageGraph) -> Iterator[State]:
    removable = config.removed
    several = len(settings(config.defence.grid)) > 1
    for number in config.defence.removed:
        for index, setting in enumerate(settings(config.defence.grid), 1):
            unlearning = with_setting(config.unlearning, setting, GRID)
            name = f"removed_{number}" + (f"_setting_{index}" if several else "")
            described = {
                **{key: value for key, value in dataclasses.asdict(unlearning).items() if key in ("objective", "training")},
                "removed": removable[:number],
                "order": config.defence.order,
                "seed": config.seed,
            }
            stage = Stage("unlearn", 3, described, (planted.inject,), name)
            state = _trained(config, name, "removal", stage)
            yield replace(state, removed=tuple(removable[:number]), unlearning=unlearning, setting=setting)


def _trained(config: Config, name: str, kind: Kind, stage: Stage) -> State:
    evaluations, _, benchmarks = measurement_stages(config, {name: stage})
    return State(name, kind, stage, Stage("weights", 1, {}, (stage,), name), evaluations[name], benchmarks.get(name))


def _given(name: Literal["suspect", "planted"], graph: StageGraph) -> State:
    return State(name, name, graph.inject, None, graph.evaluate[INJECTED], graph.utility.get(INJECTED))
