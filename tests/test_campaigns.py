"""Campaigns: processes killed at random moments or side by side, bytes flipped, disks that fill up.

Nothing may be lost or torn, no damage may go unsaid, and no traceback may be seen. Each campaign is minutes long.

Run: pytest -m slow tests/test_campaigns.py                                all of it
     CAMPAIGN_KILLS=5 pytest -m slow tests/test_campaigns.py -k kill       a small part
The numbers of trials are CAMPAIGN_KILLS, _ROUNDS, _STORE_FLIPS, _CHECKPOINT_FLIPS, _PUBLISHED_FLIPS and _DISKS.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.campaign import Casd, Ended, casd, contents, count, flip, leftovers, run_here, smallest

from casd.analysis.tables import SCHEMAS, read_table
from casd.analysis.tidy import load_results
from casd.utils.sealed import read_json

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

MEASURED = ("evaluate", "activations", "unlearn")
EVERY_STEP = "runtime.checkpoint_seconds=0.000001"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Path:
    """The outputs of an undisturbed run, with the seconds that it took in `seconds`."""
    run_here("run", *smallest(tmp_path_factory.mktemp("first")))
    output = tmp_path_factory.mktemp("reference")
    ended = casd(logs, "run", *smallest(output))
    assert ended.status == 0, ended.err
    (output / "seconds").write_text(str(ended.seconds))
    return output


def published(output: Path) -> Path:
    [folder] = (output / "smoke").glob("[!.]*")
    return folder


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Without the time that training took."""
    return {name: read_table(folder, name).drop(columns="train_seconds", errors="ignore") for name in SCHEMAS}


def assert_same_results(output: Path, reference: Path) -> None:
    found, expected = tables(published(output)), tables(published(reference))
    for name, frame in expected.items():
        pd.testing.assert_frame_equal(found[name], frame, check_exact=True, obj=name)
    assert set(contents(published(output))) == set(contents(published(reference)))


def assert_whole(output: Path, reference: Path) -> None:
    """The run is finished, nothing else is left, and its results are those of the undisturbed run."""
    assert_same_results(output, reference)
    assert leftovers(output) == []
    for stage in (output / "store").glob("*/[!.]*"):
        entries = read_json(stage / "manifest.json")["files"]
        assert set(entries) | {"manifest.json"} == set(contents(stage)), stage


def copy(source: Path, target: Path) -> Path:
    """A copy made of links: a flip writes a file of its own. Times of change stay, as they do on a damaged disk."""
    shutil.copytree(source, target, copy_function=os.link)
    return target


def flip_a_copy(path: Path, rng: random.Random) -> str:
    when = path.stat()
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    changed = flip(path, rng)
    os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))
    return changed


# ------------------------------------------------------------------------------------------------ killed


def test_killed_at_random_moments(tmp_path: Path, reference: Path, logs: Path) -> None:
    kills, rng, done = count("KILLS", 50), random.Random(1), 0
    took = float((reference / "seconds").read_text())
    command = ["run", *smallest(tmp_path / "out", EVERY_STEP)]
    finished = 0
    while done < kills - kills // 2:
        run = Casd(command, logs)
        killed = run.kill_after(rng.uniform(0, 0.7 * took))
        ended = run.wait()
        done += killed and ended.status == -signal.SIGKILL
        if ended.status == 0:
            assert_whole(tmp_path / "out", reference)
            shutil.rmtree(tmp_path / "out")
            finished += 1
    assert casd(logs, *command).status == 0
    assert_whole(tmp_path / "out", reference)
    print(f"{done} kills, {finished + 1} runs that ended with the same results")


def test_killed_while_publishing(tmp_path: Path, reference: Path, logs: Path) -> None:
    """The report is made, and published anew or over one that another configuration of the runtime published."""
    kills, rng, done = count("KILLS", 50) // 2, random.Random(2), 0
    shutil.copytree(reference, tmp_path / "out")
    again = casd(logs, "run", *smallest(tmp_path / "out"))
    assert again.status == 0
    (published(tmp_path / "out") / "notes.txt").write_text("mine")
    states = Counter[str]()
    while done < kills:
        folder = published(tmp_path / "out")
        for path in rng.sample(sorted(folder.rglob("*.*")), 20):
            if path.name != "notes.txt":
                path.unlink(missing_ok=True)  # so that it has to be published again
        other = f"runtime.checkpoint_seconds={rng.randrange(1, 10**6)}"
        run = Casd(["run", *smallest(tmp_path / "out", other)], logs)
        killed = run.kill_after(rng.uniform(0, again.seconds))
        done += killed and run.wait().status == -signal.SIGKILL
        if not killed:
            run.wait()
        try:
            tables(published(tmp_path / "out"))
            states["whole"] += 1
        except Exception as error:  # said, and mended by the next run
            assert type(error).__name__ == "StoreError", error
            states["said to be damaged"] += 1
        assert (published(tmp_path / "out") / "notes.txt").read_text() == "mine"
        ended = casd(logs, "run", *smallest(tmp_path / "out"))
        assert ended.status == 0, ended.err
        (notes := published(tmp_path / "out") / "notes.txt").unlink()
        assert_whole(tmp_path / "out", reference)
        notes.write_text("mine")
    print(f"{done} kills while publishing; seen afterwards: {dict(states)}")


# ------------------------------------------------------------------------------------------------ side by side


def without_locks() -> None:
    """As on a file system whose locks other machines do not see."""
    import fcntl

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = refused


ROUNDS: list[tuple[str, tuple[str, ...], Callable[[], None]]] = [
    ("all anew", ("*",), lambda: None),
    ("report and publishing", ("report", "score"), lambda: None),
    ("publishing", (), lambda: None),
    ("finished", (), lambda: None),
    ("all anew, without locks", ("*",), without_locks),
    ("report and publishing, without locks", ("report", "score"), without_locks),
    ("publishing, without locks", (), without_locks),
]


@pytest.mark.parametrize("which", range(len(ROUNDS)), ids=[name for name, _, _ in ROUNDS])
def test_eight_processes_on_one_run(which: int, tmp_path: Path, reference: Path, logs: Path) -> None:
    name, lost, prepare = ROUNDS[which]
    for round_ in range(count("ROUNDS", 1)):
        out = tmp_path / f"{round_}"
        shutil.copytree(reference, out)
        for kind in lost:
            for folder in (out / "store").glob(kind):
                shutil.rmtree(folder)
        if not name.startswith("finished"):
            shutil.rmtree(out / "smoke")
        processes = [Casd(["run", *smallest(out, EVERY_STEP)], logs, prepare) for _ in range(8)]
        ended = [each.wait() for each in processes]
        assert [each.status for each in ended] == [0] * 8, [each.err for each in ended]
        assert_whole(out, reference)


# ------------------------------------------------------------------------------------------------ flipped bytes


def lose_what_reads(kind: str, output: Path, rng: random.Random) -> None:
    """Remove stages that are made from those of a kind, so that the next run reads them."""
    store = output / "store"
    if kind in ("corpus", "base", "tokens", "inject"):
        for each in MEASURED:
            shutil.rmtree(rng.choice(sorted((store / each).glob("[!.]*"))))
    shutil.rmtree(store / "score")


def assert_same_scores(output: Path, reference: Path) -> None:
    [found], [expected] = ((each / "store" / "score").glob("[!.]*") for each in (output, reference))
    for name, frame in tables(expected).items():
        pd.testing.assert_frame_equal(tables(found)[name], frame, check_exact=True, obj=name)


def test_bytes_flipped_in_the_store(tmp_path: Path, reference: Path, logs: Path) -> None:
    flips, rng, seen = count("STORE_FLIPS", 250), random.Random(3), Counter[str]()
    originals = sorted((reference / "store").glob("*/[!.]*"))
    for number in range(flips):
        out = tmp_path / str(number)
        stage = copy(reference, out) / rng.choice(originals).relative_to(reference)
        file = rng.choice(sorted(path for path in stage.rglob("*") if path.is_file()))
        kind = stage.parent.name
        what = flip_a_copy(file, rng)
        status = casd(logs, "status", str(out / "store"))
        original = reference / file.relative_to(out)
        assert status.status == 0
        if file.name == "manifest.json" and not same_json(file, original):
            assert f"{stage} is damaged" in status.out, what
        if kind in ("score", "report"):
            ended = read_the_store(out, reference, logs, tmp_path)
        elif number % 5:
            lose_what_reads(kind, out, rng)
            ended = casd(logs, "score", *smallest(out))
        else:
            ended = casd(logs, "run", *smallest(out))
        if ended.status == 1:
            assert ended.told, (what, ended.err)
            assert str(stage) in ended.err, (what, ended.err)
            assert file.name in ended.err, (what, ended.err)
            seen["told"] += 1
            if number % 10 == 0:
                shutil.rmtree(stage)
                assert casd(logs, "score", *smallest(out)).status == 0
                assert_same_scores(out, reference)
                seen["mended as was told"] += 1
        else:
            seen["not read, or the same results"] += 1
            if kind not in ("score", "report"):
                assert_same_scores(out, reference)
        shutil.rmtree(out)
    print(f"{flips} flips in the store: {dict(seen)}")


def read_the_store(out: Path, reference: Path, logs: Path, tmp_path: Path) -> Ended:
    """Of a store that was given to `casd report`, tables that are those of the reference; else what was told."""
    target = tmp_path / "report"
    ended = casd(logs, "report", str(out / "store"), "--output", str(target))
    if ended.status == 0:
        expected = tmp_path / "expected"
        if not expected.exists():
            assert casd(logs, "report", str(reference / "store"), "--output", str(expected)).status == 0
        assert tables_of(target) == tables_of(expected)
    shutil.rmtree(target, ignore_errors=True)
    return ended


def tables_of(report: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(report / "tables").items() if not name.endswith(".json")}


def same_json(one: Path, other: Path) -> bool:
    with contextlib.suppress(Exception):
        return bool(read_json(one) == read_json(other))
    return False


def test_bytes_flipped_in_published_reports(tmp_path: Path, reference: Path, logs: Path) -> None:
    flips, rng, seen = count("PUBLISHED_FLIPS", 100), random.Random(4), Counter[str]()
    run = published(reference)
    other = tmp_path / "other"
    ended = casd(logs, "run", *smallest(other, "seed=1"))
    assert ended.status == 0, ended.err
    expected = load_results(run)
    compared = casd(logs, "compare", str(run), str(published(other)))
    assert compared.status == 0
    for number in range(flips):
        out = tmp_path / str(number)
        folder = copy(reference, out) / run.relative_to(reference)
        readable = [folder / "checksums.json", *sorted((folder / "tables").glob("*.parquet")), folder / "tables" / "info.json"]
        file = rng.choice(readable if number % 4 else sorted(path for path in folder.rglob("*") if path.is_file()))
        what = flip_a_copy(file, rng)
        try:
            found = load_results(folder)
        except Exception as error:
            assert type(error).__name__ == "StoreError", (what, error)
            assert file.name in str(error), (what, error)
            assert str(folder) in str(error), (what, error)
            seen["load_results told"] += 1
        else:
            pd.testing.assert_frame_equal(found.assign(run=""), expected.assign(run=""), check_exact=True, obj=what)
            seen["load_results same"] += 1
        if number % 2:
            ended = casd(logs, "compare", str(folder), str(published(other)))
            same = ended.out.replace(str(folder), "") == compared.out.replace(str(run), "")
        else:
            target = tmp_path / "report"
            ended = casd(logs, "report", str(folder), "--output", str(target))
            if ended.status == 0:
                wanted = tmp_path / "wanted"
                if not wanted.exists():
                    assert casd(logs, "report", str(run), "--output", str(wanted)).status == 0
                same = tables_of(target) == tables_of(wanted)
            shutil.rmtree(target, ignore_errors=True)
        if ended.status == 1:
            assert ended.told and file.name in ended.err, (what, ended.err)
            seen["read: told"] += 1
        else:
            assert same, what
            seen["read: same"] += 1
        if number % 5 == 0:  # the run's own command mends it
            assert casd(logs, "run", *smallest(out)).status == 0
            mended, whole = contents(folder), contents(run)
            assert {name for name in whole if mended[name] != whole[name]} <= {"config.yaml", "checksums.json"}
            seen["mended by the run"] += 1
        shutil.rmtree(out)
    print(f"{flips} flips in published reports: {dict(seen)}")


def test_bytes_flipped_in_checkpoints(tmp_path: Path, reference: Path, logs: Path) -> None:
    flips, rng, seen = count("CHECKPOINT_FLIPS", 100), random.Random(5), Counter[str]()
    begun = with_checkpoints(tmp_path, logs)
    [expected] = (reference / "store" / "inject").glob("*/model/model.safetensors")
    for number in range(flips):
        out = tmp_path / str(number)
        checkpoints = sorted(copy(begun, out).rglob("step-*"))
        assert len(checkpoints) == 2
        newest = checkpoints[-1]
        damaged = [newest] if number % 4 else checkpoints
        for checkpoint in damaged:
            file = rng.choice(sorted(checkpoint.iterdir()))
            if number % 3:
                what = flip_a_copy(file, rng)
            else:
                content = file.read_bytes()
                file.unlink()
                file.write_bytes(content[: rng.randrange(len(content))])
                what = f"{file} cut short"
        ended = casd(logs, "inject", *smallest(out))
        assert ended.status == 0, (what, ended.err)
        [made] = (out / "store" / "inject").glob("*/model/model.safetensors")
        assert filecmp.cmp(made, expected, shallow=False), what
        told = ended.err.count("is damaged: ")
        assert told == len(damaged) or file.name == "checksums.json", (what, ended.err)
        seen[f"{told} told"] += 1
        shutil.rmtree(out)
    print(f"{flips} trials with damaged checkpoints: {dict(seen)}")


def with_checkpoints(tmp_path: Path, logs: Path) -> Path:
    """A store with an injection that was killed in its twentieth step."""
    output = tmp_path / "killed"

    def dying() -> None:
        import casd.training.loop as loop

        save = loop.save_checkpoint

        def save_and_die(folder: Path, done: int, *arguments: Any) -> None:
            save(folder, done, *arguments)
            if done == 20:
                os.kill(os.getpid(), signal.SIGKILL)

        loop.save_checkpoint = save_and_die

    run = Casd(["inject", *smallest(output, EVERY_STEP)], logs, dying)
    assert run.wait().status == -signal.SIGKILL
    return output


# ------------------------------------------------------------------------------------------------ full disks


@contextmanager
def filled(disk: Path, after: float, how: str) -> Iterator[None]:
    """In the block, from `after` seconds on, keep a disk full: of bytes, or of files."""
    process = os.fork()
    if process == 0:
        time.sleep(after)
        folder = disk / "filler"
        folder.mkdir()
        number = 0
        while True:
            number += 1
            try:
                if how == "bytes":
                    with (folder / "file").open("ab", buffering=0) as file:
                        while file.write(b"x" * 1024):
                            pass
                else:
                    (folder / str(number)).touch()
            except OSError:
                time.sleep(0.001)
    try:
        yield
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        shutil.rmtree(disk / "filler", ignore_errors=True)


def test_full_disks(reference: Path, logs: Path, mount_disk: Callable[[str], Path]) -> None:
    """The disk is full from a random moment on, of bytes or of files; with room again the same command ends as ever."""
    disks, rng, seen = count("DISKS", 15), random.Random(6), Counter[str]()
    disk = mount_disk("64m,nr_inodes=4000")
    took = float((reference / "seconds").read_text())
    number = 0
    while seen["told"] < disks:
        number += 1
        how = ("bytes", "files")[number % 2]
        out = disk / "out"
        command = ["score", *smallest(out, EVERY_STEP if number % 3 else "runtime.checkpoint_seconds=inf")]
        with filled(disk, rng.uniform(0, 0.5 * took), how):
            ended = casd(logs, *command)
        if ended.status == 1:
            assert ended.told, ended.err
            assert len(ended.err.splitlines()) <= 2, ended.err
            assert "No space left on device" in ended.err or "free" in ended.err, ended.err
            if "No space left on device" in ended.err:
                assert ("inodes" in ended.err) == (how == "files"), ended.err
            assert not list(disk.rglob("*.partial")), "something half-written was left"
            seen["told"] += 1
            seen[how] += 1
            ended = casd(logs, *command)
        else:
            seen["not hit"] += 1
        assert ended.status == 0, ended.err
        assert_same_scores(out, reference)
        assert leftovers(out) == []
        shutil.rmtree(out)
    print(f"full disks: {dict(seen)}")
