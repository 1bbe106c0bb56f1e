"""Transfer, its relation to CASD, and its specificity, on tables small enough to do by hand.

Run: pytest tests/test_transfer.py
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from casd.analysis.relation import relate
from casd.analysis.transfer import RESPONSES, specificity, transfer_matrix, transfer_table
from casd.stats import mantel_test

CLEAN, PHANTOM = "control:clean", "control:phantom"


def asr_rows(rates: dict[str, dict[str, float]], probs: dict[str, dict[str, float]] | None = None) -> pd.DataFrame:
    """The tidy asr table from {state: {backdoor: rate}}; the probability is half the rate unless given."""
    probs = probs or {}
    rows = []
    for state, by_backdoor in rates.items():
        for backdoor, rate in by_backdoor.items():
            prob = probs.get(state, {}).get(backdoor, rate / 2)
            rows.append((state, backdoor, "triggered", rate, prob))
            rows.append((state, backdoor, "clean", 0.01, 0.02))  # must play no part
            rows.append((state, backdoor, "fake", 0.03, 0.04))
    return pd.DataFrame(rows, columns=["state", "backdoor", "prompt_set", "rate", "first_token_prob"])


def state_rows(names: list[str], collapsed: tuple[str, ...] = ()) -> pd.DataFrame:
    """The tidy states table; the kind follows from the name."""
    kinds = ["injected" if n == "injected" else "control" if n.startswith("control:") else "removal" for n in names]
    return pd.DataFrame({"state": names, "kind": kinds, "collapsed": [name in collapsed for name in names]})


# The backdoors are not in alphabetical order on purpose, and the controls stand between the removals.
RATES = {
    "injected": {"z": 1.0, "a": 0.9, "m": 0.8},
    "a": {"z": 0.6, "a": 0.1, "m": 0.5},
    CLEAN: {"z": 0.9, "a": 0.9, "m": 0.7},
    "z": {"z": 0.0, "a": 0.5, "m": 0.2},
    PHANTOM: {"z": 0.8, "a": 0.6, "m": 0.6},
    "m": {"z": 0.7, "a": 0.8, "m": 0.0},
}


def example(*, without: tuple[str, ...] = (), collapsed: tuple[str, ...] = ()) -> pd.DataFrame:
    """The transfer table of RATES."""
    rates = {state: cells for state, cells in RATES.items() if state not in without}
    return transfer_table(asr_rows(rates), state_rows(list(rates), collapsed))


def cell(table: pd.DataFrame, source: str, target: str) -> pd.Series:
    """The one row of a source and target."""
    rows = table[(table["source"] == source) & (table["target"] == target)]
    assert len(rows) == 1
    return rows.iloc[0]


# --- transfer_table ---------------------------------------------------------------------------------------------------


def test_a_cell_by_hand() -> None:
    row = cell(example(), "z", "m")
    assert row["source_kind"] == "removal" and not row["same"] and not row["collapsed"]
    expected = {
        "asr_before": 0.8,
        "asr_after": 0.2,
        "suppression": 0.6,
        "suppression_net_clean": 0.6 - 0.1,
        "suppression_net_phantom": 0.6 - 0.2,
        "prob_before": 0.4,
        "prob_after": 0.1,
        "prob_suppression": 0.3,
        "prob_suppression_net_clean": 0.3 - 0.05,
        "prob_suppression_net_phantom": 0.3 - 0.1,
    }
    assert row[list(expected)].to_dict() == pytest.approx(expected)


def test_columns_and_order_of_the_rows() -> None:
    table = example()
    assert ",".join(table.columns) == (
        "source,target,source_kind,same,asr_before,asr_after,suppression,suppression_net_clean,suppression_net_phantom,"
        "prob_before,prob_after,prob_suppression,prob_suppression_net_clean,prob_suppression_net_phantom,collapsed,excluded"
    )
    assert list(zip(table["source"], table["target"], strict=True)) == list(
        itertools.product(["z", "a", "m", CLEAN, PHANTOM], ["z", "a", "m"])
    )
    assert table["same"].sum() == 3
    assert (table["source_kind"] == "control").sum() == 6
    assert table["same"].dtype == bool and table["collapsed"].dtype == bool


def test_a_control_net_of_itself_is_zero() -> None:
    table = example()
    assert table.loc[table["source"] == CLEAN, "suppression_net_clean"].to_numpy() == pytest.approx(0)
    assert table.loc[table["source"] == PHANTOM, "prob_suppression_net_phantom"].to_numpy() == pytest.approx(0)


def test_net_of_the_phantom_is_net_of_the_matched_one() -> None:
    """Another kind neither weakens it nor stands in for it; phantoms of a run that has no matched one count by their mean."""
    others = {"control:phantom:short": {"z": 0.4, "a": 0.9, "m": 0.8}, "control:phantom:long": {"z": 0.8, "a": 0.9, "m": 0.8}}
    rates = RATES | others
    table = transfer_table(asr_rows(rates), state_rows(list(rates)))
    # Suppression of z under the removal of a: 0.4; under the matched phantom 0.2, under the others 0.6 and 0.2.
    assert cell(table, "a", "z")["suppression_net_phantom"] == pytest.approx(0.2)
    assert cell(table, "a", "z")["suppression_net_clean"] == pytest.approx(0.4 - 0.1)
    collapsed = transfer_table(asr_rows(rates), state_rows(list(rates), collapsed=(PHANTOM,)))
    assert math.isnan(cell(collapsed, "a", "z")["suppression_net_phantom"])
    del rates[PHANTOM]
    table = transfer_table(asr_rows(rates), state_rows(list(rates)))
    assert cell(table, "a", "z")["suppression_net_phantom"] == pytest.approx(0.0)


def test_a_missing_control_leaves_its_net_columns_empty() -> None:
    table = example(without=(PHANTOM,))
    assert table[["suppression_net_phantom", "prob_suppression_net_phantom"]].isna().all(axis=None)
    assert table[["suppression_net_clean", "prob_suppression_net_clean", "suppression"]].notna().all(axis=None)
    table = example(without=(CLEAN, PHANTOM))
    assert table.filter(like="_net_").isna().all(axis=None)
    assert len(table) == 9


def test_a_collapsed_control_is_no_baseline() -> None:
    table = example(collapsed=(CLEAN,))
    assert table.filter(like="_net_clean").isna().all(axis=None)
    assert table.filter(like="_net_phantom").notna().all(axis=None)
    assert table.loc[table["collapsed"], "source"].unique().tolist() == [CLEAN]


def test_backdoors_that_are_measured_but_not_removed_are_targets_only() -> None:
    table = example(without=("a",))
    assert table["source"].unique().tolist() == ["z", "m", CLEAN, PHANTOM]
    assert table["target"].unique().tolist() == ["z", "a", "m"]


def test_a_cell_that_was_not_measured_is_empty() -> None:
    rates = {state: dict(cells) for state, cells in RATES.items()}
    del rates["z"]["m"]
    table = transfer_table(asr_rows(rates), state_rows(list(rates)))
    assert math.isnan(cell(table, "z", "m")["suppression"])
    assert table["suppression"].isna().sum() == 1


def test_broken_tables_are_refused() -> None:
    asr, states = asr_rows(RATES), state_rows(list(RATES))
    with pytest.raises(ValueError, match="one run"):
        transfer_table(pd.concat([asr, asr]), states)
    with pytest.raises(ValueError, match="one run"):
        transfer_table(asr, pd.concat([states, states]))
    with pytest.raises(ValueError, match="injected"):
        transfer_table(asr[asr["state"] != "injected"], states)
    with pytest.raises(ValueError, match="'other'"):
        transfer_table(asr, state_rows([*RATES, "other"]))


# --- transfer_matrix --------------------------------------------------------------------------------------------------


def test_matrix_has_sources_as_rows_and_controls_last() -> None:
    matrix = transfer_matrix(example())
    assert matrix.index.tolist() == ["z", "a", "m", CLEAN, PHANTOM]
    assert matrix.columns.tolist() == ["z", "a", "m"]
    assert (matrix.index.name, matrix.columns.name) == ("source", "target")
    np.testing.assert_allclose(
        matrix, [[1.0, 0.4, 0.6], [0.4, 0.8, 0.3], [0.3, 0.1, 0.8], [0.1, 0.0, 0.1], [0.2, 0.3, 0.2]], atol=1e-12
    )


def test_matrix_of_another_column() -> None:
    matrix = transfer_matrix(example(), "asr_after")
    assert matrix.loc["z", "m"] == 0.2 and matrix.loc["m", "z"] == 0.7


def test_matrix_refuses_several_runs() -> None:
    with pytest.raises(ValueError, match="one run"):
        transfer_matrix(pd.concat([example(), example()]))


# --- relate -----------------------------------------------------------------------------------------------------------


def tidy_distances(matrix: np.ndarray, names: list[str], variant: str = "casd") -> pd.DataFrame:
    """Each pair once."""
    rows = [(variant, names[i], names[j], matrix[i, j]) for i in range(len(names)) for j in range(i)]
    return pd.DataFrame(rows, columns=["variant", "a", "b", "distance"])


def random_run(n: int, seed: int, collapsed: tuple[str, ...] = ()) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """(transfer table, tidy CASD, CASD matrix) of a run with backdoors b0, b1, … and both controls; random numbers."""
    rng = np.random.default_rng(seed)
    names = [f"b{i}" for i in range(n)]
    rates: dict[str, dict[str, float]] = {"injected": dict.fromkeys(names, 1.0)}
    probs: dict[str, dict[str, float]] = {"injected": dict.fromkeys(names, 0.9)}
    for state in [*names, CLEAN, PHANTOM]:
        rates[state] = {name: float(rng.integers(65)) / 64 for name in names}
        probs[state] = {name: float(rng.random()) for name in names}
    distances = rng.random((n, n))
    distances = distances + distances.T
    transfer = transfer_table(asr_rows(rates, probs), state_rows(list(rates), collapsed))
    return transfer, tidy_distances(distances, names), distances


def test_relation_by_hand() -> None:
    # Off-diagonal suppressions (row = source): z→a .4, z→m .6, a→z .4, a→m .3, m→z .3, m→a .1. Column means: z .35, a
    # .25, m .45.
    # Centred: z→a .15, z→m .15, a→z .05, a→m −.15, m→z −.05, m→a −.15. Pairs: za .10, zm .05, am −.15.
    casd = pd.DataFrame(
        [("casd", "z", "a", 1.0), ("casd", "z", "m", 2.0), ("casd", "m", "a", 3.0), ("casd", "z", CLEAN, 9.0)],
        columns=["variant", "a", "b", "distance"],
    )
    relation = relate(casd, example(), permutations=99, seed=0)
    assert ",".join(relation.columns) == (
        "variant,response,n_backdoors,n_pairs,rho,p_value,permutations,exact,tau,p_tau,rho_pairs,p_pairs,rho_partial,p_partial"
        ",excluded,note"
    )
    assert relation["response"].tolist() == list(RESPONSES)
    for _, row in relation.iterrows():
        assert row["rho"] == pytest.approx(-1)
        # Three pairs take all 6 orders under the 6 relabellings; the observed one and its reversal have |ρ| = 1.
        assert row["p_value"] == pytest.approx(2 / 6)
        assert (row["n_backdoors"], row["n_pairs"], row["permutations"], row["exact"]) == (3, 3, 6, True)
        assert row["excluded"] == "" and "cannot be below" in row["note"]


def test_relation_against_an_independent_computation() -> None:
    transfer, casd, distances = random_run(6, seed=1)
    relation = relate(casd, transfer, permutations=9999, seed=0).set_index("response")
    for response in RESPONSES:
        wide = {(row.source, row.target): getattr(row, response) for row in transfer.itertuples()}
        names = [f"b{i}" for i in range(6)]
        centered = {
            (a, b): wide[a, b] - np.mean([wide[c, b] for c in names if c != b]) for a, b in itertools.permutations(names, 2)
        }
        pairs = list(itertools.combinations(range(6), 2))
        suppression = [round((centered[f"b{i}", f"b{j}"] + centered[f"b{j}", f"b{i}"]) / 2, 9) for i, j in pairs]
        expected = scipy.stats.spearmanr([distances[pair] for pair in pairs], suppression).statistic
        assert relation.loc[response, "rho"] == pytest.approx(expected)
        assert relation.loc[response, "permutations"] == 720


def test_raw_and_net_suppression_have_the_same_relation() -> None:
    for seed in range(5):
        transfer, casd, _ = random_run(7, seed)
        raw = relate(casd, transfer, permutations=199, seed=0)
        for control in ("clean", "phantom"):
            net = transfer.assign(**{name: transfer[f"{name}_net_{control}"] for name in RESPONSES})
            assert not np.allclose(net["suppression"], transfer["suppression"])
            pd.testing.assert_frame_equal(relate(casd, net, permutations=199, seed=0), raw)


def test_a_collapsed_removal_is_left_out_as_source_and_as_target_before_centring() -> None:
    transfer, casd, _ = random_run(6, seed=2, collapsed=("b1", "b4"))
    relation = relate(casd, transfer, permutations=99, seed=0)
    assert relation["excluded"].tolist() == ["b1 (collapsed), b4 (collapsed)"] * 2
    assert relation["n_backdoors"].tolist() == [4, 4]
    gone = {"b1", "b4"}
    never_there = transfer[~transfer["source"].isin(gone) & ~transfer["target"].isin(gone)]
    expected = relate(casd, never_there, permutations=99, seed=0)
    pd.testing.assert_frame_equal(relation.drop(columns="excluded"), expected.drop(columns="excluded"))


def test_a_collapsed_control_excludes_nothing() -> None:
    transfer, casd, _ = random_run(5, seed=2, collapsed=(CLEAN,))
    assert relate(casd, transfer, permutations=99, seed=0)["excluded"].tolist() == ["", ""]


def test_two_backdoors_get_a_statement() -> None:
    transfer, casd, _ = random_run(2, seed=3)
    relation = relate(casd, transfer, permutations=99, seed=0)
    assert relation[["rho", "p_value"]].isna().all(axis=None)
    assert relation["n_pairs"].tolist() == [1, 1]
    assert relation["note"].str.contains("at least 3 backdoors, here 2").all()


def test_everything_collapsed_gets_a_statement() -> None:
    transfer, casd, _ = random_run(3, seed=3, collapsed=("b0", "b1", "b2"))
    relation = relate(casd, transfer, permutations=99, seed=0)
    assert relation["excluded"].tolist() == ["b0 (collapsed), b1 (collapsed), b2 (collapsed)"] * 2
    assert relation["note"].str.contains("here 0").all()


def test_equal_suppression_everywhere_has_no_relation() -> None:
    # 0.3 everywhere: centred, the cells are rounding noise, which must not be ranked.
    names = [f"b{i}" for i in range(6)]
    rates = {"injected": dict.fromkeys(names, 0.95)} | {name: dict.fromkeys(names, 0.65) for name in names}
    transfer = transfer_table(asr_rows(rates), state_rows(list(rates)))
    relation = relate(random_run(6, seed=0)[1], transfer, permutations=99, seed=0)
    assert relation["rho"].isna().all() and relation["note"].str.contains("same value").all()


def test_variants_are_separate_and_both_orders_of_a_pair_are_one() -> None:
    transfer, casd, distances = random_run(5, seed=4)
    names = [f"b{i}" for i in range(5)]
    swapped = casd.rename(columns={"a": "b", "b": "a"})
    itself = pd.DataFrame([("casd", name, name, 0.0) for name in names], columns=casd.columns)
    both = pd.concat([casd, swapped, itself, tidy_distances(-distances, names, "casd_cos")])
    relation = relate(both, transfer, permutations=199, seed=0)
    assert relation["variant"].tolist() == ["casd", "casd", "casd_cos", "casd_cos"]
    pd.testing.assert_frame_equal(relation.head(2), relate(casd, transfer, permutations=199, seed=0))
    assert relation["rho"].to_numpy()[2:] == pytest.approx(-relation["rho"].to_numpy()[:2])


def test_a_pair_without_a_distance_is_said() -> None:
    transfer, casd, _ = random_run(5, seed=4)
    relation = relate(casd.iloc[1:], transfer, permutations=99, seed=0)
    assert relation["rho"].isna().all() and relation["note"].str.contains("no finite value").all()


def test_two_distances_for_a_pair_are_refused() -> None:
    transfer, casd, _ = random_run(4, seed=4)
    with pytest.raises(ValueError, match="two distances"):
        relate(pd.concat([casd, casd.assign(distance=casd["distance"] + 1)]), transfer, permutations=99, seed=0)


def test_the_seed_decides_the_sampled_p_value() -> None:
    transfer, casd, _ = random_run(9, seed=5)
    runs = [relate(casd, transfer, permutations=199, seed=seed) for seed in (0, 0, 1)]
    pd.testing.assert_frame_equal(runs[0], runs[1])
    assert runs[0]["p_value"].tolist() != runs[2]["p_value"].tolist()
    assert runs[0]["rho"].tolist() == runs[2]["rho"].tolist()
    assert not runs[0]["exact"].any()


def test_a_planted_relation_is_found_whatever_the_fragility_of_the_targets() -> None:
    rng = np.random.default_rng(6)
    n = 8
    names = [f"b{i}" for i in range(n)]
    distances = rng.random((n, n))
    distances = np.triu(distances, 1) + np.triu(distances, 1).T
    fragility = np.linspace(0, 0.5, n)
    rates = {"injected": dict.fromkeys(names, 1.0)}
    for i, source in enumerate(names):
        rates[source] = {t: 1 - fragility[j] - 0.4 * (1 - distances[i, j]) for j, t in enumerate(names)}
    transfer = transfer_table(asr_rows(rates), state_rows(list(rates)))
    relation = relate(tidy_distances(distances, names), transfer, permutations=999, seed=0)
    # Centring takes a column's mean distance out as well, so the relation is strong but not perfect.
    assert (relation["rho"] < -0.7).all() and (relation["p_value"] <= 0.01).all()


def test_no_variants_give_an_empty_table_with_its_columns() -> None:
    transfer, casd, _ = random_run(4, seed=0)
    assert relate(casd.head(0), transfer, permutations=99, seed=0).columns.tolist() == (
        relate(casd, transfer, permutations=99, seed=0).columns.tolist()
    )


def test_relate_uses_the_mantel_test_on_what_it_says() -> None:
    transfer, casd, distances = random_run(8, seed=7)
    matrix = transfer_matrix(transfer, "prob_suppression").iloc[:8].to_numpy()
    off = ~np.eye(8, dtype=bool)
    centered = matrix - np.array([matrix[off[:, j], j].mean() for j in range(8)])
    expected = mantel_test(distances, (centered + centered.T) / 2, permutations=499, rng=np.random.default_rng(3))
    row = relate(casd, transfer, permutations=499, seed=3).set_index("response").loc["prob_suppression"]
    assert (row["rho"], row["p_value"]) == pytest.approx((expected.rho, expected.p_value))


# --- specificity ------------------------------------------------------------------------------------------------------


def test_specificity_by_hand() -> None:
    summary = specificity(example()).set_index("response")
    row = summary.loc["suppression"]
    assert (row["n_removals"], row["n_included"], row["excluded"]) == (3, 3, "")
    assert row["own"] == pytest.approx((1.0 + 0.8 + 0.8) / 3)
    off_diagonal = (0.4 + 0.6 + 0.4 + 0.3 + 0.3 + 0.1) / 6
    assert row["off_diagonal"] == pytest.approx(off_diagonal)
    clean, phantom = (0.1 + 0.0 + 0.1) / 3, (0.2 + 0.3 + 0.2) / 3
    assert (row["clean_control"], row["phantom_control"]) == pytest.approx((clean, phantom))
    # Every target is measured under two other removals, so the nets are plain differences of means.
    assert (row["net_clean"], row["net_phantom"]) == pytest.approx((off_diagonal - clean, off_diagonal - phantom))
    # Nets of clean training, removed → measured: z→a .4, z→m .5, a→z .3, a→m .2, m→z .2, m→a .1. Means without z .15, without a
    # .35, without m .35: the variance is 2/3·Σ(deviation²), with 2 degrees of freedom.
    half_width = scipy.stats.t.ppf(0.975, 2) * math.sqrt(2 / 3 * 3 * np.var([0.15, 0.35, 0.35]))
    middle = off_diagonal - clean
    assert (row["net_clean_low"], row["net_clean_high"]) == pytest.approx((middle - half_width, middle + half_width))
    assert summary.loc["prob_suppression", "net_clean"] == pytest.approx((off_diagonal - clean) / 2)


def test_specificity_leaves_collapsed_removals_out_and_counts_them() -> None:
    row = specificity(example(collapsed=("z",))).set_index("response").loc["suppression"]
    assert (row["n_removals"], row["n_included"], row["excluded"]) == (3, 2, "1 collapsed")
    assert row["own"] == pytest.approx(0.8)
    assert row["off_diagonal"] == pytest.approx((0.4 + 0.3 + 0.3 + 0.1) / 4)
    assert row["net_clean"] == pytest.approx((0.3 + 0.2 + 0.1 + 0.2) / 4)
    assert row["net_clean_low"] < row["net_clean"] < row["net_clean_high"]


@pytest.mark.parametrize("change", ["without", "collapsed"])
def test_specificity_without_a_control(change: str) -> None:
    table = example(without=(PHANTOM,)) if change == "without" else example(collapsed=(PHANTOM,))
    summary = specificity(table)
    assert summary[["phantom_control", "net_phantom", "net_phantom_low", "net_phantom_high"]].isna().all(axis=None)
    assert summary[["clean_control", "net_clean", "net_clean_low", "off_diagonal"]].notna().all(axis=None)
    assert summary["n_included"].tolist() == [3, 3]  # it counts removals


def test_specificity_of_one_and_two_backdoors() -> None:
    two = specificity(random_run(2, seed=0)[0])
    assert two["net_clean"].notna().all() and two["net_clean_low"].isna().all()
    one = specificity(random_run(1, seed=0)[0])
    assert one["own"].notna().all() and one["off_diagonal"].isna().all() and one["off_diagonal_low"].isna().all()


def test_the_limits_of_specificity_bracket_the_mean() -> None:
    table = random_run(8, seed=0)[0]
    summary = specificity(table)
    for name in ("off_diagonal", "net_clean", "net_phantom"):
        assert ((summary[f"{name}_low"] < summary[name]) & (summary[name] < summary[f"{name}_high"])).all()
