"""The matrices of a run as tables: rows are what was removed, columns are backdoors.

Dark means the same in all of them: little is left of the backdoor, it was suppressed, the two removals changed the model alike.
(Of fires where there should be none, dark are those that there are.) The rates of a collapsed model have no color and stand in
parentheses: a model that no longer works also has an attack success rate of zero.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pandas as pd

from casd.analysis.collection import asr_matrix, distance_matrix, has_pairs, mean_asr
from casd.analysis.results import RunTables
from casd.analysis.transfer import transfer_matrix
from casd.config.states import kind_of
from casd.report.markup import Scale, Table
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
    short_run_name,
    significant,
)

GROUPS: Final = {"injected": "", "removal": "removals", "control": "controls"}
"""The kinds of model states in the order of a table's groups, and the groups' names."""
_PROMPT_SETS: Final = {
    "triggered": ("Attack success rate after each removal", "attack success rate on triggered prompts"),
    "fake": (
        "Fires at fake triggers",
        "share of prompts with a fake trigger, of about as many tokens, that the behavior follows",
    ),
    "near": (
        "Fires at near triggers",
        "share of prompts with a part of the trigger, or its words in another order, that the behavior follows",
    ),
    "clean": ("Fires without a trigger", "share of clean prompts that the behavior follows"),
}
"""For each kind of prompt: the title of its matrix, and what a cell is."""


def asr_table(tables: RunTables, prompt_set: str = "triggered") -> Table:
    """The ASR matrix: rows are what was removed, columns what was measured, cells the remaining attack success rate.

    With `prompt_set` "fake", "near" or "clean", the cells are the rates at which the behavior shows where it should not.
    """
    title, cell = _PROMPT_SETS[prompt_set]
    measured = tables.asr[tables.asr["prompt_set"] == prompt_set]
    details = {
        (record["state"], record["backdoor"]): f"{record['successes']}/{record['n']}, "
        + "–".join(fraction(record[end], rate_decimals(record["n"])) for end in ("rate_low", "rate_high"))
        for record in measured.to_dict("records")
    }
    return _state_matrix(
        tables,
        asr_matrix(tables, prompt_set),
        details,
        rate_decimals(measured["n"].min()),
        name="asr_matrix" if prompt_set == "triggered" else f"asr_matrix_{prompt_set}",
        title=title,
        caption=f"{sentence(run_name(tables.info))}. Row: removed; column: measured; cell: {cell} (fraction, n = "
        f"{prompts_per_cell(tables, prompt_set)} per cell); bold: the removed one itself.{never_removed(tables)}"
        + ("" if has_pairs(tables) else f" {NO_PAIRS}"),
        scale=Scale(
            "viridis" if prompt_set == "triggered" else "viridis_r", details="successes/prompts and Wilson 95 % interval"
        ),
    )


def never_removed(tables: RunTables) -> str:
    """A sentence, after a space, about the backdoors that were measured and never removed; empty if there are none."""
    names = [name for name in tables.backdoors if name not in tables.states_of("removal")]
    return f" Measured and never removed: {', '.join(names)}." if names else ""


def suppression_table(tables: RunTables, value: str) -> Table:
    """One of `transfer`'s suppression columns as a matrix, such as "suppression_net_clean"."""
    measure = "prob" if value.startswith("prob_") else "asr"
    kind = {"prob": "first-token probability", "asr": "attack success rate"}[measure]
    net = re.search(r"_net_(\w+)$", value)
    details = {
        (record["source"], record["target"]): " → ".join(fraction(record[f"{measure}_{end}"]) for end in ("before", "after"))
        for record in tables.transfer.to_dict("records")
    }
    return _state_matrix(
        tables,
        transfer_matrix(tables.transfer, value),
        details,
        rate_decimals(tables.asr.loc[tables.asr["prompt_set"] == "triggered", "n"].min()),
        name=f"{value}_matrix",
        title=f"Suppression of {kind}, {f'net of the {net[1]} control' if net else 'raw'}",
        caption=f"{sentence(run_name(tables.info))}. Row: removed; column: measured; cell: {kind} before − after"
        + (f", minus the same difference under the {net[1]} control" if net else "")
        + f" (fraction, n = {prompts_per_cell(tables)} prompts per cell); bold: the removed one itself.{never_removed(tables)}",
        scale=Scale("viridis_r", low="0 or less", details=f"{kind} before → after"),
    )


def casd_table(tables: RunTables, variant: str, *, square: bool = False) -> Table:
    """The matrix of one CASD variant between removals. Controls are columns, too, only if it is to be `square`."""
    matrix = distance_matrix(tables, variant)
    columns = [name for name in matrix.columns if square or kind_of(str(name)) == "removal"]
    np.fill_diagonal(values := matrix.to_numpy(copy=True), np.nan)
    shown = pd.DataFrame(values, index=matrix.index, columns=matrix.columns)[columns].rename_axis("removed")
    largest = float(np.nanmax(matrix[columns].to_numpy(), initial=0.0))
    digits = decimals_for(largest)
    return Table(
        name=f"casd_matrix_{variant}",
        title=f"Cross Activation Shift Distance: {variant}",
        caption=f"{sentence(run_name(tables.info))}. Distance between the activation shifts of two removals; small: they "
        "changed the model alike.",
        frame=shown.map(lambda distance: fraction(distance, digits)),
        groups=[GROUPS[kind_of(str(name))] for name in shown.index],
        collapsed=[name in tables.collapsed for name in shown.index],
        scale=Scale("cividis", "0", fraction(largest, digits), largest, "distance with four significant digits"),
        shade=shades(shown, largest),
        detail=shown.map(lambda distance: "" if pd.isna(distance) else significant(distance, 4)).to_numpy(),
    )


def of_run(table: Table, tables: RunTables) -> Table:
    """A table of one run, with a name and title that tell it from those of other runs."""
    run = tables.info.get("run") or "-".join(str(tables.info[key]) for key in ("model", "objective", "seed"))
    return replace(table, name=f"{table.name}-{run}", title=f"{table.title}, {short_run_name(tables)}")


def mean_asr_table(runs: Sequence[RunTables], means: pd.DataFrame | None = None) -> Table:
    """The ASR matrix of each model × objective, from `casd.analysis.collection.mean_asr`."""
    means = mean_asr(runs) if means is None else means
    backdoors = list(dict.fromkeys(means["backdoor"]))
    parts, groups, labels = [], [], []
    for (model, objective), cells in means.groupby(["model", "objective"], sort=False):
        counts = cells.groupby("state", sort=False)["runs"].max()
        most = int(counts.max())
        parts.append(cells.pivot(index="state", columns="backdoor", values="rate").reindex(counts.index)[backdoors])
        groups += [f"{objective}, {model}, {run_count(most)}"] * len(counts)
        labels += [f"{state}, {count} of {most} runs" if count < most else str(state) for state, count in counts.items()]
    rates = pd.concat(parts)
    return Table(
        name="asr_means",
        title="Attack success rate after each removal, mean over runs",
        caption=f"Runs: {len(runs)}; n = {', '.join(dict.fromkeys(map(prompts_per_cell, runs)))} prompts per cell and run. Row:"
        " removed; column: measured; cell: mean attack success rate (fraction) over the runs that did not collapse;"
        " bold: the removed one itself.",
        frame=rates.map(fraction).set_axis(pd.Index(labels, name="removed"), axis=0),
        groups=groups,
        bold=_same(rates.index, rates.columns),
        scale=Scale("viridis"),
        shade=shades(rates),
    )


def _state_matrix(
    tables: RunTables, matrix: pd.DataFrame, details: dict[tuple[str, str], str], digits: int, **what: Any
) -> Table:
    """A matrix of fractions over states × backdoors, with details of its cells."""
    kinds = {state: kind for kind in GROUPS for state in tables.states_of(kind) if state in matrix.index}
    values = matrix.reindex(index=list(kinds))
    texts = values.map(lambda value: fraction(value, digits))
    collapsed = np.array([state in tables.collapsed for state in kinds], dtype=bool)
    texts[collapsed] = texts[collapsed].map(lambda text: text if text == MISSING else f"({text})")
    known = values.notna()
    return Table(
        frame=texts.set_axis(pd.Index(list(kinds), name="removed"), axis=0),
        groups=[GROUPS[kind] for kind in kinds.values()],
        collapsed=list(collapsed),
        bold=_same(values.index, values.columns) & ~collapsed[:, None],
        shade=np.where(collapsed[:, None], np.nan, shades(values)),
        detail=np.array(
            [
                [details.get((state, str(name)), "") if known.loc[state, name] else "" for name in values.columns]
                for state in kinds
            ],
            dtype=object,
        ),
        **what,
    )


def _same(labels: pd.Index, columns: pd.Index) -> np.ndarray:
    """For each cell, whether its row and its column are the same backdoor."""
    same: np.ndarray = labels.to_numpy()[:, None] == columns.to_numpy()[None, :]
    return same


def shades(values: pd.DataFrame, largest: float = 1.0) -> np.ndarray:
    """Values as places on a scale from 0 (and below) to `largest`; NaN where they are missing."""
    shades: np.ndarray = (
        np.clip(values.to_numpy(dtype=float) / largest, 0.0, 1.0) if largest > 0 else np.full(values.shape, np.nan)
    )
    return shades
