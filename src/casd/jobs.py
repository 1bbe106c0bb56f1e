"""Many runs: one after another in this process, or several at once, each in a process of its own.

Two runs side by side with one thread each get further than one with two threads: the models of a laptop are small, and what is
between two products of matrices runs on one thread anyhow. They share the store, where each stage has a lock.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from casd.config import Config
from casd.distributed import processes
from casd.errors import CasdError, ConfigError
from casd.forking import threads_of_libraries
from casd.progress import track


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        folder: of its report; None if it failed.
        error: why, for the user.
        executed: stages that it made.
        reused: stages that were there.
    """

    folder: Path | None
    error: str = ""
    executed: int = 0
    reused: int = 0


def run_all(configs: Sequence[Config], make: Callable[[Config], Outcome], *, jobs: int, description: str) -> list[Outcome]:
    """Make every run, also when some fail; in the order of `configs`.

    Args:
        configs: of the runs; equal ones are made once.
        make: makes one, and tells errors of the user's instead of raising them. With several jobs it has to be a function of a
            module, which another process can import.
        jobs: how many at once.
        description: for the progress.

    Raises:
        CasdError: a process was killed, as it is when memory runs out.
        ConfigError: several jobs in several processes.
    """
    outcomes: dict[str, Outcome] = {}
    different = list({repr(config): config for config in configs}.values())
    with track(description, len(different)) as advance:
        for config, outcome in _one_by_one(different, make) if jobs == 1 else _at_once(different, make, jobs):
            outcomes[repr(config)] = outcome
            advance(note=f"{config.model.name}, {config.unlearning.objective.name}, seed {config.seed}")
    return [outcomes[repr(config)] for config in configs]


def _one_by_one(configs: Sequence[Config], make: Callable[[Config], Outcome]) -> Iterator[tuple[Config, Outcome]]:
    for config in configs:
        yield config, make(config)


def _at_once(configs: Sequence[Config], make: Callable[[Config], Outcome], jobs: int) -> Iterator[tuple[Config, Outcome]]:
    """As each is finished. Those with an injection of their own come first: two that share one would wait for each other."""
    if processes() > 1:
        raise ConfigError("runtime.jobs is for runs in one process each; under accelerate launch set runtime.jobs=1.")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    with threads_of_libraries(threads), ProcessPoolExecutor(jobs, context, initializer=_end_quietly) as pool:
        waiting = {pool.submit(make, _for_a_child(config, threads)): config for config in _injections_first(configs)}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BrokenProcessPool as error:
            raise CasdError(
                f"A process that made one of {jobs} runs at once was killed, perhaps because memory ran out. What was finished"
                " is kept: run the same command again, with runtime.jobs=1 if it happens again."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_quietly() -> None:
    """In a process of a pool: Ctrl-C, which reaches all processes, ends it at once. What it had begun goes on another time."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def _injections_first(configs: Sequence[Config]) -> list[Config]:
    """The first run of every injection, then the others."""
    seen: set[str] = set()
    first: list[Config] = []
    others: list[Config] = []
    for config in configs:
        injection = repr((config.model, config.seed, config.corpus, config.backdoor, config.injection))
        (others if injection in seen else first).append(config)
        seen.add(injection)
    return [*first, *others]


def _for_a_child(config: Config, threads: int) -> Config:
    """With its share of the threads, and progress that several processes can show on one screen: lines."""
    runtime = config.runtime
    progress = "off" if runtime.progress == "off" else "plain"
    return replace(config, runtime=replace(runtime, threads=runtime.threads or threads, progress=progress))
