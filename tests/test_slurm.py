"""Engines in jobs of a cluster, on a real SLURM of two nodes on this machine (`one_node_slurm.py`).

Run: python -m pytest tests/test_slurm.py   (as root; installs slurm-wlm and munge with apt-get, or is skipped)
"""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from tests import calls, one_node_slurm
from tests.sweep_to_scores import ended, results, start_sweep
from tests.test_cluster_engines import read_until

from casd.engines import make_engine
from casd.utils.errors import CasdError
from tiny import tiny

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

JOBS = ["engine=slurm", "engine.workers=2", "engine.cpus=3", "engine.memory=2GB", "engine.gpus_per_node=1", "engine.time=30m"]
"""Two jobs, each on a node of its own."""


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A SLURM of two nodes: its folder."""
    pytest.importorskip("dask_jobqueue", reason="needs casd[slurm]")
    if not one_node_slurm.is_installed():
        if "slurm" in (request.config.getoption("-m") or ""):
            one_node_slurm.install()
        if not one_node_slurm.is_installed():
            pytest.skip("needs slurm-wlm and munge, and root")
    folder = tmp_path_factory.mktemp("slurm")
    for each in (folder, *folder.parents[:2]):
        each.chmod(0o755)
    one_node_slurm.start(folder)
    yield folder
    one_node_slurm.stop(folder)


def out(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wait_for(condition: Callable[[], object], sweep: subprocess.Popen[str], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if sweep.poll() is not None or time.monotonic() > deadline:
            sweep.terminate()
            pytest.fail("waited in vain; the sweep said: " + "".join(sweep.communicate()))
        time.sleep(0.1)


@pytest.fixture(scope="module")
def local(slurm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The results of the sweep on this machine."""
    folder = tmp_path_factory.mktemp("local")
    sweep = start_sweep(folder, "engine=local", "engine.workers=2")
    assert sweep.communicate(timeout=300)[0] == "all runs are finished\n"
    return results(folder)


def end_node(folder: Path, node: str) -> None:
    """Kill a node's daemon and all its processes, as if it had lost its power."""
    os.kill(int((folder / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("SLURMD_NODENAME") == node or f"slurmstepd: [{job_on(node)}." in " ".join(
                process.cmdline()
            ):
                process.kill()


def job_on(node: str) -> str:
    return out("squeue", "-h", "-w", node, "-o", "%i").strip()


def test_a_sweep_ends_as_on_this_machine_whatever_is_lost(slurm: Path, local: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    sweep = start_sweep(folder, *JOBS)
    wait_for(lambda: len(ended(folder)) >= 5, sweep)
    cancelled = job_on("n1")
    out("scancel", cancelled)
    wait_for(lambda: len(ended(folder)) >= 9 and job_on("n1") not in ("", cancelled), sweep)
    end_node(slurm, "n2")
    wait_for(lambda: len(ended(folder)) >= 13, sweep)
    sweep.kill()
    said = sweep.communicate()[1]
    assert f"job {cancelled} ended; another is submitted" in said
    assert len(list((folder / "logs").glob("casd-*.err"))) >= 3

    again = start_sweep(folder, *JOBS)
    assert again.communicate(timeout=300)[0] == "all runs are finished\n"
    assert results(folder) == local
    made = Counter(key for keys in ended(folder) for key in keys)
    assert set(made.values()) == {1}
    one_node_slurm.start_node("n2")


# ------------------------------------------------------------------------------------------------ what a person gets wrong


ENGINE = {"name": "slurm", "cpus": 1, "memory": "1GB", "gpus_per_node": 1}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"partition": "gpu"}, r"SLURM refused a job: .*[Ii]nvalid partition"),
        ({"gpus_per_node": 8}, r"SLURM refused a job: .*Requested node configuration is not available"),
        ({"directives": ("--time=never",)}, r"SLURM refused a job: .*time"),
        ({"setup": ("echo no such module >&2", "exit 1")}, r"SLURM: job \d+ ended before its worker started: no such module$"),
        ({"interface": "ib7"}, r"ib7"),
    ],
    ids=["partition", "GPUs", "option", "setup", "interface"],
)
def test_jobs_that_cannot_start_are_told_in_a_line(options: dict[str, object], says: str, slurm: Path, tmp_path: Path) -> None:
    engine = make_engine(ENGINE | options)
    with pytest.raises(CasdError, match=says) as caught, engine.open(tmp_path / "logs"):
        pass
    assert "\n" not in str(caught.value)
    assert not out("squeue", "-h", "-t", "PENDING,RUNNING")


def test_more_workers_than_the_cluster_has_wait_and_each_sees_its_gpus(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two GPUs on each of two nodes, and jobs with two workers each: the third job waits."""
    options = {"workers": 6, "gpus_per_node": 2, "partition": "main", "time": "5m"}
    with make_engine(ENGINE | options).open(tmp_path / "logs") as executor:
        seen = [future.result(120) for future in [executor.submit(calls.where, 1) for _ in range(12)]]
    workers = {(each["SLURM_JOB_ID"], each["CUDA_VISIBLE_DEVICES"], each["process"]) for each in seen}
    assert len({job for job, _, _ in workers}) <= 2
    assert all(len(devices) == 1 for _, devices, _ in workers)
    assert len({(job, devices) for job, devices, _ in workers}) == len(workers), "no GPU has two workers"
    assert "the first of 3 jobs has started; the others join when they start" in capsys.readouterr().err


def test_a_call_that_kills_its_worker_is_lost_alone(slurm: Path, tmp_path: Path) -> None:
    with make_engine(ENGINE).open(tmp_path / "logs") as executor:
        assert "killed twice" in str(executor.submit(calls.die).exception(120))
        assert executor.submit(calls.where, 0).result(120)["CUDA_VISIBLE_DEVICES"]


def test_a_detached_command_is_a_job(slurm: Path, tmp_path: Path) -> None:
    line = make_engine(ENGINE).detach([sys.executable, "-c", "print('made')"], tmp_path / "a folder")
    log = Path(line.partition("its log: ")[2])
    deadline = time.monotonic() + 60
    while not log.exists() or log.read_text() != "made\n":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_after_ctrl_c_the_work_goes_on_in_a_job(slurm: Path, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    run = tiny(tmp_path, "backdoor=[french_a,refusal]", "runtime.device=cpu", f"runtime.store={tmp_path}/store", *JOBS)
    command = [sys.executable, "-m", "casd", "score", *run]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=tmp_path)
    os.close(slave)
    deadline = time.monotonic() + 300
    while not (injected := list(tmp_path.glob("store/inject/*/manifest.json"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    made = injected[0].read_bytes()
    process.send_signal(signal.SIGINT)
    said = read_until(master, "[g/c] ")
    os.write(master, b"g\n")
    said += read_until(master)
    assert process.wait(120) == 130, said
    job = re.search(r"SLURM: submitted job (\d+); its log: (.*)\. It goes on", said)
    assert job, said
    while out("squeue", "-h", "-j", job[1], "-t", "PENDING,RUNNING,COMPLETING"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert list(tmp_path.glob("store/score/*/manifest.json")), Path(job[2]).read_text()
    assert injected[0].read_bytes() == made
