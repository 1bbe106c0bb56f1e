"""Make many runs: one after another in this process, or several at once in child processes.

On a laptop two runs at once with one thread each are faster than one after the other with two threads: the models are small,
and the work between matrix products uses one thread anyway. The runs share the store, where each stage has a lock.
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
"""Error of a run whose process was killed."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run.

    Attributes:
        folder: folder of its report; None if it failed.
        error: why it failed, in one line.
        executed: number of stages that it made.
        reused: number of stages that it found in the store.
    """

    folder: Path | None
    error: str = ""
    executed: int = 0
    reused: int = 0


Outcomes = Generator[tuple[Config, Outcome], None, None]
"""Configurations and outcomes of runs, as they finish."""


def run_all(configs: Sequence[Config], make: Callable[[Config], Outcome], *, jobs: int, description: str) -> list[Outcome]:
    """Make all runs, even if some fail, and return their outcomes in the order of `configs`.

    Args:
        configs: configurations of the runs; equal ones are made once.
        make: makes one run, and returns errors instead of raising them. With several jobs it has to be a module-level
            function, which child processes can import.
        jobs: number of runs at once.
        description: for the progress bar.

    Raises:
        ConfigError: several jobs in several processes.
    """
    outcomes: dict[str, Outcome] = {}
    different = list({repr(config): config for config in configs}.values())
    finished = ((config, make(config)) for config in different) if jobs == 1 else _at_once(different, make, jobs)
    # Close the generator also after Ctrl-C between two outcomes, so that no process of the pool is left.
    with track(description, len(different)) as advance, closing(finished):
        for config, outcome in finished:
            outcomes[repr(config)] = outcome
            advance(note=f"{config.model.name}, {config.unlearning.objective.name}, seed {config.seed}")
    return [outcomes[repr(config)] for config in configs]


def failed(config: Config, error: BaseException) -> Outcome:
    """Return the outcome of a run that raised `error`. The traceback of an unexpected error is written to a file.

    Raises:
        KeyboardInterrupt: the error is Ctrl-C, or was caused by it.
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


def tell_failures(runs: Sequence[tuple[Sequence[str], Outcome]]) -> None:
    """Raise an error that lists the failed runs with their reasons and commands, if there are any.

    Args:
        runs: overrides and outcome of every run.

    Raises:
        CasdError: a run failed.
    """
    reasons = {outcome.error for _, outcome in runs if outcome.error}
    if not reasons:
        return
    if all(outcome.error for _, outcome in runs) and len(reasons) == 1:
        raise CasdError(reasons.pop())  # most likely an error in what they have in common
    lines = dict.fromkeys(f"  {shlex.join(['casd', 'run', *job])}: {outcome.error}" for job, outcome in runs if outcome.error)
    raise CasdError(
        "\n".join(
            [f"{len(lines)} of {len(runs)} runs failed; the others are finished, and the same command reuses them.", *lines]
        )
    )


def _at_once(configs: Sequence[Config], make: Callable[[Config], Outcome], jobs: int) -> Outcomes:
    """Make several runs at once. Runs with different injections come first: two that share one would wait for each other.

    If a process is killed, the pool ends the others. The remaining runs are then made one at a time, which needs less memory
    and shows which run is killed.
    """
    if processes() > 1:
        raise ConfigError("runtime.jobs is for runs in one process each; under accelerate launch set runtime.jobs=1.")
    remaining = _injections_first(configs)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    while remaining:
        try:
            for config, outcome in _in_pool(remaining, make, jobs, threads):
                remaining = [each for each in remaining if each is not config]
                yield config, outcome
        except BrokenProcessPool:
            if jobs == 1:
                yield remaining.pop(0), Outcome(None, KILLED)
            else:
                say(f"One of {jobs} runs at once was killed, perhaps because memory ran out: continuing with one at a time.")
            jobs = 1


def _in_pool(configs: Sequence[Config], make: Callable[[Config], Outcome], jobs: int, threads: int) -> Outcomes:
    context = multiprocessing.get_context("spawn")
    with threads_of_libraries(threads), ProcessPoolExecutor(jobs, context, initializer=end_with_parent) as pool:
        try:
            with _interrupts_blocked():
                futures = {pool.submit(make, _for_a_child(config, threads)): config for config in configs}
            for done in as_completed(futures):
                yield futures[done], done.result()
        except BaseException:  # after Ctrl-C, SIGTERM or a killed process the pool would wait for the others
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block, and in child processes until they can handle it (`end_with_parent`)."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _injections_first(configs: Sequence[Config]) -> list[Config]:
    """Return the first run of every injection, then the others."""
    seen: set[str] = set()
    first: list[Config] = []
    others: list[Config] = []
    for config in configs:
        injection = repr((config.model, config.seed, config.corpus, config.backdoor, config.injection))
        (others if injection in seen else first).append(config)
        seen.add(injection)
    return [*first, *others]


def _for_a_child(config: Config, threads: int) -> Config:
    """Give a child process its share of the threads, and plain progress lines, which several processes can print."""
    runtime = config.runtime
    progress = "off" if runtime.progress == "off" else "plain"
    return replace(config, runtime=replace(runtime, threads=runtime.threads or threads, progress=progress))
