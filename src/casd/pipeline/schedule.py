"""Give units to the workers of an engine, as soon as what they wait for is done."""

from __future__ import annotations

import importlib
import math
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from casd.engines.base import Engine
from casd.pipeline.units import Needs, Unit, UnitReport
from casd.utils.errors import CasdError, first_line
from casd.utils.progress import say

KILLED = "the process was killed, perhaps because memory ran out"
"""Error of a unit whose process was killed."""

Reports = Iterator[tuple[Unit, UnitReport]]


class Schedule:
    """The units that are not done yet.

    Args:
        needs: the units, and those that each waits for.
    """

    def __init__(self, needs: Needs) -> None:
        self._needs = needs
        self._waiting = _longest_first(needs)
        self._undone = set(needs)
        self.running: dict[Future[UnitReport], Unit] = {}

    def start(self, executor: Executor, perform: Callable[[Unit], UnitReport], workers: int) -> None:
        """Submit units that wait for none, as long as a worker is free."""
        for unit in list(self._waiting):
            if len(self.running) >= workers:
                return
            if not self._needs[unit] & self._undone:
                self.running[executor.submit(perform, unit)] = unit
                self._waiting.remove(unit)

    def end(self, unit: Unit, report: UnitReport) -> None:
        """Note the end of a unit. Those that wait for a failed one are never started."""
        if not report.error:
            self._undone.discard(unit)

    def take_back(self) -> list[Unit]:
        """Return the units that are running, which were lost, and start them again next."""
        lost = list(self.running.values())
        self._waiting[:0] = lost
        self.running.clear()
        return lost

    def give_up(self, unit: Unit) -> None:
        """Do not start a unit that was taken back."""
        self._waiting.remove(unit)


def perform_all(needs: Needs, perform: Callable[[Unit], UnitReport], engine: Engine, folder: Path) -> Reports:
    """Perform units in the workers of an engine, and yield each with its report when it ends.

    A unit that needs a failed one is neither performed nor yielded. If a process is killed and takes the others with it, the
    remaining units are performed one at a time, which needs less memory and shows which unit is killed.

    Args:
        needs: the units, and those that each waits for.
        perform: a module-level function that performs a unit and returns errors in its report.
        engine: where.
        folder: for the logs of the workers.

    Raises:
        CasdError: the engine cannot start its workers.
    """
    schedule = Schedule(needs)
    while True:
        try:
            with engine.open(folder) as executor:
                workers = "a worker" if engine.workers == 1 else f"{engine.workers} workers"
                say(f"Starting {workers}, which takes a while; logs: {folder}", progress=True)
                for _ in range(engine.workers):  # while few units are ready, the other workers import what they need
                    executor.submit(_load, perform.__module__)
                yield from _until_lost(schedule, executor, perform, engine.workers)
                return
        except BrokenExecutor as error:
            lost = schedule.take_back()
            if not lost and engine.workers == 1:
                raise CasdError(f"The workers end when they are started ({first_line(error)}); their logs: {folder}") from error
            if len(lost) == 1:
                schedule.give_up(lost[0])
                yield lost[0], UnitReport(KILLED, socket.gethostname(), log=str(folder))
            if engine.workers > 1:
                one_of = f" It was one of: {'; '.join(map(str, lost))}." if len(lost) > 1 else ""
                say(f"A process was killed, perhaps for lack of memory: continuing with one at a time.{one_of}")
            engine = replace(engine, workers=1)


def seconds_left(needs: Needs, reports: Mapping[Unit, UnitReport], workers: int) -> float:
    """Estimate how long units without a report will take, from those of their kind that made something.

    Kinds of which none has ended are taken to last as long as the others, and "finish", which is short, to take no time; NaN if
    most of what is left is of such kinds.
    """
    measured: dict[str, list[float]] = {}
    for unit, report in reports.items():
        if report.executed:
            measured.setdefault(unit.kind, []).append(report.seconds)
    left = [unit.kind for unit in needs if unit not in reports and (unit.kind != "finish" or "finish" in measured)]
    known = [fmean(measured[kind]) for kind in left if kind in measured]
    if left and 2 * len(known) < len(left):
        return math.nan
    return sum(known) * (len(left) / len(known) if known else 0) / min(workers, max(1, len(left)))


def makespan(needs: Needs, seconds: Mapping[Unit, float], workers: int) -> float:
    """Return the seconds from the first unit to the end of the last, if each takes the given time and workers start at once.

    Args:
        needs: the units, and those that each waits for.
        seconds: how long each takes.
        workers: number of workers.
    """
    waiting, done = _longest_first(needs), set[Unit]()
    running: dict[Unit, float] = {}  # until when
    now = 0.0
    while waiting or running:
        ready = [unit for unit in waiting if needs[unit] <= done][: workers - len(running)]
        for unit in ready:
            running[unit] = now + seconds[unit]
            waiting.remove(unit)
        first = min(running, key=running.__getitem__)
        now = running.pop(first)
        done.add(first)
    return now


def _until_lost(schedule: Schedule, executor: Executor, perform: Callable[[Unit], UnitReport], workers: int) -> Reports:
    """Yield units and reports until all are done.

    Raises:
        BrokenExecutor: the workers were lost.
    """
    while True:
        schedule.start(executor, perform, workers)
        if not schedule.running:
            return
        done, _ = wait(schedule.running, return_when=FIRST_COMPLETED)
        for future in sorted(done, key=_is_lost):
            report = _report(future)
            unit = schedule.running.pop(future)
            schedule.end(unit, report)
            yield unit, report


def _is_lost(future: Future[UnitReport]) -> bool:
    return isinstance(future.exception(), BrokenExecutor)


def _report(future: Future[UnitReport]) -> UnitReport:
    """Return the report of a unit; if the engine lost it, one that says so."""
    error = future.exception()
    if isinstance(error, BrokenExecutor):
        raise error
    return (
        future.result() if error is None else UnitReport(f"the worker was lost ({type(error).__name__}: {first_line(error)})")
    )


def _longest_first(needs: Needs) -> list[Unit]:
    """Sort units by the longest chain of units that wait for them, then by the number of those that wait."""
    chains, waiting = dict.fromkeys(needs, 0), dict.fromkeys(needs, 0)
    for unit in reversed(needs):
        for each in needs[unit]:
            chains[each] = max(chains[each], chains[unit] + 1)
            waiting[each] += 1
    return sorted(needs, key=lambda unit: (-chains[unit], -waiting[unit]))


def _load(module: str) -> None:
    importlib.import_module(module)
