"""`casd compare`: configuration differences, results, and the cells that differ most, of two finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd
from rich.console import Console

from casd.analysis.comparison import MEASURES, compare_objectives, paired_difference
from casd.analysis.conditions import differing_fields
from casd.analysis.results import RunTables
from casd.analysis.runs import FinishedRun, find_runs
from casd.report.markup import Table, table_of
from casd.report.terminal import output_console, print_pairs, print_table, print_warning
from casd.report.wording import MISSING, fraction, mean_with_interval, p_text, percent, prompts_per_cell, rate_decimals
from casd.utils.errors import StoreError

CELLS: Final = 12
"""How many cells of the ASR matrix are shown."""
MEANS: Final = {
    "own_asr": "own ASR",
    "suppression": "others suppressed",
    "suppression_net_clean": "others, net of clean",
    "suppression_net_phantom": "others, net of phantom",
    "clean_control": "suppressed by clean control",
    "phantom_control": "suppressed by the phantom",
}
"""Labels of columns of `compare_objectives`."""


def read_two_runs(a: Path, b: Path) -> tuple[RunTables, RunTables]:
    """Read two finished runs.

    Args:
        a: the folder of a run, or a folder with a single run below it.
        b: the folder of another run, or a folder with a single run below it.

    Raises:
        StoreError: a path leads to no finished run or to several, or both lead to the same run.
    """
    runs = [_only(path) for path in (a, b)]
    if len(find_runs([a, b])) == 1:
        raise StoreError(f"{a} and {b} are one run; name two.")
    first, second = (RunTables.read(run.folder, grid=False, info=run.info) for run in runs)
    return first, second


def _only(path: Path) -> FinishedRun:
    runs = find_runs(path)
    if len(runs) > 1:
        raise StoreError(f"{path} has {len(runs)} finished runs below it; name one of them, such as {runs[0].folder}.")
    return runs[0]


def print_two_runs(a: RunTables, b: RunTables, console: Console | None = None) -> None:
    """Print the configuration differences of two runs, their main results, and the cells that differ most."""
    console = console or output_console()
    print_warning([a, b], console)
    print_pairs(console, {"A": str(a.info.get("folder", "")), "B": str(b.info.get("folder", ""))})
    for table in (settings_table(a, b), numbers_table(a, b), cells_table(a, b)):
        print_table(console, table, caption=True)
        console.print()


def settings_table(a: RunTables, b: RunTables) -> Table:
    """Return the fields of the configurations that differ."""
    configs = [str(tables.info.get("config") or "") for tables in (a, b)]
    fields = differing_fields(*configs)
    caption = "All other fields of the configurations are equal."
    if unknown := [name for name, config in zip("AB", configs, strict=True) if not config]:
        fields, caption = {}, f"Not known: no configuration was found for {' and '.join(unknown)}."
    elif not fields:
        caption = "None: the configurations are equal."
    return _table("settings", "Configuration differences", caption, "field", {key: list(pair) for key, pair in fields.items()})


def numbers_table(a: RunTables, b: RunTables) -> Table:
    """Return the main numbers of both runs, over the included removals (`casd.analysis.inclusion`)."""
    records = [compare_objectives([tables]).to_dict("records")[0] for tables in (a, b)]
    rows: dict[str, list[str]] = {
        "prompts per cell": [prompts_per_cell(tables) for tables in (a, b)],
        "removals included": [f"{record['included']} of {record['removals']}" for record in records],
        "excluded": [str(record["excluded"] or "none") for record in records],
        "collapsed": [_collapsed(tables) for tables in (a, b)],
        **{label: [mean_with_interval(record, name) for record in records] for name, label in MEANS.items()},
        "clean loss": [percent(record["clean_loss_change"]) for record in records],
        "steps": [fraction(record["steps"], 1) for record in records],
    }
    for variant in dict.fromkeys((*a.headline, *b.headline)):
        rows[f"ρ (p): {variant}"] = [_rho(tables, variant, "rho", "p_value") for tables in (a, b)]
        rows[f"ρ (p), pairs only: {variant}"] = [_rho(tables, variant, "rho_pairs", "p_pairs") for tables in (a, b)]
    differences = {MEANS[name]: paired_difference([b], [a], name, within=()).columns("mean") for name in MEASURES}
    return _table(
        "numbers",
        "Results",
        "Own ASR: of the removed backdoors. Others: mean suppression of the other backdoors' ASR (fraction), raw, and net of"
        " the same backdoor's suppression under the clean control and under the phantom. Brackets: 95 % interval over"
        " backdoors, not over seeds; B − A: within the removed and measured backdoors that both have. Clean loss, steps: means"
        " over removals. ρ: Spearman correlation of a CASD and the suppression of ASR, with the p-value of a Mantel test; pairs"
        " only: after removing the effects of single backdoors from both.",
        "",
        {label: [*texts, mean_with_interval(differences.get(label, {}), "mean")] for label, texts in rows.items()},
        ("A", "B", "B − A"),
    )


def cells_table(a: RunTables, b: RunTables) -> Table:
    """Return the cells of the ASR matrix that differ most, of those in both runs, with their Wilson 95 % intervals."""
    merged = _triggered(a).merge(_triggered(b), on=["state", "backdoor"], suffixes=("_a", "_b"))
    merged["difference"] = merged["rate_b"] - merged["rate_a"]
    differing = merged[merged["difference"].abs() > 0].sort_values("difference", key=abs, ascending=False, kind="stable")
    caption = "Success rates of triggered prompts (fraction) with their Wilson 95 % intervals."
    if merged.empty:
        caption = "None: no backdoor was measured after the same removal in both runs."
    elif len(differing) > CELLS:
        caption = f"The {CELLS} of {len(differing)} cells that differ most. {caption}"
    rows: dict[str, list[str]] = {}
    for record in differing.head(CELLS).to_dict("records"):
        change = fraction(record["difference"])
        signed = change if change.startswith("-") else f"+{change}"
        rows[f"{record['state']} → {record['backdoor']}"] = [*(_rate(record, run) for run in ("a", "b")), signed]
    title = "The attack success rates that differ most"
    return _table("cells", title, caption, "removed → measured", rows, ("A", "B", "B − A"))


def _table(
    name: str, title: str, caption: str, corner: str, rows: Mapping[str, Sequence[str]], columns: tuple[str, ...] = ("A", "B")
) -> Table:
    records = [{corner: label} | dict(zip(columns, texts, strict=True)) for label, texts in rows.items()]
    return table_of(records, name=name, title=title, caption=caption)


def _collapsed(tables: RunTables) -> str:
    return ", ".join(state for state in tables.states["state"] if state in tables.collapsed) or "none"


def _rho(tables: RunTables, variant: str, rho: str, p: str) -> str:
    relation = tables.relation
    rows = relation[(relation["variant"] == variant) & (relation["response"] == "suppression")]
    if rows.empty or pd.isna(rows[rho].iloc[0]):
        return MISSING
    return f"{fraction(rows[rho].iloc[0])} ({p_text(rows[p].iloc[0])})"


def _triggered(tables: RunTables) -> pd.DataFrame:
    asr = tables.asr[tables.asr["prompt_set"] == "triggered"]
    return asr[["state", "backdoor", "rate", "rate_low", "rate_high", "n"]]


def _rate(record: Mapping[Any, Any], run: str) -> str:
    digits = rate_decimals(record[f"n_{run}"])
    rate, low, high = (fraction(record[f"{name}_{run}"], digits) for name in ("rate", "rate_low", "rate_high"))
    return f"{rate} [{low}, {high}]"
