"""Plan runs before they start: memory of each phase, and what each stage takes. The hub is asked once."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import constants, errors

from casd.config import Config
from casd.engines import make_engine
from casd.engines.local import Local
from casd.models import load as models
from casd.pipeline.graph import StageGraph
from casd.pipeline.run import Run
from casd.pipeline.schedule import makespan
from casd.pipeline.units import units_of
from casd.planning.blueprint import Blueprint, blueprint
from casd.planning.costs import StageCost, base_folder, stage_costs
from casd.planning.machine import Machine, free_disk, machine
from casd.planning.phases import Devices, Phase, Phases, injection_adapters, phases_of, planned_devices, removal_adapters
from casd.planning.speed import Speed, speed
from casd.planning.workload import TextLengths, text_lengths
from casd.utils.errors import CasdError, CorpusError, ModelError

UNKNOWN_COMMIT = "0" * 40
"""Placeholder for a commit that the hub cannot be asked for; no stage in the store has it."""
NAMED = 4
"""Most unresolved names in a message."""


@dataclass(frozen=True)
class Plan:
    """The plan of a run.

    Attributes:
        config: configuration of the run.
        graph: stages of the run.
        blueprint: model of the run.
        texts: lengths of its texts in tokens.
        devices: devices that the run is planned for.
        machine: memory of one of these devices, and of the CPU.
        speed: speed of one of these devices; None if unknown.
        phases: memory of each phase.
        stages: cost of every stage.
        free: free bytes on the disk of the store.
        notes: sentences about what is unknown.
    """

    config: Config
    graph: StageGraph
    blueprint: Blueprint
    texts: TextLengths
    devices: Devices
    machine: Machine
    speed: Speed | None
    phases: tuple[Phase, ...]
    stages: tuple[StageCost, ...]
    free: int
    notes: tuple[str, ...] = ()

    @property
    def trained(self) -> tuple[int, ...]:
        """Numbers of parameters trained in the injection, if there is one, and in each removal."""
        adapters = [injection_adapters(self.config)] if self.config.injection.training else []
        return tuple(map(self.blueprint.trained_parameters, [*adapters, removal_adapters(self.config)[-1:]]))


def plans(configs: Sequence[Config]) -> list[Plan]:
    """Plan complete runs, up to the report. Nothing is downloaded or trained.

    Raises:
        ConfigError: an invalid configuration.
        ModelError: neither the files nor a description of the model are available.
    """
    unresolved: dict[str, CasdError] = {}
    shapes: dict[str, Blueprint] = {}
    result = []
    with _restoring_offline_mode():
        runs = [planned_run(config, unresolved) for config in configs]
        for config, run in zip(configs, runs, strict=True):
            key = repr(config.model)
            shapes[key] = shapes.get(key) or blueprint(config.model, base_folder(run))
    for config, run in zip(configs, runs, strict=True):
        built, texts, devices = shapes[repr(config.model)], text_lengths(run), planned_devices(config)
        engine = make_engine(config.engine)
        here = machine(config.runtime)
        if isinstance(engine, Local):
            here = here.among(engine.workers, engine.on_each_gpu())
        fast = speed(config.runtime, here, config.model.dtype)
        phases, unknown = Phases(config, built, texts, devices).estimates(phases_of(config))
        result.append(
            Plan(
                config=config,
                graph=run.graph,
                blueprint=built,
                texts=texts,
                devices=devices,
                machine=here,
                speed=fast,
                phases=phases,
                stages=tuple(stage_costs(run, built, texts, speed=fast)),
                free=free_disk(run.store.root),
                notes=tuple(filter(None, [_unresolved_note(unresolved), unknown])),
            )
        )
    return result


def time_with_workers(planned: Sequence[Plan], workers: int) -> float:
    """Return the seconds that so many workers take for what is left of all runs; NaN if the speed of the devices is unknown."""
    seconds = {
        cost.stage.key: cost.work.seconds for plan in planned for cost in plan.stages if cost.to_do and cost.work is not None
    }
    needs = units_of([(plan.config, plan.graph) for plan in planned])
    of_units = {unit: sum(seconds.get(key, 0.0) for key in unit.stages) for unit in needs}
    return makespan(needs, of_units, workers)


def planned_run(config: Config, unresolved: dict[str, CasdError]) -> Run:
    """Return a run for planning, on any machine, with UNKNOWN_COMMIT for what the hub does not resolve.

    Args:
        config: configuration of the run.
        unresolved: models and datasets that the hub does not resolve, with its errors; what this run adds is put in.
    """
    here = replace(config, runtime=replace(config.runtime, device="cpu"))
    while True:
        here = _without_commits(here, unresolved)
        try:
            return Run(here)
        except (CorpusError, ModelError) as error:
            names = _datasets(here) if isinstance(error, CorpusError) else _models(here)
            if not set(names) - unresolved.keys():
                raise
            unresolved.update(dict.fromkeys(names, error))
            if _is_unreachable(error):
                constants.HF_HUB_OFFLINE = True  # the next ones are looked up in the hub's cache


@contextmanager
def _restoring_offline_mode() -> Iterator[None]:
    before = constants.HF_HUB_OFFLINE
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _is_unreachable(error: CasdError) -> bool:
    unreachable = errors.RevisionResolutionError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError
    return isinstance(error.__cause__, unreachable)


def _models(config: Config) -> list[str]:
    """Return the id of the model if the hub has to be asked for it but its shape is known without."""
    return [str(config.model.path)] if models.origin(config.model) == "hub" and config.model.model_type else []


def _datasets(config: Config) -> list[str]:
    sources = (config.corpus.params.get("sources") or {}).values()
    names = [source["dataset"] for source in sources if "dataset" in source]
    return [name for name in dict.fromkeys(names) if not Path(name).expanduser().is_dir()]


def _without_commits(config: Config, unresolved: Container[str]) -> Config:
    """Return the configuration with UNKNOWN_COMMIT for the models and datasets in `unresolved`."""
    if any(name in unresolved for name in _models(config)):
        config = replace(config, model=replace(config.model, revision=UNKNOWN_COMMIT))
    if any(name in unresolved for name in _datasets(config)):
        params = copy.deepcopy(config.corpus.params)
        for source in params["sources"].values():
            if source.get("dataset") in unresolved:
                source["revision"] = UNKNOWN_COMMIT
        config = replace(config, corpus=replace(config.corpus, params=params))
    return config


def _unresolved_note(unresolved: Mapping[str, CasdError]) -> str:
    """Return what could not be resolved, what follows, and what to do; "" if everything was."""
    if not unresolved:
        return ""
    named = ", ".join(list(unresolved)[:NAMED]) + (f" and {len(unresolved) - NAMED} more" if len(unresolved) > NAMED else "")
    others = [str(error) for error in unresolved.values() if not _is_unreachable(error)]
    reason = others[0] if others else "The hub was not reached; check the network, or set local folders."
    return f"Unknown commit of {named}: their stages count as not in the store. {reason}"


def download_bytes(config: Config, built: Blueprint) -> int:
    """Return the estimated bytes to download into the hub's cache: weights in 16 bits; 0 if the model is cached."""
    if models.origin(config.model) != "hub":
        return 0
    name = "models--" + str(config.model.path).replace("/", "--")
    there = any((Path(constants.HF_HUB_CACHE).expanduser() / name).glob("snapshots/*/*.safetensors"))
    return 0 if there else 2 * built.parameters
