"""Objectives compared: what is left of their side effects at the same strength, net of controls, over several runs.

Only removals that did what they were to do enter: not collapsed, and, where a target ASR was set, come down to it. Only
backdoors that had taken hold before are measured. Everything else is counted and shown beside the means.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd

from casd.results import RunTables
from casd.states import CLEAN_CONTROL, PHANTOM_CONTROL, REPEAT_CONTROL
from casd.stats import cluster_bootstrap_interval, nested_bootstrap_intervals, offdiagonal_center_two_way

ESTABLISHED_ASR: Final = 0.5
"""A backdoor with a lower attack success rate in the injected model has not taken hold: nothing there can be suppressed."""
MIN_BACKDOORS: Final = 4
"""Fewer removals that count say nothing of pairs, and leave nothing to hold out."""
POOLED: Final = "all"
"""The model's name in a row over all models."""
MEASURES: Final = ("suppression", "suppression_net_clean", "suppression_net_phantom")
"""Columns of `transfer` whose mean over the other backdoors is given."""
_AVERAGED: Final = ("own_asr", *MEASURES)
"""What `compare_objectives` has the means of, with their intervals."""
_CONTROLS: Final = {"clean_control": CLEAN_CONTROL, "phantom_control": PHANTOM_CONTROL}
"""By their columns in `compare_objectives` how the names of controls begin."""


def counted_cells(tables: RunTables) -> pd.DataFrame:
    """The cells of `transfer` that count: removals that did what they were to do, backdoors that had taken hold.

    A backdoor that had not is left out as target and as source.
    """
    return tables.transfer[_counting(tables)]


def _counting(tables: RunTables) -> np.ndarray:
    """Which rows of `transfer` are `counted_cells`."""
    failed = {name for name, reached in tables.rows("states", "state", "reached_target") if reached == 0.0}
    rows = list(tables.rows("transfer", "source", "target", "source_kind", "collapsed", "asr_before"))
    absent = {target for _, target, kind, _, before in rows if kind == "removal" and before < ESTABLISHED_ASR}
    out = failed | absent
    counts = [
        kind == "removal" and not collapsed and source not in out and target not in absent
        for source, target, kind, collapsed, _ in rows
    ]
    return np.array(counts, dtype=bool)


def grouped(runs: Sequence[RunTables]) -> dict[tuple[str, str], list[RunTables]]:
    """The runs by model and objective (`RunTables.treatment`); an objective of several models also over all, as POOLED."""
    groups: dict[tuple[str, str], list[RunTables]] = {}
    for tables in runs:
        groups.setdefault((str(tables.info["model"]), tables.treatment), []).append(tables)
    models = Counter(objective for _, objective in groups)
    for objective in (objective for objective, count in models.items() if count > 1):
        groups[POOLED, objective] = [tables for tables in runs if tables.treatment == objective]
    return groups


def counted_matrices(tables: RunTables, *columns: str) -> tuple[list[str], list[np.ndarray]]:
    """The backdoors whose removals count, and columns of `transfer` over them as matrices: a row for each source."""
    counts = _counting(tables)
    sources, targets = (names[counts].tolist() for names in tables.columns("transfer", "source", "target"))
    both = set(sources) & set(targets)
    place = {name: index for index, name in enumerate(name for name in tables.backdoors if name in both)}
    rows, across = (np.array([place.get(name, -1) for name in names], dtype=int) for names in (sources, targets))
    known = (rows >= 0) & (across >= 0)
    matrices = np.full((len(columns), len(place), len(place)), np.nan)
    for matrix, values in zip(matrices, tables.columns("transfer", *columns), strict=True):
        matrix[rows[known], across[known]] = values[counts][known]
    return list(place), list(matrices)


def compare_objectives(runs: Sequence[RunTables], *, seed: int = 0, resamples: int = 9999) -> pd.DataFrame:
    """A row for each model × objective, and one for each objective over all models.

    Args:
        runs: finished runs; those of one model and objective differ in their seeds.
        seed: of the bootstrap.
        resamples: bootstrap samples.

    Returns:
        Columns, fractions where not said otherwise:

        - model ("all" over several), objective; runs, seeds (counts)
        - removals, reached, collapsed: counts of removals, of those that count (`counted_cells`), and of the collapsed
        - own_asr: mean ASR of the removed backdoor on evaluation prompts, over those that count, with `_low` and `_high`
        - for each of MEASURES the mean over the other backdoors, with `_low`, `_high`, and `_runs`: how many runs have any. A
          run whose phantoms all collapsed has no suppression net of them
        - clean_control, phantom_control: the mean suppression of all backdoors under them
        - clean_loss_change: mean relative change of the clean loss; steps, seconds: means of a removal

        Limits are 95 % bootstrap limits that resample runs (seeds, and models where several are pooled) and, within each, the
        measured backdoors (`casd.stats.nested_bootstrap_interval`); with a single run, its backdoors alone.
    """
    places = {id(tables): place for place, tables in enumerate(runs)}
    groups = grouped(runs)
    every = _cells_removals_controls(runs)
    members = []
    for group in groups.values():
        entering = np.zeros(len(runs), dtype=bool)
        entering[[places[id(tables)] for tables in group]] = True
        # A run may be in two groups: what is said of it is taken out of its tables once.
        members.append([_those(entering[columns["run"]], columns) for columns in every])
    limits = _intervals([cells for cells, _, _ in members], seed, resamples)
    rows = []
    for ((model, objective), group), (cells, removals, controls), of_group in zip(groups.items(), members, limits, strict=True):
        row: dict[str, object] = {"model": model, "objective": objective, "runs": len(group)}
        row["seeds"] = len({str(tables.info["seed"]) for tables in group})
        rows.append(row | _row(cells, removals, controls, of_group))
    return pd.DataFrame(rows)


_Columns = dict[str, np.ndarray]
"""A table as its columns: of many groups a frame each would take longer than all that is computed of them."""


def _cells_removals_controls(runs: Sequence[RunTables]) -> tuple[_Columns, _Columns, _Columns]:
    """What is averaged, of all runs together.

    Returns:
        - cells that count: run, target (both as numbers), and _AVERAGED; NaN where a cell is none of these
        - removals: run, whether it counts, and what `states` says of it
        - cells of controls that did not collapse: run, and _CONTROLS; NaN where a cell is of another
    """
    columns = ("source", "target", "source_kind", "same", "collapsed", "asr_before", "asr_after", *MEASURES)
    transfer = _over_runs(runs, "transfer", *columns)
    transfer["target"] = pd.factorize(transfer["target"], sort=True)[0]
    counted = _those(np.concatenate([_counting(tables) for tables in runs]), transfer)
    own = counted["same"].astype(bool)
    cells = {"run": counted["run"], "target": counted["target"], "own_asr": np.where(own, counted["asr_after"], math.nan)}
    cells |= {name: np.where(own, math.nan, counted[name]) for name in MEASURES}

    intact = ~transfer["collapsed"].astype(bool) & (transfer["asr_before"] >= ESTABLISHED_ASR)
    of_controls = _those((transfer["source_kind"] == "control") & intact, transfer)
    controls = {"run": of_controls["run"]}
    for name, beginning in _CONTROLS.items():
        here = np.array([source.startswith(beginning) for source in of_controls["source"]], dtype=bool)
        controls[name] = np.where(here, of_controls["suppression"], math.nan)

    states = _over_runs(runs, "states", "state", "kind", "collapsed", "clean_loss_ratio", "steps", "train_seconds")
    removals = _those(states["kind"] == "removal", states)
    sources = set(zip(counted["run"].tolist(), counted["source"], strict=True))
    counts = [pair in sources for pair in zip(removals["run"].tolist(), removals["state"], strict=True)]
    return cells, removals | {"counts": np.array(counts, dtype=bool)}, controls


def _over_runs(runs: Sequence[RunTables], table: str, *names: str) -> _Columns:
    """Some columns of a table of several runs, with the runs' numbers in the column run."""
    columns = [np.concatenate(parts) for parts in zip(*(tables.columns(table, *names) for tables in runs), strict=True)]
    lengths = [len(tables.columns(table, names[0])[0]) for tables in runs]
    return {"run": np.repeat(np.arange(len(runs)), lengths)} | dict(zip(names, columns, strict=True))


def _those(rows: np.ndarray, columns: _Columns) -> _Columns:
    """The rows for which `rows` is true."""
    return {name: values[rows] for name, values in columns.items()}


def _row(cells: _Columns, removals: _Columns, controls: _Columns, limits: Sequence[tuple[float, float]]) -> dict[str, object]:
    """A row of `compare_objectives`, of a group's `_cells_removals_controls`, with the limits of the means of _AVERAGED."""
    counted = _those(removals["counts"], removals)
    row: dict[str, object] = {
        "removals": len(removals["run"]),
        "reached": len(counted["run"]),
        "collapsed": int(removals["collapsed"].astype(bool).sum()),
    }
    for name, (low, high) in zip(_AVERAGED, limits, strict=True):
        row |= {name: _mean(cells[name]), f"{name}_low": low, f"{name}_high": high}
        if name in MEASURES:
            row[f"{name}_runs"] = len(set(cells["run"][~np.isnan(cells[name])].tolist()))
    return row | {
        **{name: _mean(controls[name]) for name in _CONTROLS},
        "clean_loss_change": _mean(counted["clean_loss_ratio"]) - 1,
        "steps": _mean(counted["steps"]),
        "seconds": _mean(counted["train_seconds"]),
    }


def _mean(values: np.ndarray) -> float:
    """The mean of what is not NaN; NaN if nothing is left."""
    numbers = values.astype(float)
    return math.nan if np.isnan(numbers).all() else float(np.nanmean(numbers))


def _intervals(groups: Sequence[_Columns], seed: int, resamples: int) -> list[list[tuple[float, float]]]:
    """The limits of the means of _AVERAGED over the cells of each group; NaN is left out."""
    samples = [(np.stack([cells[name] for name in _AVERAGED], axis=1), cells["run"], cells["target"]) for cells in groups]
    nested = nested_bootstrap_intervals(samples, rng=np.random.default_rng(seed), resamples=resamples)
    return [
        over_runs
        if len(set(runs.tolist())) > 1
        else [
            cluster_bootstrap_interval(column, targets, rng=np.random.default_rng(seed), resamples=resamples)
            for column in columns.T
        ]
        for over_runs, (columns, runs, targets) in zip(nested, samples, strict=True)
    ]


def variance_shares(runs: Sequence[RunTables], column: str = "suppression") -> pd.DataFrame:
    """How the others' suppression varies: with the backdoor that is measured, with the removal, or with the pair.

    Of the off-diagonal cells of one run, m_ij = μ + r_i + c_j + e_ij by least squares (`offdiagonal_center_two_way`). The share
    of e is what is about pairs, and contains the noise of measuring: a rate over n prompts has the variance p(1 − p)/n, and
    e keeps (N² − 3N + 1)/(N² − N) of it. Only with something left beyond that noise can any distance foretell pairs.

    Returns:
        One row per run with at least four removals that count: model, objective, seed, n_backdoors; `sd`, the standard
        deviation of the cells; `pair`, the share of their variance that e has; `noise`, the share that the noise explains of
        it; `pair_net`, pair − noise, or 0 if that is negative.
    """
    rows = []
    for tables in runs:
        names, (matrix, after) = counted_matrices(tables, column, "asr_after")
        n = len(names)
        if n < MIN_BACKDOORS:
            continue
        prompts = int(min(count for probe, count in tables.rows("asr", "probe", "n") if probe == "triggered"))
        off = ~np.eye(n, dtype=bool)
        variance = float(np.var(matrix[off]))
        pair = float(np.mean(offdiagonal_center_two_way(matrix)[off] ** 2)) / variance if variance else math.nan
        binomial = float(np.mean(after[off] * (1 - after[off]))) / prompts * (n * n - 3 * n + 1) / (n * n - n)
        noise = binomial / variance if variance else math.nan
        rows.append(
            {
                "model": tables.info["model"],
                "objective": tables.treatment,
                "seed": tables.info["seed"],
                "n_backdoors": n,
                "sd": math.sqrt(variance),
                "pair": pair,
                "noise": noise,
                "pair_net": max(0.0, pair - noise),
            }
        )
    columns = ["model", "objective", "seed", "n_backdoors", "sd", "pair", "noise", "pair_net"]
    return pd.DataFrame(rows, columns=columns)


def noise_floor(runs: Sequence[RunTables]) -> pd.DataFrame:
    """CASD between two removals of ONE backdoor (other documents) against CASD between removals of different backdoors.

    Returns:
        One row per model × objective × headline variant over its runs: `repeats`, how many removals were repeated; `same`, the
        mean distance of a removal to its repeat; `different`, the mean distance of those removals to the others; `ratio`,
        same / different; `closest`, the share of repeats that are nearer to their own removal than to any other.
    """
    rows: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for tables in runs:
        collapsed = tables.collapsed
        removals = set(tables.states_of("removal")) - collapsed
        repeats = [name for name in tables.states_of("control") if name.startswith(REPEAT_CONTROL) and name not in collapsed]
        every = _distances(tables) if repeats else {}
        for variant in tables.headline:
            distances = every.get(variant, {})
            for repeat in repeats:
                own = repeat.removeprefix(f"{REPEAT_CONTROL}:")
                if own not in removals or (own, repeat) not in distances:
                    continue
                different = [distances[own, other] for other in sorted(removals - {own})]
                nearest = min((distances[repeat, other] for other in sorted(removals - {own})), default=math.nan)
                key = (str(tables.info["model"]), tables.treatment, variant)
                rows.setdefault(key, []).append(
                    {
                        "same": distances[own, repeat],
                        "different": float(np.mean(different)) if different else math.nan,
                        "closest": float(distances[own, repeat] < nearest),
                    }
                )
    summaries = []
    for (model, objective, variant), found in rows.items():
        frame = pd.DataFrame(found).mean()
        ratio = {"ratio": frame["same"] / frame["different"]}
        named = {"model": model, "objective": objective, "variant": variant, "repeats": len(found)}
        summaries.append({**named, **{str(name): float(value) for name, value in frame.items()}, **ratio})
    columns = ["model", "objective", "variant", "repeats", "same", "different", "ratio", "closest"]
    return pd.DataFrame(summaries, columns=columns)


def _distances(tables: RunTables) -> dict[str, dict[tuple[str, str], float]]:
    """Of each variant the distance of every pair, in both orders."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    for variant, a, b, distance in tables.rows("casd", "variant", "a", "b", "distance"):
        found.setdefault(variant, {}).update({(a, b): distance, (b, a): distance})
    return found
