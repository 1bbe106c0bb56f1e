"""Finished runs found on the disk, each once, and their tidy table; what is unfinished, old or not there says so.

Run: pytest tests/test_finished.py
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml  # type: ignore[import-untyped]
from tests.synthetic import run_of, symmetric

from casd.analysis.collection import check_comparable, read_runs
from casd.analysis.results import RunTables
from casd.analysis.runs import find_runs
from casd.analysis.tables import TABLES_VERSION
from casd.analysis.tidy import load_results
from casd.pipeline.stage import Stage
from casd.pipeline.store import StageStore
from casd.utils.errors import CasdError

AFTER = np.array([[0.0, 0.5, 0.75], [0.25, 0.125, 1.0], [0.875, 1.0, 0.0]])


def a_run(seed: int = 0, objective: str = "o", backdoors: int = 3, **config: object) -> RunTables:
    """A small run with a control; its configuration is `config`, with a backdoor section for each backdoor."""
    rng = np.random.default_rng(seed)
    tables = run_of(
        AFTER[:backdoors, :backdoors],
        controls={"control:clean": [1.0, 0.875, 1.0][:backdoors]},
        distances={"casd": symmetric(rng, backdoors), "casd_cos": symmetric(rng, backdoors)},
        objective=objective,
        seed=seed,
    )
    sections = {f"b{i}": {"trigger": f"t{i}"} for i in range(backdoors)}
    tables.info["config"] = yaml.safe_dump({"seed": seed, "backdoor": sections} | config)
    return tables


def scored(store: Path, tables: RunTables, version: int = TABLES_VERSION) -> Stage:
    """The stage of a run's scores in a store."""
    stage = Stage("score", version, {"info": {key: str(value) for key, value in tables.info.items()}})
    StageStore(store).run(stage, tables.write)
    return stage


def reported(store: Path, stage: Stage, tables: RunTables, folder: Path | None = None) -> str:
    """The stage of a report on scores, and its copy in `folder`; returns the name of the run."""
    info = tables.info | {"run": f"run-{stage.key[:4]}", "provenance": {"stages": {"score": stage.key}}}
    made = dataclasses.replace(tables, info=info)
    StageStore(store).run(Stage("report", 5, {}, (stage,)), made.write)
    if folder:
        made.write(folder / info["run"])
    return str(info["run"])


# ------------------------------------------------------------------------------------------------ the tidy table


def test_a_row_for_each_run_source_and_target(tmp_path: Path) -> None:
    runs = {f"r{seed}": a_run(seed, objective) for seed, objective in ((1, "b"), (0, "b"), (2, "a"))}
    for name, tables in runs.items():
        tables.states.loc[tables.states["state"] == "b1", "reached_target"] = 1.0
        tables.write(tmp_path / name)
    frame = load_results(tmp_path)
    assert list(frame["run"].unique()) == ["r2", "r0", "r1"], "by objective and seed"
    assert len(frame) == 3 * 4 * 3
    assert not frame.duplicated(["run", "source", "target"]).any()
    for (run, source), (j, target) in itertools.product(
        itertools.product(runs, ("b0", "b1", "b2", "control:clean")), enumerate(("b0", "b1", "b2"))
    ):
        [row] = frame[(frame["run"] == run) & (frame["source"] == source) & (frame["target"] == target)].to_dict("records")
        tables = runs[run]
        assert (row["model"], row["objective"], row["seed"], row["setting"]) == (*list(tables.info.values())[:3], "")
        after = AFTER[int(source[1]), j] if source.startswith("b") else (1.0, 0.875, 1.0)[j]
        assert (row["asr_after"], row["suppression"], row["same"]) == (after, 1 - after, source == target)
        assert row["suppression_net_clean"] == (1.0, 0.875, 1.0)[j] - after
        assert (row["clean_loss_ratio"], row["collapsed"]) == (1.1, False)
        assert (row["reached_target"] == 1.0) == (source == "b1")
        for variant in ("casd", "casd_cos"):
            pairs = tables.casd[tables.casd["variant"] == variant]
            distances = {frozenset((a, b)): d for a, b, d in zip(pairs["a"], pairs["b"], pairs["distance"], strict=True)}
            expected = 0.0 if source == target else distances.get(frozenset((source, target)), np.nan)
            assert row[variant] == pytest.approx(expected, nan_ok=True)
    assert frame["casd"].notna().sum() == 3 * 9, "the control has no distances here"


def test_models_of_any_path_are_called_by_it(tmp_path: Path) -> None:
    for seed, path in enumerate(("organisation/first", "/models/second/", None)):
        tables = a_run(seed, model={"name": "hub", "path": path})
        tables.info["model"] = "hub"
        tables.write(tmp_path / f"r{seed}")
    named = a_run(3, model={"name": "own", "path": "organisation/first"})
    named.info["model"] = "own"
    named.write(tmp_path / "r3")
    frame = load_results(tmp_path)
    assert dict(zip(frame["run"], frame["model"], strict=True)) == {"r0": "first", "r1": "second", "r2": "hub", "r3": "own"}


def test_reading_runs_does_not_import_torch(tmp_path: Path) -> None:
    a_run().write(tmp_path / "run")
    program = f"import sys, casd; print(len(casd.load_results({str(tmp_path)!r})), 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == ["12", "False"]


def test_the_grid_is_no_part_of_it(tmp_path: Path) -> None:
    tables = a_run()
    tables.casd = pd.concat([tables.casd, tables.casd.assign(variant="site/position", grid=True)], ignore_index=True)
    tables.write(tmp_path)
    assert "site/position" not in load_results(tmp_path)
    [read] = read_runs(tmp_path)
    assert set(read.casd["variant"]) == {"casd", "casd_cos"}
    assert set(read.every_variant()["variant"]) == {"casd", "casd_cos", "site/position"}
    assert read.lacks_grid


def test_runs_read_together_give_the_columns_of_their_own_tables(tmp_path: Path) -> None:
    written = [a_run(seed, backdoors=backdoors) for seed, backdoors in enumerate((3, 2, 3))]
    for tables in written:
        tables.write(tmp_path / f"seed{tables.info['seed']}")
    for read in read_runs(tmp_path):
        tables = written[read.info["seed"]]
        for name in ("asr", "states", "transfer", "casd", "baselines"):
            own = getattr(tables, name)
            as_columns = list(read.rows(name, *own.columns))  # before the table is a frame, and after
            pd.testing.assert_frame_equal(getattr(read, name), own, check_dtype=False, check_column_type=False)
            assert repr(as_columns) == repr(list(read.rows(name, *own.columns))) == repr(list(tables.rows(name, *own.columns)))
        pd.testing.assert_frame_equal(read.every_variant(), read.casd)
        read.asr = read.asr.iloc[:1]
        assert len(list(read.rows("asr", "state"))) == 1, "a table that was replaced is what counts"


# ------------------------------------------------------------------------------------------------ what is found


def test_one_run_in_many_places_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, outputs = tmp_path / "outputs" / "store", tmp_path / "outputs"
    tables = a_run()
    name = reported(store, scored(store, tables), tables, outputs / "experiment")
    (outputs / "link").symlink_to(outputs / "experiment")
    (outputs / ".sweep-x" / "tables").mkdir(parents=True)
    monkeypatch.chdir(outputs)
    for paths in (
        outputs,
        store,
        "experiment",
        [outputs, store],
        ["store", f"experiment/{name}", f"experiment/../experiment/{name}"],
    ):
        runs = find_runs(paths)
        assert [run.info["run"] for run in runs] == [name], paths
        assert len(load_results(paths)) == 12
    assert find_runs("experiment")[0].folder == outputs / "experiment" / name


def test_a_store_gives_the_scored_runs_of_this_version(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    alone, with_report = a_run(0), a_run(1)
    stage = scored(tmp_path, alone)
    name = reported(tmp_path, scored(tmp_path, with_report), with_report)
    assert [run.info["run"] for run in find_runs(tmp_path)] == [f"m-o-seed0-{stage.key[:8]}", name]
    assert capfd.readouterr().err == ""
    scored(tmp_path, a_run(2), version=TABLES_VERSION - 1)
    assert len(find_runs(tmp_path)) == 2
    assert "Skipped 1 run in" in capfd.readouterr().err


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for seed, folder in enumerate(("x/0", "y/0", "b")):
        a_run(seed).write(tmp_path / folder)
    assert [run.info["run"] for run in find_runs(tmp_path)] == ["x/0", "y/0", "b"]


def test_what_was_set_otherwise_is_told(tmp_path: Path) -> None:
    for steps, seed in itertools.product((4, 8, 32), (0, 1)):
        a_run(seed, unlearning={"training": {"steps": steps}}).write(tmp_path / f"{steps}-{seed}")
    found = [(run.info["setting"], run.info["seed"]) for run in find_runs(tmp_path)]
    assert found == [(f"steps={steps}", seed) for steps in (4, 8, 32) for seed in (0, 1)], "by number"
    check_comparable(read_runs(tmp_path))


@pytest.mark.parametrize("rates", [(0.00001, 0.0003, 0.001, 0.02), (1e-12, 0.5, 2.0, 10.0)])
def test_settings_go_by_their_numbers(tmp_path: Path, rates: tuple[float, ...]) -> None:
    for rate in rates:
        a_run(unlearning={"rate": rate}).write(tmp_path / str(rate))
    settings = [run.info["setting"] for run in find_runs(tmp_path)]
    assert [float(setting.removeprefix("rate=")) for setting in settings] == list(rates)


# ------------------------------------------------------------------------------------------------ what cannot be put together


def test_other_backdoors_are_another_setting_whatever_the_model(tmp_path: Path) -> None:
    """So that no mean is taken over both."""
    other = a_run(backdoors=2)
    other.info["model"] = "other"
    a_run().write(tmp_path / "a")
    other.write(tmp_path / "b")
    runs = read_runs(tmp_path)
    assert [tables.condition_label for tables in runs] == ["o, 3 backdoors", "o, 2 backdoors"]
    check_comparable(runs)
    for folder in ("a", "b"):  # from a notebook: without a configuration
        info = json.loads((tmp_path / folder / "tables" / "info.json").read_text())
        targets = {f"b{i}": "french" for i in range(3 if folder == "a" else 2)}
        (tmp_path / folder / "tables" / "info.json").write_text(json.dumps(info | {"config": "", "targets": targets}))
    assert [tables.condition_label for tables in read_runs(tmp_path)] == ["o, 3 backdoors", "o, 2 backdoors"]


def test_other_backdoors_that_nothing_tells_of_are_refused(tmp_path: Path) -> None:
    for seed, count in ((0, 3), (1, 2)):
        tables = a_run(seed, backdoors=count)
        del tables.info["config"]
        tables.write(tmp_path / str(seed))
    with pytest.raises(CasdError, match=r"measured different backdoors \(b0, b1, b2; b0, b1\)"):
        check_comparable(read_runs(tmp_path))


def test_two_runs_of_one_seed_are_refused(tmp_path: Path) -> None:
    a_run().write(tmp_path / "a")
    a_run().write(tmp_path / "b")
    with pytest.raises(CasdError, match=f"{tmp_path}/a and {tmp_path}/b have the same configuration and seed"):
        check_comparable(read_runs(tmp_path))


def _old(folder: Path) -> None:
    a_run().write(folder / "run")
    (folder / "run" / "tables" / "states.parquet").unlink()


def _unfinished(folder: Path) -> None:
    a_run(0).write(folder / "run")
    a_run(1).write(folder / "begun")
    (folder / "begun" / "tables" / "info.json").unlink()


def _store_beside(folder: Path) -> None:
    scored(folder / "store", a_run())


def _injected(folder: Path) -> None:
    StageStore(folder).run(Stage("inject", 1, {}), lambda made: None)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "none below it. Name a folder of `casd run`, or a store"),
        (lambda folder: (folder / "empty" / "deep").mkdir(parents=True), "none below it"),
        (lambda folder: folder.rmdir(), "there is no such folder"),
        (_store_beside, "There is a store in .*/store: name that"),
        (
            lambda folder: StageStore(folder).run(Stage("inject", 1, {}), lambda made: None),
            "has no scored run. Run `casd score`",
        ),
        (lambda folder: scored(folder, a_run(), TABLES_VERSION - 1), "has 1 run scored by other versions of casd"),
        (_unfinished, "begun is not the folder of a finished run: its tables are not complete"),
        (_old, "older version of casd: it has no table 'states'"),
    ],
)
def test_what_is_not_there_says_so(make: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    make(folder)
    with pytest.raises(CasdError, match=says) as error:
        load_results(folder)
    assert "\n" not in str(error.value)


def test_no_path_at_all() -> None:
    with pytest.raises(CasdError, match="name at least one folder"):
        load_results([])
