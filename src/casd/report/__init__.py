"""Reports of runs: tables and figures as files, one HTML page, and tables on the terminal.

A run's folder afterwards holds `report.html`, `tables/` (CSV and Parquet, Markdown and LaTeX, `info.json`) and
`figures/` (PNG and PDF); so does a sweep's, over all its runs (with `sweep.json` in the place of `info.json`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from casd.analysis.collection import DETAILED_RUNS, check_comparable, collect, combine, mean_asr, read_runs, summary
from casd.analysis.comparison import compare_objectives, compare_phantoms
from casd.analysis.grouping import relabelled
from casd.analysis.kinds import trigger_kinds
from casd.analysis.noise import noise_floor, variance_shares
from casd.analysis.predictors import predictor_table
from casd.analysis.results import RunTables
from casd.analysis.tables import SWEEP_INFO, write_frames
from casd.report.answer import sweep_answers
from casd.report.comparisons import Comparisons
from casd.report.files import write_tables
from casd.report.gallery import draw, run_drawings, sweep_drawings
from casd.report.html import RUN_FIGURES, SWEEP_FIGURES, run_html, sweep_html
from casd.report.matrices import mean_asr_table
from casd.report.page import write_page
from casd.report.persistence import persistence_table
from casd.report.publish import publishing
from casd.report.tables import relation_table, run_tables, specificity_table, summary_table
from casd.report.terminal import print_run, print_sweep, print_tables, print_warning
from casd.report.wording import broken_injections

__all__ = [
    "Comparisons",
    "collect",
    "print_run",
    "print_sweep",
    "print_tables",
    "print_warning",
    "read_runs",
    "write_report",
    "write_sweep_report",
]


def write_report(tables: RunTables, folder: str | Path, scatter: pd.DataFrame) -> Path:
    """Write a run's tables, figures and HTML page into `folder`; returns the page's path.

    Args:
        tables: the run's results.
        folder: the run's folder; its name names the run unless `tables.info["run"]` does.
        scatter: the points behind the relation: variant | a | b | distance | response_value, and optionally response
            (see `figures.relation_scatter`). May be empty.

    Raises:
        StoreError: a file cannot be written, or would overwrite one that is not of an earlier report.
    """
    target = Path(folder)
    named = RunTables(**tables.frames, info={"run": target.resolve().name} | tables.info)
    with publishing(target, "the report") as begun:
        write_report_files(named, begun, scatter)
    return target / "report.html"


def write_report_files(tables: RunTables, folder: Path, scatter: pd.DataFrame) -> None:
    """Write the files of `write_report` directly into `folder`, which nobody reads yet. `tables.info` needs "run".

    Raises:
        OSError: a file cannot be written.
        StoreError: a table cannot be written.
    """
    tables.write(folder)
    write_tables(run_tables(tables), folder / "tables", broken_injections([tables]))
    figures = draw(run_drawings(tables, scatter), folder / "figures", RUN_FIGURES.__contains__)
    write_page(run_html(tables, figures), folder / "report.html")


def write_sweep_report(runs: Sequence[RunTables], folder: Path) -> Comparisons:
    """Write the tables, figures and HTML page over several finished runs (`read_runs`); returns the comparisons.

    Up to DETAILED_RUNS runs, the page shows each run and the tables hold the rows of all runs. Over more runs there are only
    the comparisons and a row for each run; `collect` combines the tables of any number of runs.

    Args:
        runs: finished runs.
        folder: the folder of the report.

    Raises:
        StoreError: runs that cannot be compared (`check_comparable`), or a file cannot be written, or would overwrite one
            that is not of an earlier report.
    """
    check_comparable(runs)
    with publishing(Path(folder), "the report") as begun:
        return _write_sweep_files(relabelled(runs), begun, Path(folder))


def _write_sweep_files(runs: Sequence[RunTables], folder: Path, target: Path) -> Comparisons:
    """Write the files of `write_sweep_report` into `folder`, which will be moved to `target`."""
    objectives, predictors = compare_objectives(runs), predictor_table(runs)
    answers = sweep_answers(runs, objectives, predictors)
    comparisons = Comparisons(
        objectives,
        compare_phantoms(runs),
        predictors,
        noise_floor(runs),
        variance_shares(runs),
        trigger_kinds(runs),
        answers,
    )
    frames = {"summary": summary(runs), "asr_means": mean_asr(runs)}
    overview = [mean_asr_table(runs, frames["asr_means"]), summary_table(runs, frames["summary"]), persistence_table(runs)]
    relations = []
    if len(runs) <= DETAILED_RUNS:
        combined = combine(runs)
        frames |= combined.frames
        overview.append(specificity_table(runs))
        relations.append(relation_table(runs))
    overview, relations = ([table for table in tables if len(table)] for tables in (overview, relations))
    write_tables([*comparisons.tables, *overview, *relations], folder / "tables", broken_injections(runs))
    write_frames(frames | comparisons.frames, {"runs": [tables.info for tables in runs]}, folder, SWEEP_INFO)
    figures = draw(sweep_drawings(runs, comparisons.objectives), folder / "figures", SWEEP_FIGURES.__contains__)
    write_page(sweep_html(runs, comparisons, overview, figures, target), folder / "report.html")
    return comparisons
