"""The matrices of a run as `Table`s: rows are what was removed, columns backdoors, each cell shaded and with its details.

Dark is the same in all of them: little is left of the backdoor, it was suppressed, the two removals changed the model alike.
(Of fires where there should be none, dark are those that there are.)
The row of a collapsed model says so, and its rates have no shade and stand in parentheses: a model that no longer works also
has an attack success rate of zero.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from casd.analysis.collection import asr_matrix, casd_matrix, has_pairs, mean_asr
from casd.analysis.results import RunTables
from casd.analysis.transfer import transfer_matrix
from casd.config.states import kind_of
from casd.report.markup import Cell, Row, Scale, Table
from casd.report.wording import (
    MISSING,
    NO_PAIRS,
    decimals_for,
    fraction,
    prompts_per_cell,
    rate_decimals,
    run_count,
    run_name,
    sentence,
    significant,
)

ASR_DETAILS: Final = "successes/prompts and Wilson 95 % interval"
_PROBES: Final = {
    "triggered": ("Attack success rate after each removal", "attack success rate on triggered prompts"),
    "fake": (
        "Fires at fake triggers",
        "share of prompts with a fake trigger, of about as many tokens, that the behavior follows",
    ),
    "clean": ("Fires without a trigger", "share of clean prompts that the behavior follows"),
}
"""Of each kind of prompt: the title of its matrix, and what a cell is."""


def asr_table(tables: RunTables, probe: str = "triggered") -> Table:
    """The ASR matrix: rows are what was removed, columns what was measured, cells the attack success rate that is left.

    With another `probe`, "fake" or "clean", the cells are the rates at which the behavior shows where it should not.
    """
    title, cell = _PROBES[probe]
    measured = tables.asr[tables.asr["probe"] == probe]
    details = {
        (record["state"], record["backdoor"]): f"{record['successes']}/{record['n']}, {_interval(record)}"
        for record in measured.to_dict("records")
    }
    return Table(
        name="asr_matrix" if probe == "triggered" else f"asr_matrix_{probe}",
        title=title,
        caption=f"{sentence(run_name(tables.info))}. Row: the backdoor that was removed; column: the backdoor that was "
        f"measured; cell: {cell} (fraction, n = {prompts_per_cell(tables, probe)} per cell). "
        "The removed backdoor itself is emphasized. Numbers of a collapsed model stand in parentheses: they are no success."
        + ("" if has_pairs(tables) else f" {NO_PAIRS}"),
        corner="removed",
        columns=tuple(tables.backdoors),
        groups=_state_groups(tables, asr_matrix(tables, probe), details, measured["n"].min()),
        scale=Scale("viridis" if probe == "triggered" else "viridis_r", "0", "1", ASR_DETAILS),
    )


def mean_asr_table(runs: Sequence[RunTables], means: pd.DataFrame | None = None) -> Table:
    """The ASR matrix of each model × objective, from `casd.analysis.collection.mean_asr`."""
    means = mean_asr(runs) if means is None else means
    backdoors = list(dict.fromkeys(means["backdoor"]))
    groups = []
    for (model, objective), cells in means.groupby(["model", "objective"], sort=False):
        rates = {(state, backdoor): rate for state, backdoor, rate in cells[["state", "backdoor", "rate"]].to_numpy()}
        counts = cells.groupby("state", sort=False)["runs"].max()
        most = int(counts.max())
        rows = [
            Row(
                f"{state}, {count} of {most} runs" if count < most else str(state),
                tuple(_mean_cell(rates.get((state, backdoor)), state == backdoor) for backdoor in backdoors),
            )
            for state, count in counts.items()
        ]
        groups.append((f"{objective}, {model}, {run_count(most)}", tuple(rows)))
    return Table(
        name="asr_means",
        title="Attack success rate after each removal, mean over runs",
        caption=f"Runs: {len(runs)}; n = {', '.join(dict.fromkeys(map(prompts_per_cell, runs)))} prompts per cell and run. Row:"
        " what was removed (control: nothing that was injected); column: the backdoor that was measured; cell: mean attack"
        " success rate on triggered prompts (fraction). Bold: the removed backdoor itself. Runs in which the model collapsed"
        " are left out of a row.",
        corner="removed",
        columns=tuple(map(str, backdoors)),
        groups=tuple(groups),
        scale=Scale("viridis", "0", "1"),
    )


def suppression_table(tables: RunTables, value: str) -> Table:
    """One of `transfer`'s suppression columns as a matrix, such as "suppression_net_clean"."""
    measure = "prob" if value.startswith("prob_") else "asr"
    kind = {"prob": "first-token probability", "asr": "attack success rate"}[measure]
    prompts = tables.asr.loc[tables.asr["probe"] == "triggered", "n"].min()
    net = re.search(r"_net_(\w+)$", value)
    words = f"net of the {net[1]} control" if net else "raw"
    details = {
        (
            record["source"],
            record["target"],
        ): f"{fraction(record[f'{measure}_before'])} → {fraction(record[f'{measure}_after'])}"
        for record in tables.transfer.to_dict("records")
    }
    return Table(
        name=f"{value}_matrix",
        title=f"Suppression of {kind}, {words}",
        caption=f"{sentence(run_name(tables.info))}. Row: removed; column: measured; cell: {kind} before − after"
        + (f", minus the same difference under the {net[1]} control" if net else "")
        + f" (fraction, n = {prompts_per_cell(tables)} prompts per cell). Zero or less: no suppression.",
        corner="removed",
        columns=tuple(tables.backdoors),
        groups=_state_groups(tables, transfer_matrix(tables.transfer, value), details, prompts),
        scale=Scale("viridis_r", "0 or less", "1", f"{kind} before → after"),
    )


def casd_table(tables: RunTables, variant: str) -> Table:
    """The matrix of one CASD variant between removals."""
    matrix = casd_matrix(tables, variant)
    # Controls as rows only: the matrix is symmetric, and so it is as wide as the ASR matrix beside it.
    columns = [name for name in matrix.columns if kind_of(str(name)) == "removal"]
    largest = float(np.nanmax(matrix[columns].to_numpy(), initial=0.0))
    digits = decimals_for(largest)
    rows: dict[str, list[Row]] = {}
    for a in matrix.index:
        cells = []
        for b in columns:
            distance = math.nan if a == b else matrix.loc[a, b]
            detail = "" if pd.isna(distance) else significant(distance, 4)
            cells.append(Cell(fraction(distance, digits), shade(distance, largest), detail=detail))
        rows.setdefault(kind_of(str(a)), []).append(Row(str(a), tuple(cells), collapsed=a in tables.collapsed))
    return Table(
        name=f"casd_matrix_{variant}",
        title=f"Cross Activation Shift Distance: {variant}",
        caption=f"{sentence(run_name(tables.info))}. Cell: distance between the activation shifts of two removals (variant "
        f"{variant}; symmetric); small: the two removals changed the model alike.",
        corner="removed",
        columns=tuple(map(str, columns)),
        groups=by_kind(rows),
        scale=Scale("cividis", "0", fraction(largest, digits), "distance with four significant digits"),
    )


def _interval(record: Mapping[Any, Any]) -> str:
    digits = rate_decimals(record["n"])
    return f"{fraction(record['rate_low'], digits)}–{fraction(record['rate_high'], digits)}"


def _mean_cell(value: Any, own: bool) -> Cell:
    return Cell(fraction(value), shade(value, 1.0), own)


def _state_groups(
    tables: RunTables, matrix: pd.DataFrame, details: Mapping[tuple[str, str], str], prompts: Any
) -> tuple[tuple[str, tuple[Row, ...]], ...]:
    """A matrix of fractions of so many prompts over states × backdoors, with its cells' details, in the groups of `by_kind`."""
    rows: dict[str, list[Row]] = {}
    digits = rate_decimals(prompts)
    for kind in ("injected", "removal", "control"):
        for state in tables.states_of(kind):
            if state not in matrix.index:
                continue
            collapsed = state in tables.collapsed
            cells = []
            for backdoor, value in matrix.loc[state].items():
                text = fraction(value, digits)
                detail = "" if text == MISSING else details.get((state, str(backdoor)), "")
                if collapsed:
                    cells.append(Cell(text if text == MISSING else f"({text})", detail=detail))
                else:
                    cells.append(Cell(text, shade(value, 1.0), state == backdoor, detail))
            rows.setdefault(kind, []).append(Row(str(state), tuple(cells), collapsed))
    return by_kind(rows)


def by_kind(rows: dict[str, list[Row]]) -> tuple[tuple[str, tuple[Row, ...]], ...]:
    """The rows in groups: the injected model, the removals, the controls."""
    names = {"injected": "", "removal": "removals", "control": "controls"}
    return tuple((names[kind], tuple(rows[kind])) for kind in names if kind in rows)


def shade(value: Any, largest: float) -> float | None:
    """A value as a cell's shade, where `largest` has the shade 1 and what is not above 0 the shade 0; None if missing."""
    return None if pd.isna(value) or largest <= 0 else min(max(float(value) / largest, 0.0), 1.0)
