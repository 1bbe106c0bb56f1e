"""Finished runs read together: their tables in one, a summary of each, and the matrices that reports show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from casd.analysis.comparison import by_condition
from casd.analysis.inclusion import count_exclusions
from casd.analysis.results import RunTables
from casd.analysis.runs import find_runs
from casd.analysis.tables import SCHEMAS
from casd.config.states import CLEAN_CONTROL, PHANTOM_CONTROL
from casd.utils.errors import StoreError

RUN_COLUMNS: Final = ("run", "model", "objective", "seed")
"""What every table of a collection of runs starts with."""
DETAILED_RUNS: Final = 12
"""Runs up to which a report over several shows each by itself; of more it has the means and a row for each."""


def read_runs(paths: str | Path | Iterable[str | Path]) -> list[RunTables]:
    """Read the finished runs at or below the paths, in the order of `casd.analysis.runs.find_runs`, without the CASD grid.

    Each run's `info` has its "run", "folder" and "setting" as in `casd.analysis.runs.FinishedRun`. A run that is found several
    times counts once. The rows of the grid are left on the disk (`RunTables.every_variant` reads them).

    Raises:
        StoreError: no path, or no finished run of this version there.
    """
    return [RunTables.read(run.folder, grid=False, info=run.info) for run in find_runs(paths)]


def check_comparable(runs: Sequence[RunTables]) -> None:
    """Refuse to put runs together that would be counted wrongly.

    Raises:
        StoreError: two runs of one condition (`casd.analysis.conditions`) with the same seed, which would count as two seeds;
            or runs of one condition that measured different backdoors.
    """
    seen: dict[tuple[str, str], RunTables] = {}
    measured: dict[str, RunTables] = {}
    for tables in runs:
        known = seen.setdefault((tables.condition, str(tables.info["seed"])), tables)
        if known is not tables:
            raise StoreError(
                f"{_where(known)} and {_where(tables)} have the same configuration and seed and are two runs: made by different"
                " versions of casd, of a model or text that has changed at the same path, or the same run read twice. As two"
                " seeds they would count double. Leave one of them out, or delete it."
            )
        known = measured.setdefault(tables.condition, tables)
        if set(known.backdoors) != set(tables.backdoors):
            raise StoreError(
                f"{_where(known)} and {_where(tables)} have the same configuration and measured different backdoors"
                f" ({', '.join(known.backdoors)}; {', '.join(tables.backdoors)}). Make a report of each."
            )


def combine(runs: Sequence[RunTables]) -> RunTables:
    """One set of tables over all runs, each with the leading columns run | model | objective | seed.

    Its `info` is {"runs": [each run's own info]}.
    """
    frames = {}
    for name in SCHEMAS:
        parts = [(tables, getattr(tables, name)) for tables in runs]
        # An empty frame's columns have no type of their own and would spoil the others'.
        parts = [(tables, part) for tables, part in parts if len(part)] or parts[:1]
        lengths = [len(part) for _, part in parts]
        # Put before the whole and not before each part: that would take most of a report's time.
        keys = {key: pd.Series([tables.info[key] for tables, _ in parts]).repeat(lengths).to_numpy() for key in RUN_COLUMNS}
        whole = pd.concat([part for _, part in parts], ignore_index=True).drop(columns=list(RUN_COLUMNS), errors="ignore")
        frames[name] = pd.concat([pd.DataFrame(keys, index=whole.index), whole], axis=1)
    return RunTables(**frames, info={"runs": [tables.info for tables in runs]})


def collect(paths: str | Path | Iterable[str | Path]) -> RunTables:
    """The tables of finished runs, combined: `combine(read_runs(paths))`."""
    return combine(read_runs(paths))


def asr_matrix(tables: RunTables, prompt_set: str = "triggered") -> pd.DataFrame:
    """Success rate after each removal: rows are model states (as in `states`), columns measured backdoors; NaN if absent."""
    asr = tables.asr[tables.asr["prompt_set"] == prompt_set]
    wide = asr.pivot(index="state", columns="backdoor", values="rate")
    return wide.reindex(index=list(tables.states["state"]), columns=tables.backdoors).astype(float)


def has_pairs(tables: RunTables) -> bool:
    """Whether the ASR matrix has a cell off its diagonal: a removal, and another backdoor measured after it."""
    return any(removed != measured for removed in tables.states_of("removal") for measured in tables.backdoors)


def mean_asr(runs: Sequence[RunTables]) -> pd.DataFrame:
    """The ASR matrix of each condition, as the mean over its runs.

    Returns:
        Columns model, objective, state (what was removed), backdoor (measured), rate (fraction; the mean over the runs in which
        the state did not collapse, NaN if it did in all), runs (their count), collapsed (count of the others); in the order of
        states and backdoors of the runs.
    """
    rates: dict[tuple[str, str, str, str], list[float]] = {}
    lost: Counter[tuple[str, str, str, str]] = Counter()
    for (model, objective), members in by_condition(runs).items():
        for tables in members:
            collapsed = tables.collapsed
            for state, backdoor, rate in triggered_rates(tables):
                cell = (model, objective, state, backdoor)
                intact = rates.setdefault(cell, [])
                if state in collapsed:
                    lost[cell] += 1
                else:
                    intact.append(rate)
    rows = [(*cell, _mean(intact), len(intact), lost[cell]) for cell, intact in rates.items()]
    return pd.DataFrame(rows, columns=["model", "objective", "state", "backdoor", "rate", "runs", "collapsed"])


def triggered_rates(tables: RunTables) -> list[tuple[str, str, float]]:
    """The cells of the ASR matrix: state, backdoor, rate."""
    cells = tables.rows("asr", "state", "backdoor", "prompt_set", "rate")
    return [(state, backdoor, float(rate)) for state, backdoor, prompt_set, rate in cells if prompt_set == "triggered"]


def distance_matrix(tables: RunTables, variant: str) -> pd.DataFrame:
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

    All means are over what is included (`casd.analysis.inclusion`), NaN without any: `own_asr` and `others_asr` over the
    removals, `clean_asr` and `phantom_asr` over the backdoors under that control; `clean_loss_change` is the removals' mean
    relative change of the clean loss. `removals`, `included` and `collapsed` are counts of removals, and `excluded` says how
    many of them are excluded for each reason. For a variant and a response, `rho:VARIANT:RESPONSE` and `p:VARIANT:RESPONSE`.
    """
    cells = list(tables.rows("transfer", "source", "source_kind", "same", "asr_after", "excluded"))
    included = [(source, kind, same, rate) for source, kind, same, rate, excluded in cells if not excluded]
    reasons = {name: tables.exclusions[name] for name in tables.states_of("removal")}
    kept = [name for name, reason in reasons.items() if not reason]
    row: dict[str, Any] = {key: tables.info.get(key) for key in RUN_COLUMNS}
    row["own_asr"] = _mean(rate for _, kind, same, rate in included if kind == "removal" and same)
    row["others_asr"] = _mean(rate for _, kind, same, rate in included if kind == "removal" and not same)
    for label, control in (("clean", CLEAN_CONTROL), ("phantom", PHANTOM_CONTROL)):
        row[f"{label}_asr"] = _mean(rate for source, _, _, rate in included if source.startswith(control))
    ratios = dict(tables.rows("states", "state", "clean_loss_ratio"))
    row["clean_loss_change"] = _mean(float(ratios[name]) for name in kept) - 1
    row |= {"removals": len(reasons), "included": len(kept), "collapsed": sum(name in tables.collapsed for name in reasons)}
    row["excluded"] = count_exclusions(reasons.values())
    for variant, response, rho, p in tables.rows("relation", "variant", "response", "rho", "p_value"):
        if variant in tables.headline:
            row |= {f"rho:{variant}:{response}": rho, f"p:{variant}:{response}": p}
    return row


def _mean(values: Iterable[float]) -> float:
    """The mean without NaN; NaN if nothing is left."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _where(tables: RunTables) -> str:
    return str(tables.info.get("folder") or tables.info.get("run") or "a run")
