"""How much of what runs show is noise: shares of variance of the suppression, and the noise floor of CASD.

Removals and backdoors are included by the rule of `casd.analysis.inclusion`; exclusions are counted by reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pandas as pd

from casd.analysis.grouping import by_condition, headline_variants, included_matrices, mean_of_runs
from casd.analysis.inclusion import MIN_REMOVALS, count_exclusions
from casd.analysis.results import RunTables
from casd.config.states import REPEAT_CONTROL, removed_backdoor
from casd.stats import offdiagonal_center_two_way


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
