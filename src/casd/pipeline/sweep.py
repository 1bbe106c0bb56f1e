"""Many runs: one after another in this process, or several at once, each in a process of its own.

Two runs side by side with one thread each get further than one with two threads: the models of a laptop are small, and what is
between two products of matrices runs on one thread anyhow. They share the store, where each stage has a lock.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shlex
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from casd.config import Config, RuntimeConfig
from casd.utils import ending
from casd.utils.disk import told
from casd.utils.distributed import processes
from casd.utils.errors import CasdError, ConfigError
from casd.utils.processes import end_with_parent, threads_of_libraries
from casd.utils.progress import say, track

KILLED = "the process was killed, perhaps because memory ran out"
"""What is told of a run whose process ended without a word."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        folder: of its report; None if it failed.
        error: why, in a line.
        executed: stages that it made.
        reused: stages that were there.
    """

    folder: Path | None
    error: str = ""
    executed: int = 0
    reused: int = 0


Outcomes = Generator[tuple[Config, Outcome], None, None]
"""Runs, each with what became of it, as they are finished."""


def run_all(configs: Sequence[Config], make: Callable[[Config], Outcome], *, jobs: int, description: str) -> list[Outcome]:
    """Make every run, also when some fail; in the order of `configs`.

    Args:
        configs: of the runs; equal ones are made once.
        make: makes one, and tells errors instead of raising them. With several jobs it has to be a function of a
            module, which another process can import.
        jobs: how many at once.
        description: for the progress.

    Raises:
        ConfigError: several jobs in several processes.
    """
    outcomes: dict[str, Outcome] = {}
    different = list({repr(config): config for config in configs}.values())
    made = _one_by_one(different, make) if jobs == 1 else _at_once(different, make, jobs)
    # Closed also where Ctrl-C gets between two outcomes, so that no process of the pool is left.
    with track(description, len(different)) as advance, closing(made):
        for config, outcome in made:
            outcomes[repr(config)] = outcome
            advance(note=f"{config.model.name}, {config.unlearning.objective.name}, seed {config.seed}")
    return [outcomes[repr(config)] for config in configs]


def failed(config: Config, error: BaseException) -> Outcome:
    """The outcome of a run that ended with an error. One that is not written for the user leaves its traceback in a file.

    Raises:
        KeyboardInterrupt: the error is Ctrl-C, or came of it.
    """
    ending.check()
    if isinstance(error, KeyboardInterrupt):
        raise error
    if isinstance(error, CasdError):
        return Outcome(None, str(error))
    if isinstance(error, OSError) and (line := told(error)):
        return Outcome(None, line)
    line = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    name = f"{config.model.name}-{config.unlearning.objective.name}-seed{config.seed}"
    digest = hashlib.sha256(repr(replace(config, runtime=RuntimeConfig())).encode()).hexdigest()[:8]
    file = Path(config.runtime.output) / config.name / "failed" / f"{name}-{digest}.log"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="replace")
    except OSError as lost:
        return Outcome(None, f"{line} (its traceback could not be written to {file}: {lost.strerror})")
    return Outcome(None, f"{line} (its traceback is in {file})")


def tell_failures(made: Sequence[tuple[Sequence[str], Outcome]]) -> None:
    """Raise an error that lists the runs that failed, why, and how to make each again; nothing where none has failed.

    Args:
        made: of every run its overrides, and what became of it.

    Raises:
        CasdError: a run failed.
    """
    reasons = {outcome.error for _, outcome in made if outcome.error}
    if not reasons:
        return
    if all(outcome.error for _, outcome in made) and len(reasons) == 1:
        raise CasdError(reasons.pop())  # most likely a mistake in what they have in common
    lines = dict.fromkeys(f"  {shlex.join(['casd', 'run', *job])}: {outcome.error}" for job, outcome in made if outcome.error)
    raise CasdError(
        "\n".join(
            [f"{len(lines)} of {len(made)} runs failed; the others are finished, and the same command reuses them.", *lines]
        )
    )


def _one_by_one(configs: Sequence[Config], make: Callable[[Config], Outcome]) -> Outcomes:
    for config in configs:
        yield config, make(config)


def _at_once(configs: Sequence[Config], make: Callable[[Config], Outcome], jobs: int) -> Outcomes:
    """As each is finished. Those with an injection of their own come first: two that share one would wait for each other.

    A process that is killed takes with it those beside it. What is left is then made one at a time, which needs less memory
    and shows which run it is that is killed.
    """
    if processes() > 1:
        raise ConfigError("runtime.jobs is for runs in one process each; under accelerate launch set runtime.jobs=1.")
    left = _injections_first(configs)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    while left:
        try:
            for config, outcome in _in_pool(left, make, jobs, threads):
                left = [each for each in left if each is not config]
                yield config, outcome
        except BrokenProcessPool:
            if jobs == 1:
                yield left.pop(0), Outcome(None, KILLED)
            else:
                say(f"One of {jobs} runs at once was killed, perhaps because memory ran out: going on with one at a time.")
            jobs = 1


def _in_pool(configs: Sequence[Config], make: Callable[[Config], Outcome], jobs: int, threads: int) -> Outcomes:
    context = multiprocessing.get_context("spawn")
    with threads_of_libraries(threads), ProcessPoolExecutor(jobs, context, initializer=end_with_parent) as pool:
        try:
            with _interrupts_held_back():
                waiting = {pool.submit(make, _for_a_child(config, threads)): config for config in configs}
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BaseException:  # Ctrl-C, SIGTERM or a killed process: without this the pool would wait for the others
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C in the block has its effect after it, and in processes that it starts once they are ready (`end_with_parent`)."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
