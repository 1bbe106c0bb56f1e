"""`--publish FOLDER`: put what a command found into a page of results (`casd.report.results_page`)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from casd.analysis.results import RunTables
from casd.cli.report import short_path
from casd.config.options import groups
from casd.report.results_page import (
    FOLDER,
    ResultSection,
    check_folder,
    origin_of,
    publish,
    without_settings_of_the_machine,
)
from casd.utils.progress import say

if TYPE_CHECKING:
    import pandas as pd

    from casd.defence.results import DefenceTables
    from casd.report import Comparisons
    from casd.report.markup import Table

__all__ = ["check_folder", "publish_defences", "publish_reproduction", "publish_sweep"]

_FEW_RUNS = 2
"""Most runs of which the matrices are published."""
_DRAWN = {
    "relation": "CASD against the suppression of each pair of removals",
    "factors": "The others' mean suppression net of both controls, with one thing changed at a time",
}
"""Exhibits whose first figure is published, with a text for readers who cannot see it."""


def publish_sweep(
    runs: Sequence[RunTables], comparisons: Comparisons, report: Path, overrides: Sequence[str], folder: Path
) -> None:
    """Publish what `casd sweep` with these overrides found; `report` is the folder of its report."""
    from casd.report.answer import SHOWN, answers_table, in_short
    from casd.report.comparisons import kinds_statements
    from casd.report.persistence import persistence_statements, persistence_table

    answers, lasting = comparisons.answers, persistence_table(runs)
    if len(answers) > SHOWN:  # hundreds of rows, which the report has
        comparisons = comparisons.with_pooled_predictors()
    said = [*([" ".join(in_short(answers))] if answers else []), *kinds_statements(comparisons.kinds)]
    shown = [*([answers_table(answers)] if len(answers) > 1 else []), *comparisons.tables, *([lasting] if len(lasting) else [])]
    if len(runs) <= _FEW_RUNS:
        shown = [*_injected(runs), *shown, *(table for tables in runs for table in _matrices(tables))]
    section = ResultSection(
        name=_name(f"sweep-{_chosen('name', overrides) or _experiment(overrides)}"),
        title=_title(overrides),
        command=["sweep", *without_settings_of_the_machine(overrides)],
        sentences=[*said, *(persistence_statements(runs[0]) if len(runs) == 1 else [])],
        tables=shown,
        origin=origin_of([tables.info for tables in runs]),
        figures={
            alt: report / "figures" / name for alt, name in _figures_of(len(runs)) if (report / "figures" / name).is_file()
        },
    )
    _publish(section, folder)


def _injected(runs: Sequence[RunTables]) -> list[Table]:
    """Return what was injected, once for runs that share an injection."""
    from casd.report.matrices import of_run
    from casd.report.tables import injected_table

    found: list[Table] = []
    for tables in runs:
        table = of_run(injected_table(tables), tables)
        if not any(table.frame.equals(earlier.frame) for earlier in found):
            found.append(table)
    return found


def _matrices(tables: RunTables) -> Iterator[Table]:
    """Yield the matrices of a run: attack success rates, and each headline CASD."""
    from casd.report.matrices import asr_table, casd_table, of_run

    for table in (asr_table(tables), *(casd_table(tables, variant) for variant in tables.headline)):
        yield of_run(table, tables)


def _figures_of(runs: int) -> Iterator[tuple[str, str]]:
    """Yield the figures of a sweep that are published, each after a text for readers who cannot see it."""
    yield "The other backdoors' mean suppression under each objective, net of both controls", "objectives.png"
    if runs <= _FEW_RUNS:
        yield "Attack success rate of every backdoor after each removal, one matrix per run", "asr_heatmaps.png"


def publish_defences(runs: Sequence[DefenceTables], report: Path, overrides: Sequence[str], folder: Path) -> None:
    """Publish what `casd defend` with these overrides found; `report` is the folder of its report."""
    from casd.defence.page import sentences, tables
    from casd.defence.results import conditions

    groups = conditions(runs)
    said = [f"{label}: {sentence}" if label else sentence for label, alike in groups.items() for sentence in sentences(alike)]
    shown = [
        replace(table, name=f"{table.name}-{number}", title=f"{table.title}, {label}") if label else table
        for number, (label, alike) in enumerate(groups.items(), 1)
        for table in tables(alike)
    ]
    figure = next(iter(sorted(report.glob("left*.png"))), None)
    section = ResultSection(
        name=_name(f"defend-{_chosen('name', overrides) or _experiment(overrides)}"),
        title=_title(overrides),
        command=["defend", *without_settings_of_the_machine(overrides)],
        sentences=said,
        tables=shown,
        origin=origin_of([tables.info for tables in runs]),
        figures={"What each state leaves of the attacker's backdoors; predicted and observed": figure} if figure else {},
    )
    _publish(section, folder)


def publish_reproduction(
    asked: Sequence[str],
    names: Sequence[str],
    scale: str,
    verdicts: pd.DataFrame,
    runs: Mapping[str, Sequence[RunTables]],
    report: Path,
    folder: Path,
) -> None:
    """Publish what `casd reproduce` found of the claims, and its tables over all runs; `report` is the folder of its report.

    Args:
        asked: names of the command: of exhibits, or "all".
        names: of these exhibits.
        scale: name of the scale.
        verdicts: as of `casd.reproduction.page.judge`.
        runs: finished runs by the name of their set.
        report: folder of the report.
        folder: folder of the page of results.
    """
    from casd.reproduction.catalogue import EXHIBITS
    from casd.reproduction.page import statements_over_runs, tables_over_runs, verdicts_table

    main = verdicts[verdicts["headline"]]
    title = EXHIBITS[names[0]].title if len(names) == 1 else "The paper's claims, one by one"
    counts = Counter(main["verdict"])
    said = ", ".join(f"{count} × {verdict}" for verdict, count in sorted(counts.items(), key=lambda item: -item[1]))
    drawn = {text: next(iter(sorted((report / "figures" / name).glob("*.png"))), None) for name, text in _DRAWN.items()}
    section = ResultSection(
        name=_name(f"reproduce-{scale}-{'-'.join(asked)}"),
        title=f"{title} (scale {scale})",
        command=["reproduce", *asked, f"scale={scale}"],
        sentences=[f"Verdicts over all models: {said}.", *statements_over_runs(names, runs)],
        tables=[verdicts_table(main), *tables_over_runs(names, runs)],
        origin=origin_of([tables.info for members in runs.values() for tables in members]),
        figures={text: figure for text, figure in drawn.items() if figure},
    )
    _publish(section, folder)


def _name(name: str) -> str:
    """Return a name for a section's folder and marks: without the spaces and signs of overrides."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-")


def _chosen(key: str, overrides: Sequence[str]) -> str:
    """Return the value that some overrides give a key, or ""."""
    values = [override.partition("=")[2] for override in overrides if override.lstrip("+").startswith(f"{key}=")]
    return values[-1] if values else ""


def _experiment(overrides: Sequence[str]) -> str:
    return _chosen("experiment", overrides) or "default"


def _title(overrides: Sequence[str]) -> str:
    """Return the description of the experiment of some overrides up to the first colon or semicolon, else its name."""
    experiment = _experiment(overrides)
    return re.split(r"[:;] ", groups()["experiment"].get(experiment) or experiment)[0]


def _publish(section: ResultSection, folder: Path) -> None:
    replaced = (folder / FOLDER / section.name).exists()
    page = publish(section, folder)
    what = "replacing what an earlier command of this experiment had found" if replaced else "a new one"
    say(f"Published the section {section.name} in {short_path(page.absolute())}, {what}.")
