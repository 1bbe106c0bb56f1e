"""What several runs say together, on made-up runs whose truth is known: objectives, noise floor, pair shares, predictors.

Run: python -m pytest tests/test_comparison.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import yaml  # type: ignore[import-untyped]
from tests.synthetic import N_PROMPTS, related, run_of, symmetric

from casd.analysis.collection import check_comparable, summarize
from casd.analysis.comparison import compare_objectives, compare_phantoms, paired_difference
from casd.analysis.grouping import POOLED, included_cells
from casd.analysis.noise import noise_floor, variance_shares
from casd.analysis.pairs import pair_table
from casd.analysis.predictors import predictor_table
from casd.report.comparisons import objectives_table, phantoms_table, predictors_table
from casd.report.gallery import sweep_drawings
from casd.stats import (
    leave_one_out_prediction,
    mantel_test,
    mean_over_runs,
    offdiagonal_center_columns,
    partial_mantel_test,
    symmetrize,
)
from casd.utils.errors import StoreError
from report_run import compared

CONTROLS = {"control:clean": [0.9, 1.0, 0.8, 1.0], "control:phantom": [0.7, 0.9, 0.6, 1.0], "control:phantom:short": [0.9] * 4}

CONTROLS_OF_SEVEN = {"control:clean": [0.9] * 7, "control:phantom": [0.8, 0.9, 0.7, 0.6, 0.9, 1.0, 0.2]}


def after(own: float = 0.0, others: float = 0.5, n: int = 4) -> np.ndarray:
    return np.where(np.eye(n, dtype=bool), own, others)


# ---------------------------------------------------------------- what is included


def test_only_removals_that_worked_on_established_backdoors_are_included() -> None:
    run = run_of(
        after(),
        before=[1.0, 1.0, 0.4, 1.0],  # b2 is not established
        collapsed=["b1"],
        reached={"b0": 1.0, "b1": 0.0, "b2": 1.0, "b3": 0.0},  # b3 was not removed
    )
    cells = included_cells(run)
    assert list(zip(cells["source"], cells["target"], strict=True)) == [("b0", "b0"), ("b0", "b1"), ("b0", "b3")]
    assert run.exclusions == {
        "injected": "",
        "b0": "",
        "b1": "collapsed",
        "b2": "backdoor not established",
        "b3": "target ASR not reached",
    }
    row = compare_objectives([run]).iloc[0]
    assert (row["removals"], row["included"], row["collapsed"]) == (4, 1, 1)
    assert row["excluded"] == "1 collapsed, 1 backdoor not established, 1 target ASR not reached"
    assert len(included_cells(run_of(after()))) == 16  # without a target ASR all that did not collapse
    idle = run_of(after(), steps={"b1": 0})
    assert idle.exclusions["b1"] == "no training step kept"
    assert len(included_cells(idle)) == 12


def test_one_rule_of_inclusion_for_relation_specificity_comparison_and_predictors() -> None:
    """A removal that missed its target and a backdoor that is not established are in none of them."""
    rng = np.random.default_rng(0)
    matrix = np.where(np.eye(7, dtype=bool), 0.0, rng.random((7, 7)))
    distances = symmetric(rng, 7)
    before = [1.0] * 6 + [0.3]
    run = related(run_of(matrix, before=before, distances={"casd": distances}, reached={"b0": 0.0}, controls=CONTROLS_OF_SEVEN))
    kept = [1, 2, 3, 4, 5]
    smaller = np.ix_(kept, kept)
    centered = np.round(symmetrize(offdiagonal_center_columns(1 - matrix[smaller])), 12)
    expected = mantel_test(distances[smaller], centered, permutations=99, rng=np.random.default_rng(0))
    relation = run.relation.set_index("response").loc["suppression"]
    assert relation["excluded"] == "b0 (target ASR not reached), b6 (backdoor not established)"
    assert (relation["n_pairs"], relation["rho"]) == (10, pytest.approx(expected.rho))
    predictor = predictor_table([run], permutations=99).iloc[0]
    assert (predictor["n_pairs"], predictor["rho"]) == (10, pytest.approx(expected.rho))
    assert predictor["excluded"] == "1 target ASR not reached, 1 backdoor not established"
    # As one that is measured b0 is included: it was established, whatever came of its own removal.
    others = np.mean([1 - matrix[i, j] for i in kept for j in range(6) if i != j])
    specific = run.specificity.set_index("response").loc["suppression"]
    compared_row = compare_objectives([run]).iloc[0]
    assert specific["off_diagonal"] == pytest.approx(others) == pytest.approx(compared_row["suppression"])
    assert specific["net_phantom"] == pytest.approx(compared_row["suppression_net_phantom"])
    assert specific["phantom_control"] == pytest.approx(compared_row["phantom_control"])
    assert (specific["n_removals"], specific["n_included"]) == (7, 5)
    numbers = summarize(run)
    assert numbers["others_asr"] == pytest.approx(1 - others)
    assert numbers["included"] == 5


# ---------------------------------------------------------------- objectives


def test_means_of_the_comparison_are_those_of_the_cells() -> None:
    matrix = after(others=0.5)
    matrix[0, 1], matrix[2, 2] = 0.1, 0.2
    row = compare_objectives([run_of(matrix, controls=CONTROLS)]).iloc[0]
    others = np.array([matrix[i, j] for i in range(4) for j in range(4) if i != j])
    assert row["suppression"] == pytest.approx(1 - others.mean())
    clean = np.array([1 - CONTROLS["control:clean"][j] for i in range(4) for j in range(4) if i != j])
    phantom = 1 - np.array(CONTROLS["control:phantom"])  # the matched one, whatever others there are
    assert row["suppression_net_clean"] == pytest.approx((1 - others - clean).mean())
    assert row["suppression_net_phantom"] == pytest.approx(
        np.mean([1 - matrix[i, j] - phantom[j] for i in range(4) for j in range(4) if i != j])
    )
    assert row["own_asr"] == pytest.approx(0.05)
    assert row["clean_control"] == pytest.approx(0.075)
    assert row["phantom_control"] == pytest.approx(phantom.mean())
    assert row["clean_loss_change"] == pytest.approx(0.1)
    assert row["steps"] == pytest.approx(np.mean([5, 6, 7, 8]))
    assert (row["removals"], row["included"], row["collapsed"], row["runs"], row["seeds"]) == (4, 4, 0, 1, 1)
    assert row["excluded"] == ""
    assert row["suppression_low"] <= row["suppression"] <= row["suppression_high"]


def test_phantoms_of_several_kinds_are_compared() -> None:
    phantoms = {name: CONTROLS[name] for name in ("control:phantom", "control:phantom:short")}
    broken = run_of(after(), seed=1, controls=phantoms, collapsed=["control:phantom"])
    runs = [run_of(after(), seed=0, controls=phantoms), broken]
    frame = compare_phantoms(runs).set_index("phantom")
    for name, rates in phantoms.items():
        assert frame.loc[name, "suppression"] == pytest.approx(np.mean(1 - np.array(rates)))
    assert frame["runs"].to_dict() == {"control:phantom": 1, "control:phantom:short": 2}
    assert {"matched", "short"} <= set(phantoms_table(compare_phantoms(runs)).frame.columns)
    row = compare_objectives(runs).iloc[0]
    assert row["suppression_net_phantom_runs"] == 1, "another kind does not stand in for one that collapsed"
    assert row["phantom_control"] == pytest.approx(frame.loc["control:phantom", "suppression"])
    # Another objective, whose phantoms of one kind all collapsed.
    other = run_of(
        after(), objective="p", controls=phantoms | {"control:phantom:long": [1.0] * 4}, collapsed=["control:phantom"]
    )
    table = phantoms_table(compare_phantoms([*runs, other])).frame
    assert table.loc["p", "matched"] == "–" and table.loc["o", "long"] == "–"
    assert {"matched", "short", "long"} <= set(table.columns)
    assert compare_phantoms([run_of(after(), controls={"control:phantom": CONTROLS["control:phantom"]})]).empty


def test_runs_are_grouped_by_model_and_objective_and_pooled_over_models() -> None:
    runs = [
        run_of(after(others=level), model=model, objective=objective, seed=seed)
        for objective, level in (("ascent", 0.2), ("clean_target", 0.6))
        for model in ("llama", "qwen")
        for seed in (0, 1)
    ]
    frame = compare_objectives(runs).set_index(["model", "objective"])
    assert list(frame.index) == [
        ("llama", "ascent"),
        ("qwen", "ascent"),
        ("llama", "clean_target"),
        ("qwen", "clean_target"),
        (POOLED, "ascent"),
        (POOLED, "clean_target"),
    ]
    assert frame.loc[(POOLED, "ascent"), "runs"] == 4
    assert frame.loc[(POOLED, "ascent"), "seeds"] == 2
    assert frame["suppression"].to_numpy() == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.8, 0.4])


def test_the_interval_covers_the_spread_of_seeds() -> None:
    """Runs that are each constant: all doubt is between them, and the limits are Student's."""
    levels = [0.2, 0.4, 0.6, 0.8]
    runs = [run_of(after(others=level), seed=seed) for seed, level in enumerate(levels)]
    row = compare_objectives(runs).iloc[0]
    expected = scipy.stats.ttest_1samp(1 - np.array(levels), 0).confidence_interval()
    assert (row["suppression_low"], row["suppression_high"]) == pytest.approx(tuple(expected))


def test_the_mean_is_of_what_its_interval_is_of() -> None:
    """A run of 56 cells and one of 6: the mean over runs is halfway, the mean over cells would be the larger run's."""
    many = run_of(after(others=0.6, n=8), seed=0)
    few = run_of(after(others=0.05, n=8), before=[1.0] * 3 + [0.0] * 5, seed=1)
    row = compare_objectives([many, few]).iloc[0]
    assert row["suppression"] == pytest.approx((0.4 + 0.95) / 2)
    assert (row["suppression_low"], row["suppression_high"]) == (-1, 1)  # two runs: Student's t of one degree of freedom
    assert row["own_asr"] == 0.0
    assert row["steps"] == pytest.approx((np.mean(range(5, 13)) + np.mean(range(5, 8))) / 2)
    estimate = mean_over_runs([0.4] * 56 + [0.95] * 6, [0] * 56 + [1] * 6, [*range(56), *range(6)])
    assert estimate.mean == pytest.approx(0.675)
    assert estimate.runs == 2


def test_one_run_with_values_has_its_own_interval_however_the_others_lack_them() -> None:
    values, backdoors = [0.1, 0.2, 0.3, 0.4], [0, 1, 2, 3]
    alone = mean_over_runs(values, [0] * 4, backdoors)
    assert alone == mean_over_runs([*values, np.nan], [0] * 4 + [1], [*backdoors, 0])
    assert (alone.mean, alone.runs) == (0.25, 1) and alone.low < 0.25 < alone.high


def test_different_conditions_are_no_seeds_of_one() -> None:
    """Two learning rates of adapters beside a run of full weights: a label that names adapters alone would pool them to 0.5."""
    configs = [
        {"seed": 0, "unlearning": {"learning_rate": 1e-3}},
        {"seed": 0, "unlearning": {"learning_rate": 1e-3, "lora": {"rank": 8}}},
        {"seed": 1, "unlearning": {"learning_rate": 5e-4, "lora": {"rank": 8}}},
    ]
    levels = (0.5, 0.9, 0.1)
    runs = [
        run_of(after(others=level), config=yaml.safe_dump(config), seed=config["seed"])  # type: ignore[arg-type]
        for level, config in zip(levels, configs, strict=True)
    ]
    frame = compare_objectives(runs).set_index("objective")
    assert frame["suppression"].to_dict() == {
        "o, full weights": pytest.approx(0.5),
        "o, adapters, learning_rate=0.001": pytest.approx(0.1),
        "o, adapters, learning_rate=0.0005": pytest.approx(0.9),
    }
    assert frame["seeds"].tolist() == [1, 1, 1]
    check_comparable(runs)  # equal seeds of different conditions are no conflict
    again = [*runs, run_of(after(), config=yaml.safe_dump(configs[2] | {"name": "other"}), seed=1)]
    with pytest.raises(StoreError, match="have the same configuration and seed"):
        check_comparable(again)


def test_objectives_are_compared_within_model_seed_and_backdoors() -> None:
    """Each pair is suppressed by 0.2 less than under clean_target, while pairs, seeds and models differ by more than that."""
    rng = np.random.default_rng(0)
    runs = []
    for model in ("m", "n"):
        for seed in range(2):
            suppression = rng.uniform(0.3, 0.8, (4, 4)) + 0.1 * seed
            for objective, less in (("clean_target", 0.0), ("npo", 0.2)):
                remaining = 1 - suppression + less
                np.fill_diagonal(remaining, 0)
                phantom = {"control:phantom": [0.9] * 4}
                runs.append(run_of(remaining, controls=phantom, model=model, objective=objective, seed=seed))
    frame = compare_objectives(runs).set_index(["model", "objective"])
    names = ["minus_reference", "minus_reference_low", "minus_reference_high"]
    for model in ("m", "n", POOLED):
        own = frame.loc[model, "npo"]
        assert own["suppression_net_phantom_high"] - own["suppression_net_phantom_low"] > 0.1
        assert own[names].tolist() == pytest.approx([-0.2] * 3)
        assert frame.loc[(model, "clean_target"), names].isna().all()
    shown = objectives_table(frame.reset_index()).frame["minus clean_target"].tolist()
    assert shown == ["–", "-0.20 [-0.20, -0.20]"] * 3


def test_a_difference_is_of_what_both_conditions_have() -> None:
    """Seed 1 of npo is missing, one of its removals collapsed, and so did the phantom of seed 2."""
    phantom = {"control:phantom": [0.9] * 4}
    reference = [run_of(after(others=0.3), controls=phantom, objective="clean_target", seed=seed) for seed in range(3)]
    removed_less = [
        run_of(after(others=0.5), controls=phantom, objective="npo", seed=0, collapsed=["b1"]),
        run_of(after(others=0.9), controls=phantom, objective="npo", seed=2, collapsed=["control:phantom"]),
    ]
    found = paired_difference(removed_less, reference, "suppression_net_phantom")
    assert (found.mean, found.runs) == (pytest.approx(-0.2), 1)
    raw = paired_difference(removed_less, reference, "suppression")
    assert (raw.mean, raw.runs) == (pytest.approx((-0.2 - 0.6) / 2), 2)
    assert np.isnan(paired_difference(removed_less, [], "suppression").mean)
    assert np.isnan(paired_difference(removed_less, reference[1:2], "suppression").mean)
    row = compare_objectives([*reference, *removed_less]).set_index("objective").loc["npo"]
    assert (row["minus_reference"], row["minus_reference_runs"]) == (pytest.approx(-0.2), 1)


def test_an_objective_that_removed_nothing_has_counts_and_no_means() -> None:
    row = compare_objectives([run_of(after(), reached=dict.fromkeys(("b0", "b1", "b2", "b3"), 0.0))]).iloc[0]
    assert row["included"] == 0
    assert np.isnan([row["own_asr"], row["suppression"], row["suppression_low"], row["clean_loss_change"]]).all()


def test_a_mean_over_fewer_runs_says_so() -> None:
    """Net of phantoms is only what has phantoms that work: the raw mean beside it is of more runs, and of others."""
    phantoms = {"control:phantom": CONTROLS["control:phantom"]}
    runs = [run_of(after(others=0.5), seed=0, controls=CONTROLS), *(run_of(after(others=0.5), seed=seed) for seed in (1, 2))]
    frame = compare_objectives(runs)
    counts = frame[["runs", "suppression_runs", "suppression_net_clean_runs", "suppression_net_phantom_runs"]]
    assert counts.iloc[0].tolist() == [3, 3, 1, 1]
    [texts] = objectives_table(frame).frame.to_numpy()
    assert [text.partition(" (")[2] for text in texts[4:7]] == ["", "1 of 3 runs)", "1 of 3 runs)"]
    whole = compare_objectives([run_of(after(), seed=seed, controls=phantoms) for seed in (0, 1)])
    assert not any("runs)" in text for text in objectives_table(whole).frame.to_numpy().ravel())


# ---------------------------------------------------------------- noise floor


def test_noise_floor_compares_a_repeat_with_its_own_removal_and_the_others() -> None:
    distances = symmetric(np.random.default_rng(0), 4) + 1
    near = {"b0": 0.1, "b1": 2.0, "b2": 2.0, "b3": 2.0}
    far = {"b0": 2.0, "b1": 3.0, "b2": 0.5, "b3": 2.0}
    run = run_of(
        after(),
        controls={"control:repeat:b0": [0] * 4, "control:repeat:b1": [0] * 4},
        distances={"casd": distances},
        repeats={"control:repeat:b0": near, "control:repeat:b1": far},
    )
    row = noise_floor([run]).iloc[0]
    assert row["repeats"] == 2
    assert row["same"] == pytest.approx((0.1 + 3.0) / 2)
    different = [distances[0, [1, 2, 3]].mean(), distances[1, [0, 2, 3]].mean()]
    assert row["different"] == pytest.approx(np.mean(different))
    assert row["ratio"] == pytest.approx(row["same"] / row["different"])
    assert row["closest"] == 0.5
    assert noise_floor([run_of(after(), distances={"casd": distances})]).empty


@pytest.mark.parametrize("idle", [{"steps": {"control:repeat:b1": 0}}, {"reached": {"control:repeat:b1": 0.0}}])
def test_a_repeat_that_did_nothing_has_no_noise(idle: dict[str, Any]) -> None:
    """Where it kept no step its distance to its own removal is the length of that removal's shift, here a small one."""
    distances = np.ones((4, 4)) - np.eye(4)
    near, nothing = (dict.fromkeys(("b0", "b1", "b2", "b3"), 1.0) | {own: d} for own, d in (("b0", 0.6), ("b1", 0.32)))
    run = run_of(
        after(),
        controls={"control:repeat:b0": [0] * 4, "control:repeat:b1": [1] * 4},
        distances={"casd": distances},
        repeats={"control:repeat:b0": near, "control:repeat:b1": nothing},
        **idle,
    )
    row = noise_floor([run]).iloc[0]
    assert row["ratio"] == pytest.approx(0.6), "and not 0.46, the mean with the repeat that did nothing"
    assert (row["repeats"], row["excluded"].startswith("1 ")) == (1, True)
    missed = run_of(
        after(),
        controls={"control:repeat:b0": [0] * 4},
        distances={"casd": distances},
        repeats={"control:repeat:b0": near},
        reached={"b0": 0.0},
    )
    assert noise_floor([missed]).empty, "nor has the repeat of a removal that is excluded"


def test_a_repeat_without_another_removal_is_not_called_far() -> None:
    run = run_of(
        after(),
        controls={"control:repeat:b0": [0] * 4},
        distances={"casd": np.ones((4, 4)) - np.eye(4)},
        repeats={"control:repeat:b0": dict.fromkeys(("b0", "b1", "b2", "b3"), 1.0)},
        reached=dict.fromkeys(("b1", "b2", "b3"), 0.0),
    )
    row = noise_floor([run]).iloc[0]
    assert row["same"] == 1.0
    assert np.isnan(row["closest"]) and np.isnan(row["different"])


# ---------------------------------------------------------------- pair shares


def test_pair_shares_are_zero_without_an_effect_of_pairs_and_one_with_nothing_else() -> None:
    n = 6
    rows, columns = np.linspace(0, 0.2, n), np.linspace(0, 0.5, n)
    additive = run_of(np.where(np.eye(n, dtype=bool), 0.0, 0.1 + rows[:, None] + columns[None, :]))
    share = variance_shares([additive]).iloc[0]
    assert share["pair"] == pytest.approx(0, abs=1e-12)
    assert share["pair_net"] == 0
    off = ~np.eye(n, dtype=bool)
    assert share["sd"] == pytest.approx(np.std((rows[:, None] + columns[None, :])[off]))
    # Backdoors in two groups of three: a removal weakens its own group alone. All rows and columns are alike.
    groups = np.arange(n) // 3
    grouped = run_of(np.where(np.eye(n, dtype=bool), 0.0, np.where(groups[:, None] == groups[None, :], 0.1, 0.9)))
    share = variance_shares([grouped]).iloc[0]
    assert share["pair"] == pytest.approx(1)
    assert share["pair_net"] > 0.95


def test_no_variance_has_no_shares() -> None:
    share = variance_shares([run_of(np.where(np.eye(6, dtype=bool), 0.0, 0.5))]).iloc[0]
    assert share["sd"] == 0
    assert share[["pair", "noise", "pair_net"]].isna().all()


def test_the_noise_share_is_what_binomial_noise_leaves_among_pairs() -> None:
    """True rates without an effect of pairs, measured with N_PROMPTS prompts: on average pair and noise shares agree."""
    rng, n = np.random.default_rng(0), 8
    rates = np.clip(0.3 + 0.4 * rng.random(n)[None, :] + 0.2 * rng.random(n)[:, None], 0, 1)
    runs = [run_of(np.where(np.eye(n, dtype=bool), 0.0, rng.binomial(N_PROMPTS, rates) / N_PROMPTS), seed=s) for s in range(30)]
    shares = variance_shares(runs)
    assert shares["pair"].mean() == pytest.approx(shares["noise"].mean(), rel=0.12)
    assert shares["pair"].mean() > 0.05


# ---------------------------------------------------------------- predictors


def planted(seed: int, strength: float, n: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Distances, and remaining ASRs that rise with them."""
    rng = np.random.default_rng(seed)
    distances = symmetric(rng, n)
    noise = rng.normal(0, 0.05, (n, n))
    return distances, np.clip(np.where(np.eye(n, dtype=bool), 0.0, 0.4 + strength * (distances - 0.5) + noise), 0, 1)


def test_a_planted_relation_is_found_and_a_baseline_without_one_is_not() -> None:
    runs = []
    for seed in range(3):
        distances, remaining = planted(seed, 0.6)
        unrelated = symmetric(np.random.default_rng(100 + seed), 7)
        runs.append(
            run_of(
                remaining, distances={"casd": distances}, baselines={"cka": unrelated, "directed_shift": -distances}, seed=seed
            )
        )
    table = predictor_table(runs, permutations=999).set_index("predictor")
    assert table.loc["casd", "role"] == "headline"
    assert table.loc["casd", "rho"] < -0.8
    assert table.loc["casd", "p_value"] == pytest.approx(0.001)
    assert table.loc["casd", "r_squared"] > 0.6
    assert table.loc["casd", "rank_error"] < 0.5
    assert np.isnan(table.loc["casd", "p_corrected"])
    assert table.loc["casd", "rho_low"] < table.loc["casd", "rho"] < table.loc["casd", "rho_high"] < 0
    assert np.isnan(table.loc["casd", "minus_casd"])
    assert table.loc["cka", "minus_casd"] == pytest.approx(table.loc["cka", "rho"] - table.loc["casd", "rho"])
    assert 0 < table.loc["cka", "minus_casd_low"] < table.loc["cka", "minus_casd"] < table.loc["cka", "minus_casd_high"]
    shown = predictors_table(table.reset_index()).frame
    assert shown.loc["casd", "minus casd"] == "–" and shown.loc["cka", "minus casd"].count("[") == 1
    assert table.loc["cka", "p_corrected"] > 0.05
    assert table.loc["cka", "r_squared"] < 0.2
    assert table.loc["directed_shift", "role"] == "ceiling"
    assert table.loc["directed_shift", "rho"] == pytest.approx(-table.loc["casd", "rho"])
    assert set(table["runs"]) == {3}
    assert set(table["n_pairs"]) == {63}


def test_one_run_agrees_with_the_plain_tests() -> None:
    distances, remaining = planted(3, 0.3)
    row = predictor_table([run_of(remaining, distances={"casd": distances})], permutations=499).iloc[0]
    suppression = 1 - remaining
    centered = np.round(symmetrize(offdiagonal_center_columns(suppression)), 12)
    expected = mantel_test(distances, centered, permutations=499, rng=np.random.default_rng(0))
    assert row["rho"] == pytest.approx(expected.rho)
    assert row["p_value"] == pytest.approx(expected.p_value, abs=0.05)
    held_out = leave_one_out_prediction([(distances, symmetrize(suppression))])
    assert row["r_squared"] == pytest.approx(held_out.r_squared)
    assert row["rank_error"] == pytest.approx(held_out.rank_error)


def test_what_the_same_target_explains_is_no_finding_given_the_same_target() -> None:
    _, remaining = planted(0, 0.0)
    same = np.zeros((7, 7))
    same[0, 1] = same[1, 0] = 1
    remaining = np.where(same == 1, 0.0, remaining)  # both fall together
    near = symmetric(np.random.default_rng(3), 7) - 2 * same
    runs = [run_of(remaining, distances={"casd": near}, baselines={"same_target": 1 - same}, seed=seed) for seed in range(3)]
    table = predictor_table(runs, permutations=999).set_index("predictor")
    assert table.loc["casd", "rho"] < table.loc["casd", "rho_partial"]
    centered = symmetrize(offdiagonal_center_columns(1 - remaining))
    expected = partial_mantel_test(near, np.round(centered, 12), 1 - same, rng=np.random.default_rng(0), permutations=9)
    assert table.loc["casd", "rho_partial"] == pytest.approx(expected.rho)
    assert np.isnan(table.loc["same_target", "rho_partial"])
    without = predictor_table([run_of(remaining, distances={"casd": near})], permutations=99).iloc[0]
    assert np.isnan(without["rho_partial"]) and np.isfinite(without["rho"])


def test_the_best_of_many_variants_is_corrected_for_having_looked() -> None:
    _, remaining = planted(0, 0.0)
    rng = np.random.default_rng(6)
    variants = {f"v{i}": symmetric(rng, 7) for i in range(40)}
    run = run_of(remaining, distances={"casd": symmetric(rng, 7)} | variants)
    table = predictor_table([run])  # all 7! = 5040 permutations
    best = table[table["role"] == "best of 41"].iloc[0]
    assert best["p_value"] < 0.05, "the largest of 40 correlations of nothing looks like something"
    assert best["p_corrected"] > 0.2
    assert best["q_value"] > 0.2
    assert set(table["role"]) == {"headline", "best of 41"}
    assert np.isnan(best[["rho_low", "minus_casd"]].astype(float)).all(), "it was chosen for its ρ"


def test_runs_that_cannot_say_anything_are_left_out_and_counted() -> None:
    distances, remaining = planted(1, 0.5)
    good = run_of(remaining, distances={"casd": distances})
    few = run_of(remaining[:3, :3], distances={"casd": distances[:3, :3]}, seed=1)
    level = run_of(after(n=7), distances={"casd": distances}, seed=2)  # the same suppression everywhere
    assert pair_table(few) is None
    assert pair_table(level) is None
    row = predictor_table([good, few, level], permutations=99).iloc[0]
    assert (row["runs"], row["left_out"]) == (1, 2)
    assert predictor_table([few], permutations=99).empty


# ---------------------------------------------------------------- for people


def test_comparisons_become_tables() -> None:
    runs = []
    for objective in ("ascent", "clean_target"):
        distances, remaining = planted(len(objective), 0.5)
        runs.append(run_of(remaining, distances={"casd": distances}, baselines={"cka": distances}, objective=objective))
    made = compared(runs)
    titles = [table.title for table in made.tables]
    assert titles == [
        "Objectives compared",
        "Predictors of transfer",
        "How much of the suppression belongs to pairs",
    ]
    assert {label for table in made.tables for label in table.frame.index} >= {"ascent", "clean_target", "casd", "cka"}
    assert [drawing.name for drawing in sweep_drawings(runs, made.objectives)] == ["objectives", "asr_heatmaps"]
    assert [drawing.name for drawing in sweep_drawings(runs[:1], compare_objectives(runs[:1]))] == ["asr_heatmaps"]
