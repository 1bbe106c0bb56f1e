"""Workers on this machine: processes, each with its own GPUs and its share of the CPUs.

Two units at once with one thread each are faster than one after the other with two threads: the models are small on a CPU, and
the work between matrix products uses one thread anyway.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from casd.engines.base import LOG, Engine
from casd.utils.errors import CasdError, ConfigError
from casd.utils.processes import available_cpus, end_with_parent, interrupts_blocked, threads_of_libraries

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Local(Engine):
    """Processes of this machine. With one worker there is none: the units run in the process of the command.

    Raises:
        ConfigError: units of several GPUs that share these with others.
    """

    workers_per_gpu: int = 1
    """Workers that may share a GPU. A small model leaves one idle for most of the time, as it waits for Python."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers_per_gpu < 1:
            raise ConfigError(f"engine.workers_per_gpu is {self.workers_per_gpu}; it must be greater than 0.")
        if self.workers_per_gpu > 1 and self.gpus_per_unit > 1:
            raise ConfigError(
                f"engine.workers_per_gpu={self.workers_per_gpu} is for units of one GPU, and"
                f" engine.gpus_per_unit={self.gpus_per_unit}: set one of the two to 1."
            )

    @property
    def in_this_process(self) -> bool:
        """True with one worker whose units are one process."""
        return self.workers == 1 and self.gpus_per_unit == 1

    @contextmanager
    def open(self, folder: Path) -> Iterator[Executor]:
        """See `Engine.open`. If a worker is killed, the executor is broken and takes no more work."""
        devices = self._devices()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CasdError(
                f"The workers' logs cannot be written to {folder}: {error.strerror}; set runtime.output."
            ) from error
        context = multiprocessing.get_context("spawn")
        own = context.SimpleQueue()  # each worker takes its devices when it starts
        for worker in range(self.workers):
            own.put(",".join(devices[worker * self.gpus_per_unit :][: self.gpus_per_unit]))
        threads = max(1, available_cpus() // self.workers)
        with (
            threads_of_libraries(threads),
            ProcessPoolExecutor(self.workers, context, initializer=_begin, initargs=(own, str(folder))) as pool,
        ):
            try:
                with interrupts_blocked():
                    for _ in range(self.workers):  # starts all processes
                        pool.submit(os.getpid)
                yield pool
            except BaseException:  # after Ctrl-C, SIGTERM or a killed process the pool would wait for the others
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()
                raise

    def on_each_gpu(self) -> int:
        """Return the number of workers that share a GPU: as few as the GPUs here allow, or all if there is none here."""
        if self.workers_per_gpu == 1:
            return 1
        return -(-self.workers // max(1, len(visible_devices())))

    def _devices(self) -> list[str]:
        """Return the GPUs of all workers; empty if units run on the CPU.

        Raises:
            ConfigError: there are too few.
        """
        visible = visible_devices() if self.gpus_per_unit else []
        devices = visible * self.workers_per_gpu  # in turns, so that few workers get a GPU each
        needed = self.workers * self.gpus_per_unit
        if needed <= len(devices) or (not devices and self.gpus_per_unit <= 1):
            return devices[:needed]
        options = {"gpus_per_unit": self.gpus_per_unit, "workers_per_gpu": self.workers_per_gpu}  # one of them is 1
        each = "".join(f" with engine.{name}={number}" for name, number in options.items() if number > 1)
        gpus = -(-needed // self.workers_per_gpu)
        named = f" ({VISIBLE}={os.environ[VISIBLE]})" if VISIBLE in os.environ else ""
        fits = len(devices) // self.gpus_per_unit
        remedy = f"workers={fits}, or runtime.device=cpu" if fits else f"gpus_per_unit={max(1, len(visible))}"
        raise ConfigError(
            f"engine.workers={self.workers}{each} needs {gpus} GPUs, and there are {len(visible)}{named}: set engine.{remedy}."
        )


def visible_devices() -> list[str]:
    """Return the CUDA devices of this process, as CUDA_VISIBLE_DEVICES names them: numbers, UUIDs or MIG instances.

    CUDA is not initialized.
    """
    named = os.environ.get(VISIBLE)
    if named is None:
        import torch

        return [str(number) for number in range(torch.cuda.device_count())]
    # CUDA ignores the first invalid name and those after it.
    names = itertools.takewhile(re.compile(r"\d+|(GPU|MIG)-.+").fullmatch, (name.strip() for name in named.split(",")))
    return list(dict.fromkeys(names))


def _begin(own_devices: Any, folder: str) -> None:
    """In a new worker: take its devices before anything uses CUDA, and write its output to a log of its own."""
    from tqdm import tqdm

    end_with_parent()
    # Its own lock is a semaphore shared with other processes, which would be reported as leaked after the worker is ended.
    tqdm.set_lock(threading.RLock())
    os.environ[VISIBLE] = own_devices.get()
    log = Path(folder) / f"{socket.gethostname()}-{os.getpid()}.log"
    os.environ[LOG] = str(log)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
