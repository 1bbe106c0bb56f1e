"""The files of a reproduction: tables, figures, and a page with each claim, its verdict, what decided it, and the runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from casd.analysis.grouping import relabelled
from casd.analysis.results import RunTables
from casd.analysis.tables import write_frames
from casd.report.files import write_tables
from casd.report.gallery import draw
from casd.report.html import link_to
from casd.report.markup import Table, table_of
from casd.report.page import Block, Section, matrices_block, render, table_block, warning_blocks, write_page
from casd.report.publish import is_published, publishing
from casd.report.reading import reading_section
from casd.report.wording import broken_injections, model_label, short_run_name
from casd.reproduction.catalogue import EXHIBITS
from casd.reproduction.claims import CLAIMS
from casd.reproduction.exhibits import SHOWN
from casd.reproduction.factors import factors_statements, one_at_a_time
from casd.reproduction.scales import Scale
from casd.reproduction.verdicts import Evidence, headline
from casd.utils.sealed import read_json

PAGE: Final = "report.html"
INFO: Final = "reproduction.json"
"""Written last: what a finished reproduction was made from."""
VERSION: Final = 13
"""Raise it when exhibits, claims or the page change: reproductions of an earlier version are then written again."""

_OVER_RUNS: Final = ("asr_means", "predictors", "objectives", "noise_floor", "clean_language", "factors")
"""Names of the tables that are over all runs, without a row or a matrix for each."""

_QUESTION: Final = "Does removing one backdoor weaken others, and does CASD tell which? Claim by claim, with what decides it."

_NOTES: Final = (
    "The paper is Bouger et al., “Backdoor Unlearning Generalization: A Path Toward the Removal of Unknown Triggers in LLMs”"
    " (arXiv:2606.03785). Its text was not available to us. Its claims are given in our words, from summaries of it. The"
    " paper's numbers are nowhere available, so none is given or compared with. All numbers here were measured in the runs"
    " listed.",
    "Models, backdoors, triggers, text, training settings, sample sizes, the statistics and their thresholds are our choices,"
    " and so are the claims called ours. Verdicts are not corrected for multiple testing.",
    "“Not decided” is a result: these runs can neither show the claim nor rule it out. A collapsed model counts as no removal.",
)


def write_reproduction(
    names: Sequence[str], scale: Scale, runs: Mapping[str, Sequence[RunTables]], folder: Path
) -> pd.DataFrame:
    """Write the files of these exhibits into `folder`; returns the verdicts of `judge`.

    Args:
        names: of EXHIBITS.
        scale: the runs' scale.
        runs: finished runs by the name of their set.
        folder: gets report.html, tables/ (LaTeX, Markdown; verdicts also as Parquet and CSV) and figures/.

    Raises:
        StoreError: a file cannot be written, or would overwrite one that is not of an earlier reproduction.
    """
    with publishing(folder, "the reproduction") as begun:
        labelled = {run_set: relabelled(members) for run_set, members in runs.items()}
        return _write_files(names, scale, labelled, begun, folder)


def _write_files(
    names: Sequence[str], scale: Scale, runs: Mapping[str, Sequence[RunTables]], folder: Path, target: Path
) -> pd.DataFrame:
    """Write the files of `write_reproduction` into `folder`, which will be moved to `target`."""
    evidence = {run_set: Evidence(members) for run_set, members in runs.items()}
    verdicts = judge(names, evidence)
    every = [tables for members in runs.values() for tables in members]
    blocks = [*warning_blocks(every), table_block(verdicts_table(verdicts[verdicts["headline"]])), Block("list", _NOTES)]
    sections = [Section("claims", "The claims", blocks)]
    sections += [_section(name, evidence[EXHIBITS[name].run_set], verdicts, folder) for name in names]
    sections += [_runs_section(scale, runs, target), reading_section(several=True)]
    write_tables([verdicts_table(verdicts)], folder / "tables", broken_injections(every))
    title = f"Reproduction at the scale {scale.name}: {', '.join(names) if names != scale.exhibits else 'all'}"
    facts = {"Scale": scale.description, "Runs": sum(map(len, runs.values()))}
    write_page(render(title, _QUESTION, facts, sections), folder / PAGE)
    write_frames({"verdicts": verdicts}, made_of(names, runs), folder, INFO)
    return verdicts


def _section(name: str, evidence: Evidence, verdicts: pd.DataFrame, folder: Path) -> Section:
    """Write the files of an exhibit; returns its part of the page."""
    exhibit, shown = EXHIBITS[name], SHOWN[name](evidence)
    tables = [table for table in shown.tables if len(table)]
    write_tables(tables, folder / "tables" / name, broken_injections(evidence.runs))
    figures = draw(shown.drawings, folder / "figures" / name, lambda figure: "heatmap" not in figure)
    own = verdicts[verdicts["claim"].isin(exhibit.claims) & (verdicts["runs"] == exhibit.run_set)]
    rules = [CLAIMS[claim].rule for claim in exhibit.claims]
    return Section(
        name, exhibit.title, [table_block(verdicts_table(own)), Block("list", rules), *_blocks(tables), *figures.values()]
    )


def made_of(names: Sequence[str], runs: Mapping[str, Sequence[RunTables]]) -> dict[str, Any]:
    """What a reproduction was made from, as in INFO; the names of the runs' folders contain the keys of their scores."""
    folders = {run_set: sorted(Path(tables.info["folder"]).name for tables in members) for run_set, members in runs.items()}
    return {"version": VERSION, "exhibits": list(names), "runs": folders}


def finished(names: Sequence[str], runs: Mapping[str, Sequence[RunTables]], folder: Path) -> pd.DataFrame | None:
    """The verdicts of the reproduction in `folder` if it is complete and was made from the same; else None."""
    if not is_published(folder) or read_json(folder / "tables" / INFO) != made_of(names, runs):
        return None
    return pd.read_parquet(folder / "tables" / "verdicts.parquet")


def judge(names: Sequence[str], evidence: Mapping[str, Evidence]) -> pd.DataFrame:
    """The verdicts on all claims of the exhibits: a row per claim × set of runs × model × objective.

    Returns:
        Columns claim, source, runs (the set), model ("all" over several), objective, statistic, verdict, and headline
        (bool; see `casd.reproduction.claims.headline`).
    """
    asked = dict.fromkeys((claim, EXHIBITS[name].run_set) for name in names for claim in EXHIBITS[name].claims)
    rows = []
    for claim, run_set in asked:
        verdicts = CLAIMS[claim].decide(evidence[run_set])
        whole = list(headline(verdicts))
        rows += [
            (claim, CLAIMS[claim].source, run_set, each.model, each.objective, each.statistic, each.outcome, each in whole)
            for each in verdicts
        ]
    return pd.DataFrame(rows, columns=["claim", "source", "runs", "model", "objective", "statistic", "verdict", "headline"])


def verdicts_table(verdicts: pd.DataFrame) -> Table:
    """The verdicts of `judge` as a table, with each claim in words."""
    rows, groups = [], []
    for record in verdicts.to_dict("records"):
        claim = CLAIMS[str(record["claim"])]
        source = "the paper's claim, in our words" if claim.source == "the paper" else "our question"
        groups.append(f"{claim.text} ({source}; runs: {str(record['runs']).replace('_', ' ')})")
        of = f"{record['objective']}, {model_label(record['model'])}"
        rows.append({"removals": of, "verdict": record["verdict"], "decided by": record["statistic"]})
    table = table_of(
        rows,
        groups=groups,
        name="verdicts",
        title="Verdicts in these runs",
        caption=(
            "Brackets: 95 % intervals over runs and backdoors, of a single run over its backdoors. ρ: Spearman; p: Mantel"
            " permutation test, which relabels a backdoor alike in all runs."
        ),
    )
    return replace(table, bold=np.array([[row["verdict"] == "holds", False] for row in rows], dtype=bool).reshape(-1, 2))


def tables_over_runs(names: Sequence[str], runs: Mapping[str, Sequence[RunTables]]) -> list[Table]:
    """Return those tables of exhibits that are over all of their runs, each with the exhibit's name and title in its own.

    Args:
        names: of EXHIBITS.
        runs: finished runs by the name of their set.
    """
    evidence = {run_set: Evidence(relabelled(members)) for run_set, members in runs.items()}
    return [
        replace(table, name=f"{name}-{table.name}", title=f"{EXHIBITS[name].title}: {table.title[0].lower()}{table.title[1:]}")
        for name in names
        for table in SHOWN[name](evidence[EXHIBITS[name].run_set]).tables
        if table.name in _OVER_RUNS and len(table)
    ]


def statements_over_runs(names: Sequence[str], runs: Mapping[str, Sequence[RunTables]]) -> list[str]:
    """Say in words what those exhibits show that are no claims; arguments as of `tables_over_runs`."""
    return factors_statements(one_at_a_time(Evidence(runs["factors"]))) if "factors" in names else []


def _blocks(tables: Sequence[Table]) -> list[Block]:
    """Blocks of tables: matrices beside each other, folded if they are many."""
    matrices = [table for table in tables if table.detail is not None]
    blocks = [table_block(table) for table in tables if table not in matrices]
    return blocks + ([matrices_block(matrices, f"The {len(matrices)} matrices", folded=len(matrices) > 8)] if matrices else [])


def _runs_section(scale: Scale, runs: Mapping[str, Sequence[RunTables]], folder: Path) -> Section:
    """The commands that make the runs, and a link to the report of each."""
    section = Section("runs", "The runs")
    for run_set, members in runs.items():
        commands = "\n".join(f"casd sweep {shlex.join(sweep)}" for sweep in scale.sweeps[run_set])
        section.blocks.append(Block("code", commands))
        for tables in members:
            if target := link_to(tables, folder):
                section.blocks.append(Block("link", target, title=short_run_name(tables)))
    return section
