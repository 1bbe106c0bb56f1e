"""Workers in the jobs of a cluster: SLURM, and PBS, LSF and SGE, which differ in a few names.

dask-jobqueue writes and submits the jobs, and dask gives calls to them (`casd.engines.jobs`).
"""

from __future__ import annotations

import importlib
import re
import secrets
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from casd.engines import agent
from casd.engines.base import Engine
from casd.engines.jobs import ATTEMPTS, Calls, Jobs
from casd.engines.local import Local
from casd.utils import ending
from casd.utils.errors import ConfigError
from casd.utils.progress import say
from casd.utils.registry import shown


@dataclass(frozen=True)
class Slurm(Engine):
    """Jobs of SLURM. A job has as many workers as units fit on its GPUs.

    Raises:
        ConfigError: a time that is not understood, or units that do not fill the GPUs of a job.
    """

    partition: str = ""
    """Partition or queue of the jobs; "" for the cluster's default."""
    account: str = ""
    """Account or project that is charged; "" for the default."""
    time: str = "1h"
    """Longest time of a job: "90m", "2h", "1d12h". Near its end a training writes a checkpoint and another job resumes it."""
    gpus_per_node: int = 0
    """GPUs of a job, which runs on one node; 0 for those of one unit."""
    cpus: int = 4
    """CPU cores of a worker."""
    memory: str = "16GB"
    """Memory of a job."""
    directives: tuple[str, ...] = ()
    """Further options of each job, as after #SBATCH: ["--constraint=a100"]."""
    setup: tuple[str, ...] = ()
    """Shell commands at the start of each job: ["module load cuda"]."""
    coordinator: tuple[str, ...] = ()
    """Options of the job that `--detach` submits, which lasts as long as all others: ["--partition=cpu", "--time=3-0"]."""
    interface: str = ""
    """Network interface through which the jobs reach the machine of the command ("ib0"); "" for the default."""

    kind: ClassVar[str] = "SLURM"
    listing: ClassVar[str] = "squeue --me --noheader --format=%i"
    """Command that lists this user's jobs that wait or run."""
    charged: ClassVar[str] = "account"
    """How dask-jobqueue calls `account`."""
    gpu_option: ClassVar[str] = "--gres=gpu:{}"
    """Option for the GPUs of a job; "" if `directives` have to name them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seconds()
        if not re.fullmatch(r"\d+(\.\d+)?\s*[KMGTP]i?B?", self.memory, flags=re.IGNORECASE):
            raise ConfigError(
                f"engine.memory is {shown(self.memory)}; expected the memory of a job with its unit, such as 16GB."
            )
        if self.gpus_per_unit and self.gpus_per_node % self.gpus_per_unit:
            raise ConfigError(
                f"engine.gpus_per_node is {self.gpus_per_node}; it must be a multiple of"
                f" engine.gpus_per_unit={self.gpus_per_unit}."
            )

    def seconds(self) -> int:
        """Return the longest time of a job in seconds."""
        parts = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?", self.time)
        seconds = (
            sum(int(part or 0) * unit for part, unit in zip(parts.groups(), (86400, 3600, 60), strict=True)) if parts else 0
        )
        if not seconds:
            raise ConfigError(f"engine.time is {self.time!r}; expected days, hours and minutes, such as 2h, 90m or 1d12h.")
        return seconds

    @property
    def workers_per_job(self) -> int:
        """Units at the same time in one job."""
        return max(1, self.gpus_per_node // self.gpus_per_unit) if self.gpus_per_unit else 1

    def job_options(self) -> dict[str, Any]:
        """Return the options of dask-jobqueue for each job."""
        gpus = (self.gpus_per_node or self.gpus_per_unit) if self.gpu_option else 0
        minutes = self.seconds() // 60
        return {
            "queue": self.partition or None,
            self.charged: self.account or None,
            "walltime": f"{minutes // 60:02}:{minutes % 60:02}{'' if self.kind == 'LSF' else ':00'}",
            "cores": self.cpus * self.workers_per_job,
            "memory": self.memory,
            "job_extra_directives": [*([self.gpu_option.format(gpus)] if gpus else []), *self.directives],
            "job_script_prologue": [f"export {agent.ENDS}=$(( $(date +%s) + {self.seconds()} ))", *self.setup],
            # The worker takes the place of the shell, and receives the signals of the scheduler.
            "python": f"exec {shlex.quote(sys.executable)}",
            "processes": 1,
            "nanny": False,
            "interface": self.interface or None,
            "worker_extra_args": [
                f"--nthreads={self.workers_per_job}",
                "--memory-limit=0",
                "--no-dashboard",
                f"--preload={agent.__name__}",
            ],
        }

    def detach(self, command: Sequence[str], folder: Path) -> str:
        """Submit a command as a job of its own, and return a line about it.

        Raises:
            ConfigError: the cluster refuses the job, or is not SLURM.
        """
        if self.kind != "SLURM":
            raise ConfigError(f"--detach is for engine=slurm; under {self.kind} submit the command yourself.")
        folder.mkdir(parents=True, exist_ok=True)
        options = [f"--partition={self.partition}"] * bool(self.partition) + [f"--account={self.account}"] * bool(self.account)
        options += ["--job-name=casd", f"--output={folder}/casd-%j.log", "--cpus-per-task=1", *self.coordinator]
        script = f"exec {shlex.join(command)}"
        try:
            done = subprocess.run(["sbatch", "--parsable", *options, f"--wrap={script}"], capture_output=True, text=True)
        except FileNotFoundError as error:
            raise ConfigError("There is no command sbatch here: run casd on a machine that submits to SLURM.") from error
        if done.returncode:
            raise ConfigError(f"SLURM refused a job: {'; '.join(done.stderr.split(chr(10))).strip('; ')}.")
        job = done.stdout.strip().partition(";")[0]
        return f"SLURM: submitted job {job}; its log: {folder}/casd-{job}.log"

    @contextmanager
    def open(self, folder: Path) -> Iterator[Executor]:
        """See `Engine.open`. The jobs are cancelled at the end of the block."""
        dask, distributed, jobqueue = (_installed(name, self.kind) for name in ("dask", "distributed", "dask_jobqueue"))
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        lost = {"distributed.scheduler.allowed-failures": ATTEMPTS - 1}
        with ExitStack() as opened:
            opened.enter_context(dask.config.set(lost))
            security, for_jobs = opened.enter_context(_keys(distributed, folder))
            options = {"protocol": "tls://", "security": security, "interface": self.interface or None, "dashboard": False}
            scheduler = {"cls": distributed.Scheduler, "options": options}
            try:
                cluster = distributed.SpecCluster(scheduler=scheduler, security=security, silence_logs="critical")
            except RuntimeError as error:  # an unknown interface
                raise ConfigError(f"engine={self.kind.lower()} cannot start here: {error}.") from error
            opened.enter_context(cluster)
            client = opened.enter_context(distributed.Client(cluster, security=security))
            job_class = getattr(jobqueue, f"{self.kind}Cluster").job_cls
            make = partial(
                job_class, cluster.scheduler_address, security=for_jobs, log_directory=str(folder), **self.job_options()
            )
            number = -(-self.workers // self.workers_per_job)
            jobs = Jobs(self.kind, number, self.seconds(), self.listing, make, client, folder)
            calls = Calls(jobs, client, Local(self.workers_per_job, self.gpus_per_unit, self.shard), folder)
            opened.push(jobs.leave)
            with self._offering_to_detach(folder):
                jobs.begin()
                watcher = threading.Thread(target=calls.watch, daemon=True)
                watcher.start()
                opened.callback(watcher.join, 60)
                opened.callback(calls.end)
                yield calls

    @contextmanager
    def _offering_to_detach(self, folder: Path) -> Iterator[None]:
        """After Ctrl-C in the block, ask whether the work goes on, and if so, submit the command of this process as a job.

        The jobs cannot go on by themselves: they get their work from this process. That job submits others, which resume from
        the checkpoints that the jobs of this process write when they are cancelled.
        """
        try:
            yield
        except (KeyboardInterrupt, GeneratorExit):  # the latter if it came between two units
            question = "Let the work go on in a job of its own (as with --detach), or cancel it? [g/c]"
            if self.kind == "SLURM" and ending.ask(question).lower() in ("g", "go on"):
                try:
                    say(f"{self.detach([sys.executable, *sys.orig_argv[1:]], folder)}. It goes on with jobs of its own.")
                except ConfigError as error:
                    say(str(error))
            raise


class PBS(Slurm):
    """Jobs of PBS. GPUs are part of the directives: engine.directives=["-l ngpus=1"]."""

    kind, listing, gpu_option = "PBS", "qstat", ""


class LSF(Slurm):
    """Jobs of LSF. GPUs are part of the directives: engine.directives=["-gpu num=1"]."""

    kind, listing, gpu_option, charged = "LSF", "bjobs -noheader -o jobid", "", "project"


class SGE(Slurm):
    """Jobs of SGE. GPUs are part of the directives: engine.directives=["-l gpu=1"]."""

    kind, listing, gpu_option, charged = "SGE", "qstat", "", "project"


def _installed(name: str, kind: str) -> ModuleType:
    handler = signal.getsignal(signal.SIGINT)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"engine={kind.lower()} needs {name}: pip install 'casd[slurm]'.") from error
    finally:
        if signal.getsignal(signal.SIGINT) is not handler:  # dask_jobqueue makes Ctrl-C exit with 0, as if all were done
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _keys(distributed: ModuleType, folder: Path) -> Iterator[tuple[Any, Any]]:
    """Yield encryption for this process and for the jobs, whose keys are files that only this user can read.

    Without it any user of the cluster's network could run code in the jobs.
    """
    try:
        ours = distributed.Security.temporary()
    except ImportError as error:
        raise ConfigError("engine=slurm needs cryptography: pip install 'casd[slurm]'.") from error
    files = {name: folder / f".{secrets.token_hex(4)}.{name}.pem" for name in ("ca_file", "cert", "key")}
    try:
        for name, text in ours.get_tls_config_for_role("worker").items():
            if name in files:
                files[name].touch(mode=0o600)
                files[name].write_text(text)
        paths = {f"tls_{'worker_' if name != 'ca_file' else ''}{name}": str(path) for name, path in files.items()}
        yield ours, distributed.Security(require_encryption=True, **paths)
    finally:
        for path in files.values():
            path.unlink(missing_ok=True)
