"""Workers that are actors of Ray: on this machine, or on a cluster whose Ray is running."""

from __future__ import annotations

import importlib
import logging
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casd.engines.agent import Agent, pack
from casd.engines.base import Engine
from casd.engines.local import Local
from casd.utils.errors import CasdError, ConfigError
from casd.utils.progress import say

_ATTEMPTS = 3
"""Actors that may be lost with the same call."""


@dataclass(frozen=True)
class Ray(Engine):
    """Actors of Ray, each with the GPUs of one unit and its CPU cores."""

    address: str = "local"
    """Address of a cluster's Ray: "auto", "ray://HOST:10001"; "local" starts one on this machine."""
    cpus: float = 1.0
    """CPU cores of a worker."""

    @contextmanager
    def open(self, folder: Path) -> Iterator[Executor]:
        """See `Engine.open`. An actor that is lost, with its node, is replaced; its call is made again."""
        try:
            ray = importlib.import_module("ray")
        except ImportError as error:
            raise ConfigError("engine=ray needs ray: pip install 'casd[ray]'.") from error
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        options = {"include_dashboard": False} if self.address == "local" else {}
        try:
            ray.init(address=self.address, logging_level=logging.ERROR, log_to_driver=False, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"Ray does not answer at engine.address={self.address}: {' '.join(str(error).split())}"
            ) from error
        try:
            self._check(ray.cluster_resources())
            actors = _Actors(ray, self, folder)
            with ThreadPoolExecutor(self.workers) as threads:
                try:
                    yield _Calls(threads, actors)
                finally:
                    actors.end()  # the threads wait for their calls
        finally:
            ray.shutdown()

    def _check(self, there: dict[str, float]) -> None:
        """Raise ConfigError if the cluster has too few resources for all workers: they would wait without end."""
        for name, key, each in (("GPU", "engine.gpus_per_unit", self.gpus_per_unit), ("CPU", "engine.cpus", self.cpus)):
            if self.workers * each > there.get(name, 0):
                raise ConfigError(
                    f"engine.workers={self.workers} with {key}={each:g} needs {self.workers * each:g} {name}s; Ray has"
                    f" {there.get(name, 0):g}{', unless runtime.device=cpu is set' if name == 'GPU' else ''}."
                )
        say(f"Ray: {self.workers} workers with {self.gpus_per_unit} GPUs and {self.cpus:g} CPUs each.")


class _Actors:
    """The actors that wait for a call."""

    def __init__(self, ray: Any, engine: Ray, folder: Path) -> None:
        self._ray, self._engine, self._folder = ray, engine, folder
        self._ended = False
        self._all: list[Any] = []
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(engine.workers):
            self._free.put(self._start())

    def call(self, packed: bytes) -> Any:
        """Make a call in an actor that is free."""
        actor = self._free.get()
        try:
            for _ in range(_ATTEMPTS):
                try:
                    return self._ray.get(actor.call.remote(packed))
                except self._ray.exceptions.RayTaskError as error:  # the function's own error
                    raise error.cause from None
                except self._ray.exceptions.RayActorError:
                    if self._ended:
                        raise
                    say("Ray: a worker was lost; another takes its place.")
                    actor = self._start()
            raise CasdError(f"{_ATTEMPTS} workers were lost with it")
        finally:
            self._free.put(actor)

    def end(self) -> None:
        """End all actors, and the calls that are running."""
        self._ended = True
        for actor in self._all:
            self._ray.kill(actor)

    def _start(self) -> Any:
        remote = self._ray.remote(num_cpus=self._engine.cpus, num_gpus=self._engine.gpus_per_unit)(Agent)
        actor = remote.remote(Local(1, self._engine.gpus_per_unit, self._engine.shard), self._folder)
        self._all.append(actor)
        return actor


class _Calls(Executor):
    def __init__(self, threads: Executor, actors: _Actors) -> None:
        self._threads, self._actors = threads, actors

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **_: Any) -> Future[Any]:
        """See `concurrent.futures.Executor.submit`."""
        return self._threads.submit(self._actors.call, pack(function, *arguments))
