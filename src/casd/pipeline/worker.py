"""Perform units in a worker of an engine, where corpus and model stay in memory between units that share them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from casd.engines.base import LOG
from casd.pipeline.records import check_shared
from casd.pipeline.run import Run
from casd.pipeline.sweep import reason
from casd.pipeline.units import Unit, UnitReport
from casd.utils import distributed
from casd.utils.errors import CasdError, RunRefused
from casd.utils.progress import hearing, set_progress
from casd.utils.runtime import own_numerics

JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
"""Environment variables with the id of a cluster's job: SLURM, PBS, LSF, SGE."""

_last: Run | None = None
"""The run of the last unit, with its model: the only one in memory."""


def perform(unit: Unit, check: Callable[[Run, str], None]) -> UnitReport:
    """Make the stages of a unit that are not in the store, as `reporting` does.

    Args:
        unit: the unit.
        check: raises a CasdError if the run cannot be made on this machine; called before the first unit of a run.
    """

    def make() -> dict[str, Any]:
        run = _run_of(unit, check)
        before = len(run.store.events)
        with distributed.explaining_lost_processes(), own_numerics():
            _make(run, unit)
        executed = frozenset(event.stage.key for event in run.store.events[before:] if event.outcome == "executed")
        return {"executed": executed, "models": tuple(map(str, run.models)) if unit.kind == "finish" else ()}

    return reporting(unit, make)


def reporting(unit: Unit, make: Callable[[], dict[str, Any]]) -> UnitReport:
    """Make a unit, and return its report; an error becomes part of it.

    After a signal (`casd.utils.ending`) the process exits; the stage that it was making resumes on the next run.

    Args:
        unit: the unit.
        make: makes it, and returns fields of `UnitReport` that only it knows.
    """
    started = time.time()
    set_progress("off" if unit.config.runtime.progress == "off" else "plain")
    report = partial(
        UnitReport,
        host=socket.gethostname(),
        process=os.getpid(),
        job=next((os.environ[name] for name in JOBS if name in os.environ), ""),
        log=os.environ.get(LOG, ""),
        started=started,
    )
    with hearing() as said:
        try:
            made = make()
        except KeyboardInterrupt:
            os._exit(143)
        except BaseException as error:  # libraries may exit or panic
            forget()
            with suppress(KeyboardInterrupt):
                refused = isinstance(error, RunRefused)
                return report(reason(unit.config, error), refused=refused, seconds=time.time() - started, said=tuple(said))
            os._exit(143)
    return report(seconds=time.time() - started, said=tuple(said), **made)


def forget() -> None:
    """Drop the last run, and its model from memory."""
    global _last
    _last = None


def _make(run: Run, unit: Unit) -> None:
    match unit.kind:
        case "base":
            run.base()
        case "inject":
            run.inject(unit.end)
        case "tune":
            run.tune()
        case "clean_model":
            run.clean_model()
        case "state":
            run.state(unit.state, unit.end)
        case "finish":
            run.finish(unit.end)


def _run_of(unit: Unit, check: Callable[[Run, str], None]) -> Run:
    """Return the run of the last unit, or a new one, which takes over what is in memory if it shares the injected model."""
    global _last
    if _last is None or _last.config != unit.config:
        before, _last = _last, None
        run = Run(unit.config)
        check_shared(run.store.root, run.graph.score, run.folder)
        if before is not None:
            run.inputs.take_over(before.inputs)
        del before  # and its model, before another is loaded
        try:
            run.begin()
            check(run, unit.end)
        except CasdError as error:
            raise RunRefused(str(error)) from error
        _last = run
    return _last
