"""Manifests guard the files and themselves; writing is whole or not at all; what the system refuses is told in a line.

Run: pytest tests/test_sealed.py   (one test mounts a tmpfs and is skipped where that is not allowed)
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import casd.utils.atomic
from casd.utils.atomic import give_default_rights, locked, remove_leftovers, temporary_beside, write_text
from casd.utils.disk import explaining_disk_errors, told
from casd.utils.errors import StoreError
from casd.utils.sealed import (
    CHECKSUMS,
    Damage,
    check_file,
    checked_bytes,
    checksums,
    is_whole,
    read_json,
    read_manifest,
    write_manifest,
)

OLD_FIELDS = ("stage", "files")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Of two files, with a number, a text beyond ASCII and an empty list beside them."""
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.json").write_text("{}")
    (tmp_path / "b").write_bytes(bytes(range(200)))
    path = tmp_path / CHECKSUMS
    write_manifest(path, {"stage": "s", "files": checksums(tmp_path), "seconds": 1.25, "label": "é", "inputs": []})
    return path


# ------------------------------------------------------------------------------------------------ manifests


def test_a_manifest_is_read_as_it_was_written(manifest: Path) -> None:
    read = read_manifest(manifest)
    assert (read["stage"], read["seconds"], read["label"], read["inputs"]) == ("s", 1.25, "é", [])
    assert {name: entry["bytes"] for name, entry in read["files"].items()} == {"b": 200, "tables/a.json": 2}
    assert is_whole(manifest.parent, read["files"])
    assert checked_bytes(manifest.parent, "tables/a.json", read["files"]["tables/a.json"]) == b"{}"


def test_every_changed_byte_of_a_manifest_is_found_or_means_the_same(manifest: Path) -> None:
    """The name of the field with its own checksum included: without that it is no manifest of an earlier version, either."""
    whole, content = manifest.read_bytes(), read_manifest(manifest)
    found = 0
    for place in range(len(whole)):
        for change in (1, 4, 32, 128):
            manifest.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
            try:
                assert read_manifest(manifest, OLD_FIELDS) == content
            except Damage:
                found += 1
    assert found > 3.4 * len(whole), "only white space may be changed"


def test_a_manifest_of_an_earlier_version_is_read(manifest: Path) -> None:
    files = read_json(manifest)["files"]
    manifest.write_text(json.dumps({"stage": "s", "files": files}))
    assert read_manifest(manifest, OLD_FIELDS)["files"] == files
    for altered in ({"stagf": "s", "files": files}, {"files": files}, {}, [], None, {"stage": "s", "files": [1]}):
        manifest.write_text(json.dumps(altered))
        with pytest.raises(Damage):
            read_manifest(manifest, OLD_FIELDS)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"files": NaN, "manifest_sha256": ""}'])
def test_what_is_no_manifest(manifest: Path, content: bytes) -> None:
    manifest.write_bytes(content)
    with pytest.raises(Damage, match=CHECKSUMS):
        read_manifest(manifest)


@pytest.mark.parametrize("check", [check_file, checked_bytes])
def test_a_damaged_file(manifest: Path, check: Callable[..., object]) -> None:
    folder, entry = manifest.parent, read_manifest(manifest)["files"]["b"]
    check(folder, "b", entry)
    content = (folder / "b").read_bytes()
    for damaged, says in (
        (content[:-1], "b has 199 bytes, expected 200"),
        (content[:-1] + b"x", "b has the SHA-256 "),
    ):
        (folder / "b").write_bytes(damaged)
        with pytest.raises(Damage, match=says):
            check(folder, "b", entry)
    (folder / "b").unlink()
    with pytest.raises(Damage, match="b is missing, expected 200 bytes"):
        check(folder, "b", entry)
    assert not is_whole(folder, {"b": entry})


# ------------------------------------------------------------------------------------------------ writing


def test_leftovers_of_dead_processes_alone_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    target = tmp_path / "run"
    host, random = casd.utils.atomic._host(), "0123abcd"
    stays = [
        f".run.{host}-{os.getpid()}-{random}.partial",  # alive
        f".run.elsewhere-{dead.pid}-{random}.partial",  # of another machine
        f".run-2.{host}-{dead.pid}-{random}.partial",  # of another target
        f".run.{random}.partial",  # nobody knows whose
        "run.partial",
    ]
    goes = [f".run.{host}-{dead.pid}-{random}.partial", ".run.partial"]
    for name in (*stays, *goes):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    remove_leftovers(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stays)
    for path in (tmp_path / stays[1], tmp_path / stays[1] / "file"):
        os.utime(path, (1, 1))
    remove_leftovers(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({*stays} - {stays[1]})


def test_processes_of_hosts_with_similar_names_are_not_mistaken_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for node in ("a-node-of-a-cluster-with-a-very-long-name-1", "a-node-of-a-cluster-with-a-very-long-name-2"):
        monkeypatch.setattr(platform, "node", lambda node=node: node)
        casd.utils.atomic._host.cache_clear()
        remove_leftovers(tmp_path / "run")
        mine = temporary_beside(tmp_path / "run")
        mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-")).mkdir()
    monkeypatch.undo()
    casd.utils.atomic._host.cache_clear()
    assert len(list(tmp_path.iterdir())) == 2


def test_temporary_names_differ(tmp_path: Path) -> None:
    names = {temporary_beside(tmp_path / ("x" * 200)).name for _ in range(100)}
    assert len(names) == 100
    assert max(map(len, names)) < 255


def test_text_that_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "page", "before")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
        with pytest.raises(OSError, match="no"):
            write_text(tmp_path / "page", "after")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("page", "before")]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_rights_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        safetensors.numpy.save_file({"w": np.ones(2)}, tmp_path / "weights.safetensors")
        (tmp_path / "like").write_text("")
        give_default_rights(tmp_path, tmp_path / "like")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_the_work_is_done_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refused(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refused)
    done = []
    with locked(tmp_path / "lock", "something"):
        done.append(1)
    with locked(tmp_path / "no such folder" / "lock", "something"):
        done.append(2)
    assert done == [1, 2]
    with pytest.raises(OSError, match="of the block"), locked(tmp_path / "lock", "something"):
        raise OSError("of the block")


# ------------------------------------------------------------------------------------------------ what the system refuses


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.EMFILE, "Too many open files while stage s was written to .*: .*ulimit -n 4096"),
        (errno.ENOMEM, "Cannot allocate memory while stage s .*: there is not enough memory"),
        (errno.EFBIG, "File too large while stage s .*ulimit -f unlimited"),
        (errno.ENOSPC, "No space left on device: stage s needs more than the .* free on the disk of"),
        (errno.EDQUOT, "Disk quota exceeded: stage s needs more"),
        (errno.EROFS, "Cannot write stage s to .*: Read-only file system"),
    ],
)
@pytest.mark.parametrize("of_a_library", [False, True])
def test_a_limit_is_told_with_what_to_do(tmp_path: Path, code: int, says: str, of_a_library: bool) -> None:
    error: Exception = OSError(code, os.strerror(code))
    if of_a_library and code != errno.EROFS:
        error = RuntimeError(f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})")
    with pytest.raises(StoreError, match=says), explaining_disk_errors("stage s", tmp_path):
        raise error


def test_errors_without_a_stage_are_told(tmp_path: Path) -> None:
    assert told(MemoryError()).startswith("Cannot allocate memory: there is not enough memory")
    assert told(ImportError("libx.so: cannot open shared object file: Too many open files")).startswith("Too many open files")
    assert "not enough memory" in told(ImportError("_umath.so: failed to map segment from shared object"))
    assert "ulimit -u" in told(RuntimeError("can't start new thread"))
    missing = tmp_path / "absent"
    assert told(FileNotFoundError(errno.ENOENT, "no", str(missing))) == f"Cannot open {missing}: No such file or directory."
    assert told(PermissionError(errno.EACCES, "no", str(missing))).startswith(f"Cannot write {missing}: Permission denied.")
    assert told(PermissionError(errno.EACCES, "no"), missing, reading=True).startswith(f"Cannot read {missing}: Permission")
    assert told(OSError("a library's own\nand more")) == "The operating system reported an error: a library's own."
    assert told(ValueError("a bug")) == ""
    assert told(KeyError("No such file or directory")) == ""


def test_a_file_that_cannot_be_read_is_not_told_as_one_that_cannot_be_written(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = read_manifest(manifest)["files"]["b"]

    def refused(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr(Path, "read_bytes", refused)
    for read in (
        lambda: check_file(manifest.parent, "b", entry),
        lambda: checked_bytes(manifest.parent, "b", entry),
        lambda: read_manifest(manifest),
    ):
        with pytest.raises(StoreError, match=r"^Cannot read .*: Permission denied. Ask its owner for permission to read"):
            read()


def test_a_disk_without_room_for_another_file(mount_disk: Callable[[str], Path]) -> None:
    disk = mount_disk("2m,nr_inodes=8")
    with pytest.raises(StoreError, match=r"stage s needs more files than the disk of .* \(\d+ inodes are left, \d"):  # noqa: SIM117
        with explaining_disk_errors("stage s", disk):
            try:
                for number in range(10):
                    (disk / str(number)).write_text("")
            finally:
                (disk / "0").unlink()  # what was begun is removed before the error is told


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StoreError, match="File too large while stage s"), explaining_disk_errors("stage s", tmp_path):
            (tmp_path / "file").write_bytes(bytes(2000))
        with pytest.raises(StoreError, match="File too large while stage s"), explaining_disk_errors("stage s", tmp_path):
            safetensors.numpy.save_file({"w": np.ones(1000)}, tmp_path / "weights.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
