"""`casd run` and the verbs that end earlier: make one run, print its tables, and say what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from casd.cli.cost import Cost
from casd.cli.quiet import quiet_libraries
from casd.utils.distributed import is_main
from casd.utils.errors import CasdError
from casd.utils.progress import set_progress
from casd.utils.text import printable

if TYPE_CHECKING:
    from casd.config import Config
    from casd.pipeline.run import Run
    from casd.pipeline.store import Event
    from casd.pipeline.sweep import Outcome


def run(overrides: Sequence[str], end: str = "report", *, verbose: bool = False) -> Path:
    """Make the run that the overrides describe up to `end`, and return its folder.

    Args:
        overrides: Hydra overrides.
        end: one of `casd.pipeline.run.ENDS`; the tables are printed after "report" only.
        verbose: print all tables.

    Raises:
        CasdError: overrides that cannot work, or an error of the run.
    """
    from casd.config.compose import load_run

    cost = Cost()
    config = load_run(overrides)
    finished, executed, reused = _make(config, end)
    if not is_main():
        return finished.folder
    cost.add(executed, reused)
    links = []
    if finished.models:
        links.append(f"Models: {finished.folder / 'models'} ({', '.join(folder.name for folder in finished.models)})")
    cost.say()
    if end == "report":
        from casd.analysis.results import RunTables
        from casd.report import print_run

        tables = RunTables.read(finished.store.folder(finished.graph.report))
        print_run(tables, verbose=verbose, links=[f"Report: {finished.folder / 'report.html'}", *links])
    else:
        for line in (f"Finished stages are in {finished.store.root}.", *links):
            print(printable(line))
    return finished.folder


def _make(config: Config, end: str) -> tuple[Run, int, int]:
    """Make a run where its engine says; return it, and how many stages were executed and reused."""
    from casd.pipeline.units import run_name

    outcomes = make_in_workers([config], run_name(config), end)
    if not outcomes:
        run = execute(config, end)
        return run, *count_stages(run.store.events)
    from casd.pipeline.run import Run

    [outcome] = outcomes
    if outcome.error:
        raise CasdError(outcome.error)
    # For its folders; this machine need not have the device of the workers.
    run = Run(replace(config, runtime=replace(config.runtime, device="cpu")))
    run.models = [Path(folder) for folder in outcome.models]
    return run, outcome.executed, outcome.reused


def make_in_workers(configs: Sequence[Config], description: str, end: str = "report") -> list[Outcome]:
    """Make runs in the workers of their engine, and return their outcomes; none if it has no workers."""
    from casd.pipeline.sweep import engine_of, run_units

    set_progress(configs[0].runtime.progress if is_main() else "off")
    engine = engine_of(configs)
    if engine.in_this_process:
        return []
    quiet_libraries()
    from casd.cli.worker import perform

    return run_units(configs, perform, engine, description=description, end=end)


def show(overrides: Sequence[str]) -> None:
    """Print the composed configuration of a run as YAML.

    Raises:
        CasdError: overrides that `run` would refuse.
    """
    from casd.config.compose import load_run, to_yaml

    config = load_run(overrides)
    quiet_libraries()
    from casd.planning.plan import planned_run

    planned_run(config, {})
    if is_main():
        print(printable(to_yaml(config)), end="")


def execute(config: Config, end: str = "report") -> Run:
    """Check that the run fits into memory, make it up to `end`, and return it."""
    set_progress(config.runtime.progress if is_main() else "off")
    quiet_libraries()
    from casd.pipeline.run import Run
    from casd.planning.check import check

    run = Run(config)
    run.join()
    check(run, end)
    run.run_to(end)
    return run


def count_stages(events: Sequence[Event]) -> tuple[int, int]:
    """Return how many stages were executed, and how many were reused."""
    executed = sum(event.outcome == "executed" for event in events)
    return executed, len(events) - executed
