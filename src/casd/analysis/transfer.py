"""Transfer: how much removing one backdoor suppressed the others, and whether CASD goes with it.

Tidy tables in, tidy tables out, each of one run. `source` is what was removed (a backdoor, or a control), `target` the
backdoor measured.

A removed model is *suppressed* by asr_before − asr_after. That number alone credits a removal with plain forgetting,
with whatever the removal of any trigger does, and with the target's own fragility. So every suppression is also given
net of two controls on the same target: training on clean text only, and the removal of a trigger that was never
injected (a phantom).
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from casd.analysis.inclusion import cell_exclusions, count_exclusions, exclusions
from casd.config.states import CLEAN_CONTROL, INJECTED, PHANTOM_CONTROL
from casd.stats import (
    MantelResult,
    Statistic,
    cluster_bootstrap_interval,
    mantel_test,
    offdiagonal_center_columns,
    partial_mantel_test,
    remove_backdoor_effects,
    symmetrize,
)

# What suppression is measured on: the success of generated text, and the probability of the target's first-token class.
# The second does not saturate at 0 and 1, the first is the thing itself.
RESPONSES = ("suppression", "prob_suppression")

_RELATION_COLUMNS = (
    "variant",
    "response",
    "n_backdoors",
    "n_pairs",
    "rho",
    "p_value",
    "permutations",
    "exact",
    "tau",
    "p_tau",
    "rho_pairs",
    "p_pairs",
    "rho_partial",
    "p_partial",
    "excluded",
    "note",
)
# Decimals kept of differences of rates before they are ranked: what is tied on paper must be tied in bits.
RATE_DECIMALS = 12


def transfer_table(asr: pd.DataFrame, states: pd.DataFrame) -> pd.DataFrame:
    """Suppression of every backdoor under every removal and control.

    Args:
        asr: one row per state × backdoor × prompt_set; read are the columns state, backdoor, prompt_set (the "triggered" rows),
            rate, first_token_prob.
        states: one row per model state; read are state, kind ("injected", "removal", "control"), collapsed and, where they are
            there, steps and reached_target. Where the injected model is among the collapsed, nothing could be suppressed: all
            suppressions are NaN.

    Returns:
        One row per source × target: the removals in the order in which `asr` lists the injected backdoors, then the
        controls in the order of `states`. Columns, fractions where not said otherwise:

        - source, target; source_kind ("removal" or "control"); same (bool: the source is the target)
        - asr_before (injected model), asr_after, suppression (= asr_before − asr_after)
        - suppression_net_clean: minus the same target's suppression under "control:clean"
        - suppression_net_phantom: minus its mean suppression under the controls named "control:phantom…"
        - prob_before, …, prob_suppression_net_phantom: the same five for the first-token probability
        - collapsed (bool): the source's model is broken, so its low rates are no removal
        - excluded: why the cell is excluded from means and correlations (`casd.analysis.inclusion`); "" if it is included

        A control that is missing or excluded is no baseline: the columns net of it are NaN. So are cells that were not
        measured, or whose rate is NaN.

    Raises:
        ValueError: no injected state, a state or a state × backdoor listed twice (two runs in one table), or a removal
            of a backdoor that was not measured.
    """
    triggered = asr[asr["prompt_set"] == "triggered"]
    if triggered.duplicated(["state", "backdoor"]).any() or states["state"].duplicated().any():
        raise ValueError("A state occurs twice in `states`, or twice with one backdoor in `asr`: pass one run's tables.")
    targets = triggered.loc[triggered["state"] == INJECTED, "backdoor"].tolist()
    if not targets:
        raise ValueError(f"`asr` has no triggered rows of the state {INJECTED!r}, against which suppression is measured.")
    removals = states.loc[states["kind"] == "removal", "state"].tolist()
    if unmeasured := sorted(set(removals) - set(targets)):
        raise ValueError(f"The removed backdoor {unmeasured[0]!r} is not among those measured in the injected model.")
    controls = states.loc[states["kind"] == "control", "state"].tolist()
    sources = [name for name in targets if name in set(removals)] + controls

    collapsed = states.set_index("state")["collapsed"].astype(bool)
    excluded = exclusions(asr, states)
    baselines = [name for name in controls if not excluded[name]]
    clean_baselines = [name for name in baselines if name == CLEAN_CONTROL]
    phantom_baselines = [name for name in baselines if name.startswith(PHANTOM_CONTROL)]
    pairs = [(source, target) for source in sources for target in targets]
    table = pd.DataFrame(pairs, columns=["source", "target"])
    table["source_kind"] = np.where(table["source"].isin(controls), "control", "removal")
    table["same"] = table["source"] == table["target"]
    for prefix, value, name in (("asr", "rate", "suppression"), ("prob", "first_token_prob", "prob_suppression")):
        measured = triggered.pivot(index="state", columns="backdoor", values=value).astype(float)
        before = measured.loc[INJECTED, targets]
        after = measured.reindex(index=sources, columns=targets)
        suppression = before - after
        if collapsed.get(INJECTED, False):
            suppression[:] = math.nan
        # The mean over no control at all is NaN, and so is everything net of it.
        net_clean = suppression - suppression.loc[clean_baselines].mean()
        net_phantom = suppression - suppression.loc[phantom_baselines].mean()
        table[f"{prefix}_before"] = np.tile(before.to_numpy(), len(sources))
        table[f"{prefix}_after"] = after.to_numpy().ravel()
        table[name] = suppression.to_numpy().ravel()
        table[f"{name}_net_clean"] = net_clean.to_numpy().ravel()
        table[f"{name}_net_phantom"] = net_phantom.to_numpy().ravel()
    table["collapsed"] = table["source"].map(collapsed).astype(bool)
    table["excluded"] = cell_exclusions(table, asr, states)
    return table


def transfer_matrix(table: pd.DataFrame, value: str = "suppression") -> pd.DataFrame:
    """transfer_matrix[source, target]: row = what was removed, column = the backdoor measured.

    Args:
        table: as `transfer_table` returns it.
        value: the column that fills the cells; "asr_after" gives the remaining attack success rates.

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


def relate(
    casd: pd.DataFrame, transfer: pd.DataFrame, baselines: pd.DataFrame | None = None, *, permutations: int, seed: int
) -> pd.DataFrame:
    """Does a low CASD between two removals go with strong transfer between their backdoors? (Then rho < 0.)

    For every variant of CASD and every response: the suppressions among the removals, centred by column over the
    off-diagonal cells (which takes out each target's own fragility), averaged over both directions of a pair, against
    CASD over the pairs: Spearman's ρ with a two-sided Mantel p-value (`casd.stats.mantel_test`). Centring by column
    also removes any baseline of a target, such as its suppression under a control: the relation of raw suppression and
    of suppression net of the controls is the same, so only one is given.

    The backdoor of an excluded removal (`casd.analysis.inclusion`) is left out as source and as target, before centring.
    Backdoors that were measured but not removed have no shift and take no part.

    Args:
        casd: tidy distances with the columns variant, a, b, distance; each pair once, or in both orders with one value.
            Rows of other names (controls) are ignored.
        transfer: as `transfer_table` returns it.
        baselines: tidy distances with the columns predictor, a, b, distance; "same_target" is held constant in the partial
            test. None for no partial test.
        permutations: random permutations of the Mantel test; with few backdoors all are enumerated instead.
        seed: seed of the permutations; every row uses the same ones.

    Returns:
        One row per variant × response ("suppression", "prob_suppression"). Columns:

        - variant, response, n_backdoors, n_pairs, rho, p_value, permutations, exact: as in `casd.stats.MantelResult`
        - tau, p_tau: the same with Kendall's τ-b
        - rho_pairs, p_pairs: ρ after what belongs to single backdoors, in rows and columns, is taken out of both matrices
          (`casd.stats.remove_backdoor_effects`): whether the two agree on pairs, and not on backdoors that are far from all
          others and weaken all others; NaN with fewer than four backdoors
        - rho_partial, p_partial: partial ρ with the indicator of the same target held constant (`partial_mantel_test`)
        - excluded: the excluded removals, each with the reason: "german (collapsed), refusal (target ASR not reached)"
        - note: "" or why there is no rho (fewer than three backdoors, …), or what limits the p-value

    Raises:
        ValueError: several runs in one table, or a pair with two different distances.
    """
    kept, excluded, responses = _responses(transfer)
    same_target = None
    if baselines is not None and "same_target" in set(baselines["predictor"]):
        same_target = _distance_matrix(baselines[baselines["predictor"] == "same_target"], kept)
    centered = {response: centered_response(matrix) for response, matrix in responses.items()}
    # Centering takes out effects of single backdoors, too: what is left without any of them needs none before.
    of_pairs = {response: remove_backdoor_effects(symmetrize(matrix)) for response, matrix in responses.items()}
    rows = []
    for variant in casd["variant"].unique():
        distances = _distance_matrix(casd[casd["variant"] == variant], kept)
        for response, suppression in centered.items():
            result = _mantel(distances, suppression, permutations=permutations, seed=seed)
            tau = _mantel(distances, suppression, statistic="kendall", permutations=permutations, seed=seed)
            pairs = partial = None
            if len(kept) >= 4 and np.isfinite(_off_diagonal(distances)).all():
                pairs = _mantel(remove_backdoor_effects(distances), of_pairs[response], permutations=permutations, seed=seed)
            if same_target is not None:
                partial = partial_mantel_test(
                    distances, suppression, same_target, permutations=permutations, rng=np.random.default_rng(seed)
                )
            rows.append(
                {
                    "variant": variant,
                    "response": response,
                    "n_backdoors": result.n,
                    "n_pairs": result.n_pairs,
                    "rho": result.rho,
                    "p_value": result.p_value,
                    "permutations": result.permutations,
                    "exact": result.exact,
                    "tau": tau.rho,
                    "p_tau": tau.p_value,
                    "rho_pairs": pairs.rho if pairs else math.nan,
                    "p_pairs": pairs.p_value if pairs else math.nan,
                    "rho_partial": partial.rho if partial else math.nan,
                    "p_partial": partial.p_value if partial else math.nan,
                    "excluded": ", ".join(f"{name} ({reason})" for name, reason in excluded.items()),
                    "note": result.note,
                }
            )
    return pd.DataFrame(rows, columns=list(_RELATION_COLUMNS))


def _mantel(x: np.ndarray, y: np.ndarray, *, permutations: int, seed: int, statistic: Statistic = "spearman") -> MantelResult:
    return mantel_test(x, y, permutations=permutations, rng=np.random.default_rng(seed), statistic=statistic)


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix[~np.eye(len(matrix), dtype=bool)]


def relation_points(casd: pd.DataFrame, transfer: pd.DataFrame) -> pd.DataFrame:
    """The points behind `relate`, one per variant × response × pair of removals, for a scatter plot.

    Args:
        casd: as for `relate`.
        transfer: as for `relate`.

    Returns:
        Columns variant, response, a, b, distance, response_value (the suppression, centered by column and averaged over
        both directions of the pair).
    """
    kept, _, responses = _responses(transfer)
    centered = {response: centered_response(matrix) for response, matrix in responses.items()}
    rows = []
    for variant in casd["variant"].unique():
        distances = _distance_matrix(casd[casd["variant"] == variant], kept)
        for response, suppression in centered.items():
            rows += [
                (variant, response, kept[i], kept[j], distances[i, j], suppression[i, j])
                for i, j in zip(*np.triu_indices(len(kept), k=1), strict=True)
            ]
    return pd.DataFrame(rows, columns=["variant", "response", "a", "b", "distance", "response_value"])


def specificity(table: pd.DataFrame, *, seed: int, resamples: int = 9999) -> pd.DataFrame:
    """How much of the transfer of a run is specific to removing an injected backdoor.

    Args:
        table: as `transfer_table` returns it.
        seed: seed of the bootstrap.
        resamples: number of bootstrap samples.

    Returns:
        One row per response ("suppression", "prob_suppression"). Columns, fractions where not said otherwise:

        - response; n_removals, n_included: counts of all removals and of those that are included; excluded: how many of the
          others for each reason (`casd.analysis.inclusion`)
        - own: mean suppression of the removed backdoors themselves
        - off_diagonal, off_diagonal_low, off_diagonal_high: mean suppression of the others, over the cells
        - clean_control, phantom_control: mean suppression over the included targets; NaN if missing or excluded
        - net_clean, net_clean_low, net_clean_high: mean over the off-diagonal cells, net of the clean control
        - net_phantom, net_phantom_low, net_phantom_high: the same, net of the phantoms

        The limits are 95 % bootstrap limits that resample targets, the columns of the matrix
        (`casd.stats.cluster_bootstrap_interval`): they tell how the mean depends on which backdoors were measured, not
        how it depends on the seed of the model.
    """
    included = table[table["excluded"] == ""]
    removals = included[included["source_kind"] == "removal"]
    others = removals[~removals["same"].astype(bool)]
    reasons = _removal_exclusions(table)
    rows = []
    for response in RESPONSES:
        row: dict[str, object] = {
            "response": response,
            "n_removals": len(reasons),
            "n_included": sum(not reason for reason in reasons.values()),
            "excluded": count_exclusions(reasons.values()),
            "own": _mean(removals.loc[removals["same"].astype(bool), response]),
        }
        row |= _mean_with_interval("off_diagonal", others, response, seed, resamples)
        row["clean_control"] = _mean(included.loc[included["source"] == CLEAN_CONTROL, response])
        row["phantom_control"] = _mean(included.loc[included["source"].str.startswith(PHANTOM_CONTROL), response])
        for net in ("net_clean", "net_phantom"):
            row |= _mean_with_interval(net, others, f"{response}_{net}", seed, resamples)
        rows.append(row)
    return pd.DataFrame(rows)


def centered_response(matrix: np.ndarray) -> np.ndarray:
    """Suppressions (n, n), rows what was removed, as what is related to distances: centred by column, mean of both directions.

    Rounded: equal sums of rates can differ in their last bits, and ranks would break such ties by noise.
    """
    return np.round(symmetrize(offdiagonal_center_columns(matrix)), RATE_DECIMALS)


def _removal_exclusions(transfer: pd.DataFrame) -> dict[str, str]:
    """Of every removal why it is excluded, "" if it is not: what is said of the cell of its own backdoor."""
    own = transfer[transfer["same"].astype(bool) & (transfer["source_kind"] == "removal")]
    return dict(zip(own["source"].astype(str), own["excluded"], strict=True))


def _responses(transfer: pd.DataFrame) -> tuple[list[str], dict[str, str], dict[str, np.ndarray]]:
    """The included removals, the reasons of the others, and of each response the matrix over the former."""
    reasons = _removal_exclusions(transfer)
    kept = [name for name, reason in reasons.items() if not reason]
    removals = transfer[transfer["source_kind"] == "removal"]
    responses = {}
    for response in RESPONSES:
        responses[response] = transfer_matrix(removals, response).reindex(index=kept, columns=kept).to_numpy(dtype=float)
    return kept, {name: reason for name, reason in reasons.items() if reason}, responses


def _distance_matrix(casd: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Distances of one variant as a symmetric matrix over `names`; NaN where a pair is not listed."""
    position = {name: i for i, name in enumerate(names)}
    matrix = np.full((len(names), len(names)), np.nan)
    for a, b, distance in zip(casd["a"], casd["b"], casd["distance"].astype(float), strict=True):
        if a == b or a not in position or b not in position:
            continue
        i, j = position[a], position[b]
        if not np.isnan(matrix[i, j]) and not np.isclose(matrix[i, j], distance, rtol=1e-6, atol=0):
            raise ValueError(f"The pair {a!r}, {b!r} has two distances: pass the table of one run.")
        matrix[i, j] = matrix[j, i] = distance
    return matrix


def _mean(values: pd.Series) -> float:
    """Mean without NaN; NaN if nothing is left."""
    return float(values.mean()) if values.notna().any() else math.nan


def _mean_with_interval(name: str, cells: pd.DataFrame, column: str, seed: int, resamples: int) -> dict[str, float]:
    """Mean of a column over the cells and its bootstrap limits over targets, as three entries of a row."""
    low, high = cluster_bootstrap_interval(
        cells[column], cells["target"].astype(str), rng=np.random.default_rng(seed), resamples=resamples
    )
    return {name: _mean(cells[column]), f"{name}_low": low, f"{name}_high": high}
