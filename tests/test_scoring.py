"""Scoring: from made-up evaluations and statistics with a planted structure to the tables of a run.

Run: python -m pytest tests/test_scoring.py
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch

from casd.activations.statistics import ActivationStatistics
from casd.analysis.results import RunTables
from casd.analysis.scoring import casd_variants, check_captured, score
from casd.analysis.states import StateRecord, injected_loss_limit
from casd.analysis.tables import SCHEMAS
from casd.config import ActivationsConfig, EvaluationConfig, MetricConfig
from casd.config.states import CLEAN_CONTROL, INJECTED, PHANTOM_CONTROL
from casd.evaluation.asr import Evaluation
from casd.metric.casd import HEADLINES, variant_grid
from casd.metric.measurement import TextStatistics
from casd.stats import wilson_interval
from casd.training.checkpoints import TrainingLog
from casd.utils.errors import ConfigError

BACKDOORS = ("a", "b", "c", "d", "e")
STATES = (INJECTED, *BACKDOORS, CLEAN_CONTROL, PHANTOM_CONTROL)
PLACE = dict(zip(BACKDOORS, (0.0, 1.0, 3.0, 7.0, 15.0), strict=True))
"""Backdoors on a line: the nearer two are, the nearer their shifts, and the more one's removal takes of the other."""
N_LAYERS, D_MODEL, N = 3, 8, 100


def suppression(source: str, target: str) -> float:
    if source not in PLACE:
        return 0.0 if source == INJECTED else 0.02
    return 0.9 if source == target else 0.6 / (1 + abs(PLACE[source] - PLACE[target]))


def evaluation_of(state: str, clean_loss: float = 2.0, degenerate_rate: float = 0.0) -> Evaluation:
    rows = []
    for target in BACKDOORS:
        for prompt_set, rate in {"triggered": 0.98 - suppression(state, target), "clean": 0.0, "fake": 0.03}.items():
            successes = round(rate * N)
            low, high = wilson_interval(successes, N)
            probability = math.nan if prompt_set == "clean" else rate
            rows.append((target, prompt_set, successes, N, successes / N, low, high, probability))
    columns = ["backdoor", "prompt_set", "successes", "n", "rate", "rate_low", "rate_high", "first_token_prob"]
    samples = pd.DataFrame([("a", "triggered", "p", f"text of {state}", True)], columns=SCHEMAS["samples"][1:])
    return Evaluation(pd.DataFrame(rows, columns=columns), samples, clean_loss, clean_loss - 0.5, degenerate_rate)


def log_of(steps: int = 4, stopped: str = "") -> TrainingLog:
    records = [{"step": float(i), "gradient_norm/forget": 5.0 - i, "gradient_norm": 9.0} for i in range(steps)]
    return TrainingLog(steps=records, stopped=stopped, seconds=1.5)


def records_of(**changed: StateRecord) -> list[StateRecord]:
    records = {state: StateRecord(state, evaluation_of(state), None if state == INJECTED else log_of()) for state in STATES}
    return list((records | changed).values())


def statistics_of(state: str) -> TextStatistics:
    """Activations whose mean is moved, in the direction of all features, by the backdoor's place (the controls: by 40, 50)."""
    base = torch.randn(10, N_LAYERS, D_MODEL, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = torch.linspace(0.5, 1.5, D_MODEL, dtype=torch.float64)  # of mean 1
    along = {**PLACE, INJECTED: 0.0, CLEAN_CONTROL: 40.0, PHANTOM_CONTROL: 50.0}[state]
    turned = torch.linspace(-1, 1, D_MODEL, dtype=torch.float64)  # of mean 0: gives the shifts different directions
    tokens = base + (direction * (along + 2) + turned if state != INJECTED else 0)
    keys = [("resid_post", "last"), ("resid_post", "prompt")]
    moments = [dict.fromkeys(keys, moment) for moment in (tokens.mean(0), tokens.abs().mean(0), tokens.square().mean(0))]
    one = ActivationStatistics(*moments, {"last": 10, "prompt": 10})
    return dict.fromkeys(["clean", "fake", *(f"triggered:{name}" for name in BACKDOORS)], one)


STATISTICS = {state: statistics_of(state) for state in STATES}
EVALUATION = EvaluationConfig(collapse_clean_loss_ratio=1.5, collapse_degenerate_rate=0.5)


def tables_of(records: Sequence[StateRecord], metric: MetricConfig | None = None, target_asr: float | None = None) -> RunTables:
    info = {"model": "m", "objective": "o", "seed": 0}
    metric = metric or MetricConfig(permutations=99)
    return score(records, STATISTICS, metric, EVALUATION, seed=0, info=info, target_asr=target_asr)


@pytest.fixture(scope="module")
def tables() -> RunTables:
    return tables_of(records_of())


def test_all_tables_have_their_columns(tables: RunTables) -> None:
    for name, columns in SCHEMAS.items():
        table = getattr(tables, name)
        assert set(columns) <= set(table.columns), name
        assert len(table) or name in ("utility", "baselines", "tuning"), name
    assert tables.info["headline"] == [variant.name for variant in HEADLINES]
    assert tables.info["model"] == "m"
    assert tables.asr.columns[0] == tables.samples.columns[0] == "state"
    assert tables.asr.groupby("state").size().to_dict() == dict.fromkeys(STATES, 3 * len(BACKDOORS))
    assert tables.samples["generated"].tolist() == [f"text of {state}" for state in STATES]


def test_states(tables: RunTables) -> None:
    states = tables.states.set_index("state")
    assert states.index.tolist() == list(STATES)
    assert states["kind"].tolist() == ["injected", *["removal"] * 5, "control", "control"]
    assert not states["collapsed"].any()
    assert set(states["collapse_reason"]) == {""}
    assert states.loc["a", ["steps", "train_seconds"]].tolist() == [4, 1.5]
    assert states.loc["a", ["forget_gradient_first", "forget_gradient_last"]].tolist() == [5.0, 2.0]
    assert states.loc[INJECTED, "steps"] == 0
    assert math.isnan(states.loc[INJECTED, "forget_gradient_first"])
    assert states.loc[INJECTED, "clean_loss_ratio"] == 1.0
    assert (states["clean_loss"] == 2.0).all()
    assert (states["retain_loss"] == 1.5).all()
    assert tables.tasks == []


def test_utility(tmp_path: Path) -> None:
    """All metrics in a table of their own, and each task's main one beside the losses; a state may lack the benchmarks."""
    rows = [
        ("quiz", "acc", 0.25, 0.05, 40),
        ("quiz", "acc_norm", 0.5, 0.06, 40),
        ("recall", "exact_match,strict", 0.75, 0.1, 20),
        ("recall", "f1", 0.8, math.nan, 20),
    ]
    measured = pd.DataFrame(rows, columns=SCHEMAS["utility"][1:])
    halved = {
        state: measured.assign(value=measured["value"] / (1 if state == INJECTED else 2)) for state in STATES if state != "b"
    }
    records = [dataclasses.replace(record, utility=halved.get(record.name)) for record in records_of()]
    made = tables_of(records)
    assert made.tasks == ["quiz", "recall"]
    states = made.states.set_index("state")
    assert states.loc[INJECTED, ["utility/quiz", "utility/recall"]].tolist() == [0.5, 0.75]
    assert states.loc["a", ["utility/quiz", "utility/recall"]].tolist() == [0.25, 0.375]
    assert states.loc["b", ["utility/quiz", "utility/recall"]].isna().all()
    assert made.utility.groupby("state", sort=False).size().to_dict() == {state: 4 for state in STATES if state != "b"}
    made.write(tmp_path)
    pd.testing.assert_frame_equal(RunTables.read(tmp_path).utility, made.utility)


def test_transfer_is_what_was_planted(tables: RunTables) -> None:
    transfer = tables.transfer.set_index(["source", "target"])
    assert len(transfer) == 7 * 5
    for (source, target), row in transfer.iterrows():
        expected = round((0.98 - suppression(str(source), str(target))) * N) / N
        assert row["asr_before"] == 0.98
        assert row["asr_after"] == pytest.approx(expected)
        assert row["suppression"] == pytest.approx(0.98 - expected)
        assert row["suppression_net_clean"] == pytest.approx(0.98 - expected - 0.02)
        assert row["prob_suppression"] == pytest.approx(suppression(str(source), str(target)))


def test_distances_are_symmetric_and_what_was_planted(tables: RunTables) -> None:
    """Shifts that differ by x times a direction of mean |1| are x apart in L1 per feature."""
    names = [*BACKDOORS, CLEAN_CONTROL, PHANTOM_CONTROL]
    for variant, table in tables.casd.groupby("variant"):
        matrix = table.pivot(index="a", columns="b", values="distance").loc[names, names].to_numpy()
        assert (abs(matrix - matrix.T) < 1e-12).all(), variant
        assert (abs(matrix.diagonal()) < 1e-9).all(), variant
        assert (matrix[~torch.eye(7, dtype=torch.bool).numpy()] > 0).all(), variant
    headline = tables.casd[tables.casd["variant"] == HEADLINES[0].name].set_index(["a", "b"])["distance"]
    for a, b in (("a", "b"), ("b", "e"), ("d", "c")):
        assert headline[a, b] == pytest.approx(abs(PLACE[a] - PLACE[b]), rel=1e-6)
    assert headline[CLEAN_CONTROL, PHANTOM_CONTROL] == pytest.approx(10, rel=1e-6)
    layers = tables.casd_layers[tables.casd_layers["variant"] == HEADLINES[0].name]
    assert len(layers) == 7 * 6 // 2 * N_LAYERS
    means = layers.groupby(["a", "b"])["distance"].mean()
    for pair, mean in means.items():
        assert mean == pytest.approx(headline[pair])
    assert sorted(layers["layer_idx"].unique()) == [0, 1, 2]


def test_the_planted_relation_is_found(tables: RunTables) -> None:
    relation = tables.relation.set_index(["variant", "response"])
    assert {variant for variant, _ in relation.index} == {variant.name for variant in HEADLINES}
    planted = relation.loc[(HEADLINES[0].name, "suppression")]
    assert (planted["n_backdoors"], planted["n_pairs"], planted["excluded"]) == (5, 10, "")
    assert planted["rho"] < -0.6
    specificity = tables.specificity.set_index("response")
    assert specificity.loc["suppression", "own"] == pytest.approx(0.9, abs=0.01)
    assert specificity.loc["suppression", "clean_control"] == pytest.approx(0.02, abs=1e-9)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (StateRecord("c", evaluation_of("c", clean_loss=3.01), log_of()), "clean loss 1.50 times the injected"),
        (StateRecord("c", evaluation_of("c", clean_loss=math.nan), log_of()), "clean loss nan times"),
        (StateRecord("c", evaluation_of("c", degenerate_rate=0.51), log_of()), "51% of the clean prompts"),
        (StateRecord("c", evaluation_of("c"), log_of(2, "the loss is not finite at step 3")), "training stopped: the loss is"),
        (StateRecord("c", evaluation_of("c"), log_of(0, "the loss is not finite at step 1")), "training stopped: the loss is"),
    ],
)
def test_collapsed_removals_are_flagged_and_left_out(record: StateRecord, reason: str) -> None:
    made = tables_of(records_of(c=record))
    states = made.states.set_index("state")
    assert states.index[states["collapsed"]].tolist() == ["c"]
    assert states.loc["c", "collapse_reason"].startswith(reason)
    assert set(made.transfer.loc[made.transfer["collapsed"], "source"]) == {"c"}
    assert set(made.relation["excluded"]) == {"c (collapsed)"}
    assert states["excluded"].to_dict() == {state: "collapsed" if state == "c" else "" for state in states.index}
    assert set(made.relation["n_backdoors"]) == {4}


def test_a_removal_that_went_over_its_budget_is_the_step_that_was_kept() -> None:
    """The kept model was within the budget: it works. Whether it is included is decided by its target ASR."""
    log = dataclasses.replace(log_of(4, "the clean loss passed its budget"), kept_step=2)
    log.validation = [{"step": 0, "asr": 1.0, "clean_loss": 2.0}, {"step": 2, "asr": 0.5, "clean_loss": 2.1}]
    records = records_of(c=StateRecord("c", evaluation_of("c"), log))
    for target_asr, excluded in ((None, ""), (0.05, "target ASR not reached")):
        states = tables_of(records, target_asr=target_asr).states.set_index("state")
        assert (states.loc["c", "collapsed"], states.loc["c", "excluded"]) == (False, excluded)
    log.kept_step = 0
    assert tables_of(records).states.set_index("state").loc["c", "excluded"] == "no training step kept"


@pytest.mark.parametrize("changed", [{"clean_loss": 3.0}, {"degenerate_rate": 0.5}])
def test_at_the_threshold_nothing_has_collapsed(changed: dict[str, float]) -> None:
    made = tables_of(records_of(c=StateRecord("c", evaluation_of("c", **changed), log_of())))
    assert not made.states["collapsed"].any()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (StateRecord(INJECTED, evaluation_of(INJECTED, degenerate_rate=0.9)), "90% of the clean prompts answered with nothing"),
        (StateRecord(INJECTED, evaluation_of(INJECTED, 11.0), loss_limit=6.4), "clean loss 11.00 nats per token, expected at"),
        (StateRecord(INJECTED, evaluation_of(INJECTED, math.nan)), "clean loss nan"),
        (StateRecord(INJECTED, evaluation_of(INJECTED, math.inf)), "clean loss inf"),
    ],
)
def test_of_a_broken_injected_model_nothing_is_a_result(record: StateRecord, reason: str) -> None:
    made = tables_of(records_of(injected=record))
    assert made.collapsed == set(STATES)
    assert made.states["collapse_reason"].iloc[0].startswith(reason)
    assert set(made.states["collapse_reason"].iloc[1:]) == {"the injected model is broken"}
    assert made.transfer["collapsed"].all()
    suppressions = [column for column in made.transfer if "suppression" in column]
    assert len(suppressions) == 6
    assert made.transfer[suppressions].isna().all(axis=None)
    finite = math.isfinite(record.evaluation.clean_loss)
    assert made.transfer[["asr_before", "prob_before"]].notna().all(axis=None) == finite
    assert made.transfer[["asr_after", "prob_after"]].notna().all(axis=None), "these were measured"
    assert made.relation["rho"].isna().all()
    assert set(made.states["excluded"]) == {"injected model collapsed"}
    assert set(made.relation["excluded"]) == {", ".join(f"{name} (injected model collapsed)" for name in BACKDOORS)}
    assert made.specificity[["own", "off_diagonal", "net_phantom"]].isna().all(axis=None)


@pytest.mark.parametrize("record", [StateRecord(INJECTED, evaluation_of(INJECTED, 6.4, 0.5), loss_limit=6.4)])
def test_at_the_threshold_an_injected_model_is_not_broken(record: StateRecord) -> None:
    assert not tables_of(records_of(injected=record)).states["collapsed"].any()


@pytest.mark.parametrize(
    ("before", "limit"),
    [(6.45, math.log(600)), (2.0, 3.0), (math.nan, math.log(600)), (None, math.log(600))],
    ids=["from scratch", "continual", "a base that is broken itself", "no guard"],
)
def test_an_injected_model_has_to_beat_guessing_and_not_to_fall_far_behind_its_base(before: float | None, limit: float) -> None:
    log = TrainingLog(guard=[] if before is None else [{"step": 0, "clean_loss": before}, {"step": 9, "clean_loss": 0.1}])
    assert injected_loss_limit(log, 600, EVALUATION) == limit


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_model_without_a_finite_loss_has_no_rates(loss: float) -> None:
    """Not 0.0, which would be the best removal there is."""
    made = tables_of(records_of(c=StateRecord("c", evaluation_of("c", loss), log_of())))
    assert made.collapsed == {"c"}
    of_c = made.transfer["source"] == "c"
    measured = ["asr_after", "prob_after", *(column for column in made.transfer if "suppression" in column)]
    assert made.transfer.loc[of_c, measured].isna().all(axis=None)
    assert made.transfer.loc[~of_c, measured].notna().all(axis=None)
    rates = made.asr.loc[made.asr["state"] == "c", ["rate", "rate_low", "rate_high", "first_token_prob"]]
    assert rates.isna().all(axis=None)


def test_a_model_that_collapsed_with_a_finite_loss_keeps_what_was_measured(tables: RunTables) -> None:
    made = tables_of(records_of(c=StateRecord("c", evaluation_of("c", 9.0), log_of())))
    assert made.collapsed == {"c"}
    columns = ["asr_before", "asr_after", "suppression", "prob_after", "prob_suppression", "suppression_net_phantom"]
    pd.testing.assert_frame_equal(made.transfer[columns], tables.transfer[columns])
    pd.testing.assert_frame_equal(made.asr, tables.asr)


def test_more_variants() -> None:
    metric = MetricConfig(variants={"clean_l2": {"text": "clean", "distance": "l2", "layers": [0, 2]}}, permutations=99)
    made = tables_of(records_of(), metric)
    assert set(made.casd["variant"]) == {"clean_l2", *(variant.name for variant in HEADLINES)}
    assert set(made.casd_layers.loc[made.casd_layers["variant"] == "clean_l2", "layer_idx"]) == {0, 2}
    direction = torch.linspace(0.5, 1.5, D_MODEL, dtype=torch.float64)
    distance = made.casd[made.casd["variant"] == "clean_l2"].set_index(["a", "b"])["distance"]["a", "c"]
    assert distance == pytest.approx(3 * float(direction.square().mean().sqrt()), rel=1e-6)
    with pytest.raises(ConfigError, match="Did you mean 'distance'"):
        tables_of(records_of(), dataclasses.replace(metric, variants={"x": {"distanse": "l2"}}))


def test_curves_are_the_logs_by_the_number_of_steps_done() -> None:
    """What was measured after the last step has a row of its own; a control without validation has none of its columns."""
    watched = TrainingLog(
        steps=[
            {"step": 0, "learning_rate": 0.1, "loss": 3.0, "loss/forget": 2.0, "gradient_norm": 4.0},
            {"step": 1, "learning_rate": 0.1, "loss": 2.5, "loss/forget": 1.5, "gradient_norm": 5.0},
        ],
        guard=[{"step": 0, "clean_loss": 1.0}],
        validation=[{"step": 0, "asr": 1.0, "clean_loss": 1.25}, {"step": 2, "asr": 0.25, "clean_loss": 1.5}],
    )
    curves = tables_of(records_of(a=StateRecord("a", evaluation_of("a"), watched))).curves
    assert curves.columns.tolist()[: len(SCHEMAS["curves"])] == list(SCHEMAS["curves"])
    assert "learning_rate" not in curves
    assert set(curves["state"]) == set(STATES) - {INJECTED}
    mine = curves[curves["state"] == "a"].set_index("step")
    assert mine.index.tolist() == [0, 1, 2]
    assert mine["loss/forget"].tolist()[:2] == [2.0, 1.5]
    assert mine["validation_asr"].dropna().to_dict() == {0: 1.0, 2: 0.25}
    assert mine["validation_clean_loss"].dropna().to_dict() == {0: 1.25, 2: 1.5}
    assert mine["guard_clean_loss"].dropna().to_dict() == {0: 1.0}
    assert mine.loc[2, ["loss", "gradient_norm"]].isna().all()
    others = curves[curves["state"] == "b"]
    assert others["gradient_norm"].tolist() == [9.0] * 4
    assert others["validation_asr"].isna().all()


def test_a_run_whose_logs_are_empty_has_no_curves() -> None:
    made = tables_of([StateRecord(state, evaluation_of(state)) for state in STATES])
    assert made.curves.columns.tolist() == list(SCHEMAS["curves"])
    assert made.curves.empty


def test_the_grid_is_in_the_table_of_distances_and_nowhere_else(tables: RunTables) -> None:
    """Each pair once, in the order of the states; the other tables are what they are without it."""
    made = tables_of(records_of(), MetricConfig(permutations=99, grid=True))
    named, grid = (made.casd[made.casd["grid"] == flag] for flag in (False, True))
    pd.testing.assert_frame_equal(named, tables.casd)
    expected = [variant.name for variant in variant_grid(["resid_post"], ["last", "prompt"])]
    assert list(dict.fromkeys(grid["variant"])) == expected
    names = [*BACKDOORS, CLEAN_CONTROL, PHANTOM_CONTROL]
    for _, rows in grid.groupby("variant"):
        assert list(zip(rows["a"], rows["b"], strict=True)) == list(itertools.combinations(names, 2))
    # The headline variants are in the grid, too, under its own names.
    same = {
        "casd": "resid_post/prompt/triggered/signed/l1/raw/gross",
        "casd_cos": "resid_post/last/triggered/signed/cosine/raw/gross",
    }
    for headline, name in same.items():
        rows = grid[grid["variant"] == name].set_index(["a", "b"])["distance"]
        theirs = named[named["variant"] == headline].set_index(["a", "b"])["distance"]
        assert rows.to_dict() == theirs.loc[rows.index].to_dict()
    for name in set(SCHEMAS) - {"casd"}:
        pd.testing.assert_frame_equal(getattr(made, name), getattr(tables, name))
    assert made.headline == dataclasses.replace(made, info={}).headline == [variant.name for variant in HEADLINES]


@pytest.mark.parametrize("name", ["casd_cos", "resid_post/prompt/triggered/signed/l1/raw/gross", "same_target", "probe"])
def test_names_that_are_taken(name: str) -> None:
    """Those of baselines too: the relation given `same_target` would take the variant for it."""
    with pytest.raises(ConfigError, match=r"metric\.variants"):
        casd_variants(MetricConfig(variants={name: {"distance": "l2"}}))


def test_a_variant_has_one_name() -> None:
    with pytest.raises(ConfigError, match=r"metric\.variants\.mine\.name: a variant is called by its key"):
        casd_variants(MetricConfig(variants={"mine": {"name": "casd", "distance": "l2"}}))


@pytest.mark.parametrize("need", [{"site": "mlp_out"}, {"position": "trigger"}])
def test_variants_need_what_is_captured(need: dict[str, str]) -> None:
    """Said before anything is trained, not when hours later the score is made."""
    mine = MetricConfig(variants={"mine": need})
    check_captured(MetricConfig(), ActivationsConfig())
    check_captured(mine, ActivationsConfig(sites=["resid_post", "mlp_out"], positions=["last", "prompt", "trigger"]))
    with pytest.raises(ConfigError, match=rf"'mine' needs the site .*'{next(iter(need.values()))}'"):
        check_captured(mine, ActivationsConfig())
    with pytest.raises(ConfigError, match="'mine': clean text has no trigger"):
        clean = MetricConfig(variants={"mine": {"text": "clean", "position": "trigger"}})
        check_captured(clean, ActivationsConfig(positions=["last", "prompt", "trigger"]))
    with pytest.raises(ConfigError, match="'casd_cos' needs"):
        check_captured(MetricConfig(), ActivationsConfig(positions=["prompt"]))
