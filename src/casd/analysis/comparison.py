"""What several runs say together: objectives compared, net of controls; what is about pairs; the noise floor of CASD.

Included are the removals and backdoors of `casd.analysis.inclusion`. Every mean is the mean over runs of each run's mean
(`casd.stats.mean_over_runs`); what was excluded, and why, is counted beside it.
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
from casd.config.states import CLEAN_CONTROL, PHANTOM_CONTROL, REPEAT_CONTROL, removed_backdoor
from casd.stats import MeanOverRuns, mean_over_runs, offdiagonal_center_two_way

POOLED: Final = "all"
"""The model's name in a row over all models."""
MEASURES: Final = ("suppression", "suppression_net_clean", "suppression_net_phantom")
"""Columns of `transfer` whose mean over the other backdoors is given."""
_CONTROLS: Final = {"clean_control": CLEAN_CONTROL, "phantom_control": PHANTOM_CONTROL}
"""By their columns in `compare_objectives` how the names of controls begin."""
_AVERAGED: Final = ("own_asr", *MEASURES)
"""Of the cells of removals the means that `compare_objectives` gives with their intervals."""


def included_cells(tables: RunTables) -> pd.DataFrame:
    """The cells of `transfer` that means are of: of included removals, on included backdoors."""
    transfer = tables.transfer
    return transfer[(transfer["source_kind"] == "removal") & (transfer["excluded"] == "")]


def relabelled(runs: Sequence[RunTables]) -> list[RunTables]:
    """The same runs, each with the `info["setting"]` that sets it apart from the others (`label_settings`)."""
    settings = label_settings([tables.info for tables in runs])
    return [tables.with_info(setting=setting) for tables, setting in zip(runs, settings, strict=True)]


def by_condition(runs: Sequence[RunTables]) -> dict[tuple[str, str], list[RunTables]]:
    """The runs of each condition (`casd.analysis.conditions`) under its labels: model, and objective with setting."""
    groups: dict[tuple[str, str], list[RunTables]] = {}
    for tables, labelled in zip(runs, relabelled(runs), strict=True):
        groups.setdefault((str(tables.info["model"]), labelled.condition_label), []).append(tables)
    return groups


def grouped(runs: Sequence[RunTables]) -> dict[tuple[str, str], list[RunTables]]:
    """As `by_condition`; then, under the model POOLED, the runs of conditions that differ in their models alone."""
    groups = by_condition(runs)
    pooled: dict[str, list[list[RunTables]]] = {}
    for (_, objective), members in groups.items():
        pooled.setdefault(objective, []).append(members)
    several = {objective: members for objective, members in pooled.items() if len(members) > 1}
    return groups | {(POOLED, objective): list(chain.from_iterable(members)) for objective, members in several.items()}


def included_matrices(tables: RunTables, *columns: str) -> tuple[list[str], list[np.ndarray]]:
    """The backdoors whose removals are included, and columns of `transfer` over them as matrices: a row for each source."""
    cells = included_cells(tables)
    both = set(cells["source"]) & set(cells["target"])
    names = [name for name in tables.backdoors if name in both]
    wide = (
        cells.pivot(index="source", columns="target", values=column).reindex(index=names, columns=names) for column in columns
    )
    return names, [matrix.to_numpy(dtype=float) for matrix in wide]


def compare_objectives(runs: Sequence[RunTables], *, seed: int = 0, resamples: int = 9999) -> pd.DataFrame:
    """A row for each condition, and one for each objective over all models (`grouped`).

    Args:
        runs: finished runs.
        seed: of the bootstrap.
        resamples: bootstrap samples.

    Returns:
        Columns, fractions where not said otherwise:

        - model ("all" over several), objective (with its setting); runs, seeds (counts)
        - removals, included, collapsed: counts of removals; excluded: how many of them for each reason
          (`casd.analysis.inclusion`)
        - own_asr: mean ASR of the removed backdoor on evaluation prompts, with `_low` and `_high`
        - for each of MEASURES the mean over the other backdoors, with `_low`, `_high`, and `_runs`: how many runs have any. A
          run whose phantoms all collapsed has no suppression net of them
        - clean_control, phantom_control: the mean suppression of all backdoors under them
        - clean_loss_change: mean relative change of the clean loss; steps, seconds: means of a removal

        Every mean is the mean over runs of each run's mean. Limits are 95 % bootstrap limits of that same mean, over runs
        (seeds, and models where several are pooled) and, within each, the measured backdoors; with a single run, over its
        backdoors.
    """
    rows = []
    for (model, objective), members in grouped(runs).items():
        transfer = over_runs(members, "transfer")
        cells = _removal_cells(transfer)
        estimates = [
            mean_over_runs(cells[name], cells["run"], cells["target"], seed=seed, resamples=resamples) for name in _AVERAGED
        ]
        rows.append({"model": model, "objective": objective, **_comparison_row(members, transfer, estimates)})
    return pd.DataFrame(rows)


def over_runs(runs: Sequence[RunTables], table: str) -> pd.DataFrame:
    """A table of several runs in one, with the runs' numbers in the column run."""
    return pd.concat([getattr(tables, table).assign(run=number) for number, tables in enumerate(runs)], ignore_index=True)


def mean_of_runs(values: pd.Series, runs: pd.Series) -> float:
    """The mean over runs of each run's mean, without NaN; NaN if nothing is left."""
    return float(values.astype(float).groupby(runs).mean().mean())


def _removal_cells(transfer: pd.DataFrame) -> pd.DataFrame:
    """The included cells of removals: run, target, and _AVERAGED; NaN where a cell is none of these."""
    cells = transfer[(transfer["source_kind"] == "removal") & (transfer["excluded"] == "")]
    own = cells["same"].astype(bool)
    measures = {name: cells[name].astype(float).where(~own) for name in MEASURES}
    return cells[["run", "target"]].assign(own_asr=cells["asr_after"].astype(float).where(own), **measures)


def _comparison_row(runs: Sequence[RunTables], transfer: pd.DataFrame, estimates: Sequence[MeanOverRuns]) -> dict[str, object]:
    """A row of `compare_objectives` over some runs, with their `transfer` in one and the estimates of _AVERAGED."""
    states = over_runs(runs, "states")
    removals = states[states["kind"] == "removal"]
    included = removals[removals["excluded"] == ""]
    row: dict[str, object] = {
        "runs": len(runs),
        "seeds": len({str(tables.info["seed"]) for tables in runs}),
        "removals": len(removals),
        "included": len(included),
        "collapsed": int(removals["collapsed"].astype(bool).sum()),
        "excluded": count_exclusions(removals["excluded"]),
    }
    for name, estimate in zip(_AVERAGED, estimates, strict=True):
        row |= {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        if name in MEASURES:
            row[f"{name}_runs"] = estimate.runs
    cells = transfer[(transfer["source_kind"] == "control") & (transfer["excluded"] == "")]
    for name, beginning in _CONTROLS.items():
        of_control = cells[cells["source"].str.startswith(beginning)]
        row[name] = mean_of_runs(of_control["suppression"], of_control["run"])
    return row | {
        "clean_loss_change": mean_of_runs(included["clean_loss_ratio"], included["run"]) - 1,
        "steps": mean_of_runs(included["steps"], included["run"]),
        "seconds": mean_of_runs(included["train_seconds"], included["run"]),
    }


def variance_shares(runs: Sequence[RunTables], column: str = "suppression") -> pd.DataFrame:
    """How the others' suppression varies: with the backdoor that is measured, with the removal, or with the pair.

    Of the off-diagonal cells of one run, m_ij = μ + r_i + c_j + e_ij by least squares (`offdiagonal_center_two_way`). The share
    of e is what is about pairs, and contains the noise of measuring: a rate over n prompts has the variance p(1 − p)/n, and
    e keeps (N² − 3N + 1)/(N² − N) of it. Only with something left beyond that noise can any distance foretell pairs.

    Returns:
        One row per run with at least four included removals: model, objective, seed, n_backdoors; `sd`, the standard
        deviation of the cells; `pair`, the share of their variance that e has; `noise`, the share that the noise explains of
        it; `pair_net`, pair − noise, or 0 if that is negative.
    """
    rows = []
    for (model, objective), members in by_condition(runs).items():
        for tables in members:
            names, (matrix, after) = included_matrices(tables, column, "asr_after")
            if len(names) >= MIN_REMOVALS:
                prompts = int(
                    min(count for prompt_set, count in tables.rows("asr", "prompt_set", "n") if prompt_set == "triggered")
                )
                shares = _shares(matrix, after, prompts)
                named = {"model": model, "objective": objective, "seed": tables.info["seed"], "n_backdoors": len(names)}
                rows.append(named | shares)
    columns = ["model", "objective", "seed", "n_backdoors", "sd", "pair", "noise", "pair_net"]
    return pd.DataFrame(rows, columns=columns)


def _shares(matrix: np.ndarray, after: np.ndarray, prompts: int) -> dict[str, float]:
    """The shares of one run's suppressions (n, n), with the rates that are left, each over so many prompts."""
    n = len(matrix)
    off = ~np.eye(n, dtype=bool)
    variance = float(np.var(matrix[off]))
    pair = float(np.mean(offdiagonal_center_two_way(matrix)[off] ** 2)) / variance if variance else math.nan
    binomial = float(np.mean(after[off] * (1 - after[off]))) / prompts * (n * n - 3 * n + 1) / (n * n - n)
    noise = binomial / variance if variance else math.nan
    return {"sd": math.sqrt(variance), "pair": pair, "noise": noise, "pair_net": max(0.0, pair - noise)}


def noise_floor(runs: Sequence[RunTables]) -> pd.DataFrame:
    """CASD between two removals of ONE backdoor (other documents) against CASD between removals of different backdoors.

    Removals and repeats are included by the rule of all means (`casd.analysis.inclusion`): a repeat that did nothing has no
    distance.

    Returns:
        One row per condition × headline variant: `repeats`, how many are included; `excluded`, how many of the others for each
        reason; `same`, the mean distance of a removal to its repeat; `different`, the mean distance of those removals to the
        others; `ratio`, same / different; `closest`, the share of repeats that are nearer to their own removal than to any
        other. Means over runs of each run's mean.
    """
    rows = []
    for (model, objective), members in by_condition(runs).items():
        reasons = [_repeat_exclusions(tables) for tables in members]
        for variant in dict.fromkeys(variant for tables in members for variant in tables.headline):
            found = [_repeats(tables, variant, of_run) for tables, of_run in zip(members, reasons, strict=True)]
            if not any(found):
                continue
            distances = pd.concat([pd.DataFrame(each).assign(run=run) for run, each in enumerate(found) if each])
            means = {name: mean_of_runs(distances[name], distances["run"]) for name in ("same", "different", "closest")}
            excluded = count_exclusions(reason for of_run in reasons for reason in of_run.values())
            named = {"model": model, "objective": objective, "variant": variant}
            ratio = means["same"] / means["different"] if means["different"] else math.nan
            rows.append({**named, "repeats": len(distances), "excluded": excluded, **means, "ratio": ratio})
    columns = ["model", "objective", "variant", "repeats", "excluded", "same", "different", "ratio", "closest"]
    return pd.DataFrame(rows, columns=columns)


def _repeat_exclusions(tables: RunTables) -> dict[str, str]:
    """Of every repeat why it, or else the removal that it repeats, is excluded; "" if neither is."""
    reasons = tables.exclusions
    repeats = [name for name in tables.states_of("control") if name.startswith(REPEAT_CONTROL)]
    return {name: reasons[name] or reasons.get(removed_backdoor(name), "not removed") for name in repeats}


def _repeats(tables: RunTables, variant: str, excluded: dict[str, str]) -> list[dict[str, float]]:
    """Of each included repeat of a run its distances, as `noise_floor` averages them."""
    distances: dict[tuple[str, str], float] = {}
    for found, a, b, distance in tables.rows("casd", "variant", "a", "b", "distance"):
        if found == variant:
            distances |= {(a, b): distance, (b, a): distance}
    included = [name for name in tables.states_of("removal") if not tables.exclusions[name]]
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
                "closest": float(distances[own, repeat] < nearest),
            }
        )
    return rows
