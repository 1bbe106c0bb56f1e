"""Compare runs: objectives net of controls, shares of variance, and the noise floor of CASD.

Removals and backdoors are included by the rule of `casd.analysis.inclusion`; exclusions are counted by reason. Every mean is
the mean over runs of each run's mean (`casd.stats.mean_over_runs`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Final

import numpy as np
import pandas as pd

from casd.analysis.conditions import label_settings
from casd.analysis.inclusion import MIN_REMOVALS, count_exclusions
from casd.analysis.results import RunTables
from casd.config.states import CLEAN_CONTROL, PHANTOM_CONTROL, REPEAT_CONTROL, phantom_baselines, removed_backdoor
from casd.stats import MeanOverRuns, mean_over_runs, offdiagonal_center_two_way

POOLED: Final = "all"
"""Model name of a row over all models."""
REFERENCE: Final = "clean_target"
"""The objective, the paper's, with which others are compared."""
MEASURES: Final = ("suppression", "suppression_net_clean", "suppression_net_phantom")
"""Columns of `transfer` that are averaged over the backdoors other than the removed one."""
_AVERAGED: Final = ("own_asr", *MEASURES)
"""Means over cells of removals that `compare_objectives` returns with intervals."""


def included_cells(tables: RunTables) -> pd.DataFrame:
    """Return the cells of `transfer` of included removals on included backdoors."""
    return _included(tables.transfer, "removal")


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


def over_runs(runs: Sequence[RunTables], table: str) -> pd.DataFrame:
    """Concatenate one table over runs, with the index of the run in the column `run`."""
    return pd.concat([getattr(tables, table).assign(run=number) for number, tables in enumerate(runs)], ignore_index=True)


def mean_of_runs(values: pd.Series, runs: pd.Series) -> float:
    """Return the mean over runs of each run's mean, ignoring NaN; NaN if there are no values."""
    return float(values.astype(float).groupby(runs).mean().mean())


def _removal_cells(transfer: pd.DataFrame) -> pd.DataFrame:
    """Return run, source, target and _AVERAGED of the included cells of removals.

    `own_asr` is NaN off the diagonal, the others are NaN on it.
    """
    cells = _included(transfer, "removal")
    own = cells["same"].astype(bool)
    measures = {name: cells[name].astype(float).where(~own) for name in MEASURES}
    return cells[["run", "source", "target"]].assign(own_asr=cells["asr_after"].astype(float).where(own), **measures)


def _included(transfer: pd.DataFrame, source_kind: str) -> pd.DataFrame:
    return transfer[(transfer["source_kind"] == source_kind) & (transfer["excluded"] == "")]


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
    controls = _included(transfer, "control")
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
        cells = _included(over_runs(members, "transfer"), "control")
        phantoms = [name for name in cells["source"].unique() if name.startswith(PHANTOM_CONTROL)]
        for name in phantoms if len(phantoms) > 1 else []:
            own = cells[cells["source"] == name]
            found = mean_over_runs(own["suppression"], own["run"], own["target"].astype(str), bounds=(-1, 1))
            row = {"model": model, "objective": objective, "phantom": name, "runs": found.runs}
            rows.append(row | found.columns("suppression"))
    columns = ["model", "objective", "phantom", "runs", "suppression", "suppression_low", "suppression_high"]
    return pd.DataFrame(rows, columns=columns)


def variance_shares(runs: Sequence[RunTables], column: str = "suppression") -> pd.DataFrame:
    """Estimate the share of the variance of off-diagonal suppression that is specific to pairs.

    The off-diagonal cells of a run are fitted as m_ij = μ + r_i + c_j + e_ij by least squares (`offdiagonal_center_two_way`).
    The residual e is specific to pairs, but contains measurement noise: a rate over n prompts has the variance p(1 − p)/n, and
    e keeps (N² − 3N + 1)/(N² − N) of it. A distance can predict pairs only if e exceeds that noise.

    Returns:
        One row per run with at least four included removals. Columns: model, objective, seed, n_backdoors; `sd`, the standard
        deviation of the cells; `pair`, the share of e in their variance; `noise`, the share of the expected noise in it;
        `pair_net`, max(0, pair − noise).
    """
    rows = []
    for (model, objective), members in by_condition(runs).items():
        for tables in members:
            names, (matrix, after) = included_matrices(tables, column, "asr_after")
            if len(names) >= MIN_REMOVALS:
                prompts = int(
                    min(count for prompt_set, count in tables.rows("asr", "prompt_set", "n") if prompt_set == "triggered")
                )
                identity = {"model": model, "objective": objective, "seed": tables.info["seed"], "n_backdoors": len(names)}
                rows.append(identity | _shares(matrix, after, prompts))
    columns = ["model", "objective", "seed", "n_backdoors", "sd", "pair", "noise", "pair_net"]
    return pd.DataFrame(rows, columns=columns)


def _shares(matrix: np.ndarray, after: np.ndarray, prompts: int) -> dict[str, float]:
    """Return the shares of variance of one run.

    Args:
        matrix: suppressions, (n, n).
        after: rates after the removal, (n, n).
        prompts: number of prompts of each rate.
    """
    n = len(matrix)
    off = ~np.eye(n, dtype=bool)
    variance = float(np.var(matrix[off]))
    pair = float(np.mean(offdiagonal_center_two_way(matrix)[off] ** 2)) / variance if variance else math.nan
    binomial = float(np.mean(after[off] * (1 - after[off]))) / prompts * (n * n - 3 * n + 1) / (n * n - n)
    noise = binomial / variance if variance else math.nan
    return {
        "sd": math.sqrt(variance),
        "pair": pair,
        "noise": noise,
        "pair_net": max(0.0, pair - noise) if variance else math.nan,
    }


def noise_floor(runs: Sequence[RunTables]) -> pd.DataFrame:
    """Compare CASD between two removals of one backdoor (on different documents) with CASD between different backdoors.

    Removals and repeats are included by the rule of `casd.analysis.inclusion`.

    Returns:
        One row per condition × headline variant. Columns: model, objective, variant; `repeats`, the number of included repeats;
        `excluded`, the number of excluded repeats by reason; `same`, the mean distance of a removal to its repeat;
        `different`, the mean distance of these removals to the others; `ratio`, same / different; `closest`, the share of
        repeats that are nearer to their own removal than to any other. Means over runs of each run's mean.
    """
    result = []
    for (model, objective), members in by_condition(runs).items():
        reasons = [_repeat_exclusions(tables) for tables in members]
        for variant in headline_variants(members):
            repeats = [_repeats(tables, variant, excluded) for tables, excluded in zip(members, reasons, strict=True)]
            if not any(repeats):
                continue
            distances = pd.concat([pd.DataFrame(rows).assign(run=run) for run, rows in enumerate(repeats) if rows])
            means = {name: mean_of_runs(distances[name], distances["run"]) for name in ("same", "different", "closest")}
            counts = {"repeats": len(distances), "excluded": count_exclusions(chain.from_iterable(map(dict.values, reasons)))}
            ratio = means["same"] / means["different"] if means["different"] else math.nan
            result.append({"model": model, "objective": objective, "variant": variant, **counts, **means, "ratio": ratio})
    columns = ["model", "objective", "variant", "repeats", "excluded", "same", "different", "ratio", "closest"]
    return pd.DataFrame(result, columns=columns)


def _repeat_exclusions(tables: RunTables) -> dict[str, str]:
    """Return for each repeat why it, or the removal that it repeats, is excluded; "" if both are included."""
    reasons = tables.exclusions
    repeats = [name for name in tables.states_of("control") if name.startswith(REPEAT_CONTROL)]
    return {name: reasons[name] or reasons.get(removed_backdoor(name), "not removed") for name in repeats}


def _repeats(tables: RunTables, variant: str, excluded: dict[str, str]) -> list[dict[str, float]]:
    """Return the distances that `noise_floor` averages, one dict per included repeat of a run."""
    distances: dict[tuple[str, str], float] = {}
    for row_variant, a, b, distance in tables.rows("casd", "variant", "a", "b", "distance"):
        if row_variant == variant:
            distances |= {(a, b): distance, (b, a): distance}
    reasons = tables.exclusions
    included = [name for name in tables.states_of("removal") if not reasons[name]]
    rows = []
    for repeat in (name for name, reason in excluded.items() if not reason):
        own = removed_backdoor(repeat)
        if (own, repeat) not in distances:
            continue
        others = [name for name in included if name != own]
        nearest = min((distances[repeat, other] for other in others), default=math.nan)
        rows.append(
            {
                "same": distances[own, repeat],
                "different": float(np.mean([distances[own, other] for other in others])) if others else math.nan,
                "closest": float(distances[own, repeat] < nearest) if others else math.nan,
            }
        )
    return rows
