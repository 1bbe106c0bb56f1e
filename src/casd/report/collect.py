"""Finished runs, collected: the tables of many runs in one, each run in numbers, and the wide views the report shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from casd.errors import StoreError
from casd.report.settings import distinguish
from casd.results import SCHEMAS, RunTables
from casd.states import CLEAN_CONTROL, PHANTOM_CONTROL

RUN_COLUMNS: Final = ("run", "model", "objective", "seed")
"""What every table of a collection of runs starts with."""


def read_runs(folders: Iterable[Path]) -> list[RunTables]:
    """Read finished runs, ordered by model, objective, seed and name whatever the order of `folders`.

    Each run's `info["run"]` becomes its folder's name, with as many parent folders as make the names differ, and
    `info["folder"]` its path; its `info["setting"]` says what of its configuration differs from the others of its model and
    objective, but for the seed. A folder that is named twice counts once.

    Raises:
        StoreError: no folder, or one that holds no finished run.
    """
    paths = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    if not paths:
        raise StoreError("There is no run to collect: name at least one folder of a finished run.")
    runs = []
    for path, name in zip(paths, _distinct_names(paths), strict=True):
        tables = RunTables.read(path)
        tables.info |= {"run": name, "folder": str(path)}
        runs.append(tables)
    groups = [((tables.info["model"], tables.info["objective"]), str(tables.info.get("config", ""))) for tables in runs]
    for tables, setting in zip(runs, distinguish(groups), strict=True):
        tables.info["setting"] = setting
    return sorted(runs, key=_order)


def combine(runs: Sequence[RunTables]) -> RunTables:
    """One set of tables over all runs, each with the leading columns run | model | objective | seed.

    Its `info` is {"runs": [each run's own info]}.
    """
    frames = {}
    for name in SCHEMAS:
        parts = []
        for tables in runs:
            part = getattr(tables, name)
            keys = {key: tables.info[key] for key in RUN_COLUMNS}
            parts.append(
                part.drop(columns=list(RUN_COLUMNS), errors="ignore").assign(**keys)[
                    [*RUN_COLUMNS, *(column for column in part.columns if column not in RUN_COLUMNS)]
                ]
            )
        # An empty frame's columns have no type of their own and would spoil the others'.
        frames[name] = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    return RunTables(**frames, info={"runs": [tables.info for tables in runs]})


def collect(folders: Iterable[Path]) -> RunTables:
    """The tables of finished runs, combined: `combine(read_runs(folders))`."""
    return combine(read_runs(folders))


def asr_matrix(tables: RunTables, probe: str = "triggered") -> pd.DataFrame:
    """Success rate after each removal: rows are model states (as in `states`), columns measured backdoors; NaN if absent."""
    asr = tables.asr[tables.asr["probe"] == probe]
    wide = asr.pivot(index="state", columns="backdoor", values="rate")
    return wide.reindex(index=list(tables.states["state"]), columns=tables.backdoors).astype(float)


def has_pairs(tables: RunTables) -> bool:
    """Whether the ASR matrix has a cell off its diagonal: a removal, and another backdoor measured after it."""
    return any(removed != measured for removed in tables.states_of("removal") for measured in tables.backdoors)


def casd_matrix(tables: RunTables, variant: str) -> pd.DataFrame:
    """The symmetric matrix of one CASD variant between removals, zero on the diagonal; NaN where a pair is absent."""
    pairs = tables.casd[tables.casd["variant"] == variant]
    present = set(pairs["a"]) | set(pairs["b"])
    ordered = [name for name in tables.states["state"] if name in present]
    names = ordered + sorted(present - set(ordered))
    matrix = pd.DataFrame(np.where(np.eye(len(names)), 0.0, np.nan), index=names, columns=names)
    for a, b, distance in zip(pairs["a"], pairs["b"], pairs["distance"], strict=True):
        matrix.loc[a, b] = matrix.loc[b, a] = float(distance)
    return matrix


def summary(runs: Sequence[RunTables]) -> pd.DataFrame:
    """A row per run, as `summarize` gives it."""
    return pd.DataFrame([summarize(tables) for tables in runs])


def summarize(tables: RunTables) -> dict[str, Any]:
    """One run in numbers: what is left of the backdoors, and each headline CASD's relation with each response.

    `own_asr` and `others_asr` are means over the removals that did not collapse (NaN if all did); `clean_asr` and
    `phantom_asr` over the backdoors under that control, NaN if the control collapsed; `clean_loss_change` is the
    removals' mean relative change of the clean loss. For a variant and a response, `rho:VARIANT:RESPONSE` and
    `p:VARIANT:RESPONSE`.
    """
    matrix = asr_matrix(tables)
    removals = tables.states_of("removal")
    kept = [name for name in removals if name not in tables.collapsed]
    cells = matrix.loc[kept].rename_axis("state").melt(ignore_index=False, var_name="backdoor").reset_index()
    own = cells["state"] == cells["backdoor"]
    states = tables.states.set_index("state")
    row: dict[str, Any] = {key: tables.info.get(key) for key in RUN_COLUMNS}
    row["own_asr"] = cells.loc[own, "value"].mean()
    row["others_asr"] = cells.loc[~own, "value"].mean()
    for label, control in (("clean", CLEAN_CONTROL), ("phantom", PHANTOM_CONTROL)):
        rows = [name for name in tables.states_of("control") if name.startswith(control) and name not in tables.collapsed]
        row[f"{label}_asr"] = matrix.loc[rows].stack().mean() if rows else float("nan")
    row["clean_loss_change"] = states.loc[kept, "clean_loss_ratio"].astype(float).mean() - 1
    row |= {"removals": len(removals), "collapsed": len(removals) - len(kept)}
    for relation in tables.relation.to_dict("records"):
        if relation["variant"] in tables.headline:
            row[f"rho:{relation['variant']}:{relation['response']}"] = relation["rho"]
            row[f"p:{relation['variant']}:{relation['response']}"] = relation["p_value"]
    return row


def _order(tables: RunTables) -> tuple[str, str, float, str, str]:
    """Sort key of a run; seeds go by number where they are numbers."""
    seed = tables.info["seed"]
    number = float(seed) if isinstance(seed, int | float) else float("inf")
    return str(tables.info["model"]), tables.treatment, number, str(seed), str(tables.info["run"])


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many parents as it takes to tell equal ones apart."""
    names = [path.name for path in paths]
    depth = 1
    while any(count > 1 for count in Counter(names).values()):
        depth += 1
        counts = Counter(names)
        names = ["/".join(path.parts[-depth:]) if counts[name] > 1 else name for path, name in zip(paths, names, strict=True)]
    return names
