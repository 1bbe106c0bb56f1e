"""`casd report`: write and print the report over many finished runs. Nothing is run, and torch is not needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from casd.cli.cost import Cost
from casd.utils.distributed import is_main

if TYPE_CHECKING:
    from casd.analysis.results import RunTables
    from casd.report import Comparisons


def report_runs(paths: Sequence[Path], output: Path | None = None, *, verbose: bool = False) -> None:
    """Write the report over finished runs, print its tables, and say what it cost.

    Args:
        paths: runs, folders with runs below them, or stores; see `casd.analysis.runs.find_runs`.
        output: the folder of the report; None for one below `outputs`, named after the runs.
        verbose: print all tables.

    Raises:
        CasdError: no finished runs, runs that cannot be compared, or an output that is a file or a folder with something
            other than an earlier report in it.
    """
    if not is_main():
        return
    from casd.analysis.tables import SWEEP_INFO
    from casd.report import read_runs
    from casd.report.publish import check_output

    cost = Cost()
    if output:
        check_output(output, SWEEP_INFO)
    runs = read_runs(paths)
    _report_all(runs, output or Path("outputs") / f"report-{digest_of(run.info['folder'] for run in runs)}", cost, verbose)


def report_sweep(
    folders: Sequence[Path], cost: Cost, *, verbose: bool = False
) -> tuple[Sequence[RunTables], Comparisons, Path] | None:
    """Write the report over all runs of a sweep beside them, print its tables, and say what the sweep cost.

    Returns:
        The runs, what was compared, and the folder of the report; None in all processes but the main one.
    """
    from casd.report import read_runs

    if not is_main():
        return None
    folders = list(dict.fromkeys(folders))
    runs, target = read_runs(folders), folders[0].parent / f"sweep-{digest_of(folder.name for folder in folders)}"
    return runs, _report_all(runs, target, cost, verbose), target


def short_path(path: Path) -> Path:
    """Return `path` relative to the working directory if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _report_all(runs: Sequence[RunTables], target: Path, cost: Cost, verbose: bool) -> Comparisons:
    """Write the report over all runs into `target`, and print it; returns what was compared."""
    from casd.report import print_sweep, write_sweep_report

    comparisons = write_sweep_report(runs, target)
    pages = [Path(run.info["folder"]) / "report.html" for run in (runs if verbose else [])]
    links = [f"Report of a run: {short_path(page)}" for page in pages if page.is_file()]
    cost.say()
    print_sweep(
        runs, comparisons, verbose=verbose, links=[*links, f"Report of all: {short_path(target.absolute() / 'report.html')}"]
    )
    return comparisons


def digest_of(names: Iterable[str]) -> str:
    """Return eight hexadecimal digits that identify a set of names, for the folder of a report over them."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:8]
