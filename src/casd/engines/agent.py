"""What a job of a cluster, or an actor of Ray, does: it runs calls in processes of its own, as the engine `local` does.

A call thereby has a main thread, which receives signals, and devices of its own; if it is killed, its job goes on.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from casd.engines.local import Local
from casd.utils.ending import WARNINGS
from casd.utils.errors import CasdError

ENDS: Final = "CASD_JOB_ENDS"
"""Environment variable of a job: when the cluster will end it, in seconds since 1970."""
_SAVING_S: Final = 300.0
"""Longest time for writing checkpoints before a job ends; a tenth of the job's time if that is shorter."""
KILLED: Final = "its process was killed twice, perhaps because memory ran out"


def pack(function: Callable[..., Any], *arguments: Any) -> bytes:
    """Return a call of a module-level function, whose modules are only imported where it is made."""
    return pickle.dumps((function, arguments))


def _unpack(packed: bytes) -> Any:
    function, arguments = pickle.loads(packed)
    return function(*arguments)


class Agent:
    """The processes of one job.

    Args:
        engine: number of processes, and of GPUs for each.
        folder: for their logs.
    """

    def __init__(self, engine: Local, folder: Path) -> None:
        self._engine, self._folder = engine, folder
        self._lock, self._second = threading.Lock(), threading.Lock()
        self._opened = ExitStack()
        self._executor: Executor | None = None
        self.is_ending = False

    def call(self, packed: bytes) -> Any:
        """Make a call (see `pack`) in one of the processes; they are started if there are none.

        A process that is killed takes the others of its job with it, so each call gets a second attempt, one at a time.

        Raises:
            CasdError: the processes cannot be started, or one was killed twice.
            Exception: what the function raises.
        """
        try:
            return self._attempt(packed)
        except BrokenExecutor:
            if self.is_ending:
                raise
        try:
            with self._second:
                return self._attempt(packed)
        except BrokenExecutor as error:
            if self.is_ending:
                raise
            raise CasdError(KILLED) from error

    def _attempt(self, packed: bytes) -> Any:
        with self._lock:
            if self._executor is None:
                self._executor = self._opened.enter_context(self._engine.open(self._folder))
            executor = self._executor
        try:
            return executor.submit(_unpack, packed).result()
        except BrokenExecutor:
            with self._lock:
                if self._executor is executor:
                    self._executor = None
            raise

    def end(self, seconds: float) -> None:
        """End the processes: SIGTERM lets a training write a checkpoint; what is left after so many seconds is killed."""
        self.is_ending = True
        deadline = time.monotonic() + seconds
        children = multiprocessing.active_children()
        for child in children:
            child.terminate()
        for child in children:
            child.join(max(0.0, deadline - time.monotonic()))
            child.kill()


_agent: Agent | None = None


def call_in_job(local: Local, folder: str, packed: bytes) -> Any:
    """Run a call in a worker of dask. If its job is about to end, dask gives the call to another."""
    global _agent
    _agent = _agent or Agent(local, Path(folder))
    try:
        return _agent.call(packed)
    except BrokenExecutor:
        time.sleep(1)  # until this job takes no more calls
        raise importlib.import_module("distributed").Reschedule from None


def dask_setup(worker: Any) -> None:
    """Prepare a job, when dask starts its worker: it leaves before its time is over, and when the cluster ends it."""

    def leave() -> None:
        dask_teardown(worker)
        worker.loop.add_callback(worker.close_gracefully)

    for number in WARNINGS:
        signal.signal(number, lambda *_: threading.Thread(target=leave).start())
    if ends := os.environ.get(ENDS):
        left = int(ends) - time.time()
        timer = threading.Timer(left - min(_SAVING_S, 0.1 * left), leave)
        timer.daemon = True
        timer.start()


def dask_teardown(worker: Any) -> None:
    """End the processes of a job, when its worker ends; trainings write a checkpoint."""
    if _agent is not None:
        _agent.end(_SAVING_S)
