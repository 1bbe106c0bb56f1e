"""A whole run with every variant of CASD and every baseline: that the tables hold what the parts give, computed anew.

Run: python -m pytest tests/test_predictors_run.py
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import cosine

from casd.analysis.results import RunTables
from casd.config.compose import load_config
from casd.config.states import INJECTED
from casd.metric.baselines import BASELINES
from casd.metric.baselines.evidence import Evidence, baseline_table
from casd.metric.casd import variant_grid
from casd.metric.measurement import read_statistics
from casd.models import weights
from casd.pipeline.run import Run
from casd.pipeline.stages import model_in
from report_run import compared
from tiny import tiny

pytestmark = pytest.mark.usefixtures("process_settings")

BACKDOORS = ["french_a", "french_b", "german", "refusal"]
OVERRIDES = ("activations=all", "metric=grid", "runtime.save_models=[injected,removed]")


@pytest.fixture(scope="module", params=["full", "lora_removals"])
def finished(
    request: pytest.FixtureRequest, tiny_output: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, RunTables]:
    """A run that goes on from the injected model of another."""
    output = tmp_path_factory.mktemp("run")
    for kind in ("corpus", "base", "tokens", "inject"):
        shutil.copytree(tiny_output / "store" / kind, output / "store" / kind)
    run = Run(load_config(tiny(output, f"weights={request.param}", *OVERRIDES)))
    run.run_to("score")
    return run, RunTables.read(run.store.folder(run.graph.score, verify=True))


def distance(tables: RunTables, predictor: str, a: str, b: str) -> float:
    rows = tables.baselines[tables.baselines["predictor"] == predictor]
    return float(rows.loc[(rows["a"] == a) & (rows["b"] == b), "distance"].iloc[0])


def test_every_baseline_and_every_variant_has_every_pair(finished: tuple[Run, RunTables]) -> None:
    run, tables = finished
    assert set(tables.baselines["predictor"]) == set(BASELINES)
    pairs = [(a, b) for i, a in enumerate(BACKDOORS) for b in BACKDOORS[i + 1 :]]
    for _, rows in tables.baselines.groupby("predictor"):
        assert list(zip(rows["a"], rows["b"], strict=True)) == pairs
    assert np.isfinite(tables.baselines["distance"]).all()
    config = run.config.activations
    grid = tables.casd[tables.casd["grid"]]
    assert set(grid["variant"]) == {variant.name for variant in variant_grid(config.sites, config.positions)}
    assert not grid.duplicated(["variant", "a", "b"]).any()
    assert set(grid.loc[grid["a"].isin(BACKDOORS) & grid["b"].isin(BACKDOORS)].groupby("variant").size()) == {len(pairs)}
    assert set(tables.casd_layers["variant"]) == set(tables.headline)


def test_the_grid_leaves_the_headline_distances_what_they_are_without_it(
    finished: tuple[Run, RunTables], tiny_output: Path
) -> None:
    """Captured at more sites, in a run of its own."""
    run, tables = finished
    grid, named = (tables.casd.query("grid == @flag").reset_index(drop=True) for flag in (True, False))
    assert len(grid) == 1236 * 15
    assert grid["distance"].notna().all()
    if run.config.unlearning.training.lora is None:
        plain = Run(load_config(tiny(tiny_output)))
        before = RunTables.read(plain.store.folder(plain.graph.score))
        pd.testing.assert_frame_equal(named, before.casd, rtol=1e-3)
        for name in ("casd_layers", "relation"):
            assert len(getattr(tables, name)) == len(getattr(before, name))


def test_the_weights_distances_are_those_of_the_weights(finished: tuple[Run, RunTables]) -> None:
    run, tables = finished

    def effective(state: str) -> dict[str, torch.Tensor]:
        model = model_in(run.inputs, state)
        if run.config.unlearning.training.lora is None:
            return {name: value.clone() for name, value in weights.trained_parameters(model).items()}
        found = {}
        for name, module in model.named_modules():
            if hasattr(module, "lora_A"):
                a, b = module.lora_A["removal"].weight, module.lora_B["removal"].weight
                found[name] = module.scaling["removal"] * (b @ a).detach().clone()
        return found

    before = effective(INJECTED)
    updates = {
        name: torch.cat([(after - before[key]).flatten() for key, after in effective(name).items()])
        .detach()
        .double()
        .cpu()
        .numpy()
        for name in ("french_a", "german")
    }
    exact = float(np.linalg.norm(updates["french_a"] - updates["german"]))
    assert distance(tables, "weights_l2", "french_a", "german") == pytest.approx(exact, rel=0.03)
    assert distance(tables, "weights_cosine", "french_a", "german") == pytest.approx(
        cosine(updates["french_a"], updates["german"]), abs=0.03
    )


def test_cka_of_too_few_prompts_is_left_out(finished: tuple[Run, RunTables]) -> None:
    run, tables = finished
    stages = run.graph.activations
    statistics = {state: read_statistics(run.store.file(stage, "statistics.safetensors")) for state, stage in stages.items()}
    evidence = {state: Evidence.read(run.store.folder(stage)) for state, stage in stages.items()}
    few = {state: replace(each, last_tokens=each.last_tokens[:, :3]) for state, each in evidence.items()}
    made = baseline_table(run.inputs.removed, run.inputs.encoder, statistics, few)
    assert set(made["predictor"]) == set(BASELINES) - {"cka"}
    same = made["predictor"] != "probe"  # which has fewer prompts, too
    expected = tables.baselines.merge(made[same], on=["predictor", "a", "b"], suffixes=("", "_made"))
    assert len(expected) == same.sum()
    assert expected["distance"].to_numpy() == pytest.approx(expected["distance_made"].to_numpy())


def test_baselines_of_triggers_and_targets_are_those_of_the_configuration(finished: tuple[Run, RunTables]) -> None:
    run, tables = finished
    tokens = {name: set(run.inputs.encoder.tokens(" " + backdoor.trigger.label)) for name, backdoor in run.backdoors.items()}
    overlap = len(tokens["french_a"] & tokens["refusal"]) / len(tokens["french_a"] | tokens["refusal"])
    assert distance(tables, "trigger_overlap", "french_a", "refusal") == pytest.approx(1 - overlap)
    assert distance(tables, "same_target", "french_a", "french_b") == 0
    assert distance(tables, "same_target", "french_a", "german") == 1


def test_the_partial_test_holds_the_same_target_constant(finished: tuple[Run, RunTables]) -> None:
    relation = finished[1].relation
    defined = relation[relation["rho"].notna()]
    assert defined[["tau", "rho_partial"]].notna().all().all() or defined.empty
    assert relation["rho"].abs().max() <= 1 or relation["rho"].isna().all()


def test_the_sweep_s_tables_can_be_made_of_it(finished: tuple[Run, RunTables]) -> None:
    made = compared([finished[1]])
    assert made.tables[0].title == "Objectives compared"


def test_what_baselines_need_is_not_kept_unless_it_is_asked_for(tiny_output: Path) -> None:
    run = Run(load_config(tiny(tiny_output)))
    tables = RunTables.read(run.store.folder(run.graph.score))
    assert set(tables.baselines["predictor"]) == {"trigger_shift", "trigger_overlap", "same_target", "directed_shift"}
    assert not tables.casd["grid"].any()
    assert not list(run.store.root.glob("activations/*/baselines.safetensors"))
