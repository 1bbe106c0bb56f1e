"""The engines of clusters where there is no cluster: their options, and what is missing.

Run: python -m pytest tests/test_cluster_engines.py   (with a cluster: test_slurm.py, test_ray.py)
"""

from __future__ import annotations

import os
import pty
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from casd.cli.main import main
from casd.config import Config
from casd.config.compose import load_config
from casd.engines import jobs, make_engine
from casd.pipeline.graph import run_folder, stage_graph
from casd.pipeline.records import check_shared
from casd.pipeline.run import note
from casd.utils.errors import ConfigError, StoreError
from tiny import tiny


@pytest.mark.parametrize(("time", "seconds"), [("90m", 5400), ("2h", 7200), ("1d12h", 129600), ("1h30m", 5400)])
def test_the_time_of_a_job(time: str, seconds: int) -> None:
    assert make_engine({"name": "slurm", "time": time}).seconds() == seconds


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"time": "soon"}, r"engine\.time is 'soon'; expected days, hours and minutes, such as 2h"),
        ({"time": ""}, r"engine\.time is ''"),
        ({"memory": "lots"}, r"engine\.memory is 'lots'; expected the memory of a job with its unit, such as 16GB"),
        ({"memory": ""}, r"engine\.memory is ''"),
        (
            {"gpus_per_node": 8, "gpus_per_unit": 3},
            r"engine\.gpus_per_node is 8; it must be a multiple of engine\.gpus_per_unit=3",
        ),
        ({"workers": 0}, r"engine\.workers is 0"),
        ({"queue": "gpu"}, r"queue"),
    ],
)
def test_options_that_cannot_work(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_engine({"name": "slurm"} | options)


@pytest.mark.parametrize("listing", ["no-such-command", "sleep 5"])
def test_a_login_node_that_does_not_answer_ends_no_job(listing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that watches the jobs would end with an exception, and the command would wait for ever."""
    monkeypatch.setattr(jobs, "_ANSWER_S", 0.1)
    watched = jobs.Jobs("SLURM", 1, 60, listing, lambda **_: None, None, tmp_path)
    watched._jobs["casd-1"] = SimpleNamespace(job_id="17")
    assert watched._ended() == []


@pytest.mark.parametrize(
    ("options", "workers", "gpus"),
    [
        ({"gpus_per_unit": 0}, 1, None),
        ({}, 1, "--gres=gpu:1"),
        ({"gpus_per_unit": 4}, 1, "--gres=gpu:4"),
        ({"gpus_per_node": 8}, 8, "--gres=gpu:8"),
        ({"gpus_per_node": 8, "gpus_per_unit": 4}, 2, "--gres=gpu:8"),
    ],
)
def test_a_job_has_the_workers_that_fit_on_its_gpus(options: dict[str, object], workers: int, gpus: str | None) -> None:
    engine = make_engine({"name": "slurm", "cpus": 3} | options)
    job = engine.job_options()
    assert engine.workers_per_job == workers
    assert job["cores"] == 3 * workers
    assert f"--nthreads={workers}" in job["worker_extra_args"]
    assert job["job_extra_directives"] == ([gpus] if gpus else [])


@pytest.mark.parametrize("name", ["slurm", "pbs", "lsf", "sge"])
def test_every_cluster_writes_a_job(name: str) -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    engine = make_engine({"name": name, "partition": "long", "account": "us", "time": "1h30m", "directives": ("-X",)})
    make = getattr(jobqueue, f"{engine.kind}Cluster").job_cls
    script = make("tcp://here:1", name="casd-1", job_name="casd-1", **engine.job_options()).job_script()
    lines = script.splitlines()
    assert any(line.startswith("#") and "long" in line for line in lines)
    assert any(line.startswith("#") and "us" in line.split()[-1] for line in lines)
    assert any("01:30" in line for line in lines)
    assert any(line.startswith("#") and line.endswith(" -X") for line in lines)
    assert lines[-1].startswith(f"exec {shlex.quote(sys.executable)} -m distributed.cli.dask_worker tcp://here:1")
    assert "--preload=casd.engines.agent" in lines[-1]


@pytest.mark.parametrize(
    ("name", "package", "says"),
    [
        ("slurm", "dask", r"engine=slurm needs dask: pip install 'casd\[slurm\]'\."),
        ("slurm", "dask_jobqueue", r"engine=slurm needs dask.*: pip install 'casd\[slurm\]'\."),
        ("lsf", "distributed", r"engine=lsf needs d.*: pip install 'casd\[slurm\]'\."),
        ("ray", "ray", r"engine=ray needs ray: pip install 'casd\[ray\]'\."),
    ],
)
def test_a_missing_package_is_told_in_a_line(
    name: str, package: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=says), make_engine({"name": name}).open(tmp_path):
        pass


def test_the_libraries_of_clusters_do_not_take_ctrl_c() -> None:
    pytest.importorskip("dask_jobqueue")
    program = "import signal; from casd.engines.slurm import _installed; _installed('dask_jobqueue', 'SLURM')"
    program += "; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize("engine", ["local", "lsf"])
def test_only_slurm_detaches(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "experiment=smoke", f"engine={engine}", "--detach"])
    assert "--detach is for engine=slurm" in capsys.readouterr().err


PROGRAM = """
import sys, time
from pathlib import Path
from casd.cli import main as cli
from casd.engines import jobs, make_engine

def work(options):
    with make_engine({"name": sys.argv[1], "partition": "long"})._offering_to_detach(Path("logs")):
        print("ready", file=sys.stderr, flush=True)
        time.sleep(100)

cli._dispatch = work
cli.main(["list"])
"""


@pytest.mark.parametrize(
    ("engine", "number", "reply", "asked", "submitted"),
    [
        ("slurm", signal.SIGINT, "g\n", 1, True),
        ("slurm", signal.SIGINT, "c\n", 1, False),
        ("slurm", signal.SIGINT, "Ctrl-C", 1, False),
        ("slurm", signal.SIGINT, "no terminal", 0, False),
        ("slurm", signal.SIGTERM, "g\n", 0, False),
        ("pbs", signal.SIGINT, "g\n", 0, False),
    ],
)
def test_ctrl_c_asks_once_whether_the_work_goes_on(
    engine: str, number: int, reply: str, asked: int, submitted: bool, tmp_path: Path
) -> None:
    program, sbatch, log = tmp_path / "program.py", tmp_path / "sbatch", tmp_path / "submitted"
    program.write_text(PROGRAM)
    sbatch.write_text(f'#!/bin/sh\necho "$@" > {log}\necho 17\n')
    sbatch.chmod(0o755)
    master, slave = pty.openpty()
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    stdin = subprocess.DEVNULL if reply == "no terminal" else slave
    command = [sys.executable, str(program), engine]
    process = subprocess.Popen(command, stdin=stdin, stdout=slave, stderr=slave, env=environment, cwd=tmp_path)
    os.close(slave)
    question, said = "Let the work go on", read_until(master, "ready")
    process.send_signal(number)
    if asked:
        said += read_until(master, "[g/c] ")
        process.send_signal(signal.SIGINT) if reply == "Ctrl-C" else os.write(master, reply.encode())
    said += read_until(master)
    os.close(master)
    assert process.wait(60) == 128 + number
    assert said.count(question) == asked
    assert ("SLURM: submitted job 17" in said) == log.exists() == submitted
    if submitted:
        assert "--partition=long --job-name=casd --output=logs/casd-%j.log" in log.read_text()
        assert log.read_text().endswith(f"--wrap=exec {shlex.join(command)}\n")


def read_until(terminal: int, text: str = "at its end") -> str:
    shown = b""
    while text.encode() not in shown:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # how Linux tells that the other end is closed
            break
    return shown.decode()


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(tiny(Path("outputs")))


def test_a_node_that_does_not_see_the_store(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    graph = stage_graph(config)
    store, folder = Path(config.runtime.store).absolute(), run_folder(config, graph)
    for make in (lambda: None, lambda: store.mkdir(parents=True)):  # there is none, and one of its own
        make()
        with pytest.raises(
            StoreError, match=r"does not see the store .*: set runtime\.store to a folder that all nodes share\.$"
        ):
            check_shared(store, graph.score, folder)
    note(config, graph, "report")
    check_shared(store, graph.score, folder)
