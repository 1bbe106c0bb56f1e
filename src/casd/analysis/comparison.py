"""Compare objectives and settings over runs, net of controls, and phantoms of several kinds.

Removals and backdoors are included by the rule of `casd.analysis.inclusion`; exclusions are counted by reason. Every mean is
the mean over runs of each run's mean (`casd.stats.mean_over_runs`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import pandas as pd

from casd.analysis.grouping import grouped, included_rows, mean_of_runs, over_runs
from casd.analysis.inclusion import count_exclusions
from casd.analysis.results import RunTables
from casd.config.states import CLEAN_CONTROL, PHANTOM_CONTROL, phantom_baselines
from casd.stats import MeanOverRuns, mean_over_runs

REFERENCE: Final = "clean_target"
"""The objective, the paper's, with which others are compared."""
MEASURES: Final = ("suppression", "suppression_net_clean", "suppression_net_phantom")
"""Columns of `transfer` that are averaged over the backdoors other than the removed one."""
_AVERAGED: Final = ("own_asr", *MEASURES)
"""Means over cells of removals that `compare_objectives` returns with intervals."""


def compare_objectives(runs: Sequence[RunTables]) -> pd.DataFrame:
    """Compare conditions, and objectives pooled over models (`grouped`).

    Args:
        runs: finished runs.

    Returns:
        One row per group. Columns, fractions unless stated otherwise:

        - model ("all" if pooled), objective (with its setting); runs, seeds (counts)
        - removals, included, collapsed: counts of removals; backdoors: different ones among the included
        - reached: those that reached the target ASR on validation prompts, NaN if none had one; excluded: number of excluded
          removals by reason (`casd.analysis.inclusion`)
        - own_asr: mean ASR of the removed backdoor on evaluation prompts, with `_low` and `_high`
        - each of MEASURES: mean over the other backdoors, with `_low`, `_high`, and `_runs`: number of runs that have a value
          (a run whose phantom collapsed has no suppression net of it)
        - minus_reference: suppression_net_phantom minus that under REFERENCE (`paired_difference`), with `_low`, `_high` and
          `_runs`, the number of models and seeds that have both; NaN for REFERENCE itself, and where the model has no condition
          of that name alone: of several settings of REFERENCE none is what others are compared with
        - clean_control, phantom_control: mean suppression of all backdoors under that control
        - clean_loss_change: mean relative change of the clean loss; steps, seconds: means per removal

        Every mean is the mean over runs of each run's mean. Limits are 95 % limits of that mean (`casd.stats.mean_over_runs`)
        over runs (seeds, and models if pooled) and over backdoors, removed and measured; with a single run, over its backdoors.
    """
    rows = []
    groups = grouped(runs)
    for (model, objective), members in groups.items():
        transfer = over_runs(members, "transfer")
        cells = _removal_cells(transfer)
        pairs = cells[["source", "target"]].astype(str)
        estimates = [
            mean_over_runs(cells[name], cells["run"], pairs, bounds=(-1, 1) if name in MEASURES else (0, 1))
            for name in _AVERAGED
        ]
        reference = [] if objective == REFERENCE else groups.get((model, REFERENCE), [])
        difference = paired_difference(members, reference, "suppression_net_phantom")
        row = _comparison_row(members, transfer, estimates)
        compared = difference.columns("minus_reference") | {"minus_reference_runs": difference.runs}
        rows.append({"model": model, "objective": objective, **row, **compared})
    return pd.DataFrame(rows)


def paired_difference(
    runs: Sequence[RunTables], others: Sequence[RunTables], column: str, *, within: Sequence[str] = ("model", "seed")
) -> MeanOverRuns:
    """Compare two conditions within model, seed, removed and measured backdoor: `column` in `runs` minus that in `others`.

    What a seed and a backdoor have in common in both conditions drops out of the difference, so its interval says more than
    whether the two conditions' own intervals overlap.

    Args:
        runs: the runs of a condition, which differ in `within`.
        others: the runs of the condition that is compared with.
        column: one of MEASURES.
        within: entries of `info` that are equal in two runs that are paired; empty to pair one run with another, whatever they
            are of.

    Returns:
        The mean over the paired runs, with its 95 % limits over these and backdoors; NaN without a common cell.
    """
    if not runs or not others:
        return MeanOverRuns(math.nan, math.nan, math.nan, 0)
    left, right = (
        _removal_cells(
            pd.concat(tables.transfer.assign(run=" ".join(str(tables.info[name]) for name in within)) for tables in members)
        )
        for members in (runs, others)
    )
    both = left.merge(right, on=["run", "source", "target"], suffixes=("", "_other"), validate="one_to_one")
    difference = both[column] - both[f"{column}_other"]
    return mean_over_runs(difference, both["run"], both[["source", "target"]].astype(str), bounds=(-2, 2))


def _removal_cells(transfer: pd.DataFrame) -> pd.DataFrame:
    """Return run, source, target and _AVERAGED of the included cells of removals.

    `own_asr` is NaN off the diagonal, the others are NaN on it.
    """
    cells = included_rows(transfer, "removal")
    own = cells["same"].astype(bool)
    measures = {name: cells[name].astype(float).where(~own) for name in MEASURES}
    return cells[["run", "source", "target"]].assign(own_asr=cells["asr_after"].astype(float).where(own), **measures)


def _comparison_row(runs: Sequence[RunTables], transfer: pd.DataFrame, estimates: Sequence[MeanOverRuns]) -> dict[str, object]:
    """Return a row of `compare_objectives`, given the concatenated `transfer` and the estimates of _AVERAGED."""
    states = over_runs(runs, "states")
    removals = states[states["kind"] == "removal"]
    included = removals[removals["excluded"] == ""]
    row: dict[str, object] = {
        "runs": len(runs),
        "seeds": len({str(tables.info["seed"]) for tables in runs}),
        "removals": len(removals),
        "included": len(included),
        "backdoors": included["state"].nunique(),
        "collapsed": int(removals["collapsed"].astype(bool).sum()),
        "reached": removals["reached_target"].astype(float).sum(min_count=1),
        "excluded": count_exclusions(removals["excluded"]),
    }
    for name, estimate in zip(_AVERAGED, estimates, strict=True):
        row |= estimate.columns(name)
        if name in MEASURES:
            row[f"{name}_runs"] = estimate.runs
    controls = included_rows(transfer, "control")
    for name, sources in (("clean_control", [CLEAN_CONTROL]), ("phantom_control", phantom_baselines(states["state"]))):
        cells = controls[controls["source"].isin(sources)]
        row[name] = mean_of_runs(cells["suppression"], cells["run"])
    return row | {
        "clean_loss_change": mean_of_runs(included["clean_loss_ratio"], included["run"]) - 1,
        "steps": mean_of_runs(included["steps"], included["run"]),
        "seconds": mean_of_runs(included["train_seconds"], included["run"]),
    }


def compare_phantoms(runs: Sequence[RunTables]) -> pd.DataFrame:
    """Compare the phantoms of each group of runs (`grouped`) that has several kinds of them.

    Returns:
        One row per group × phantom. Columns: model, objective; phantom, the control's name; runs, those in which it is
        included; suppression, of all backdoors (fraction, mean over runs of each run's mean), with `_low` and `_high` (95 %,
        over runs and backdoors).
    """
    rows = []
    for (model, objective), members in grouped(runs).items():
        cells = included_rows(over_runs(members, "transfer"), "control")
        phantoms = [name for name in cells["source"].unique() if name.startswith(PHANTOM_CONTROL)]
        for name in phantoms if len(phantoms) > 1 else []:
            own = cells[cells["source"] == name]
            found = mean_over_runs(own["suppression"], own["run"], own["target"].astype(str), bounds=(-1, 1))
            row = {"model": model, "objective": objective, "phantom": name, "runs": found.runs}
            rows.append(row | found.columns("suppression"))
    columns = ["model", "objective", "phantom", "runs", "suppression", "suppression_low", "suppression_high"]
    return pd.DataFrame(rows, columns=columns)
