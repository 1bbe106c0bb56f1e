"""Group runs by condition, and bring their tables together.

Removals and backdoors are included by the rule of `casd.analysis.inclusion`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Final

import numpy as np
import pandas as pd

from casd.analysis.conditions import label_settings
from casd.analysis.results import RunTables

POOLED: Final = "all"
"""Model name of a row over all models."""


def included_rows(transfer: pd.DataFrame, source_kind: str) -> pd.DataFrame:
    """Return the rows of `transfer` of included states of a kind ("removal" or "control") on included backdoors."""
    return transfer[(transfer["source_kind"] == source_kind) & (transfer["excluded"] == "")]


def included_cells(tables: RunTables) -> pd.DataFrame:
    """Return the cells of `transfer` of included removals on included backdoors."""
    return included_rows(tables.transfer, "removal")


def relabelled(runs: Sequence[RunTables]) -> list[RunTables]:
    """Return the runs with `info["setting"]` computed among these runs (`label_settings`)."""
    settings = label_settings([tables.info for tables in runs])
    return [tables.with_info(setting=setting) for tables, setting in zip(runs, settings, strict=True)]


def by_condition(runs: Sequence[RunTables]) -> dict[tuple[str, str], list[RunTables]]:
    """Group runs by condition (`casd.analysis.conditions`); keys are (model, objective with setting)."""
    groups: dict[tuple[str, str], list[RunTables]] = {}
    for tables, labelled in zip(runs, relabelled(runs), strict=True):
        groups.setdefault((str(tables.info["model"]), labelled.condition_label), []).append(tables)
    return groups


def grouped(runs: Sequence[RunTables]) -> dict[tuple[str, str], list[RunTables]]:
    """Group runs as `by_condition` does, and additionally, under the model POOLED, conditions that differ only in the model."""
    groups = by_condition(runs)
    pooled: dict[str, list[list[RunTables]]] = {}
    for (_, objective), members in groups.items():
        pooled.setdefault(objective, []).append(members)
    several = {objective: members for objective, members in pooled.items() if len(members) > 1}
    return groups | {(POOLED, objective): list(chain.from_iterable(members)) for objective, members in several.items()}


def headline_variants(runs: Sequence[RunTables]) -> list[str]:
    """Return the names of the headline variants of all runs, each once."""
    return list(dict.fromkeys(variant for tables in runs for variant in tables.headline))


def included_matrices(tables: RunTables, *columns: str) -> tuple[list[str], list[np.ndarray]]:
    """Return the n backdoors whose removals are included, and an (n, n) matrix (source, target) per column of `transfer`."""
    cells = included_cells(tables)
    sources, targets = cells["source"].tolist(), cells["target"].tolist()
    included = set(sources) & set(targets)
    places = {name: place for place, name in enumerate(name for name in tables.backdoors if name in included)}
    # Filled cell by cell, since a pivot of so few cells takes several times as long.
    inside = [(places.get(source), places.get(target)) for source, target in zip(sources, targets, strict=True)]
    matrices = [np.full((len(places), len(places)), np.nan) for _ in columns]
    for matrix, column in zip(matrices, columns, strict=True):
        for (row, place), value in zip(inside, cells[column].tolist(), strict=True):
            if row is not None and place is not None:
                matrix[row, place] = value
    return list(places), matrices


def over_runs(runs: Sequence[RunTables], table: str) -> pd.DataFrame:
    """Concatenate one table over runs, with the index of the run in the column `run`."""
    return pd.concat([getattr(tables, table).assign(run=number) for number, tables in enumerate(runs)], ignore_index=True)


def mean_of_runs(values: pd.Series, runs: pd.Series) -> float:
    """Return the mean over runs of each run's mean, ignoring NaN; NaN if there are no values."""
    return float(values.astype(float).groupby(runs).mean().mean())
