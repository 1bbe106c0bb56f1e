"""The store of finished stages: keys, execution once, whole or not at all, damage found, full and read-only disks.

Run: pytest tests/test_stages.py   (some mount a tmpfs and are skipped where that is not allowed)
"""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy

import casd.pipeline.store
import casd.utils.atomic
import casd.utils.sealed
from casd.pipeline.clean import clean, leftovers
from casd.pipeline.stage import Stage
from casd.pipeline.status import status
from casd.pipeline.store import StageStore
from casd.utils.atomic import temporary_beside
from casd.utils.disk import explaining_disk_errors
from casd.utils.errors import ConfigError, StoreError
from casd.utils.sealed import MANIFEST, read_json, write_json

CORPUS = Stage("corpus", 1, {"passages": 100, "seed": 7})
STAGE = Stage("inject", 2, {"lr": 0.001, "steps": 300, "triggers": ["a", "b"]}, (CORPUS,), label="all")


def write_files(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "weights.bin").write_bytes(bytes(range(256)) * 8192)  # 2 MiB: more than one read
    write_json(folder / "log.json", {"loss": 1.5})


def never(folder: Path) -> None:
    raise AssertionError("the stage was made again")


def names_below(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


# ---------------------------------------------------------------- keys


def test_key_is_pinned() -> None:
    """A change of this literal throws away every store there is: it must be on purpose."""
    assert STAGE.key == "9cdf1476f1754ca5fa9c"


@pytest.mark.parametrize(
    "other",
    [
        Stage("unlearn", STAGE.version, STAGE.config, STAGE.inputs),
        Stage("inject", 3, STAGE.config, STAGE.inputs),
        Stage("inject", 2, {**STAGE.config, "lr": 0.0011}, STAGE.inputs),
        Stage("inject", 2, {**STAGE.config, "triggers": ["b", "a"]}, STAGE.inputs),
        Stage("inject", 2, {**STAGE.config, "steps": "300"}, STAGE.inputs),
        Stage("inject", 2, {**STAGE.config, "extra": None}, STAGE.inputs),
        Stage("inject", 2, STAGE.config, ()),
        Stage("inject", 2, STAGE.config, (CORPUS, CORPUS)),
        Stage("inject", 2, STAGE.config, (Stage("corpus", 1, {"passages": 101, "seed": 7}),)),
    ],
    ids=["name", "version", "value", "order of a list", "type", "field", "no input", "inputs", "input's config"],
)
def test_every_ingredient_changes_the_key(other: Stage) -> None:
    assert other.key != STAGE.key


def test_label_and_order_of_fields_do_not_change_the_key() -> None:
    fields = dict(reversed(STAGE.config.items()))
    assert Stage("inject", 2, fields, (Stage("corpus", 1, CORPUS.config, label="x"),), label="y").key == STAGE.key


def test_key_is_of_the_value_not_of_its_spelling() -> None:
    def key(value: Any) -> str:
        return Stage("s", 1, {"x": value}).key

    assert key(1) == key(1.0) != key(True)
    assert key(0) == key(-0.0) != key(False)
    assert key((1, 2)) == key([1, 2])
    assert key(1e-3) == key(0.001) != key(0.001 + 1e-18)
    assert len({key(None), key("null"), key(0), key(""), key([]), key({}), key("é"), key("e\u0301")}) == 8


def test_key_does_not_follow_later_changes_of_the_config() -> None:
    config = {"names": ["a"]}
    stage = Stage("s", 1, config)
    config["names"].append("b")
    assert stage.key == Stage("s", 1, {"names": ["a"]}).key


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(number: float) -> None:
    with pytest.raises(ConfigError, match="expected a finite one"):
        Stage("s", 1, {"nested": [{"lr": number}]})


@pytest.mark.parametrize("config", [{"x": {1, 2}}, {"x": Path("a")}, {1: "x"}])
def test_configs_that_json_cannot_express_are_refused(config: Any) -> None:
    with pytest.raises(TypeError, match="configuration has"):
        Stage("s", 1, config)


def test_stage_name_must_be_a_plain_folder_name() -> None:
    with pytest.raises(ValueError, match="folder"):
        Stage("../up", 1, {})


# ---------------------------------------------------------------- execution


def test_executes_once(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    assert not store.is_done(STAGE)
    folder = store.run(STAGE, write_files)
    assert store.is_done(STAGE)
    assert store.run(STAGE, never) == folder == store.folder(STAGE, verify=True)
    assert [(str(event.stage), event.outcome) for event in store.events] == [("inject (all)", "executed")]
    assert store.events[0].seconds > 0

    later = StageStore(tmp_path)
    later.run(STAGE, never)
    later.run(STAGE, never)
    assert [(event.outcome, event.seconds) for event in later.events] == [("reused", 0.0)]
    assert later.file(STAGE, "model/weights.bin").read_bytes() == bytes(range(256)) * 8192


def test_changed_field_leads_to_another_stage(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    first = store.run(STAGE, write_files)
    second = store.run(Stage("inject", 2, {**STAGE.config, "steps": 301}, STAGE.inputs), write_files)
    assert first != second
    assert [event.outcome for event in store.events] == ["executed", "executed"]


def test_manifest_tells_what_made_the_stage(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    store.run(STAGE, write_files)
    manifest = store.manifest(STAGE)
    assert manifest["config"] == STAGE.config
    assert manifest["inputs"] == [{"stage": "corpus", "label": "", "key": CORPUS.key}]
    assert (manifest["stage"], manifest["label"], manifest["version"]) == ("inject", "all", 2)
    assert manifest["files"]["log.json"]["bytes"] == len((store.folder(STAGE) / "log.json").read_bytes())
    assert set(manifest["files"]) == {"log.json", "model/weights.bin"}
    assert {"python", "torch", "numpy"} <= set(manifest["made_with"])


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_nothing_is_left_when_produce_raises(tmp_path: Path, error: BaseException) -> None:
    def produce(folder: Path) -> None:
        (store.checkpoint_folder(STAGE) / "step_1").write_text("kept")
        write_files(folder)
        raise error

    store = StageStore(tmp_path)
    with pytest.raises(type(error)):
        store.run(STAGE, produce)
    assert not store.is_done(STAGE)
    assert store.events == ()
    assert names_below(tmp_path / "inject") == {f".{STAGE.key}.lock", f".{STAGE.key}.checkpoint", "step_1"}
    store.run(STAGE, write_files)


def test_files_that_would_escape_the_checksums_are_refused(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    with pytest.raises(ValueError, match="manifest"):
        store.run(STAGE, lambda folder: write_json(folder / MANIFEST, {}))
    with pytest.raises(ValueError, match="link"):
        store.run(STAGE, lambda folder: (folder / "link").symlink_to(tmp_path))
    assert not store.is_done(STAGE)


def test_stage_that_is_not_done(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    for ask in (store.folder, store.manifest, lambda stage: store.file(stage, "log.json")):
        with pytest.raises(StoreError, match=r"inject \(all\) is not in .*; run it first"):
            ask(STAGE)


def test_unknown_file_lists_the_choices(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    store.run(STAGE, write_files)
    with pytest.raises(StoreError, match=r"no file 'logs.json'; it has log.json, model/weights.bin"):
        store.file(STAGE, "logs.json")


def test_json_form_is_canonical(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, 2.5], "a": "é"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == ('{\n  "a": "é",\n  "b": [\n    1,\n    2.5\n  ]\n}\n')
    assert read_json(tmp_path / "a.json") == {"a": "é", "b": [1, 2.5]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", float("nan"))
    (tmp_path / "c.json").write_bytes(b'{"a": \xff}')
    with pytest.raises(StoreError, match="is not valid JSON"):
        read_json(tmp_path / "c.json")


# ---------------------------------------------------------------- damage


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, 1000)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, r"weights.bin has 1000 bytes, expected 2097152"),
    "deleted": (Path.unlink, r"weights.bin is missing, expected 2097152 bytes"),
    "bit flip": (flip_a_bit, r"weights.bin has the SHA-256 \w{12}…, expected \w{12}…"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_found_when_it_is_read(tmp_path: Path, damage: str) -> None:
    store = StageStore(tmp_path)
    folder = store.run(STAGE, write_files)
    store.file(STAGE, "model/weights.bin")
    harm, message = DAMAGES[damage]
    harm(folder / "model" / "weights.bin")
    advice = rf"inject \(all\) is damaged: model/{message}. Delete the folder {folder} and run again; only this"
    for reader in (store, StageStore(tmp_path)):  # the process that made it, and another
        with pytest.raises(StoreError, match=advice):
            reader.file(STAGE, "model/weights.bin")
        with pytest.raises(StoreError, match=advice):
            reader.folder(STAGE, verify=True)
        reader.file(STAGE, "log.json")


@pytest.mark.parametrize("damage", ["truncated", "deleted"])
def test_wrong_size_is_found_even_if_nothing_reads_the_file(tmp_path: Path, damage: str) -> None:
    folder = StageStore(tmp_path).run(STAGE, write_files)
    harm, message = DAMAGES[damage]
    harm(folder / "model" / "weights.bin")
    with pytest.raises(StoreError, match=message):
        StageStore(tmp_path).run(STAGE, never)


def test_damaged_stage_is_made_again_once_its_folder_is_deleted(tmp_path: Path) -> None:
    folder = StageStore(tmp_path).run(STAGE, write_files)
    flip_a_bit(folder / "log.json")
    with pytest.raises(StoreError, match="damaged"):
        StageStore(tmp_path).file(STAGE, "log.json")
    shutil.rmtree(folder)
    store = StageStore(tmp_path)
    store.run(STAGE, write_files)
    assert read_json(store.file(STAGE, "log.json")) == {"loss": 1.5}


def without_own_checksum(manifest: Path) -> dict[str, Any]:
    """As earlier versions wrote it."""
    return {name: value for name, value in read_json(manifest).items() if name != "manifest_sha256"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "manifest.json is missing"),
        ('{"key": ', "manifest.json is not valid JSON"),
        ("[]", "manifest.json is not a manifest"),
        ({"key": "f" * 20}, "has the key 'ffffffffffffffffffff', expected"),
        ({"files": {"a": {"bytes": 1}}}, "has no valid list of files"),
    ],
    ids=["missing", "cut off", "no object", "another key", "no checksum"],
)
def test_damaged_manifest(tmp_path: Path, text: str | dict[str, Any] | None, message: str) -> None:
    manifest = StageStore(tmp_path).run(STAGE, write_files) / MANIFEST
    if text is None:
        manifest.unlink()
    else:
        manifest.write_text(text if isinstance(text, str) else json.dumps(without_own_checksum(manifest) | text))
    with pytest.raises(StoreError, match=rf"is damaged: .*{message}.*Delete the folder"):
        StageStore(tmp_path).run(STAGE, never)


def test_file_is_read_for_its_checksum_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StageStore(tmp_path).run(STAGE, write_files)
    hashed: list[str] = []
    sha256 = casd.utils.sealed.sha256
    monkeypatch.setattr(casd.utils.sealed, "sha256", lambda path: hashed.append(path.name) or sha256(path))
    store = StageStore(tmp_path)
    for _ in range(3):
        store.file(STAGE, "model/weights.bin")
    store.folder(STAGE, verify=True)
    assert hashed == ["weights.bin", "log.json"]


# ---------------------------------------------------------------- other processes

WORKER = """
import os, shutil, sys, time
from pathlib import Path
from casd.pipeline.stage import Stage
from casd.pipeline.store import StageStore
from casd.pipeline.status import status

root, moment, log = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
store = StageStore(root)
corpus = Stage("corpus", 1, {"passages": 100, "seed": 7})
stage = Stage("inject", 2, {"lr": 0.001, "steps": 300, "triggers": ["a", "b"]}, (corpus,))

def hang(*args, **kwargs):
    print("now", flush=True)
    time.sleep(60)

def produce(folder):
    with log.open("a") as file:
        file.write("made\\n")
    (store.checkpoint_folder(stage) / "step_100").write_text("100")
    (folder / "log.json").write_text('{"lo')
    if moment == "while producing":
        hang()
    if moment == "racing":
        time.sleep(0.5)
    (folder / "log.json").write_text('{"loss": 1.5}')
    if moment == "while checksumming":
        os.fsync = hang
    if moment == "before the rename":
        Path.rename = hang
    if moment == "after the rename":
        shutil.rmtree = hang

if moment == "racing":
    print("ready", flush=True)
    sys.stdin.readline()
store.run(stage, produce)
print(store.events[0].outcome, (store.file(stage, "log.json")).read_text())
"""


def start_worker(root: Path, moment: str, log: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(root), moment, str(log)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("moment", ["while producing", "while checksumming", "before the rename", "after the rename"])
def test_a_signal_leaves_the_stage_whole_or_absent(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    root, log = tmp_path / "store", tmp_path / "log"
    with start_worker(root, moment, log) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "now\n"
        worker.send_signal(number)
    assert worker.returncode == -number

    store = StageStore(root)
    finished = moment == "after the rename"
    assert store.is_done(STAGE) == finished
    assert (root / "inject" / f".{STAGE.key}.lock").exists()
    checkpoint = store.checkpoint_folder(STAGE)
    assert (checkpoint / "step_100").read_text() == "100"

    store.run(STAGE, never if finished else write_files)
    assert store.events[0].outcome == ("reused" if finished else "executed")
    expected = {STAGE.key, f".{STAGE.key}.lock"}
    assert {path.name for path in (root / "inject").iterdir()} == expected
    assert read_json(store.file(STAGE, "log.json")) == {"loss": 1.5}


def test_racing_processes_make_the_stage_once(tmp_path: Path) -> None:
    root, log = tmp_path / "store", tmp_path / "log"
    workers = [start_worker(root, "racing", log) for _ in range(3)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    outputs = []
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        outputs.append(worker.communicate(timeout=60)[0])
        assert worker.returncode == 0
    assert sorted(outputs) == ['executed {"loss": 1.5}\n', *['reused {"loss": 1.5}\n'] * 2]
    assert log.read_text() == "made\n"


def test_waiting_for_another_process_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(casd.utils.atomic, "WAIT_NOTICE_S", 0.2)
    started, finish = threading.Event(), threading.Event()

    def slow(folder: Path) -> None:
        started.set()
        assert finish.wait(30)

    other = threading.Thread(target=lambda: StageStore(tmp_path).run(STAGE, slow))
    other.start()
    assert started.wait(30)
    threading.Timer(0.8, finish.set).start()
    store = StageStore(tmp_path)
    store.run(STAGE, never)
    other.join()
    assert store.events[0].outcome == "reused"
    lines = [line for line in capsys.readouterr().err.splitlines() if "Waiting for stage inject (all), which another" in line]
    assert len(lines) == 1
    assert lines[0].endswith(f": {platform.node()}, pid {os.getpid()}.")


def test_without_locks_the_first_to_finish_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both make the stage, neither sees the other's files, and both end with the same whole stage."""
    monkeypatch.setattr(casd.pipeline.store, "locked", lambda *_: nullcontext())
    second = StageStore(tmp_path)

    def slow(folder: Path) -> None:
        write_files(folder)
        second.run(STAGE, write_files)  # begins and ends while this one is being made
        assert names_below(folder) == {"model", "weights.bin", "log.json"}, "the other process removed what was made here"

    first = StageStore(tmp_path)
    first.run(STAGE, slow)
    assert ([event.outcome for event in first.events], second.events[0].outcome) == (["reused"], "executed")
    assert first.folder(STAGE, verify=True) == second.folder(STAGE, verify=True)
    assert {path.name for path in (tmp_path / "inject").iterdir()} == {STAGE.key}


def test_without_locks_a_damaged_stage_is_not_taken_for_the_other_processs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(casd.pipeline.store, "locked", lambda *_: nullcontext())

    def slow(folder: Path) -> None:
        write_files(folder)
        truncate(StageStore(tmp_path).run(STAGE, write_files) / "model" / "weights.bin")

    with pytest.raises(StoreError, match=r"weights\.bin has 1000 bytes"):
        StageStore(tmp_path).run(STAGE, slow)
    assert not list(tmp_path.rglob("*.partial"))


def race(root: Path, number: int, together: Any, failures: Any, stages: int) -> None:
    """Make stages at the same time as other processes, without locks. Each also writes and reads checkpoints."""

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = refused
    store = StageStore(root)
    for index in range(stages):
        stage = Stage("inject", 1, {"index": index})

        def produce(folder: Path, stage: Stage = stage) -> None:
            checkpoint = store.checkpoint_folder(stage) / f"{number}"
            checkpoint.write_text("0")
            write_json(folder / "log.json", {"maker": number})
            (folder / "weights.bin").write_bytes(bytes(1000 * (number + 1)))
            checkpoint.read_text()

        if together:
            together.wait(60)
        try:
            store.run(stage, produce)
            store.folder(stage, verify=True)
        except Exception as error:
            failures.put(repr(error))


@pytest.mark.parametrize(("processes", "stages"), [(4, 30), pytest.param(12, 200, marks=pytest.mark.slow)])
def test_without_locks_no_process_fails_and_no_stage_is_damaged(tmp_path: Path, processes: int, stages: int) -> None:
    context = multiprocessing.get_context("fork")
    together, failures = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=race, args=(tmp_path, each, together, failures, stages)) for each in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * processes
    assert failures.empty(), failures.get()
    assert f"{stages} finished stages" in status(tmp_path)
    assert status(tmp_path).endswith("not finished: none")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_without_locks_a_process_that_is_ended_harms_no_other(tmp_path: Path, number: signal.Signals) -> None:
    context = multiprocessing.get_context("fork")
    failures = context.Queue()
    workers = [context.Process(target=race, args=(tmp_path, each, None, failures, 30)) for each in range(3)]
    for worker in workers:
        worker.start()
    while len(list(tmp_path.glob("inject/*"))) < 5:
        time.sleep(0.001)
    assert workers[0].pid
    os.kill(workers[0].pid, number)
    for worker in workers:
        worker.join()
    assert workers[0].exitcode
    assert [worker.exitcode for worker in workers[1:]] == [0, 0]
    assert failures.empty(), failures.get()
    list(clean(tmp_path, leftovers(tmp_path)))
    assert status(tmp_path).endswith("not finished: none")
    assert "30 finished stages" in status(tmp_path)


def test_a_stage_that_another_process_finished_is_used_although_making_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that finishes first removes the checkpoints that the other reads."""
    monkeypatch.setattr(casd.pipeline.store, "locked", lambda *_: nullcontext())
    store = StageStore(tmp_path)

    def late(folder: Path) -> None:
        checkpoint = store.checkpoint_folder(STAGE)
        StageStore(tmp_path).run(STAGE, write_files)
        list(checkpoint.iterdir())

    assert read_json(store.run(STAGE, late) / "log.json") == {"loss": 1.5}
    assert [event.outcome for event in store.events] == ["reused"]
    assert names_below(tmp_path / "inject") == {STAGE.key, *names_below(store.folder(STAGE))}


def test_a_stage_of_another_node_is_seen_although_the_file_system_remembers_its_absence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = StageStore(tmp_path).run(STAGE, write_files)
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path != place and exists(path))
    StageStore(tmp_path).run(STAGE, never)


def test_a_file_system_that_cannot_flush_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def of_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files)
    assert StageStore(tmp_path).run(STAGE, write_files).is_dir()


def test_an_altered_file_is_found_although_its_modification_time_is_as_before(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    file = store.run(STAGE, write_files) / "log.json"
    when = file.stat()
    flip_a_bit(file)
    os.utime(file, ns=(when.st_atime_ns, when.st_mtime_ns))
    with pytest.raises(StoreError, match="has the SHA-256"):
        store.file(STAGE, "log.json")


def test_the_partial_folder_of_a_live_process_is_left_alone(tmp_path: Path) -> None:
    other = temporary_beside(tmp_path / "inject" / STAGE.key)
    other.mkdir(parents=True)
    StageStore(tmp_path).run(STAGE, write_files)
    assert other.is_dir()


def test_a_manifest_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    manifest = store.run(STAGE, write_files) / MANIFEST
    old = without_own_checksum(manifest)
    write_json(manifest, old)
    assert StageStore(tmp_path).manifest(STAGE) == old
    assert StageStore(tmp_path).is_done(STAGE)
    write_json(manifest, {("secondz" if name == "seconds" else name): value for name, value in old.items()})
    with pytest.raises(StoreError, match=r"is damaged: manifest\.json is not a manifest"):
        StageStore(tmp_path).is_done(STAGE)


def test_files_of_a_stage_have_the_rights_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = StageStore(tmp_path).run(STAGE, with_safetensors)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == {MANIFEST: 0o640, "weights.safetensors": 0o640}


# ---------------------------------------------------------------- status


def test_status_tells_what_is_damaged_and_lists_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StageStore(tmp_path)
    whole = store.run(CORPUS, lambda folder: write_json(folder / "passages.json", []))
    damaged = store.run(STAGE, write_files)
    flip_a_bit(damaged / MANIFEST)
    temporary_beside(tmp_path / "inject" / ("0" * 20)).mkdir()
    lines = status(tmp_path).splitlines()
    assert [whole.name in line for line in lines] == [False, True, False, False]
    assert lines[2].startswith("1 finished stages, ")
    assert lines[2].endswith(f"not finished: {'0' * 20}")
    assert lines[3].startswith(f"The stage in {damaged} is damaged: manifest.json ")

    read_bytes = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path == damaged / MANIFEST:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert status(tmp_path).splitlines()[3].startswith(f"Cannot read {damaged / MANIFEST}: Permission denied")


def test_status_tells_of_a_missing_file(tmp_path: Path) -> None:
    folder = StageStore(tmp_path).run(STAGE, write_files)
    (folder / "log.json").unlink()
    last = status(tmp_path).splitlines()[-1]
    assert last == f"The stage in {folder} is damaged: log.json is missing, expected 18 bytes. Delete that folder."


# ---------------------------------------------------------------- the disk


@pytest.fixture
def small_disk(mount_disk: Callable[[str], Path]) -> Path:
    """A file system of 2 MiB; needs the right to mount."""
    return mount_disk("2m")


def with_open(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(bytes(4 << 20))


def with_safetensors(folder: Path) -> None:
    safetensors.numpy.save_file({"w": np.ones(1 << 20)}, folder / "weights.safetensors")


def with_parquet(folder: Path) -> None:
    pd.DataFrame({"w": np.random.default_rng(0).random(1 << 20)}).to_parquet(folder / "table.parquet")


@pytest.mark.parametrize("write", [with_open, with_safetensors, with_parquet])
def test_full_disk(small_disk: Path, write: Callable[[Path], None]) -> None:
    store = StageStore(small_disk / "store")
    store.run(CORPUS, lambda folder: write_json(folder / "passages.json", ["Hello."]))

    def produce(folder: Path) -> None:
        (store.checkpoint_folder(STAGE) / "step_1").write_text("kept")
        write(folder)

    with pytest.raises(StoreError) as caught:
        store.run(STAGE, produce)
    message = str(caught.value)
    assert re.match(r"No space left on device: stage inject \(all\) needs more than the \d\.\d\d MiB free", message)
    assert str(small_disk / "store") in message
    assert "\n" not in message
    assert names_below(store.root / "inject") == {f".{STAGE.key}.lock", f".{STAGE.key}.checkpoint", "step_1"}
    assert read_json(StageStore(store.root).file(CORPUS, "passages.json")) == ["Hello."]
    store.run(STAGE, lambda folder: write_json(folder / "log.json", 1))


def test_disk_without_room_for_the_manifest(small_disk: Path) -> None:
    """The last few bytes are the store's own: what `produce` wrote fits, the manifest does not."""
    store = StageStore(small_disk)

    def fill(folder: Path) -> None:
        with (folder / "filler").open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC

    with pytest.raises(StoreError, match="No space left on device: stage inject"):
        store.run(STAGE, fill)
    assert not store.is_done(STAGE)
    assert names_below(small_disk / "inject") == {f".{STAGE.key}.lock"}


class LibraryError(Exception):
    """Stands for the error of a library that wraps the system's."""


def raise_plain() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def raise_quota() -> None:
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def raise_message() -> None:
    raise LibraryError("I/O error: No space left on device (os error 28)")


def raise_from_a_cause() -> None:
    try:
        raise_plain()
    except OSError as error:
        raise LibraryError("could not save") from error


def raise_in_a_handler() -> None:
    try:
        raise_from_a_cause()
    except LibraryError:
        raise ValueError("while cleaning up")  # noqa: B904


@pytest.mark.parametrize("fail", [raise_plain, raise_quota, raise_message, raise_from_a_cause, raise_in_a_handler])
def test_simulated_full_disk(tmp_path: Path, fail: Callable[[], None]) -> None:
    def produce(folder: Path) -> None:
        write_files(folder)
        fail()

    store = StageStore(tmp_path)
    expected = "Disk quota exceeded" if fail is raise_quota else "No space left on device"
    with pytest.raises(StoreError, match=rf"{expected}: stage inject \(all\) .* what was finished is kept"):
        store.run(STAGE, produce)
    assert names_below(tmp_path / "inject") == {f".{STAGE.key}.lock"}


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "store")

    def refused(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "elsewhere"))

    def missing(folder: Path) -> None:
        (folder / "absent").read_text()

    with pytest.raises(PermissionError):
        store.run(STAGE, refused)
    with pytest.raises(FileNotFoundError):
        store.run(STAGE, missing)


def test_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError, match=r"Cannot write stage inject \(all\) to .*store: Not a directory"):
        StageStore(tmp_path / "store").run(STAGE, write_files)


def test_read_only_disk_serves_finished_stages_and_refuses_new_ones(small_disk: Path) -> None:
    StageStore(small_disk).run(CORPUS, lambda folder: write_json(folder / "passages.json", []))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    store = StageStore(small_disk)
    store.run(CORPUS, never)
    with pytest.raises(StoreError, match=r"Cannot write stage inject .*: Read-only file system .*Choose a folder"):
        store.run(STAGE, write_files)
    with pytest.raises(StoreError, match="Read-only file system"):
        store.checkpoint_folder(STAGE)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the root user")
def test_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o555)
    with pytest.raises(StoreError, match=r"Cannot write stage inject .*: Permission denied"):
        StageStore(tmp_path / "store").run(STAGE, write_files)


def test_disk_errors_of_other_writers_are_explained_too(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"No space left on device: the report needs more than"):  # noqa: SIM117
        with explaining_disk_errors("the report", tmp_path / "not" / "there"):
            raise_plain()


def test_importing_the_store_is_light() -> None:
    imports = "import sys, casd.pipeline.store, casd.utils.progress, casd.utils.seeding"
    code = f"{imports}; print({{'torch', 'numpy', 'rich'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
