"""A run or a sweep as a person sees it: quiet libraries, the tables at the end, where the report is, time and memory."""

from __future__ import annotations

import hashlib
import itertools
import os
import resource
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from casd.report.publish import check_output
from casd.utils.distributed import is_main, processes
from casd.utils.errors import ConfigError
from casd.utils.progress import say, set_progress
from casd.utils.registry import unknown
from casd.utils.text import printable

if TYPE_CHECKING:
    from casd.analysis.results import RunTables
    from casd.config import Config
    from casd.pipeline.run import Run
    from casd.pipeline.store import Event
    from casd.pipeline.sweep import Outcome

PAGES_NAMED = 24
"""Runs whose own reports are named after that over all."""

_started = time.monotonic()
_executed: list[tuple[int, int]] = []


def run(config: Config, end: str = "report") -> Path:
    """Run the pipeline up to `end`, print its tables if it got to the report, and give the run's folder.

    Args:
        config: what to run.
        end: one of `casd.pipeline.run.ENDS`.
    """
    made = _make(config, end)
    if not is_main():
        return made.folder
    _executed.append(_counts(made.store.events))
    if end == "report":
        from casd.analysis.results import RunTables
        from casd.report import print_run

        print_run(RunTables.read(made.store.folder(made.graph.report)))
        print(printable(f"\nReport: {made.folder / 'report.html'}"))
    else:
        print(printable(f"Finished stages are in {made.store.root}."))
    _say_cost()
    return made.folder


def _make(config: Config, end: str = "report") -> Run:
    """Run the pipeline up to `end`."""
    set_progress(config.runtime.progress if is_main() else "off")
    _hush_libraries()
    from casd.pipeline.run import Run
    from casd.planning.check import check

    made = Run(config)
    made.join()
    check(made, end)
    made.run_to(end)
    return made


def _one_of_many(config: Config) -> Outcome:
    """Make one run of a sweep, perhaps in a process of its own, and tell what became of it, whatever that is."""
    from casd.pipeline.sweep import Outcome, failed

    try:
        made = _make(config)
    except BaseException as error:  # libraries end a process, or panic; Ctrl-C is raised again
        if processes() > 1:  # the others may still be in this run: what they exchange must not meet that of the next
            raise
        return failed(config, error)
    return Outcome(made.folder.absolute(), "", *_counts(made.store.events))


def _launched(config: Config) -> tuple[Path | None, str]:
    """Make one run in a job of a launcher."""
    outcome = _one_of_many(config)
    return outcome.folder, outcome.error


def _counts(events: Sequence[Event]) -> tuple[int, int]:
    """How many stages were executed, and how many reused."""
    executed = sum(event.outcome == "executed" for event in events)
    return executed, len(events) - executed


def sweep(overrides: Sequence[str]) -> None:
    """Make every run of a sweep, write the report over all of them, print its tables, and say what it cost.

    Raises:
        CasdError: overrides that cannot work; or errors of runs, after all runs were tried.
    """
    [folders] = _make_sweeps([overrides], "sweep")
    finish_sweep(folders)


def _make_sweeps(sweeps: Sequence[Sequence[str]], description: str) -> list[list[Path]]:
    """The folders of the runs of each sweep, made by one of Hydra's launchers where that is asked for, and here if not.

    Raises:
        CasdError: as for `sweep`; with several processes the first error ends the sweep.
        ConfigError: one of Hydra's launchers in a run of several processes.
    """
    from casd.config import compose
    from casd.pipeline.sweep import Outcome, run_all, tell_failures

    if any(override.startswith("hydra/launcher=") for overrides in sweeps for override in overrides):
        if processes() > 1:
            raise ConfigError(
                f"hydra/launcher starts the runs, and each of the {processes()} processes would start all of them: use one of"
                " both, the launcher in a single process or several processes without it."
            )
        folders: list[list[Path]] = []
        for overrides in sweeps:
            launched = compose.sweep(overrides, _launched)
            tell_failures([(each.overrides, Outcome(each.folder, each.error)) for each in launched])
            folders.append([each.folder for each in launched if each.folder])
        return folders
    # All of them before the first is run: a mistake is told at once, and it is known how many there are.
    planned = [compose.jobs(overrides) for overrides in sweeps]
    runtime = planned[0][0].config.runtime
    set_progress(runtime.progress if is_main() else "off")
    jobs = [job for each in planned for job in each]
    outcomes = run_all([job.config for job in jobs], _one_of_many, jobs=runtime.jobs, description=description)
    tell_failures([(job.overrides, outcome) for job, outcome in zip(jobs, outcomes, strict=True)])
    _executed.extend((outcome.executed, outcome.reused) for outcome in dict.fromkeys(outcomes))
    made = iter(outcome.folder for outcome in outcomes)
    return [[folder for folder in itertools.islice(made, len(each)) if folder] for each in planned]


def finish_sweep(folders: Sequence[Path]) -> None:
    """Write the report over all runs of a sweep, print its tables, and say what it cost."""
    from casd.report import read_runs

    if not is_main():
        return
    folders = list(dict.fromkeys(folders))
    runs = read_runs(folders)
    target = folders[0].parent / f"sweep-{_digest(folder.name for folder in folders)}"
    _report_all(runs, target)


def report_runs(paths: Sequence[Path], output: Path | None = None) -> None:
    """Write the report over finished runs, print its tables, and say what it cost. Nothing is run, and torch is not needed.

    Args:
        paths: of runs, of folders that have some below them, or of stores; see `casd.analysis.runs.find_runs`.
        output: the folder of the report; None for one below `outputs`, named by the runs.

    Raises:
        CasdError: no finished runs there, runs that cannot be compared, or an output that is a file or has something else
            in it than an earlier report.
    """
    if not is_main():
        return
    from casd.analysis.tables import SWEEP_INFO
    from casd.report import read_runs

    if output:
        check_output(output, SWEEP_INFO)
    runs = read_runs(paths)
    target = output or Path("outputs") / f"report-{_digest(tables.info['folder'] for tables in runs)}"
    _report_all(runs, target)


def reproduce(names: Sequence[str], scale_name: str, overrides: Sequence[str] = ()) -> None:
    """Make the runs that these exhibits need, write the exhibits, print what became of their claims, and say what it cost.

    Args:
        names: of `casd.reproduction.catalogue.EXHIBITS`; or "all".
        scale_name: of `casd.reproduction.scales.scales`.
        overrides: of `runtime`, or Hydra's launcher: nothing that changes a result.

    Raises:
        CasdError: an unknown name or scale, an override that would change a result, or whatever stopped a run.
    """
    from casd.report import print_tables, print_warning, read_runs
    from casd.reproduction.catalogue import EXHIBITS
    from casd.reproduction.page import PAGE, finished, verdicts_table, write_reproduction
    from casd.reproduction.scales import read_scale

    for name in names:
        if name not in ("all", *EXHIBITS):
            raise unknown("table or figure", name, ("all", *EXHIBITS))
    for override in overrides:
        if not override.lstrip("+").startswith(("runtime.", "runtime=", "hydra/launcher=", "hydra.launcher.")):
            raise ConfigError(
                f"reproduce takes configurations as they are; {override!r} would change them. Use casd sweep for that."
            )
    chosen = [name for name in EXHIBITS if name in names or "all" in names]
    scale = read_scale(scale_name)
    run_sets = dict.fromkeys(EXHIBITS[name].run_set for name in chosen)
    sweeps = [(run_set, [*given, *overrides]) for run_set in run_sets for given in scale.sweeps[run_set]]
    made = _make_sweeps([given for _, given in sweeps], f"reproduce {' '.join(names)}, {scale.name}")
    folders: dict[str, list[Path]] = {}
    for (run_set, _), found in zip(sweeps, made, strict=True):
        folders.setdefault(run_set, []).extend(found)
    if not is_main():
        return
    runs = {run_set: read_runs(paths) for run_set, paths in folders.items()}
    target = made[0][0].parents[1] / "reproduce" / scale.name / ("all" if "all" in names else "-".join(chosen))
    executed = sum(count for count, _ in _executed)
    verdicts = None if executed else finished(chosen, runs, target)
    if verdicts is None:
        verdicts = write_reproduction(chosen, scale, runs, target)
    print_warning([tables for members in runs.values() for tables in members])
    print_tables([verdicts_table(verdicts[verdicts["headline"]])])
    print(printable(f"\nReport: {_short(target.absolute() / PAGE)}"))
    _say_cost()


def _report_all(runs: Sequence[RunTables], target: Path) -> None:
    """Write the report over all runs into `target`, and print it."""
    from casd.report import print_sweep, write_sweep_report

    comparisons = write_sweep_report(runs, target)
    print_sweep(runs, comparisons=comparisons.tables)
    for page in (Path(tables.info["folder"]) / "report.html" for tables in runs[:PAGES_NAMED]):
        if page.is_file():
            print(printable(f"Report of a run: {_short(page)}"))
    print(printable(f"Report of all:   {_short(target.absolute() / 'report.html')}"))
    _say_cost()


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:8]


def plan(overrides: Sequence[str]) -> None:
    """Print what the run, or all runs of the sweep, that these overrides mean will take. Nothing is run.

    Raises:
        CasdError: overrides that cannot work, or a model whose shape is not known here.
    """
    _hush_libraries()
    from casd.cli.planning import print_plans
    from casd.config.compose import configs
    from casd.planning.plan import plans

    found = configs(overrides)
    if is_main():
        print_plans(plans(found))


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _say_cost() -> None:
    """How many stages were executed, how long it took and the most memory that a process held."""
    executed, reused = (sum(counts) for counts in zip((0, 0), *_executed, strict=True))
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    peak = largest * unit / 2**30
    stages = f"{executed} stages executed, {reused} reused; " if _executed else ""
    say(f"{stages}{time.monotonic() - _started:.0f} s, peak memory {peak:.2f} GiB.")


def _hush_libraries() -> None:
    """No progress bars and no advice of the libraries between ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ["MPLBACKEND"] = "agg"  # no windows are opened, and matplotlib cannot be imported with a name it does not know
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(transformers|torch|accelerate)\b")
