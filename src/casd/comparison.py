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
from casd.stats import cluster_bootstrap_interval, nested_bootstrap_interval, offdiagonal_center_two_way

ESTABLISHED_ASR: Final = 0.5
"""A backdoor with a lower attack success rate in the injected model has not taken hold: nothing there can be suppressed."""
MIN_BACKDOORS: Final = 4
"""Fewer removals that count say nothing of pairs, and leave nothing to hold out."""
POOLED: Final = "all"
"""The model's name in a row over all models."""
MEASURES: Final = ("suppression", "suppression_net_clean", "suppression_net_phantom")
"""Columns of `transfer` whose mean over the other backdoors is given."""


def counted_cells(tables: RunTables) -> pd.DataFrame:
    """The cells of `transfer` that count: removals that did what they were to do, backdoors that had taken hold.

    A backdoor that had not is left out as target and as source.
    """
    reached = zip(tables.states["state"].tolist(), tables.states["reached_target"].tolist(), strict=True)
    failed = {name for name, value in reached if value == 0.0}
    read = ("source", "target", "source_kind", "collapsed", "asr_before")
    rows = list(zip(*(tables.transfer[column].tolist() for column in read), strict=True))
    absent = {target for _, target, kind, _, before in rows if kind == "removal" and before < ESTABLISHED_ASR}
    out = failed | absent
    counts = [
        kind == "removal" and not collapsed and source not in out and target not in absent
        for source, target, kind, collapsed, _ in rows
    ]
    return tables.transfer[np.array(counts, dtype=bool)]


def grouped(runs: Sequence[RunTables]) -> dict[tuple[str, str], list[RunTables]]:
    """The runs by model and objective (`RunTables.treatment`); an objective of several models also over all, as POOLED."""
    groups: dict[tuple[str, str], list[RunTables]] = {}
    for tables in runs:
        groups.setdefault((str(tables.info["model"]), tables.treatment), []).append(tables)
    models = Counter(objective for _, objective in groups)
    for objective in (objective for objective, count in models.items() if count > 1):
        groups[POOLED, objective] = [tables for tables in runs if tables.treatment == objective]
    return groups


def counted_matrix(tables: RunTables, column: str) -> pd.DataFrame:
    """A column of `transfer` over the backdoors whose removals count, as a matrix: rows are sources, columns targets."""
    cells = counted_cells(tables)
    sources, targets = list(cells["source"]), list(cells["target"])
    names = [name for name in tables.backdoors if name in set(sources) and name in set(targets)]
    place = {name: index for index, name in enumerate(names)}
    matrix = np.full((len(names), len(names)), np.nan)
    for source, target, value in zip(sources, targets, cells[column].to_numpy(dtype=float), strict=True):
        if source in place and target in place:
            matrix[place[source], place[target]] = value
    return pd.DataFrame(matrix, index=names, columns=names)


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
        - for each of MEASURES the mean over the other backdoors, with `_low` and `_high`
        - clean_control, phantom_control: the mean suppression of all backdoors under them
        - clean_loss_change: mean relative change of the clean loss; steps, seconds: means of a removal

        Limits are 95 % bootstrap limits that resample runs (seeds, and models where several are pooled) and, within each, the
        measured backdoors (`casd.stats.nested_bootstrap_interval`); with a single run, its backdoors alone.
    """
    places = {id(tables): place for place, tables in enumerate(runs)}
    counted = [counted_cells(tables).assign(run=place) for place, tables in enumerate(runs)]  # once: a run may be in two groups
    states = [tables.states.assign(run=place) for place, tables in enumerate(runs)]
    rows = []
    for (model, objective), group in grouped(runs).items():
        members = [places[id(tables)] for tables in group]
        cells, of_states = (pd.concat([frames[place] for place in members], ignore_index=True) for frames in (counted, states))
        rows.append(_row(model, objective, group, cells, of_states, seed, resamples))
    return pd.DataFrame(rows)


def _row(
    model: str,
    objective: str,
    runs: Sequence[RunTables],
    cells: pd.DataFrame,
    states: pd.DataFrame,
    seed: int,
    resamples: int,
) -> dict[str, object]:
    """A row of `compare_objectives`; `cells` (that count) and `states` are of all `runs`, numbered in the column run."""
    own, others = cells[cells["same"].astype(bool)], cells[~cells["same"].astype(bool)]
    removed = states[states["kind"] == "removal"]
    counted = removed.merge(cells[["run", "source"]].drop_duplicates(), left_on=["run", "state"], right_on=["run", "source"])
    row: dict[str, object] = {
        "model": model,
        "objective": objective,
        "runs": len(runs),
        "seeds": len({str(tables.info["seed"]) for tables in runs}),
        "removals": len(removed),
        "reached": len(counted),
        "collapsed": int(removed["collapsed"].astype(bool).sum()),
    }
    for name, chosen, column in (("own_asr", own, "asr_after"), *((measure, others, measure) for measure in MEASURES)):
        low, high = _interval(chosen, column, seed, resamples)
        row |= {name: chosen[column].mean(), f"{name}_low": low, f"{name}_high": high}
    controls = [tables.transfer[tables.transfer["source_kind"] == "control"] for tables in runs]
    control = pd.concat(controls, ignore_index=True)
    control = control[~control["collapsed"].astype(bool) & (control["asr_before"] >= ESTABLISHED_ASR)]
    for name, source in (("clean_control", CLEAN_CONTROL), ("phantom_control", PHANTOM_CONTROL)):
        row[name] = control.loc[control["source"].str.startswith(source), "suppression"].mean()
    return row | {
        "clean_loss_change": counted["clean_loss_ratio"].mean() - 1,
        "steps": counted["steps"].mean(),
        "seconds": counted["train_seconds"].mean(),
    }


def _interval(cells: pd.DataFrame, column: str, seed: int, resamples: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    if cells["run"].nunique() > 1:
        return nested_bootstrap_interval(cells[column], cells["run"], cells["target"], rng=rng, resamples=resamples)
    return cluster_bootstrap_interval(cells[column], cells["target"], rng=rng, resamples=resamples)


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
        matrix = counted_matrix(tables, column).to_numpy()
        after = counted_matrix(tables, "asr_after").to_numpy()
        n = len(matrix)
        if n < MIN_BACKDOORS:
            continue
        prompts = int(tables.asr.loc[tables.asr["probe"] == "triggered", "n"].min())
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
        removals = set(tables.states_of("removal")) - tables.collapsed
        repeats = [name for name in tables.states_of("control") if name.startswith(REPEAT_CONTROL)]
        for variant in tables.headline:
            pairs = tables.casd[tables.casd["variant"] == variant]
            distances = {(a, b): d for a, b, d in zip(pairs["a"], pairs["b"], pairs["distance"], strict=True)}
            distances |= {(b, a): d for (a, b), d in distances.items()}
            for repeat in repeats:
                own = repeat.removeprefix(f"{REPEAT_CONTROL}:")
                if own not in removals or repeat in tables.collapsed or (own, repeat) not in distances:
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
