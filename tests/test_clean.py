"""What `casd status` says of the runs in a store, and what `casd clean` removes and does not.

Run: pytest tests/test_clean.py
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from casd.cli.main import main
from casd.pipeline.records import Record, read_records, record_file, waiting, write_record
from casd.pipeline.stage import Stage
from casd.pipeline.status import find_store
from casd.pipeline.store import StageStore
from casd.utils.atomic import locked, temporary_beside
from casd.utils.errors import StoreError
from tiny import tiny

pytestmark = pytest.mark.usefixtures("process_settings")

BASE = Stage("inject", 1, {"seed": 0}, label="m")
DAY = 24 * 3600.0


def removal(name: str) -> Stage:
    return Stage("unlearn", 1, {"removal": name}, (BASE,), name)


def scored(name: str) -> Stage:
    return Stage("score", 1, {"seed": 0, "of": name}, (removal(name),), f"m, {name}")


def stages_of(name: str) -> list[Stage]:
    return [BASE, removal(name), scored(name), Stage("report", 1, {"name": "demo"}, (scored(name),), f"m, {name}")]


class Outputs:
    """A folder of reports with a store, and runs in it of one injection and a removal each."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.store = StageStore(folder / "store")
        self.root = self.store.root

    def report(self, name: str) -> Path:
        return self.folder / "demo" / f"m-{name}-seed0-{scored(name).key[:8]}"

    def make(self, name: str, *, upto: int = 4, record: bool = True) -> None:
        for stage in stages_of(name)[:upto]:
            self.store.run(stage, lambda folder: (folder / "weights").write_bytes(bytes(1 << 20)) and None)
        if upto == 4:
            tables = self.report(name) / "tables"
            tables.mkdir(parents=True)
            (tables / "info.json").write_text(json.dumps({"score": scored(name).key}))
        if record:
            write_record(self.root, scored(name), self.report(name), "m", stages_of(name), published=upto == 4)

    def places(self) -> set[str]:
        return {f"{path.parent.name}/{path.name}" for path in self.root.glob("*/[!.]*")}


def places(*stages: Stage) -> set[str]:
    return {f"{each.name}/{each.key}" for each in stages}


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    return Outputs(tmp_path / "outputs")


@contextmanager
def lock(file: Path) -> Iterator[None]:
    """Held as by another process: flock is of an open file."""
    with file.open("ab") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def cleaned(capsys: pytest.CaptureFixture[str], outputs: Outputs, *more: str) -> str:
    main(["clean", str(outputs.folder), *more])
    return capsys.readouterr().out


def checkpoint(outputs: Outputs, stage: Stage, age: float) -> Path:
    """A checkpoint of 2 MiB that was last written to so many seconds ago."""
    folder = outputs.store.checkpoint_folder(stage)
    (folder / "state").write_bytes(bytes(2 << 20))
    for path in (folder / "state", folder):
        os.utime(path, (time.time() - age,) * 2)
    return folder


# ---------------------------------------------------------------- status


def test_status_has_a_line_for_each_run(outputs: Outputs, capsys: pytest.CaptureFixture[str]) -> None:
    outputs.make("npo")
    outputs.make("rmu", upto=2)
    outputs.make("simnpo", record=False)
    checkpoint(outputs, scored("rmu"), 0)
    main(["status", str(outputs.root)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "model", "stages", "size", "age", "state"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:4]}
    assert rows == {
        f"demo/{outputs.report('npo').name}": ["m", "4/4", "4.00", "MiB", "0", "min", "finished"],
        f"demo/{outputs.report('rmu').name}": ["m", "2/4", "2.00", "MiB", "0", "min", "interrupted"],
        f"demo/{outputs.report('simnpo').name}": ["m", "4/4", "4.00", "MiB", "0", "min", "finished"],
    }
    assert lines[4] == "3 runs, 2 finished; 8 stages, 8.00 MiB (runs share stages)"
    assert lines[5] == "1 stage begun and not finished; `casd clean` shows what can be removed"


def test_status_says_what_is_running_and_what_failed(outputs: Outputs, capsys: pytest.CaptureFixture[str]) -> None:
    outputs.make("rmu", upto=2)
    score = scored("rmu")
    with lock(outputs.store.checkpoint_folder(score).with_name(f".{score.key}.lock")):
        main(["status", str(outputs.root)])
    assert re.search(r"m-rmu-.* running$", capsys.readouterr().out, re.MULTILINE)
    with locked(outputs.root / score.name / f".{score.key}.lock", ""):
        main(["status", str(outputs.root)])
    where = re.escape(f"{platform.node()}, pid {os.getpid()}")
    assert re.search(rf"m-rmu-.* running on {where}$", capsys.readouterr().out, re.MULTILINE)
    log = outputs.folder / "demo" / "failed" / f"{outputs.report('rmu').name}.log"
    log.parent.mkdir(parents=True)
    log.touch()
    main(["status", str(outputs.root)])
    assert f" failed: {log}\n" in capsys.readouterr().out
    log.rename(log.with_name("m-rmu-seed0-01234567.log"))  # of a run with other settings
    main(["status", str(outputs.root)])
    assert re.search(r"m-rmu-.* interrupted$", capsys.readouterr().out, re.MULTILINE)


def test_a_run_is_finished_without_what_an_interrupted_command_asked_for(
    outputs: Outputs, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = Stage("weights", 1, {}, (removal("npo"),), "npo")
    write_record(outputs.root, scored("npo"), outputs.report("npo"), "m", [*stages_of("npo"), weights], published=False)
    outputs.make("npo")
    main(["status", str(outputs.root)])
    assert re.search(r"m-npo-.* 4/4 .* finished$", capsys.readouterr().out, re.MULTILINE)


def test_status_says_which_runs_of_a_live_sweep_wait(outputs: Outputs, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("npo", "rmu", "simnpo"):
        outputs.make(name, upto=2)
    log = outputs.folder / "demo" / "failed" / f"{outputs.report('rmu').name}.log"
    log.parent.mkdir(parents=True)
    log.touch()
    os.utime(log, (time.time() - DAY,) * 2)  # it failed in an earlier sweep

    def states() -> dict[str, str]:
        main(["status", str(outputs.root)])
        return dict(re.findall(r"/m-(\w+)-seed0-.* min +(.*)", capsys.readouterr().out))

    files = [record_file(outputs.root, scored(name).key, outputs.report(name)) for name in ("npo", "rmu")]
    before = {"npo": "interrupted", "rmu": f"failed: {log}", "simnpo": "interrupted"}
    assert states() == before
    with waiting(outputs.root, files):
        here = f"waiting for its turn on {platform.node()}, pid {os.getpid()}"
        assert states() == {"npo": here, "rmu": here, "simnpo": "interrupted"}
        os.utime(log, (time.time() + 1,) * 2)  # and now in this one
        assert states()["rmu"] == f"failed: {log}"
        [left] = outputs.root.glob(".waiting.*")
        kept = left.read_bytes()
    assert states() == before
    left.write_bytes(kept)  # the process was killed, and holds no lock
    assert states() == before


def test_status_counts_collapsed_removals(outputs: Outputs, capsys: pytest.CaptureFixture[str]) -> None:
    outputs.make("npo")
    tables = outputs.root / "score" / scored("npo").key / "tables"
    tables.mkdir()
    (tables / "states.csv").write_text(
        "state,kind,collapsed\ninjected,injected,False\na,removal,True\nb,removal,False\nc,control,True\n"
    )
    main(["status", str(outputs.root)])
    assert " finished, 1 of 2 removals collapsed\n" in capsys.readouterr().out


def test_status_tells_stages_of_unknown_runs(outputs: Outputs, capsys: pytest.CaptureFixture[str]) -> None:
    outputs.make("npo", upto=2, record=False)
    main(["status", str(outputs.root)])
    assert "\n2 stages, 2.00 MiB, of runs that are not known" in capsys.readouterr().out


def test_all_lists_the_stages(outputs: Outputs, capsys: pytest.CaptureFixture[str]) -> None:
    outputs.make("npo")
    main(["status", str(outputs.root), "--all"])
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[1:-1]} == {"inject", "unlearn", "score", "report"}


def test_a_store_below_a_folder_is_found(outputs: Outputs, capfd: pytest.CaptureFixture[str]) -> None:
    outputs.make("npo")
    for folder in (outputs.root, outputs.folder, outputs.folder.parent):
        main(["status", str(folder)])
        assert "1 run, 1 finished" in capfd.readouterr().out
    shutil.copytree(outputs.folder, outputs.folder.with_name("others"))
    for verb in ("status", "clean"):
        with pytest.raises(SystemExit):
            main([verb, str(outputs.folder.parent)])
        assert "There are several stores below" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main(["status", str(outputs.folder / "demo")])
    assert "nor below it" in capfd.readouterr().err


# ---------------------------------------------------------------- clean


def test_nothing_is_removed_without_being_asked_for(
    outputs: Outputs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs.make("npo", upto=2)
    old = checkpoint(outputs, scored("npo"), 2 * DAY)
    said = cleaned(capsys, outputs)
    assert re.search(r"checkpoint of score \(m, npo\), 2 d old +2\.00 MiB\n", said)
    assert "1 folder " in said
    assert "Nothing was removed; --yes removes it." in said
    assert old.exists()
    for answer, stays in (("n\n", True), ("\n", True), ("y\n", False)):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        said = cleaned(capsys, outputs)
        assert "Remove it? [y/N]" in said
        assert old.exists() == stays
    assert said.endswith("Removed 1 folder, 2.00 MiB.\n")


class Terminal:
    def __init__(self, line: str):
        self.line = line

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self.line


def test_checkpoints_are_removed_when_abandoned_or_of_no_use(outputs: Outputs, capsys: pytest.CaptureFixture[str]) -> None:
    outputs.make("npo", upto=2)
    old, new = checkpoint(outputs, scored("npo"), 2 * DAY), checkpoint(outputs, removal("rmu"), 60)
    running, useless = checkpoint(outputs, removal("x"), 9 * DAY), checkpoint(outputs, removal("npo"), 0)
    with lock(running.with_name(f".{removal('x').key}.lock")):
        said = cleaned(capsys, outputs, "--yes")
    assert [path.exists() for path in (old, new, running, useless)] == [False, True, True, False]
    assert f"Kept: checkpoint of unlearn/{removal('rmu').key[:8]}, 1 min old: the same command goes on from it." in said
    assert f"Kept: checkpoint of unlearn/{removal('x').key[:8]}, 9 d old: a process is making it.\n" in said
    assert "Removed 2 folders, 4.00 MiB." in said
    assert outputs.places() == places(BASE, removal("npo"))


def test_stages_of_dead_processes_are_removed_and_those_of_live_ones_stay(
    outputs: Outputs, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs.make("npo", upto=2)
    final = outputs.root / "unlearn" / removal("rmu").key
    mine, elsewhere = temporary_beside(final), temporary_beside(final)
    elsewhere = elsewhere.with_name(f".{final.name}.elsewhere-1-00000000.partial")
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    dead = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{gone.stdout.strip()}-"))
    for folder in (mine, dead, elsewhere):
        folder.mkdir()
    cleaned(capsys, outputs, "--yes")
    assert [path.exists() for path in (mine, dead, elsewhere)] == [True, False, True]


def test_the_stages_of_a_run_whose_report_was_deleted_are_removed(outputs: Outputs, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("npo", "rmu"):
        outputs.make(name)
    assert "There is nothing to remove." in cleaned(capsys, outputs, "--yes")
    shutil.rmtree(outputs.report("npo"))
    said = cleaned(capsys, outputs, "--yes")
    assert outputs.places() == places(*stages_of("rmu")), "also what both runs were made from stays"
    assert "unlearn (npo) of a deleted run" in said
    assert "Removed 3 folders, 3.00 MiB." in said
    assert [record.folder for record in read_records(outputs.root)[0]] == [str(outputs.report("rmu"))]
    assert "There is nothing to remove." in cleaned(capsys, outputs, "--yes")


@pytest.mark.parametrize(
    "reason", ["interrupted", "moved", "moved with the store", "unmounted", "elsewhere", "unknown", "damaged", "unreadable"]
)
def test_what_is_not_known_to_be_needless_stays(reason: str, outputs: Outputs, capsys: pytest.CaptureFixture[str]) -> None:
    outputs.make("npo", upto=3 if reason == "interrupted" else 4)
    store = StageStore(shutil.copytree(outputs.root, outputs.folder.parent / "shared"))
    kept = places(*stages_of("npo")[: 3 if reason == "interrupted" else 4])
    if reason == "moved":
        outputs.report("npo").rename(outputs.folder / "demo" / "kept")
    elif reason == "moved with the store":
        (store.root.parent / "demo").mkdir()
        outputs.report("npo").rename(store.root.parent / "demo" / "kept")
    elif reason == "unmounted":
        shutil.rmtree(outputs.folder)
    elif reason != "interrupted":
        shutil.rmtree(outputs.report("npo"))
    if reason == "elsewhere":  # another user's report of the same run
        write_record(store.root, scored("npo"), outputs.folder / "mine" / "npo", "m", stages_of("npo"), published=False)
    elif reason == "unknown":  # an evaluation by a version without records
        other = Stage("evaluate", 1, {}, (removal("npo"),))
        store.run(other, lambda folder: None)
        kept = places(BASE, removal("npo"), other)
    elif reason == "damaged":
        (store.root / "report" / stages_of("npo")[3].key / "weights").unlink()
    elif reason == "unreadable":
        (store.root / ".x.run").write_text("{}")
    main(["clean", str(store.root), "--yes"])
    left = {f"{path.parent.name}/{path.name}" for path in store.root.glob("*/[!.]*")}
    assert left == kept
    assert "Kept: " in capsys.readouterr().out


def test_a_stage_that_is_locked_stays(outputs: Outputs, capsys: pytest.CaptureFixture[str]) -> None:
    outputs.make("npo")
    shutil.rmtree(outputs.report("npo"))
    with lock(outputs.root / "unlearn" / f".{removal('npo').key}.lock"):
        said = cleaned(capsys, outputs, "--yes")
    assert outputs.places() == places(removal("npo"))
    assert "Kept: unlearn (npo) of a deleted run: its lock is held by a process" in said
    cleaned(capsys, outputs, "--yes")
    assert outputs.places() == set()


def test_what_has_come_into_use_since_it_was_shown_stays(outputs: Outputs, capsys: pytest.CaptureFixture[str]) -> None:
    from casd.pipeline.clean import clean, leftovers

    outputs.make("npo")
    shutil.rmtree(outputs.report("npo"))
    shown = leftovers(outputs.root)
    assert len(shown.items) == 4
    write_record(outputs.root, scored("npo"), outputs.report("npo"), "m", stages_of("npo"), published=False)
    assert list(clean(outputs.root, shown)) == []
    assert outputs.places() == places(*stages_of("npo"))


# ---------------------------------------------------------------- records


def test_a_record_keeps_what_earlier_commands_asked_for(tmp_path: Path) -> None:
    for stages in (stages_of("npo"), [BASE]):
        write_record(tmp_path, scored("npo"), tmp_path / "a" / "b", "m", stages, published=False)
    assert read_records(tmp_path) == (
        [Record(scored("npo").key, str(tmp_path / "a" / "b"), "m", {f"{s.name}/{s.key}": s.label for s in stages_of("npo")})],
        [],
    )


def test_a_store_that_cannot_be_written_to_has_no_records(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    write_record(tmp_path / "file", scored("npo"), tmp_path, "m", [], published=False)
    with pytest.raises(StoreError):
        find_store(tmp_path / "file")


def test_a_run_is_recorded_from_its_first_stage_on_and_freed_when_its_report_is_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    command = ["run", *tiny(tmp_path / "outputs", "backdoor=[refusal]", "unlearning.training.steps=1")]
    with monkeypatch.context() as patch:
        patch.setattr("casd.pipeline.stages.make_injected", interrupted)
        with pytest.raises(SystemExit):
            main(command)
    capsys.readouterr()
    main(["status", str(tmp_path / "outputs")])
    assert re.search(
        r"smoke/llama3_tiny-gradient_difference-seed0-\w{8} +llama3_tiny +3/\d\d .* interrupted\n", capsys.readouterr().out
    )
    main(command)
    capsys.readouterr()
    main(["status", str(tmp_path / "outputs")])
    said = capsys.readouterr().out
    done = re.search(r" (\d+)/(\d+) .* finished\n1 run, 1 finished; (\d+) stages", said)
    assert done, said
    assert done[1] == done[2] == done[3], "a stage was made that the record does not have"
    main(["clean", str(tmp_path / "outputs"), "--yes"])
    assert "There is nothing to remove." in capsys.readouterr().out
    [page] = (tmp_path / "outputs" / "smoke").glob("*/report.html")
    shutil.rmtree(page.parent)
    main(["clean", str(tmp_path / "outputs"), "--yes"])
    assert list((tmp_path / "outputs" / "store").glob("*/[!.]*")) == []
