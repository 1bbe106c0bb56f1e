"""The jobs of a cluster as workers of dask: submit them, give them calls, and replace those that end."""

from __future__ import annotations

import asyncio
import itertools
import math
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, InvalidStateError
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from casd.engines.agent import call_in_job, pack
from casd.engines.local import Local
from casd.utils.errors import CasdError, ConfigError
from casd.utils.progress import say

ATTEMPTS: Final = 3
"""Jobs that may be lost with the same call, or one after another while no call ends."""
_POLL_S: Final = 5.0
_ANSWER_S: Final = 60.0


class Jobs:
    """The jobs of an engine, from their submission until they have ended.

    Args:
        kind: the cluster's name, for messages.
        number: number of jobs.
        seconds: longest time of a job.
        listing: command that lists the jobs that wait or run.
        make: makes a job of dask-jobqueue of a name.
        client: dask's client, which knows the workers.
        folder: of the jobs' logs.
    """

    def __init__(
        self, kind: str, number: int, seconds: int, listing: str, make: Callable[..., Any], client: Any, folder: Path
    ) -> None:
        self._kind, self._number, self._seconds, self._listing = kind, number, seconds, listing
        self._make, self._client, self._folder = make, client, folder
        self._jobs: dict[str, Any] = {}
        self._began: dict[str, float] = {}
        self._names = itertools.count(1)
        self._why = ""
        self.attempts: float = ATTEMPTS
        """How many jobs may be lost until a call ends. One that reached its time counts less: a training goes on from there."""

    def begin(self) -> None:
        """Submit all jobs, and wait until the first has started.

        Raises:
            CasdError: the jobs cannot be submitted, or end at once.
        """
        for _ in range(self._number):
            self._submit()
        ids = [job.job_id for job in self._jobs.values()]
        named = f"jobs {ids[0]} to {ids[-1]}" if self._number > 1 else f"job {ids[0]}"
        say(f"{self._kind}: submitted {named}; logs: {self._folder}.")
        asked = 0.0
        while not self._started():
            if time.monotonic() - asked >= _POLL_S:
                if ended := self._ended():
                    raise CasdError(self._describe(ended[0]))
                asked = time.monotonic()
            time.sleep(_POLL_S / 10)
        if len(self._began) < self._number:
            say(f"{self._kind}: the first of {self._number} jobs has started; the others join when they start.")

    def replace(self) -> str:
        """Submit a job for each that has ended, unless too many were lost. Return why no job is left; "" if one is."""
        self._started()
        for name in self._ended():
            self._why = self._describe(name)
            in_time = time.monotonic() - self._began.get(name, math.inf) >= 0.8 * self._seconds
            self.attempts -= 0.25 if in_time else 1
            del self._jobs[name]
            say(f"{self._why}{'; another is submitted' if self.attempts > 0 else ''}.")
        try:
            while len(self._jobs) < self._number and self.attempts > 0:
                self._submit()
        except CasdError as error:  # perhaps for a moment
            self.attempts -= 0.05
            self._why = str(error)
        return "" if self._jobs or self.attempts > 0 else self._why

    def leave(self, *exception: object) -> None:
        """Cancel all jobs, at the end of a block that may have raised an exception."""
        if exception[0]:
            say(f"{self._kind}: cancelling the {len(self._jobs)} jobs of this process.")
        for job in list(self._jobs.values()):
            with suppress(Exception):
                asyncio.run(job.close())

    def _started(self) -> set[str]:
        """Return the names of the jobs whose workers are there, and note when they began."""
        workers = {worker["name"] for worker in self._client.scheduler_info()["workers"].values()}
        self._began |= {name: time.monotonic() for name in workers - self._began.keys()}
        return workers

    def _ended(self) -> list[str]:
        """Return the names of the jobs that have ended; none if the scheduler does not answer."""
        try:
            answer = subprocess.run(shlex.split(self._listing), capture_output=True, text=True, timeout=_ANSWER_S)
        except (OSError, subprocess.TimeoutExpired):  # a busy login node; asked again after a while
            return []
        listed = set(re.findall(r"\d+", answer.stdout))
        return [] if answer.returncode else [name for name, job in self._jobs.items() if job.job_id not in listed]

    def _submit(self) -> None:
        name = f"casd-{next(self._names)}"
        job = self._make(name=name, job_name=name)
        try:
            asyncio.run(job.start())
        except FileNotFoundError as error:
            raise ConfigError(
                f"There is no command {error.filename} here: run casd on a machine that submits to {self._kind}."
            ) from error
        except OSError as error:  # no process can be started for now
            raise CasdError(f"No job could be submitted to {self._kind}: {error}.") from error
        except RuntimeError as error:  # the message has the whole command
            lines = [line for line in str(error).partition("stderr:")[2].splitlines() if line.strip()] or [str(error)]
            advice = " On nodes without GPUs set runtime.device=cpu." if "gres" in str(error) else ""
            raise ConfigError(f"{self._kind} refused a job: {'; '.join(lines)}.{advice}") from error
        self._jobs[name] = job

    def _describe(self, name: str) -> str:
        """Return a line about a job that has ended."""
        job = f"{self._kind}: job {self._jobs[name].job_id} ended"
        if name in self._began:
            return job
        logs = sorted(self._folder.glob(f"*{self._jobs[name].job_id}*"))
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines() if line.strip()]
        said = f": {lines[-1]}" if lines else f" and left no log: do the nodes share the folder {self._folder}?"
        return f"{job} before its worker started{said}"


class Calls(Executor):
    """Gives calls to the jobs."""

    def __init__(self, jobs: Jobs, client: Any, local: Local, folder: Path) -> None:
        self._jobs, self._client, self._local, self._folder = jobs, client, local, folder
        self._running: dict[Future[Any], Any] = {}
        self._end = threading.Event()

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **_: Any) -> Future[Any]:
        """See `concurrent.futures.Executor.submit`. Calls of a lost job are given to another."""
        future: Future[Any] = Future()
        remote = self._client.submit(call_in_job, self._local, str(self._folder), pack(function, *arguments), pure=False)
        self._running[future] = remote
        remote.add_done_callback(partial(self._copy, future))
        return future

    def watch(self) -> None:
        """Replace jobs that end, until `end`. If none is left, the calls that are running fail."""
        while not self._end.wait(_POLL_S):
            if why := self._jobs.replace():
                for future in list(self._running):
                    self._settle(future, CasdError(why))

    def end(self) -> None:
        """Stop watching the jobs, and cancel the calls."""
        self._end.set()
        self._client.cancel(list(self._running.values()))

    def _copy(self, future: Future[Any], remote: Any) -> None:
        """Pass on the outcome of a call."""
        try:
            result = remote.result()
        except Exception as error:
            killed = type(error).__name__ == "KilledWorker"
            self._settle(
                future, CasdError(f"{ATTEMPTS} jobs were lost with it; their logs: {self._folder}") if killed else error
            )
        else:
            self._jobs.attempts = ATTEMPTS
            self._settle(future, None, result)

    def _settle(self, future: Future[Any], error: BaseException | None, result: Any = None) -> None:
        self._running.pop(future, None)
        with suppress(InvalidStateError):  # it was given up
            future.set_exception(error) if error else future.set_result(result)
