"""Units: the parts of runs that an engine distributes over its workers, each made once for all runs that share it.

    base → inject → tune (if the objective is tuned) → one unit for each state of the model → finish
         → clean_model (if persistence is measured) ↗

A unit makes a few stages one after another with the same model (`casd.pipeline.run` has the parts). Which units wait for which
follows from the inputs of their stages (`casd.pipeline.graph`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from casd.analysis.conditions import label_settings
from casd.config import Config
from casd.config.compose import to_yaml
from casd.config.states import INJECTED

if TYPE_CHECKING:
    from casd.pipeline.graph import StageGraph
    from casd.pipeline.stage import Stage

Kind = Literal["base", "inject", "tune", "clean_model", "state", "finish", "defence"]


@dataclass(frozen=True, eq=False)
class Unit:
    """A part of one run, or of several runs that share it.

    Attributes:
        kind: which part; "defence" for a whole defence (`casd.defence`).
        config: configuration of the run, or of the first that shares it.
        end: one of `casd.pipeline.run.ENDS`.
        state: the state of the model; "" unless `kind` is "state".
        stages: keys of the stages that it makes.
        setting: what tells the run from others of the same model, objective and seed, for messages.
    """

    kind: Kind
    config: Config
    end: str = "report"
    state: str = ""
    stages: tuple[str, ...] = ()
    setting: str = ""

    def __str__(self) -> str:
        return f"{run_name(self.config, self.setting)}: {self.state or self.kind}"


@dataclass(frozen=True)
class UnitReport:
    """What became of a unit.

    Attributes:
        error: why it failed, in one line; "" if it did not.
        host: the worker's machine.
        process: the worker's process id.
        job: the worker's job, if it runs in an allocation of a cluster.
        log: path of the worker's log, if it has one.
        started: when it was started, in seconds since 1970.
        seconds: time that it took.
        executed: keys of the stages that it made, not those that it found in the store.
        said: messages for the user.
        models: folders of the models that it saved.
        folder: of the report of a defence.
        reused: for a defence, number of stages that it found in the store.
        refused: True if the run of its configuration cannot be made on this machine, for lack of memory, for example; nothing
            was made. Other runs that share the unit may be possible.
    """

    error: str = ""
    host: str = ""
    process: int = 0
    job: str = ""
    log: str = ""
    started: float = 0.0
    seconds: float = 0.0
    executed: frozenset[str] = frozenset()
    said: tuple[str, ...] = ()
    models: tuple[str, ...] = field(default=())
    folder: str = ""
    reused: int = 0
    refused: bool = False

    @property
    def where(self) -> str:
        """The worker: "node3, process 4711, job 42"."""
        parts = (self.host, self.process and f"process {self.process}", self.job and f"job {self.job}")
        return ", ".join(str(part) for part in parts if part)


Needs = dict[Unit, frozenset[Unit]]
"""The units that each unit waits for, which come before it."""


def run_name(config: Config, setting: str = "") -> str:
    """Return a short name of a run for messages."""
    parts = (config.model.label, config.unlearning.objective.name, setting, f"seed {config.seed}")
    return ", ".join(filter(None, parts))


def settings_of(configs: Sequence[Config]) -> list[str]:
    """Return for each run the settings that tell it from the others, for `run_name`; "" if the names differ without them."""
    if len(set(map(run_name, configs))) == len(configs):
        return [""] * len(configs)
    return label_settings(
        [
            {"model": config.model.label, "objective": config.unlearning.objective.name, "config": to_yaml(config)}
            for config in configs
        ]
    )


def units_of(runs: Sequence[tuple[Config, StageGraph]], end: str = "report") -> Needs:
    """Return the units of runs up to `end` (one of `casd.pipeline.run.ENDS`), each once, with those that each waits for.

    A stage of several units is made by the first, and the others wait for it. The last unit of a run ("finish") waits for all
    others of the run, and is not shared.
    """
    needs: Needs = {}
    known: dict[tuple[object, ...], Unit] = {}
    makers: dict[str, Unit] = {}
    settings = settings_of([config for config, _ in runs])
    for (config, graph), setting in zip(runs, settings, strict=True):
        of_run: dict[Unit, None] = {}
        wanted = {stage.key for stage in graph.up_to(end, removed=keeps_removals(config, end))}
        for kind, state, stages in _parts(graph):
            made = [stage for stage in stages if stage.key in wanted]
            if not made and kind != "finish":
                continue
            identity = (kind, *(stage.key for stage in made), *_checked(config, kind))
            unit = known.setdefault(identity, Unit(kind, config, end, state, tuple(stage.key for stage in made), setting))
            of_run[unit] = None
            if unit not in needs:
                read = [each.key for stage in made for each in (stage, *stage.inputs)]
                waits_for = {makers[key] for key in read if key in makers}
                needs[unit] = frozenset(waits_for | (of_run.keys() if kind == "finish" else set())) - {unit}
                for stage in made:
                    makers.setdefault(stage.key, unit)
    return needs


def keeps_removals(config: Config, end: str) -> bool:
    """Return True if the weights of the removals are stored by a run up to `end`."""
    return "removed" in config.runtime.save_models or end == "unlearn"


def _parts(graph: StageGraph) -> Iterator[tuple[Kind, str, list[Stage]]]:
    """Yield the parts of a run in the order of `casd.pipeline.run.Run.run_to`, with their stages."""
    yield "base", "", [graph.corpus, graph.base, graph.tokens]
    yield "inject", "", [graph.inject, graph.evaluate[INJECTED]]
    yield "tune", "", [graph.tune] if graph.tune else []
    yield "clean_model", "", [graph.clean_model] if graph.clean_model else []
    for state in graph.states:
        by_state = [graph.unlearn, graph.weights, *([graph.evaluate] if state != INJECTED else []), graph.utility]
        measured = (*by_state, graph.activations, graph.persistence)
        yield "state", state, [stages[state] for stages in measured if state in stages]
    yield "finish", "", [graph.score, graph.report]


def _checked(config: Config, kind: Kind) -> tuple[str, ...]:
    """Return what a unit checks besides its stages: runs that differ in it do not share the unit."""
    if kind == "finish":
        return (repr(config),)
    if kind in ("base", "inject"):
        return (repr((config.evaluation, config.unlearning.stopping, config.injection.require_asr)),)
    return ()
