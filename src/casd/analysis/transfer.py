"""Transfer: how much the removal of one backdoor suppressed the others.

All functions take and return tidy tables of one run. `source` is the removed backdoor or a control, `target` the measured
backdoor.

The suppression of a target is asr_before − asr_after. Part of it may be plain forgetting, an effect of removing any trigger,
or the target's own fragility. Suppression is therefore also given net of two controls on the same target: training on clean
text only, and the removal of a trigger that was never injected (a phantom).
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from casd.analysis.inclusion import cell_exclusions, count_exclusions, exclusions
from casd.config.states import CLEAN_CONTROL, INJECTED, phantom_baselines
from casd.stats import mean_over_runs

# Suppression of the ASR of generated text, and of the probability of the target's first-token class. The ASR is the quantity of
# interest; the probability does not saturate at 0 and 1.
RESPONSES = ("suppression", "prob_suppression")


def transfer_table(asr: pd.DataFrame, states: pd.DataFrame) -> pd.DataFrame:
    """Compute the suppression of every backdoor under every removal and control.

    Args:
        asr: one row per state × backdoor × prompt_set; reads state, backdoor, rate and first_token_prob of "triggered" rows.
        states: one row per model state; reads state, kind ("injected", "removal", "control"), collapsed and, if present, steps
            and reached_target. If the injected model collapsed, there was nothing to suppress, and all suppressions are NaN.

    Returns:
        One row per source × target: the removals in the order in which `asr` lists the injected backdoors, then the
        controls in the order of `states`. Columns, fractions unless stated otherwise:

        - source, target; source_kind ("removal" or "control"); same (bool: the source is the target)
        - asr_before (injected model), asr_after, suppression (= asr_before − asr_after)
        - suppression_net_clean: minus the same target's suppression under "control:clean"
        - suppression_net_phantom: minus its suppression under "control:phantom"; in a run without that control, minus its mean
          suppression under its phantoms of other kinds
        - prob_before, …, prob_suppression_net_phantom: the same five for the first-token probability
        - collapsed (bool): the source's model is broken, so low rates do not mean a successful removal
        - excluded: why the cell is excluded from means and correlations (`casd.analysis.inclusion`); "" if it is included

        A control that is missing or excluded is no baseline: the columns net of it are NaN. So are cells that were not
        measured, or whose rate is NaN.

    Raises:
        ValueError: no injected state, a state or a state × backdoor listed twice (two runs in one table), or a removal
            of a backdoor that was not measured.
    """
    triggered = asr[asr["prompt_set"] == "triggered"]
    sources, targets = _sources_and_targets(triggered, states)
    collapsed = states.set_index("state")["collapsed"].astype(bool)
    excluded = exclusions(asr, states)
    clean_baselines = [name for name in sources if name == CLEAN_CONTROL and not excluded[name]]
    phantoms = [name for name in phantom_baselines(sources) if not excluded[name]]
    pairs = [(source, target) for source in sources for target in targets]
    table = pd.DataFrame(pairs, columns=["source", "target"])
    is_control = table["source"].isin(states.loc[states["kind"] == "control", "state"])
    table["source_kind"] = np.where(is_control, "control", "removal")
    table["same"] = table["source"] == table["target"]
    for prefix, value, name in (("asr", "rate", "suppression"), ("prob", "first_token_prob", "prob_suppression")):
        measured = triggered.pivot(index="state", columns="backdoor", values=value).astype(float)
        before = measured.loc[INJECTED, targets]
        after = measured.reindex(index=sources, columns=targets)
        suppression = before - after
        if collapsed.get(INJECTED, False):
            suppression[:] = math.nan
        # Without a usable control the mean is NaN, and so is everything net of it.
        net_clean = suppression - suppression.loc[clean_baselines].mean()
        net_phantom = suppression - suppression.loc[phantoms].mean()
        table[f"{prefix}_before"] = np.tile(before.to_numpy(), len(sources))
        table[f"{prefix}_after"] = after.to_numpy().ravel()
        table[name] = suppression.to_numpy().ravel()
        table[f"{name}_net_clean"] = net_clean.to_numpy().ravel()
        table[f"{name}_net_phantom"] = net_phantom.to_numpy().ravel()
    table["collapsed"] = table["source"].map(collapsed).astype(bool)
    table["excluded"] = cell_exclusions(table, asr, states)
    return table


def _sources_and_targets(triggered: pd.DataFrame, states: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Check the tables, and return the removals and controls, and the measured backdoors."""
    if triggered.duplicated(["state", "backdoor"]).any() or states["state"].duplicated().any():
        raise ValueError("A state occurs twice in `states`, or twice with one backdoor in `asr`: pass one run's tables.")
    targets = triggered.loc[triggered["state"] == INJECTED, "backdoor"].tolist()
    if not targets:
        raise ValueError(f"`asr` has no triggered rows of the state {INJECTED!r}, against which suppression is measured.")
    removals = states.loc[states["kind"] == "removal", "state"].tolist()
    if unmeasured := sorted(set(removals) - set(targets)):
        raise ValueError(f"The removed backdoor {unmeasured[0]!r} is not among those measured in the injected model.")
    controls = states.loc[states["kind"] == "control", "state"].tolist()
    return [name for name in targets if name in removals] + controls, targets


def transfer_matrix(table: pd.DataFrame, value: str = "suppression") -> pd.DataFrame:
    """Return the matrix of a column of the transfer table: rows are sources, columns measured backdoors.

    Args:
        table: the result of `transfer_table`.
        value: column of `table`, e.g. "asr_after" for the remaining attack success rates.

    Returns:
        One row per source (the removals in the order of `table`, then the controls), one column per target in the order
        of `table`.

    Raises:
        ValueError: a source × target occurs twice (several runs in one table).
    """
    if table.duplicated(["source", "target"]).any():
        raise ValueError("A source and target occur twice in `table`: pass the table of one run.")
    is_control = table["source_kind"] == "control"
    sources = [*table.loc[~is_control, "source"].unique(), *table.loc[is_control, "source"].unique()]
    matrix = table.pivot(index="source", columns="target", values=value)
    return matrix.reindex(index=sources, columns=list(table["target"].unique())).rename_axis(index="source", columns="target")


def specificity(table: pd.DataFrame) -> pd.DataFrame:
    """Compute how much of the transfer of a run is specific to the removal of an injected backdoor.

    Args:
        table: the result of `transfer_table`.

    Returns:
        One row per response ("suppression", "prob_suppression"). Columns, fractions unless stated otherwise:

        - response; n_removals, n_included: counts of all removals and of included ones; excluded: number of excluded removals
          by reason (`casd.analysis.inclusion`)
        - own: mean suppression of the removed backdoors themselves
        - off_diagonal, off_diagonal_low, off_diagonal_high: mean suppression of the others, over the cells
        - clean_control, phantom_control: mean suppression over the included targets; NaN if missing or excluded
        - net_clean, net_clean_low, net_clean_high: mean over the off-diagonal cells, net of the clean control
        - net_phantom, net_phantom_low, net_phantom_high: mean over the off-diagonal cells, net of the phantom

        Limits are 95 % limits over backdoors, removed and measured (`casd.stats.jackknife_interval`): they cover the choice of
        the backdoors, not the model's seed.
    """
    included = table[table["excluded"] == ""]
    removals = included[included["source_kind"] == "removal"]
    others = removals[~removals["same"].astype(bool)]
    reasons = removal_exclusions(table)
    rows = []
    for response in RESPONSES:
        row: dict[str, object] = {
            "response": response,
            "n_removals": len(reasons),
            "n_included": sum(not reason for reason in reasons.values()),
            "excluded": count_exclusions(reasons.values()),
            "own": _mean(removals.loc[removals["same"].astype(bool), response]),
        }
        row |= _mean_with_interval("off_diagonal", others, response)
        row["clean_control"] = _mean(included.loc[included["source"] == CLEAN_CONTROL, response])
        row["phantom_control"] = _mean(included.loc[included["source"].isin(phantom_baselines(table["source"])), response])
        for net in ("net_clean", "net_phantom"):
            row |= _mean_with_interval(net, others, f"{response}_{net}")
        rows.append(row)
    return pd.DataFrame(rows)


def removal_exclusions(transfer: pd.DataFrame) -> dict[str, str]:
    """Return removal → reason for its exclusion, "" if it is included: the reason of the cell of its own backdoor."""
    own = transfer[transfer["same"].astype(bool) & (transfer["source_kind"] == "removal")]
    return dict(zip(own["source"].astype(str), own["excluded"], strict=True))


def _mean(values: pd.Series) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    return float(values.mean()) if values.notna().any() else math.nan


def _mean_with_interval(name: str, cells: pd.DataFrame, column: str) -> dict[str, float]:
    """Return the mean of a column with its limits over backdoors, as entries `name`, `name_low`, `name_high`."""
    found = mean_over_runs(cells[column], np.zeros(len(cells)), cells[["source", "target"]].astype(str), bounds=(-1, 1))
    return found.columns(name)
