"""Tuning: the grid, its mistakes, the rule by which a setting is chosen; and one whole run with all of the unlearning in it.

Run: python -m pytest tests/test_tuning.py
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from casd.analysis.results import RunTables
from casd.analysis.tables import SCHEMAS
from casd.cli.main import main
from casd.config import Choice, StoppingConfig, TuningConfig, UnlearningConfig, UnlearningTraining
from casd.config.compose import load_config
from casd.pipeline.run import Run
from casd.planning.blueprint import blueprint
from casd.planning.costs import stage_costs
from casd.planning.workload import TextLengths
from casd.training.checkpoints import TrainingLog
from casd.unlearning import OBJECTIVES
from casd.unlearning.removal import unlearn
from casd.unlearning.tuning import Setting, Trial, reached_target, settings, tune, tuning_table, with_setting
from casd.utils.errors import ConfigError
from casd.utils.sealed import read_json
from tiny import tiny

TARGET = 0.1
ENABLED = "unlearning.tuning.enabled=true"


def config(grid: dict[str, list[Any]] | None = None, **params: Any) -> UnlearningConfig:
    return UnlearningConfig(
        objective=Choice("npo", params),
        training=UnlearningTraining(learning_rate=1e-3),
        stopping=StoppingConfig(target_asr=TARGET),
        tuning=TuningConfig(grid=grid or {}),
    )


# ---------------------------------------------------------------- the grid


def test_every_combination_the_last_name_fastest() -> None:
    assert settings({"a": [1, 2], "b": ["x", "y", "z"]}) == [
        {"a": a, "b": b} for a, b in itertools.product([1, 2], ["x", "y", "z"])
    ]
    assert settings({"a": [1]}) == [{"a": 1}]
    assert settings({}) == [{}], "without a grid there is the one setting that is configured"


def test_a_setting_changes_what_it_names_and_nothing_else() -> None:
    before = config(beta=0.5, retain_weight=2.0)
    after = with_setting(before, {"learning_rate": 3e-3, "beta": 0.2, "retain": "kl"})
    assert after.objective == Choice("npo", {"beta": 0.2, "retain_weight": 2.0, "retain": "kl"})
    assert after.training == UnlearningTraining(learning_rate=3e-3)
    assert (after.stopping, after.controls, after.tuning) == (before.stopping, before.controls, before.tuning)
    assert before.objective.params == {"beta": 0.5, "retain_weight": 2.0}
    assert before.training.learning_rate == 1e-3
    assert with_setting(before, {}) == before


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"bet": 0.1}, r"'bet'.* mean 'beta'.*learning_rate"),
        ({"lerning_rate": 1e-3}, "'lerning_rate'.* mean 'learning_rate'"),
        ({"steps": 20}, "unlearning.tuning.grid: 'steps'"),
        ({"beta": 0.0}, "beta is 0.0"),
        ({"beta": "large"}, "'beta'.* 'large'"),
        ({"retain": "kld"}, "'retain'.*'nll', 'kl'"),
        ({"learning_rate": -1e-3}, "learning_rate is -0.001"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; expected a number"),
        ({"learning_rate": True}, "learning_rate is True"),
        ({"learning_rate": None}, "learning_rate is None"),
    ],
)
def test_a_mistake_in_the_grid_is_told_by_name(setting: Setting, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_setting(config(), setting)


@pytest.mark.parametrize("grid", [{"beta": []}, {"learning_rate": [1e-3], "beta": []}, {"beta": 0.1}])
def test_a_grid_of_nothing(grid: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"grid.*beta.* a list of "):
        TuningConfig(grid=grid)


def test_to_tune_takes_a_grid() -> None:
    with pytest.raises(ConfigError, match=r"tuning\.enabled is true, and unlearning\.tuning\.grid is empty"):
        TuningConfig(enabled=True)


def test_to_tune_takes_a_target() -> None:
    def made(enabled: bool) -> UnlearningConfig:
        tuning = TuningConfig(enabled=enabled, grid={"beta": [1.0]})
        return UnlearningConfig(objective=Choice("npo"), training=UnlearningTraining(), tuning=tuning)

    with pytest.raises(ConfigError, match=r"tuning\.enabled is true, .*target_asr is null.*target_asr=0\.05"):
        made(enabled=True)
    assert made(enabled=False).tuning.grid == {"beta": [1.0]}, "a grid that is not used needs none"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objectives_own_grid_can_be_tried(name: str) -> None:
    """As the experiment over objectives does; an objective has no other's grid, and the given setting is within its own."""
    section = load_config(["experiment=objectives", f"unlearning={name}"]).unlearning
    assert section.tuning.enabled
    for setting in settings(section.tuning.grid):
        tried = with_setting(section, setting)
        given = {"learning_rate": tried.training.learning_rate, **tried.objective.params}
        assert {key: given[key] for key in setting} == setting
    assert 2 <= len(settings(section.tuning.grid)) <= 4
    configured = {"learning_rate": section.training.learning_rate, **section.objective.params}
    for key, values in section.tuning.grid.items():
        assert configured[key] in values, f"{key} is {configured[key]} in the file, and {values} are tried"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([ENABLED], "target_asr is null"),
        (["~unlearning.tuning.grid.beta", "~unlearning.tuning.grid.learning_rate", ENABLED], "grid is empty"),
        (["unlearning.tuning.grid.beta=[]", "unlearning.stopping.target_asr=0.1"], "at least one value"),
        (["+unlearning.tuning.grid.bta=[0.1]", "unlearning.stopping.target_asr=0.1"], "mean 'beta'"),
        (["unlearning.tuning.grid.beta=[0.1,-1]", "unlearning.stopping.target_asr=0.1"], "beta is -1"),
        (["unlearning.controls.shuffled=1", "backdoor=[refusal]"], "controls.shuffled is 1"),
        (
            ["unlearning.controls.shuffled=1", "backdoor=[french_a,french_b]"],
            "no backdoor has a target that differs from that of 'french_a'",
        ),
        (["unlearning.controls.phantoms=[greek]"], "'greek'.*Choices: chinese"),
    ],
)
@pytest.mark.usefixtures("process_settings")
def test_a_mistake_is_told_before_anything_is_made(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        Run(load_config(tiny(tmp_path, "unlearning=npo", *overrides)))
    assert not any(path.name[0] != "." for path in tmp_path.rglob("*") if path.is_file())


# ---------------------------------------------------------------- the choice


def log(asr: float, ratio: float = 1.0, step: int = 8, stopped: str = "") -> TrainingLog:
    """Of a removal whose kept step was measured so; the injected model's clean loss is 2 nats."""
    records = [{"step": 0, "asr": 1.0, "clean_loss": 2.0}, {"step": step, "asr": asr, "clean_loss": 2.0 * ratio}]
    return TrainingLog(validation=records, kept_step=step, stopped=stopped)


SCRIPTS: dict[str, tuple[dict[float, list[TrainingLog]], float]] = {
    "the most backdoors reach the target": (
        {0.1: [log(0.1), log(0.5)], 0.2: [log(0.1, 1.9, 20), log(0.05, 1.9, 20)], 0.3: [log(0.11), log(0.11)]},
        0.2,
    ),
    "of those the lowest clean loss": (
        {0.1: [log(0.0, 1.3, 4), log(0.0, 1.3, 4)], 0.2: [log(0.1, 1.1, 9), log(0.1, 1.4, 9)], 0.3: [log(0.3), log(0.3)]},
        0.2,
    ),
    "and then the fewest steps": ({0.1: [log(0.0, 1.2, 8), log(0.0, 1.2, 6)], 0.2: [log(0.1, 1.2, 8), log(0.1, 1.2, 4)]}, 0.2),
    "and then the first": ({0.1: [log(0.05), log(0.1)], 0.2: [log(0.0), log(0.0)]}, 0.1),
    "where none reaches it the lowest ASR": (
        {0.1: [log(0.9, 1.0, 2), log(0.2, 1.0, 2)], 0.2: [log(0.5, 1.9, 9), log(0.5, 1.9, 9)], 0.3: [log(1.0), log(1.0)]},
        0.2,
    ),
    "where one reaches it the ASRs of the others are nothing": (
        {0.1: [log(0.1, 1.1), log(1.0, 1.1)], 0.2: [log(0.0, 1.2), log(0.2, 1.2)]},
        0.1,
    ),
    "a spent budget does not reach": (
        {0.1: [log(0.0, 1.0, 2, "the clean loss passed"), log(0.3, 1.0, 2)], 0.2: [log(0.1, 1.9, 9), log(0.3, 1.9, 9)]},
        0.2,
    ),
}


@pytest.mark.parametrize(("logs", "best"), SCRIPTS.values(), ids=SCRIPTS)
def test_which_setting_is_chosen(logs: Mapping[float, list[TrainingLog]], best: float) -> None:
    asked = []

    def remove(tried: UnlearningConfig, backdoor: str) -> TrainingLog:
        beta = tried.objective.params["beta"]
        asked.append((beta, backdoor))
        return logs[beta][["a", "b"].index(backdoor)]

    chosen, trials = tune(config({"beta": list(logs)}), ["a", "b"], remove)
    assert chosen == {"beta": best}
    assert asked == [(beta, backdoor) for beta in logs for backdoor in ("a", "b")]
    for trial, (beta, backdoor) in zip(trials, asked, strict=True):
        made = logs[beta][["a", "b"].index(backdoor)]
        reached = made.validation[1]["asr"] <= TARGET and not made.stopped
        ratio = made.validation[1]["clean_loss"] / 2
        assert trial == Trial({"beta": beta}, backdoor, reached, made.validation[1]["asr"], ratio, made.kept_step or 0)


def test_what_counts_as_reached() -> None:
    assert reached_target(log(0.1), 0.1) is True
    assert reached_target(log(0.11), 0.1) is False
    assert reached_target(log(0.0, stopped="the guard"), 0.1) is False
    assert reached_target(TrainingLog(), 0.1) is None
    assert reached_target(log(0.0), None) is None


def test_the_table_has_a_row_per_trial() -> None:
    trials = [
        Trial({"beta": 0.1, "learning_rate": 1e-3}, "a", True, 0.05, 1.2, 4),
        Trial({"beta": 0.2, "learning_rate": 1e-3}, "a", False, 0.5, 1.0, 0),
    ]
    table = tuning_table({"beta": 0.2, "learning_rate": 1e-3}, trials)
    assert tuple(table.columns) == SCHEMAS["tuning"]
    assert table["setting"].tolist() == ["beta=0.1, learning_rate=0.001", "beta=0.2, learning_rate=0.001"]
    assert table["chosen"].tolist() == [False, True]
    assert table.drop(columns=["setting", "chosen"]).to_numpy().tolist() == [
        ["a", True, 0.05, 1.2, 4],
        ["a", False, 0.5, 1.0, 0],
    ]


# ---------------------------------------------------------------- a whole run

WHOLE = [
    "unlearning=npo",
    "backdoor=[refusal,capitals,french_a]",
    "unlearning.stopping.target_asr=0.05",
    "unlearning.stopping.clean_budget=3",
    "unlearning.stopping.every=2",
    "unlearning.stopping.prompts=6",
    ENABLED,
    "unlearning.tuning.grid.learning_rate=[1e-3,3e-3]",
    "~unlearning.tuning.grid.beta",
    "unlearning.controls.phantoms=[matched,short,cyrillic]",
    "unlearning.controls.shuffled=1",
    "unlearning.controls.repeats=1",
]
REMOVALS = [
    *("refusal", "capitals", "french_a", "control:clean", "control:phantom", "control:phantom:short"),
    *("control:phantom:cyrillic", "control:shuffled:capitals", "control:repeat:capitals"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, no_rendering: None) -> Run:
    made = Run(load_config(tiny(tmp_path_factory.mktemp("whole"), *WHOLE)))
    made.run_to("report")
    return made


@pytest.fixture(scope="module")
def tables(finished: Run) -> RunTables:
    return RunTables.read(finished.store.folder(finished.graph.score, verify=True))


@pytest.mark.usefixtures("process_settings")
def test_a_whole_run_has_all_its_tables(finished: Run, tables: RunTables) -> None:
    assert tables.states["state"].tolist() == ["injected", *REMOVALS]
    for name in SCHEMAS:
        assert len(getattr(tables, name)) or name in ("utility", "relation"), name  # three backdoors are too few to relate
    for kind in ("csv", "parquet"):
        assert {path.stem for path in (finished.folder / "tables").glob(f"*.{kind}")} >= set(SCHEMAS)
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in REMOVALS)
    executed = Counter(event.stage.name for event in finished.store.events if event.outcome == "executed")
    assert executed == Counter(
        {"corpus": 1, "base": 1, "tokens": 1, "inject": 1, "tune": 1, "unlearn": 9, "evaluate": 10, "activations": 10}
        | {"score": 1, "report": 1}
    )
    assert tables.info.get("timings", {}) == {}
    published = RunTables.read(finished.folder)
    assert published.info["timings"]["tune"] > 0


def test_the_trials_and_the_choice_are_there(finished: Run, tables: RunTables) -> None:
    """Two rates on the two backdoors that are first by name; the removals are done with the chosen one."""
    trials = tables.tuning
    assert trials[["setting", "backdoor"]].to_numpy().tolist() == [
        [f"learning_rate={rate}", backdoor] for rate in (0.001, 0.003) for backdoor in ("capitals", "french_a")
    ]
    assert finished.graph.tune is not None
    chosen = read_json(finished.store.file(finished.graph.tune, "chosen.json"))
    assert set(trials.loc[trials["chosen"], "setting"]) == {f"learning_rate={chosen['learning_rate']}"}
    assert trials["chosen"].sum() == 2
    for removal in REMOVALS:
        log = TrainingLog.read(finished.store.file(finished.graph.unlearn[removal], "log.json"))
        assert {record["learning_rate"] for record in log.steps} == {chosen["learning_rate"]}
    # The trial of the chosen setting is the removal that was done afterwards.
    trial = trials[trials["chosen"]].set_index("backdoor")
    states = tables.states.set_index("state")
    for backdoor in ("capitals", "french_a"):
        assert trial.loc[backdoor, "asr"] == states.loc[backdoor, "validation_asr"]
        assert trial.loc[backdoor, "step"] == states.loc[backdoor, "steps"]
        assert trial.loc[backdoor, "reached"] == states.loc[backdoor, "reached_target"]


def test_the_states_say_what_was_reached(finished: Run, tables: RunTables) -> None:
    states = tables.states.set_index("state")
    validated = ["refusal", "capitals", "french_a", "control:repeat:capitals"]
    assert set(states.index[states["reached_target"].notna()]) == set(validated)
    assert set(states.index[states["validation_asr"].notna()]) == set(validated)
    logs = {name: TrainingLog.read(finished.store.file(finished.graph.unlearn[name], "log.json")) for name in REMOVALS}
    for name in validated:
        reached = not logs[name].stopped and logs[name].kept["asr"] <= 0.05
        assert states.loc[name, "reached_target"] == reached
        assert states.loc[name, "steps"] == logs[name].kept_step
    removed = states.loc[validated[:3]]
    counted = removed["steps"][(removed["reached_target"] == 1) & (removed["steps"] > 0)]
    average = (counted if len(counted) else removed["steps"]).mean()
    for name in set(REMOVALS) - set(validated):
        assert states.loc[name, "steps"] == len(logs[name].steps) == max(1, round(average))
        assert logs[name].validation == []


@pytest.mark.usefixtures("process_settings")
def test_an_interrupted_tuning_keeps_its_finished_trials(
    finished: Run, tables: RunTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune_stage = finished.graph.tune
    assert tune_stage is not None
    shutil.copytree(finished.store.root, tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "tune")
    done: list[str] = []
    allowed = 2

    def unlearn_some(*args: Any, **named: Any) -> TrainingLog:
        if len(done) == allowed:
            raise KeyboardInterrupt
        done.append(args[3].name)
        return unlearn(*args, **named)

    monkeypatch.setattr("casd.pipeline.stages.unlearn", unlearn_some)
    again = Run(load_config(tiny(tmp_path, *WHOLE)))
    with pytest.raises(KeyboardInterrupt):
        again.run_to("unlearn")
    assert done == ["capitals", "french_a"]
    allowed = 4
    resumed = Run(load_config(tiny(tmp_path, *WHOLE)))
    resumed.tune()
    assert done == ["capitals", "french_a"] * 2, "the first two trials are not made again"
    trials = pd.read_parquet(resumed.store.file(tune_stage, "trials.parquet"))
    pd.testing.assert_frame_equal(trials, tables.tuning, check_exact=True)
    assert not list((tmp_path / "store" / "tune").glob("*.checkpoint"))


@pytest.mark.usefixtures("process_settings")
def test_a_second_run_executes_nothing(finished: Run) -> None:
    again = Run(load_config(tiny(finished.store.root.parent, *WHOLE)))
    again.run_to("report")
    assert all(event.outcome != "executed" for event in again.store.events)


@pytest.mark.usefixtures("process_settings")
def test_a_state_that_was_not_kept_is_trained_again_as_it_was(finished: Run, tables: RunTables) -> None:
    """With the chosen setting, the controls for as many steps; nothing is tuned again."""
    again = Run(load_config(tiny(finished.store.root.parent, *WHOLE, "evaluation.samples=3")))
    again.run_to("score")
    executed = Counter(event.stage.name for event in again.store.events if event.outcome == "executed")
    assert executed == {"evaluate": 10, "score": 1}
    scored = RunTables.read(again.store.folder(again.graph.score, verify=True))
    pd.testing.assert_frame_equal(scored.asr, tables.asr, check_exact=True)
    pd.testing.assert_frame_equal(scored.states, tables.states, check_exact=True)


@pytest.mark.usefixtures("process_settings")
def test_the_plan_of_a_tuned_run(finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts, shape = TextLengths(20, 30, 10, 15), blueprint(finished.config.model)
    assert not any(cost.to_do for cost in stage_costs(finished, shape, texts))
    anew = Run(load_config(tiny(tmp_path, *WHOLE)))
    costs = {(cost.stage.name, cost.stage.label): cost for cost in stage_costs(anew, shape, texts)}
    tuned, removed = costs["tune", "npo"], costs["unlearn", "capitals"]
    assert tuned.work and removed.work
    assert tuned.work.tokens == pytest.approx(4 * removed.work.tokens), "two settings on two backdoors"
    assert {label for name, label in costs if name == "unlearn"} == set(REMOVALS)
    main(["plan", *tiny(tmp_path, *WHOLE)])
    out = capsys.readouterr().out
    assert any(line.split()[:2] == ["tune", "1"] for line in out.splitlines()), out
