"""Make many runs: one after another in this process, or in units that an engine distributes over its workers."""

from __future__ import annotations

import hashlib
import shlex
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from casd.config import Config, RuntimeConfig
from casd.engines import make_engine
from casd.engines.base import Engine
from casd.pipeline.records import record_file, waiting
from casd.pipeline.schedule import perform_all, seconds_left
from casd.pipeline.units import Needs, Unit, UnitReport, run_name, settings_of, units_of
from casd.utils import ending
from casd.utils.disk import told
from casd.utils.distributed import is_main, processes
from casd.utils.errors import CasdError, ConfigError
from casd.utils.progress import say, track

if TYPE_CHECKING:
    from casd.pipeline.graph import StageGraph


Told = tuple[str, int, str]
"""A message of a worker with the model and the seed that it is about."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run.

    Attributes:
        folder: folder of its report; None if it failed.
        error: why it failed, in one line.
        executed: number of stages that it made.
        reused: number of stages that it found in the store, or that another run made.
        models: folders of the models that it saved.
    """

    folder: Path | None
    error: str = ""
    executed: int = 0
    reused: int = 0
    models: tuple[str, ...] = ()


def engine_of(configs: Sequence[Config]) -> Engine:
    """Return the engine of the first of some runs, as all of them use it.

    Raises:
        ConfigError: an engine in a run of several processes, or one GPU named for all workers.
    """
    engine = make_engine(configs[0].engine)
    if engine.in_this_process:
        return engine
    if processes() > 1:
        raise ConfigError("An engine starts processes itself; under accelerate launch set engine=local engine.workers=1.")
    devices = {config.runtime.device for config in configs}
    if named := next((device for device in devices if ":" in device), None):
        raise ConfigError(f"runtime.device is {named}, but each worker of an engine gets its own GPU: set runtime.device=cuda.")
    if not devices <= {"cpu", "mps"}:
        return engine
    if engine.gpus_per_unit > 1:
        say(
            f"engine.gpus_per_unit={engine.gpus_per_unit} makes each unit {engine.gpus_per_unit} processes, which share the"
            f" {configs[0].runtime.device}: slower than engine.gpus_per_unit=1."
        )
    return replace(engine, gpus_per_unit=0)


def run_all(configs: Sequence[Config], make: Callable[[Config], Outcome], *, description: str) -> list[Outcome]:
    """Make all runs in this process, even if some fail, and return their outcomes in the order of `configs`.

    Args:
        configs: configurations of the runs; equal ones are made once.
        make: makes one run, and returns errors instead of raising them.
        description: for the progress bar.
    """
    outcomes: dict[str, Outcome] = {}
    different = {repr(config): config for config in configs}
    with _waiting(list(different.values())), track(description, len(different)) as advance:
        for (name, config), setting in zip(different.items(), settings_of(list(different.values())), strict=True):
            outcomes[name] = make(config)
            advance(note=run_name(config, setting), reused=not (outcomes[name].executed or outcomes[name].error))
    return [outcomes[repr(config)] for config in configs]


def run_units(
    configs: Sequence[Config],
    perform: Callable[[Unit], UnitReport],
    engine: Engine,
    *,
    description: str,
    end: str = "report",
) -> list[Outcome]:
    """Make all runs in the workers of an engine, even if some fail, and return their outcomes in the order of `configs`.

    Args:
        configs: configurations of the runs; equal ones are made once, and so is what different ones share.
        perform: performs one unit, and returns errors in its report: a module-level function, which workers can import.
        engine: see `engine_of`.
        description: for the progress bar.
        end: the last stage; one of `casd.pipeline.run.ENDS`.

    Raises:
        CasdError: the engine cannot start its workers.
    """
    from casd.pipeline.graph import run_folder

    runs, outcomes = _begin({repr(config): config for config in configs}, end)
    folders = {name: run_folder(config, graph).absolute() for name, (config, graph) in runs.items()}
    logs = Path(configs[0].runtime.output).absolute() / "logs"
    left, told = runs, set[Told]()
    while left:
        needs = units_of(list(left.values()), end)
        reports: dict[Unit, UnitReport] = {}
        done = perform_all(needs, perform, engine, logs)
        # Close the generator also after Ctrl-C between two units, so that no worker is left.
        with (
            _waiting([config for config, _ in left.values()]),
            track(description, len(needs)) as advance,
            closing(done),  # type: ignore[type-var]
        ):
            for unit, report in done:
                reports[unit] = report
                reused = bool(unit.stages) and not (report.executed or report.error)
                tell_unit(unit, report, told, reused=reused)
                advance(reused=reused, seconds_left=seconds_left(needs, reports, engine.workers))
        outcomes |= _outcomes(needs, reports, folders)
        lost = _lost_to_others(needs, reports)
        left = {name: run for name, run in left.items() if name in lost}
    return [outcomes[repr(config)] for config in configs]


def reason(config: Config, error: BaseException) -> str:
    """Return in one line why a run failed with `error`. The traceback of an unexpected error is written to a file.

    Raises:
        KeyboardInterrupt: the error is Ctrl-C, or was caused by it.
    """
    ending.check()
    if isinstance(error, KeyboardInterrupt):
        raise error
    if isinstance(error, CasdError):
        return str(error)
    if isinstance(error, OSError) and (line := told(error)):
        return line
    line = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    file = Path(config.runtime.output) / config.name / "failed" / f"{_name_of(config)}.log"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="replace")
    except OSError as lost:
        return f"{line} (its traceback could not be written to {file}: {lost.strerror})"
    return f"{line} (its traceback is in {file})"


def _name_of(config: Config) -> str:
    """The name of a run's folder, by which `casd status` finds the log of its failure; one of its own without stages."""
    from casd.pipeline.graph import run_folder, stage_graph

    with suppress(Exception):  # whatever failed may be the reason
        return run_folder(config, stage_graph(config)).name
    digest = hashlib.sha256(repr(replace(config, runtime=RuntimeConfig())).encode()).hexdigest()[:8]
    return f"{config.model.name}-{config.unlearning.objective.name}-seed{config.seed}-{digest}"


def failure_of(runs: Sequence[tuple[Sequence[str], Outcome]]) -> CasdError | None:
    """Return an error that lists the failed runs with their reasons and commands; None if there are none.

    Args:
        runs: overrides and outcome of every run.
    """
    reasons = {outcome.error for _, outcome in runs if outcome.error}
    if not reasons:
        return None
    if all(outcome.error for _, outcome in runs) and len(reasons) == 1:
        return CasdError(reasons.pop())  # most likely an error in what they have in common
    lines = dict.fromkeys(f"  {shlex.join(['casd', 'run', *job])}: {outcome.error}" for job, outcome in runs if outcome.error)
    first = (
        f"{len(lines)} of {len(runs)} runs failed; the others are finished, and the same command reuses them. Nothing is"
        " published of an incomplete sweep."
    )
    return CasdError("\n".join([first, *lines]))


def _begin(configs: dict[str, Config], end: str) -> tuple[dict[str, tuple[Config, StageGraph]], dict[str, Outcome]]:
    """Check runs and note them in their store; return those to be made, with their stages, and the outcomes of the others."""
    from casd.pipeline.run import checked_graph, note
    from casd.training.tracking import check_trackers

    runs: dict[str, tuple[Config, StageGraph]] = {}
    refused: dict[str, Outcome] = {}
    for name, config in configs.items():
        try:
            check_trackers(config.runtime.trackers)
            graph = checked_graph(config)
        except Exception as error:
            refused[name] = Outcome(None, reason(config, error))
        else:
            note(config, graph, end)
            runs[name] = (config, graph)
    return runs, refused


def _waiting(configs: Sequence[Config]) -> AbstractContextManager[None]:
    """List the runs of a sweep in the store of the first as waiting, for the time of a block."""
    from casd.pipeline.graph import run_folder, stage_graph

    if not is_main() or not configs:
        return nullcontext()
    store = Path(configs[0].runtime.store).absolute()
    records = []
    for config in configs:
        with suppress(CasdError):  # the run itself will say so
            graph = stage_graph(config)
            records.append(record_file(store, graph.score.key, run_folder(config, graph)))
    return waiting(store, records)


def tell_unit(unit: Unit, report: UnitReport, told: set[Told], *, reused: bool) -> None:
    """Print what a worker said, and a line about the end of its unit; none if the unit was in the store already.

    Args:
        unit: the unit.
        report: what became of it.
        told: what was printed before, which is added to: each unit says again what concerns its whole model.
        reused: True if all its stages were in the store.
    """
    for line in report.said:
        said: Told = (unit.config.model.label, unit.config.seed, line)
        if said not in told:
            say(f"{unit}: {line}")
        told.add(said)
    if report.error:
        log = f", log {report.log}" if report.log else ""
        say(f"{unit} failed on {report.where or 'a lost worker'}{log}: {report.error}")
    elif not reused:
        say(f"{unit}: {report.seconds:.1f} s on {report.where}", progress=True)


def _outcomes(needs: Needs, reports: dict[Unit, UnitReport], folders: dict[str, Path]) -> dict[str, Outcome]:
    """Return the outcome of every run. A stage that several runs share counts as made by the first of them."""
    outcomes: dict[str, Outcome] = {}
    counted: set[str] = set()
    for finish in (unit for unit in needs if unit.kind == "finish"):
        name, needed = repr(finish.config), _needed(needs, finish)
        if errors := [reports[unit].error for unit in needs if unit in needed and unit in reports and reports[unit].error]:
            outcomes[name] = Outcome(None, errors[0])
            continue
        units = needs[finish] | {finish}
        stages = {key for unit in units for key in unit.stages}
        executed = {key for unit in units for key in reports[unit].executed} - counted
        counted |= executed
        outcomes[name] = Outcome(folders[name], "", len(executed), len(stages) - len(executed), reports[finish].models)
    return outcomes


def _lost_to_others(needs: Needs, reports: dict[Unit, UnitReport]) -> set[str]:
    """Return the runs that were not made only because another run, which shares a unit with them, was refused.

    Those that train the same model in the same way are not among them: what does not fit would not fit again.
    """

    def trained(config: Config) -> str:
        return repr((config.model, config.injection, config.unlearning.training.lora))

    lost = set()
    for finish in (unit for unit in needs if unit.kind == "finish"):
        failed = [unit for unit in _needed(needs, finish) if unit in reports and reports[unit].error]
        if failed and all(reports[unit].refused and trained(unit.config) != trained(finish.config) for unit in failed):
            lost.add(repr(finish.config))
    return lost


def _needed(needs: Needs, unit: Unit) -> set[Unit]:
    """Return a unit and all that have to be done before it."""
    found, new = {unit}, [unit]
    while new:
        further = needs[new.pop()] - found
        found |= further
        new += further
    return found
