"""Reports in their places: whole or not at all, checked when they are read, and never over a file that is not theirs.

Run: pytest tests/test_publishing.py
"""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.synthetic import run_of, symmetric

import casd.report
import casd.report.publish
from casd.analysis.results import RunTables
from casd.analysis.runs import find_runs
from casd.analysis.tables import SWEEP_INFO, TABLES_VERSION
from casd.analysis.tidy import load_results
from casd.cli.compare import read_two_runs
from casd.pipeline.stage import Stage
from casd.pipeline.store import StageStore
from casd.report import read_runs, write_report, write_sweep_report
from casd.report.publish import check_output, is_published, publishing
from casd.utils.errors import CasdError, ConfigError, StoreError
from casd.utils.sealed import CHECKSUMS, MANIFEST


def publish(target: Path, files: dict[str, str]) -> None:
    with publishing(target, "the report") as begun:
        for name, text in files.items():
            (begun / name).parent.mkdir(parents=True, exist_ok=True)
            (begun / name).write_text(text)


def texts(folder: Path) -> dict[str, str]:
    """Without the lists of checksums."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


FILES = {"report.html": "page", "tables/a.csv": "1,2"}


def a_run(seed: int = 0) -> RunTables:
    after = np.array([[0.0, 0.5], [0.25, 0.0]])
    tables = run_of(after, distances={"casd": symmetric(np.random.default_rng(seed), 2)}, seed=seed)
    tables.info["run"] = f"run{seed}"
    return tables


def publish_run(target: Path, seed: int = 0) -> Path:
    with publishing(target, "the report") as begun:
        a_run(seed).write(begun)
    return target


# ------------------------------------------------------------------------------------------------ taking a place


def test_published_again_the_users_own_files_stay(tmp_path: Path) -> None:
    target = tmp_path / "run"
    publish(target, FILES | {"tables/old.csv": "0"})
    (target / "notes.txt").write_text("mine")
    (target / "tables" / "mine.csv").write_text("3")
    publish(target, FILES | {"report.html": "new page"})
    assert texts(target) == {
        "report.html": "new page",
        "tables/a.csv": "1,2",
        "notes.txt": "mine",
        "tables/mine.csv": "3",
    }
    assert is_published(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.lock", "run"]


def test_what_is_there_and_whole_is_not_written_again(tmp_path: Path) -> None:
    target = tmp_path / "run"
    publish(target, FILES)
    before = {path: path.stat() for path in target.rglob("*")}
    publish(target, FILES)
    assert {path: path.stat().st_ino for path in target.rglob("*")} == {path: each.st_ino for path, each in before.items()}
    publish(target, FILES | {"report.html": "new page"})
    assert (target / "tables" / "a.csv").stat().st_ino == before[target / "tables" / "a.csv"].st_ino


def test_damaged_files_are_replaced_and_that_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "run"
    publish(target, FILES)
    (target / "report.html").write_text("pbge")
    assert not is_published(target)
    publish(target, FILES)
    assert texts(target) == FILES
    assert f"Replaced in {target}: 1 files that were damaged, changed or missing, such as report.html" in capfd.readouterr().err


def test_a_report_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    target = tmp_path / "run"
    publish(target, FILES)
    with (
        pytest.raises(StoreError, match="No space left on device: the report needs"),
        publishing(target, "the report") as begun,
    ):
        (begun / "report.html").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert texts(target) == FILES
    assert is_published(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.lock", "run"]


def test_a_file_of_the_users_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "run"
    publish(target, FILES)
    (target / "figure.png").write_text("mine")
    with pytest.raises(StoreError, match=r"figure.png would be overwritten and is not of the report"):
        publish(target, {"report.html": "new", "figure.png": "ours"})
    assert texts(target) == FILES | {"figure.png": "mine"}


def test_a_torn_report_of_an_earlier_version_is_made_whole(tmp_path: Path) -> None:
    target = tmp_path / "run"
    (target / "tables").mkdir(parents=True)
    (target / "report.html").write_text("old")
    (target / "notes.txt").write_text("mine")
    publish(target, FILES)
    assert texts(target) == FILES | {"notes.txt": "mine"}


def test_another_process_that_is_first_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there are no locks: it comes after this process saw that nothing was there."""
    target, rename = tmp_path / "run", Path.rename
    monkeypatch.setattr(casd.report.publish, "locked", lambda *_: nullcontext())

    def late(path: Path, place: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        publish(target, FILES)
        return rename(path, place)

    monkeypatch.setattr(Path, "rename", late)
    publish(target, FILES)
    assert texts(target) == FILES
    assert is_published(target)


@pytest.mark.parametrize("moment", range(1, 5))
def test_killed_while_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """What is read then is whole, or is said to be damaged; publishing again mends it."""
    target = publish_run(tmp_path / "run")
    seen, replace = [], Path.replace

    def dying(path: Path, place: Path) -> Path:
        if target in Path(place).parents:
            seen.append(path)
            if len(seen) == moment:
                raise KeyboardInterrupt
        return replace(path, place)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            publish_run(target, seed=1)
    try:
        read = RunTables.read(target)
    except StoreError as error:
        assert "is damaged: tables/" in str(error)
        assert moment > 1
    else:
        seed = read.info["seed"]
        pd.testing.assert_frame_equal(read.casd, a_run(seed).casd, check_dtype=False)
    publish_run(target, seed=1)
    assert RunTables.read(target).info["seed"] == 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_text("mine"), "is a file"),
        (lambda path: (path / "notes").mkdir(parents=True), "is not empty and has no report over several runs"),
        (lambda path: publish_run(path), "is not empty and has no report over several runs"),
    ],
    ids=["file", "other things", "run"],
)
def test_output_that_is_not_a_report(tmp_path: Path, make: Callable[[Path], object], says: str) -> None:
    make(tmp_path / "out")
    with pytest.raises(ConfigError, match=says):
        check_output(tmp_path / "out", SWEEP_INFO)


def test_output_that_may_be_written(tmp_path: Path) -> None:
    check_output(tmp_path / "new", SWEEP_INFO)
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", SWEEP_INFO)
    publish(tmp_path / "report", {f"tables/{SWEEP_INFO}": "{}"})
    (tmp_path / "report" / "notes").write_text("mine")
    check_output(tmp_path / "report", SWEEP_INFO)


# ------------------------------------------------------------------------------------------------ reading


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def in_a_store(folder: Path, seed: int) -> Path:
    return StageStore(folder / f"store{seed}").run(Stage("score", TABLES_VERSION, {"seed": seed}), a_run(seed).write)


@pytest.mark.parametrize("make", [lambda folder, seed: publish_run(folder / f"run{seed}", seed), in_a_store])
@pytest.mark.parametrize("name", ["tables/info.json", "tables/transfer.parquet", "list"])
def test_damage_is_found_on_every_way_of_reading(tmp_path: Path, make: Callable[[Path, int], Path], name: str) -> None:
    folder, other = make(tmp_path, 0), make(tmp_path, 1)
    read_two_runs(folder, other)
    list_of_files = MANIFEST if make is in_a_store else CHECKSUMS
    name = list_of_files if name == "list" else name
    damage(folder / name)
    for read in (
        lambda: load_results(folder),
        lambda: [tables.transfer for tables in read_runs([folder, other])],
        lambda: read_two_runs(folder, other)[0].transfer,
        lambda: RunTables.read(folder),
    ):
        with pytest.raises(StoreError, match=f"is damaged: {name} ") as error:
            read()
        assert str(folder) in str(error.value)


@pytest.mark.parametrize("kind", ["score", "report"])
def test_a_damaged_manifest_in_a_store_is_found(tmp_path: Path, kind: str) -> None:
    store = StageStore(tmp_path)
    stage = Stage("score", TABLES_VERSION, {})
    store.run(stage, a_run().write)
    store.run(Stage("report", 5, {}, (stage,)), a_run().write)
    assert len(find_runs(tmp_path)) == 1
    [manifest] = tmp_path.glob(f"{kind}/[!.]*/{MANIFEST}")
    manifest.write_text(manifest.read_text().replace('"version"', '"versiom"'))
    with pytest.raises(StoreError, match=rf"{manifest.parent} is damaged: {MANIFEST} was altered .*Delete the folder"):
        find_runs(tmp_path)


def test_any_flipped_byte_of_what_is_read_is_found(tmp_path: Path) -> None:
    folder, rng = publish_run(tmp_path / "run"), random.Random(0)
    expected = load_results(folder)
    for name in ("tables/info.json", "tables/states.parquet", "tables/transfer.parquet", "tables/casd.parquet"):
        whole = (folder / name).read_bytes()
        for _ in range(10):
            place = rng.randrange(len(whole))
            (folder / name).write_bytes(whole[:place] + bytes([whole[place] ^ rng.randrange(1, 256)]) + whole[place + 1 :])
            with pytest.raises(StoreError, match=name):
                load_results(folder)
        (folder / name).write_bytes(whole)
    pd.testing.assert_frame_equal(load_results(folder), expected)


def test_a_folder_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """It has no checksums; nor has what `RunTables.write` writes over a report, whose checksums no longer hold."""
    folder = publish_run(tmp_path / "run")
    (folder / CHECKSUMS).unlink()
    assert RunTables.read(folder).info["seed"] == 0
    publish_run(folder)
    a_run(1).write(folder)
    assert RunTables.read(folder).info["seed"] == 1


# ------------------------------------------------------------------------------------------------ reports


@pytest.mark.usefixtures("no_rendering")
def test_a_report_over_runs_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in (0, 1):
        write_report(a_run(seed), tmp_path / f"run{seed}", pd.DataFrame(columns=["variant", "a", "b", "distance"]))
    target = tmp_path / "sweep"
    write_sweep_report(read_runs(tmp_path / "run0"), target)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(casd.report, "write_page", full)
        with pytest.raises(CasdError, match="No space left on device"):
            write_sweep_report(read_runs([tmp_path / "run0", tmp_path / "run1"]), target)
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    write_sweep_report(read_runs([tmp_path / "run0", tmp_path / "run1"]), target)
    assert len(json.loads((target / "tables" / SWEEP_INFO).read_text())["runs"]) == 2
    assert is_published(target)
