"""Read finished runs together: combined tables, a summary of each run, and the matrices shown in reports."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from casd.analysis.grouping import by_condition
from casd.analysis.inclusion import count_exclusions
from casd.analysis.results import RunTables
from casd.analysis.runs import find_runs
from casd.analysis.tables import SCHEMAS
from casd.config.states import CLEAN_CONTROL, phantom_baselines
from casd.utils.errors import StoreError

RUN_COLUMNS: Final = ("run", "model", "objective", "seed")
"""Leading columns of every table over several runs."""
DETAILED_RUNS: Final = 12
"""Maximum number of runs that a report shows one by one; with more it shows their means and one row per run."""


def read_runs(paths: str | Path | Iterable[str | Path]) -> list[RunTables]:
    """Read the finished runs at or below the paths, in the order of `casd.analysis.runs.find_runs`.

    Each run's `info` has "run", "folder" and "setting" as in `casd.analysis.runs.FinishedRun`. Duplicates are dropped. The rows
    of the CASD grid are not read; `RunTables.every_variant` reads them when needed.

    Raises:
        StoreError: no path is given, or there is no finished run of this version.
    """
    return [RunTables.read(run.folder, grid=False, info=run.info) for run in find_runs(paths)]


def check_comparable(runs: Sequence[RunTables]) -> None:
    """Check that runs can be averaged together.

    Raises:
        StoreError: two runs of one condition (`casd.analysis.conditions`) have the same seed, so they would count as two
            seeds; or runs of one condition measured different backdoors.
    """
    by_seed: dict[tuple[str, str], RunTables] = {}
    first_of: dict[str, RunTables] = {}
    for tables in runs:
        other = by_seed.setdefault((tables.condition, str(tables.info["seed"])), tables)
        if other is not tables:
            raise StoreError(
                f"{_where(other)} and {_where(tables)} have the same configuration and seed, so they would count as two seeds."
                " Either the same run was read twice, or casd, the model or the texts changed between them. Leave one of them"
                " out, or delete it."
            )
        other = first_of.setdefault(tables.condition, tables)
        if set(other.backdoors) != set(tables.backdoors):
            raise StoreError(
                f"{_where(other)} and {_where(tables)} have the same configuration and measured different backdoors"
                f" ({', '.join(other.backdoors)}; {', '.join(tables.backdoors)}). Make a report of each."
            )


def combine(runs: Sequence[RunTables]) -> RunTables:
    """Concatenate the tables of all runs, each with the leading columns run | model | objective | seed.

    The `info` of the result is {"runs": [info of each run]}.
    """
    frames = {}
    for name in (*SCHEMAS, "persistence"):
        parts = [(tables, getattr(tables, name)) for tables in runs]
        # The columns of an empty frame have no dtype and would change those of the others.
        parts = [(tables, part) for tables, part in parts if len(part)] or parts[:1]
        lengths = [len(part) for _, part in parts]
        # Added once to the concatenated table, since adding it to each part would take most of a report's time.
        keys = {key: pd.Series([tables.info[key] for tables, _ in parts]).repeat(lengths).to_numpy() for key in RUN_COLUMNS}
        whole = pd.concat([part for _, part in parts], ignore_index=True).drop(columns=list(RUN_COLUMNS), errors="ignore")
        frames[name] = pd.concat([pd.DataFrame(keys, index=whole.index), whole], axis=1)
    return RunTables(**frames, info={"runs": [tables.info for tables in runs]})


def collect(paths: str | Path | Iterable[str | Path]) -> RunTables:
    """Return `combine(read_runs(paths))`."""
    return combine(read_runs(paths))


def asr_matrix(tables: RunTables, prompt_set: str = "triggered") -> pd.DataFrame:
    """Return success rates: rows are model states in the order of `states`, columns measured backdoors; NaN if absent."""
    asr = tables.asr[tables.asr["prompt_set"] == prompt_set]
    wide = asr.pivot(index="state", columns="backdoor", values="rate")
    return wide.reindex(index=list(tables.states["state"]), columns=tables.backdoors).astype(float)


def without_fakes(tables: RunTables) -> list[str]:
    """Return the backdoors that were not measured with fake triggers: the run has none, or none match the trigger."""
    measured = set(tables.asr.loc[tables.asr["prompt_set"] == "fake", "backdoor"])
    return [name for name in tables.backdoors if name not in measured]


def has_pairs(tables: RunTables) -> bool:
    """True if the ASR matrix has an off-diagonal cell: another backdoor was measured after some removal."""
    return any(removed != measured for removed in tables.states_of("removal") for measured in tables.backdoors)


def mean_asr(runs: Sequence[RunTables]) -> pd.DataFrame:
    """Average the ASR matrices of each condition over its runs.

    Returns:
        A row per condition × state × backdoor, in the order of states and backdoors of the runs. Columns: model, objective,
        state, backdoor, rate (fraction; mean over the runs in which the state did not collapse, NaN if it collapsed in all),
        runs (number of these runs), collapsed (number of the others).
    """
    rates: dict[tuple[str, str, str, str], list[float]] = {}
    collapsed_runs: Counter[tuple[str, str, str, str]] = Counter()
    for (model, objective), members in by_condition(runs).items():
        for tables in members:
            collapsed = tables.collapsed
            for state, backdoor, rate in triggered_rates(tables):
                cell = (model, objective, state, backdoor)
                intact = rates.setdefault(cell, [])
                if state in collapsed:
                    collapsed_runs[cell] += 1
                else:
                    intact.append(rate)
    rows = [(*cell, _mean(intact), len(intact), collapsed_runs[cell]) for cell, intact in rates.items()]
    return pd.DataFrame(rows, columns=["model", "objective", "state", "backdoor", "rate", "runs", "collapsed"])


def triggered_rates(tables: RunTables) -> list[tuple[str, str, float]]:
    """Return the cells of the ASR matrix as (state, backdoor, rate)."""
    cells = tables.rows("asr", "state", "backdoor", "prompt_set", "rate")
    return [(state, backdoor, float(rate)) for state, backdoor, prompt_set, rate in cells if prompt_set == "triggered"]


def distance_matrix(tables: RunTables, variant: str) -> pd.DataFrame:
    """Return one CASD variant as a symmetric matrix over states, 0 on the diagonal; NaN where a pair is absent."""
    pairs = tables.casd[tables.casd["variant"] == variant]
    present = set(pairs["a"]) | set(pairs["b"])
    ordered = [name for name in tables.states["state"] if name in present]
    names = ordered + sorted(present - set(ordered))
    matrix = pd.DataFrame(np.where(np.eye(len(names)), 0.0, np.nan), index=names, columns=names)
    for a, b, distance in zip(pairs["a"], pairs["b"], pairs["distance"], strict=True):
        matrix.loc[a, b] = matrix.loc[b, a] = float(distance)
    return matrix


def summary(runs: Sequence[RunTables]) -> pd.DataFrame:
    """Return one row per run (see `summarize`)."""
    return pd.DataFrame([summarize(tables) for tables in runs])


def summarize(tables: RunTables) -> dict[str, Any]:
    """Summarize one run as a dict.

    Means are over included cells and removals (`casd.analysis.inclusion`); NaN if there are none.

    - own_asr, others_asr: mean ASR of the removed backdoors and of the other backdoors
    - clean_asr, phantom_asr: mean ASR under that control
    - clean_loss_change: mean relative change of the clean loss of the removals
    - removals, included, collapsed: counts of removals; excluded: number of excluded removals by reason
    - rho:VARIANT:RESPONSE, p:VARIANT:RESPONSE: relation of each headline variant to each response
    """
    cells = list(tables.rows("transfer", "source", "source_kind", "same", "asr_after", "excluded"))
    included = [(source, kind, same, rate) for source, kind, same, rate, excluded in cells if not excluded]
    every = tables.exclusions
    reasons = {name: every[name] for name in tables.states_of("removal")}
    kept = [name for name, reason in reasons.items() if not reason]
    row: dict[str, Any] = {key: tables.info.get(key) for key in RUN_COLUMNS}
    row["own_asr"] = _mean(rate for _, kind, same, rate in included if kind == "removal" and same)
    row["others_asr"] = _mean(rate for _, kind, same, rate in included if kind == "removal" and not same)
    phantoms = phantom_baselines(tables.states_of("control"))
    for label, controls in (("clean", [CLEAN_CONTROL]), ("phantom", phantoms)):
        row[f"{label}_asr"] = _mean(rate for source, _, _, rate in included if source in controls)
    ratios = dict(tables.rows("states", "state", "clean_loss_ratio"))
    row["clean_loss_change"] = _mean(float(ratios[name]) for name in kept) - 1
    row |= {"removals": len(reasons), "included": len(kept), "collapsed": sum(name in tables.collapsed for name in reasons)}
    row["excluded"] = count_exclusions(reasons.values())
    for variant, response, rho, p in tables.rows("relation", "variant", "response", "rho", "p_value"):
        if variant in tables.headline:
            row |= {f"rho:{variant}:{response}": rho, f"p:{variant}:{response}": p}
    return row


def _mean(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _where(tables: RunTables) -> str:
    return str(tables.info.get("folder") or tables.info.get("run") or "a run")
