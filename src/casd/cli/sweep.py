"""`casd sweep`: make many runs and one report over all of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from casd.cli.cost import Cost
from casd.cli.report import report_sweep
from casd.cli.run import count_stages, execute
from casd.utils.distributed import is_main, processes
from casd.utils.errors import ConfigError
from casd.utils.progress import set_progress

if TYPE_CHECKING:
    from casd.config import Config
    from casd.pipeline.sweep import Outcome


def sweep(overrides: Sequence[str], *, verbose: bool = False) -> None:
    """Make every run of a sweep, write the report over all of them, and print it (`verbose`: all its tables)
    and what it cost.

    Raises:
        CasdError: overrides that cannot work; or the errors of runs, after all runs were tried.
    """
    cost = Cost()
    [folders] = make_sweeps([overrides], "sweep", cost)
    report_sweep(folders, cost, verbose=verbose)


def make_sweeps(sweeps: Sequence[Sequence[str]], description: str, cost: Cost) -> list[list[Path]]:
    """Make the runs of each sweep, and return their folders.

    Args:
        sweeps: the Hydra overrides of each sweep. With `hydra/launcher=…` among them that launcher starts the runs.
        description: for the progress bar.
        cost: the stages of the runs are added to it, except those of runs that a launcher started.

    Raises:
        CasdError: as for `sweep`; with several processes the first error ends the sweep.
        ConfigError: one of Hydra's launchers in a run of several processes.
    """
    from casd.config import compose
    from casd.pipeline.sweep import run_all, tell_failures

    if any(override.startswith("hydra/launcher=") for overrides in sweeps for override in overrides):
        return [_launch(overrides) for overrides in sweeps]
    # Compose all of them before the first is run: mistakes are reported at once, and the number of runs is known.
    jobs_of_sweeps = [compose.jobs(overrides) for overrides in sweeps]
    runtime = jobs_of_sweeps[0][0].config.runtime
    set_progress(runtime.progress if is_main() else "off")
    jobs = [job for jobs in jobs_of_sweeps for job in jobs]
    outcomes = run_all([job.config for job in jobs], _try_run, jobs=runtime.jobs, description=description)
    tell_failures([(job.overrides, outcome) for job, outcome in zip(jobs, outcomes, strict=True)])
    for outcome in dict.fromkeys(outcomes):
        cost.add(outcome.executed, outcome.reused)
    folders = iter(outcome.folder for outcome in outcomes)
    return [[folder for folder in itertools.islice(folders, len(jobs)) if folder] for jobs in jobs_of_sweeps]


def _launch(overrides: Sequence[str]) -> list[Path]:
    """Make the runs of a sweep with one of Hydra's launchers, and return their folders."""
    from casd.config import compose
    from casd.pipeline.sweep import Outcome, tell_failures

    if processes() > 1:
        raise ConfigError(
            f"hydra/launcher starts the runs, and each of the {processes()} processes would start all of them: use either the"
            " launcher in a single process or several processes without it."
        )
    launched = compose.sweep(overrides, _try_launched_run)
    tell_failures([(job.overrides, Outcome(job.folder, job.error)) for job in launched])
    return [job.folder for job in launched if job.folder]


def _try_run(config: Config) -> Outcome:
    """Make one run of a sweep, perhaps in a child process, and return its outcome whether it succeeds or fails."""
    from casd.pipeline.sweep import Outcome, failed

    try:
        run = execute(config)
    except BaseException as error:  # libraries may exit or panic; `failed` raises Ctrl-C again
        if processes() > 1:  # the other processes may still be in this run and must not exchange data with the next one
            raise
        return failed(config, error)
    return Outcome(run.folder.absolute(), "", *count_stages(run.store.events))


def _try_launched_run(config: Config) -> tuple[Path | None, str]:
    """Make one run in a job of one of Hydra's launchers."""
    outcome = _try_run(config)
    return outcome.folder, outcome.error
