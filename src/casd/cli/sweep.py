"""`casd sweep`: make many runs and one report over all of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from casd.cli.cost import Cost
from casd.cli.report import report_sweep
from casd.cli.run import count_stages, execute, make_in_workers
from casd.utils.distributed import processes

if TYPE_CHECKING:
    from casd.config import Config
    from casd.pipeline.sweep import Outcome
    from casd.utils.errors import CasdError


def sweep(overrides: Sequence[str], *, verbose: bool = False, published: Path | None = None) -> None:
    """Make every run of a sweep, write the report over all of them, and print it (`verbose`: all its tables)
    and what it cost; with `published`, put what was found into the page of results of that folder.

    Raises:
        CasdError: overrides that cannot work; or the errors of runs, after all runs were tried.
    """
    cost = Cost()
    if published:
        from casd.cli.publish import check_folder  # the modules of reports take seconds to import

        check_folder(published)
    [folders], failure = make_sweeps([overrides], "sweep", cost)
    report = report_sweep(folders, cost, verbose=verbose) if folders else None
    if failure:
        raise failure
    if report and published:
        from casd.cli.publish import publish_sweep

        publish_sweep(*report, overrides, published)


def make_sweeps(sweeps: Sequence[Sequence[str]], description: str, cost: Cost) -> tuple[list[list[Path]], CasdError | None]:
    """Make the runs of each sweep, and return their folders, and the error that lists those that failed.

    Args:
        sweeps: the Hydra overrides of each sweep.
        description: for the progress bar.
        cost: the stages of the runs are added to it.

    Raises:
        CasdError: overrides that cannot work; with several processes the first error ends the sweep.
    """
    from casd.config import compose
    from casd.pipeline.sweep import failure_of, run_all

    # Compose all of them before the first is run: mistakes are reported at once, and the number of runs is known.
    jobs_of_sweeps = [compose.jobs(overrides) for overrides in sweeps]
    jobs = [job for jobs in jobs_of_sweeps for job in jobs]
    configs = [job.config for job in jobs]
    outcomes = make_in_workers(configs, description) or run_all(configs, _try_run, description=description)
    failure = failure_of([(job.overrides, outcome) for job, outcome in zip(jobs, outcomes, strict=True)])
    for outcome in dict.fromkeys(outcomes):
        cost.add(outcome.executed, outcome.reused)
    folders = iter(outcome.folder for outcome in outcomes)
    return [[folder for folder in itertools.islice(folders, len(jobs)) if folder] for jobs in jobs_of_sweeps], failure


def _try_run(config: Config) -> Outcome:
    """Make one run of a sweep in this process, and return its outcome whether it succeeds or fails."""
    from casd.pipeline.sweep import Outcome, reason

    try:
        run = execute(config)
    except BaseException as error:  # libraries may exit or panic; `reason` raises Ctrl-C again
        if processes() > 1:  # the other processes may still be in this run and must not exchange data with the next one
            raise
        return Outcome(None, reason(config, error))
    return Outcome(run.folder.absolute(), "", *count_stages(run.store.events))
