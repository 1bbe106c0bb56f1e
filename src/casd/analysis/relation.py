"""Relation: whether a low CASD between two removals goes with strong transfer between their backdoors."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from casd.analysis.tables import SCHEMAS
from casd.analysis.transfer import RESPONSES, removal_exclusions, transfer_matrix
from casd.stats import (
    MantelResult,
    Statistic,
    mantel_test,
    offdiagonal_center_columns,
    partial_mantel_test,
    remove_backdoor_effects,
    symmetrize,
)

# Decimals to which differences of rates are rounded before ranking: values that are equal on paper must be equal in bits.
RATE_DECIMALS = 12


def relate(
    casd: pd.DataFrame, transfer: pd.DataFrame, baselines: pd.DataFrame | None = None, *, permutations: int, seed: int
) -> pd.DataFrame:
    """Test the relation of CASD between two removals to the transfer between their backdoors.

    rho < 0 if a low CASD goes with strong transfer.

    For every variant of CASD and every response, the suppressions among the removals are centred by column over the
    off-diagonal cells (which removes each target's own fragility) and averaged over both directions of a pair. They are
    correlated with CASD over the pairs: Spearman's ρ with a two-sided Mantel p-value (`casd.stats.mantel_test`). Centring by
    column also removes any baseline of a target, such as its suppression under a control, so suppression net of the controls
    would give the same result.

    The backdoor of an excluded removal (`casd.analysis.inclusion`) is left out as source and as target, before centring.
    Backdoors that were measured but not removed have no shift and are ignored.

    Args:
        casd: tidy distances with the columns variant, a, b, distance; each pair once, or in both orders with one value.
            Rows of other names (controls) are ignored.
        transfer: the result of `transfer_table`.
        baselines: tidy distances with the columns predictor, a, b, distance; "same_target" is held constant in the partial
            test. None for no partial test.
        permutations: number of random permutations of the Mantel test; with few backdoors all are enumerated instead.
        seed: seed of the permutations, the same for every row.

    Returns:
        One row per variant × response ("suppression", "prob_suppression"). Columns:

        - variant, response, n_backdoors, n_pairs, rho, p_value, permutations, exact: as in `casd.stats.MantelResult`
        - tau, p_tau: Kendall's τ-b and its p-value
        - rho_pairs, p_pairs: ρ after the effects of single backdoors are removed from both matrices
          (`casd.stats.remove_backdoor_effects`): agreement on pairs only, not on backdoors that are far from all others and
          weaken all others; NaN with fewer than four backdoors
        - rho_partial, p_partial: partial ρ with the indicator of the same target held constant (`partial_mantel_test`)
        - excluded: the excluded removals with reasons: "german (collapsed), refusal (target ASR not reached)"
        - note: "" or why there is no rho (fewer than three backdoors, …), or what limits the p-value

    Raises:
        ValueError: several runs in one table, or a pair with two different distances.
    """
    kept, excluded, responses = _responses(transfer)
    same_target = None
    if baselines is not None and "same_target" in set(baselines["predictor"]):
        same_target = _distance_matrix(baselines[baselines["predictor"] == "same_target"], kept)
    note = ", ".join(f"{name} ({reason})" for name, reason in excluded.items())
    rows = []
    for variant in casd["variant"].unique():
        distances = _distance_matrix(casd[casd["variant"] == variant], kept)
        for response, suppression in responses.items():
            tests = _relation_tests(distances, suppression, same_target, permutations=permutations, seed=seed)
            rows.append({"variant": variant, "response": response, **tests, "excluded": note})
    return pd.DataFrame(rows, columns=list(SCHEMAS["relation"]))


def _relation_tests(
    distances: np.ndarray, suppression: np.ndarray, same_target: np.ndarray | None, *, permutations: int, seed: int
) -> dict[str, object]:
    """Run the tests of a row of `relate`; each starts with the same random numbers."""

    def mantel(x: np.ndarray, y: np.ndarray, statistic: Statistic = "spearman") -> MantelResult:
        return mantel_test(x, y, permutations=permutations, rng=np.random.default_rng(seed), statistic=statistic)

    centered = centered_response(suppression)
    result, tau = mantel(distances, centered), mantel(distances, centered, "kendall")
    pairs = partial = None
    if len(distances) >= 4 and np.isfinite(distances[~np.eye(len(distances), dtype=bool)]).all():
        # Not centred first: the effects that are removed here include those of columns.
        pairs = mantel(remove_backdoor_effects(distances), remove_backdoor_effects(symmetrize(suppression)))
    if same_target is not None:
        rng = np.random.default_rng(seed)
        partial = partial_mantel_test(distances, centered, same_target, permutations=permutations, rng=rng)
    return {
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
        "note": result.note,
    }


def relation_points(casd: pd.DataFrame, transfer: pd.DataFrame) -> pd.DataFrame:
    """Return the points that `relate` correlates, one per variant × response × pair of removals, for a scatter plot.

    Args:
        casd: tidy distances, as for `relate`.
        transfer: the result of `transfer_table`.

    Returns:
        Columns variant, response, a, b, distance, response_value (suppression, centred by column and averaged over both
        directions of the pair).
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


def centered_response(matrix: np.ndarray) -> np.ndarray:
    """Centre suppressions (n, n) by column (target) and average both directions of each pair.

    The result is rounded: equal sums of rates can differ in their last bits, and ranks would break such ties by noise.
    """
    return np.round(symmetrize(offdiagonal_center_columns(matrix)), RATE_DECIMALS)


def _responses(transfer: pd.DataFrame) -> tuple[list[str], dict[str, str], dict[str, np.ndarray]]:
    """Return the n included removals, the reasons of the excluded ones, and response → (n, n) matrix of suppressions."""
    reasons = removal_exclusions(transfer)
    kept = [name for name, reason in reasons.items() if not reason]
    removals = transfer[transfer["source_kind"] == "removal"]
    responses = {}
    for response in RESPONSES:
        responses[response] = transfer_matrix(removals, response).reindex(index=kept, columns=kept).to_numpy(dtype=float)
    return kept, {name: reason for name, reason in reasons.items() if reason}, responses


def _distance_matrix(casd: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Return distances of one variant as a symmetric matrix over `names`; NaN where a pair is not listed."""
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
