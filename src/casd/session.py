"""A run or a sweep as a person sees it: quiet libraries, the tables at the end, where the report is, time and memory."""

from __future__ import annotations

import hashlib
import os
import resource
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from casd.config import Config
from casd.disk import explaining_disk_errors
from casd.distributed import is_main
from casd.progress import say, set_progress

_started = time.monotonic()
_executed: list[tuple[int, int]] = []


def run(config: Config, end: str = "report", *, quiet: bool = False) -> Path:
    """Run the pipeline up to `end`, print its tables if it got to the report, and give the run's folder.

    Args:
        config: what to run.
        end: one of `casd.pipeline.UNTIL`.
        quiet: leave the tables to the sweep that this run is part of.
    """
    set_progress(config.runtime.progress if is_main() else "off")
    _hush_libraries()
    from casd.pipeline import Run
    from casd.planning.check import check

    made = Run(config)
    check(made, end)
    made.until(end)
    if not is_main():
        return made.folder
    events = made.store.events
    executed = sum(event.outcome == "executed" for event in events)
    _executed.append((executed, len(events) - executed))
    if end == "report" and not quiet:
        from casd.report import print_run
        from casd.results import RunTables

        print_run(RunTables.read(made.folder))
        print(f"\nReport: {made.folder / 'report.html'}")
    elif end != "report":
        print(f"Finished stages are in {made.store.root}.")
    if not quiet:
        _say_cost()
    return made.folder


def finish_sweep(folders: Sequence[Path]) -> None:
    """Write the report over all runs of a sweep, print its tables, and say what it cost."""
    from casd.report import Comparisons, print_sweep, read_runs, write_sweep_report

    if not is_main():
        return
    folders = list(dict.fromkeys(folders))
    key = hashlib.sha256("\n".join(sorted(folder.name for folder in folders)).encode()).hexdigest()[:8]
    target = folders[0].parent / f"sweep-{key}"
    page = target / "report.html"
    newest = max((folder / "report.html").stat().st_mtime for folder in folders)
    if not page.is_file() or page.stat().st_mtime < newest:
        with explaining_disk_errors("the report of the sweep", target):
            comparisons = write_sweep_report(folders, target)
    else:
        comparisons = Comparisons.read(target)
    print_sweep(read_runs(folders), comparisons=comparisons.tables)
    for folder in folders:
        print(f"Report of a run: {_short(folder / 'report.html')}")
    print(f"Report of all:   {_short(page)}")
    _say_cost()


def plan(overrides: Sequence[str]) -> None:
    """Print what the run, or all runs of the sweep, that these overrides mean will take. Nothing is run.

    Raises:
        CasdError: overrides that cannot work, or a model whose shape is not known here.
    """
    _hush_libraries()
    from casd.compose import sweep
    from casd.planning.plan import plans
    from casd.report.planning import print_plans

    configs: list[Config] = []

    def keep(config: Config) -> Path:
        configs.append(config)
        return Path(config.runtime.output)

    here = [override for override in overrides if not override.startswith("hydra/launcher=")]
    sweep([*here, "hydra/launcher=basic"], keep, lambda folders: None)
    if not is_main():
        return
    print_plans(plans(configs))


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _say_cost() -> None:
    """How many stages were executed, how long this process took and the most memory it held."""
    executed, reused = (sum(counts) for counts in zip(*_executed, strict=True))
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    say(f"{executed} stages executed, {reused} reused; {time.monotonic() - _started:.0f} s, peak memory {peak:.2f} GiB.")


def _hush_libraries() -> None:
    """No progress bars and no advice of the libraries between ours."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(transformers|torch|accelerate)\b")
