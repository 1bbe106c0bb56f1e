"""A SLURM of two nodes on this machine, for tests: real daemons of Debian's packages on loopback, and GPUs that are not there.

As root, with the packages slurm-wlm and munge:

    python tests/one_node_slurm.py start FOLDER; export SLURM_CONF=FOLDER/slurm.conf; sinfo; …
    python tests/one_node_slurm.py stop FOLDER

Both nodes are slurmd processes of this host, on ports of their own; munged has its own key and socket, so nothing of a SLURM
that the host may have is touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

NODES = ("n1", "n2")
CONFIG = """
ClusterName=tests
SlurmctldHost=localhost
SlurmctldPort=26817
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=10
KillWait=5
MinJobAge=3600
JobRequeue=0
SchedulerParameters=sched_interval=1,batch_sched_delay=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
GresTypes=gpu
NodeName=n1 NodeHostname=localhost Port=26901 CPUs=4 RealMemory=4000 Gres=gpu:2
NodeName=n2 NodeHostname=localhost Port=26902 CPUs=4 RealMemory=4000 Gres=gpu:2
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE
"""


def is_installed() -> bool:
    """Whether the daemons are there, and may be started."""
    return os.geteuid() == 0 and all(shutil.which(each) for each in ("munged", "slurmctld", "slurmd", "sbatch"))


def install() -> None:
    """Install Debian's packages, where this process may and can."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        packages = ["apt-get", "install", "--yes", "--no-install-recommends", "slurm-wlm", "munge"]
        for command in (["apt-get", "update"], packages):
            environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(command, env=environment, capture_output=True, check=False, timeout=300)


def start(folder: Path) -> None:
    """Start the daemons, and wait until both nodes are idle."""
    (folder / "state").mkdir(parents=True)
    folder.chmod(0o755)  # munged refuses a socket that others cannot reach
    keys = folder / "keys"
    keys.mkdir(mode=0o700)
    (keys / "key").write_bytes(os.urandom(128))
    (keys / "key").chmod(0o400)
    options = {"key-file": keys / "key", "socket": folder / "munge.socket", "pid-file": folder / "munged.pid"}
    options |= {"log-file": keys / "log", "seed-file": keys / "seed"}
    subprocess.run(["munged", "--force", *(f"--{name}={value}" for name, value in options.items())], check=True)
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder))
    (folder / "gres.conf").write_text("".join(f"NodeName={node} Name=gpu File=/dev/tty[1-2]\n" for node in NODES))
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    subprocess.run(["slurmctld", "-c"], check=True)
    for node in NODES:
        start_node(node)
    deadline = time.monotonic() + 30
    while states() != {"idle"}:
        if time.monotonic() > deadline:
            raise RuntimeError(f"SLURM did not start: {states()}; its logs are in {folder}")
        time.sleep(0.2)


def start_node(node: str) -> None:
    """Start a node."""
    (Path(os.environ["SLURM_CONF"]).parent / f"spool-{node}").mkdir(exist_ok=True)
    subprocess.run(["slurmd", "-N", node], check=True)


def states() -> set[str]:
    """The states of the nodes."""
    return set(subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout.split())


def stop(folder: Path) -> None:
    """Cancel all jobs and stop the daemons."""
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    subprocess.run(["scancel", "--full", "--user=root"], capture_output=True)
    daemons = [int(file.read_text()) for file in sorted(folder.glob("*.pid"), reverse=True)]  # the nodes first
    for number in (signal.SIGTERM, signal.SIGKILL):  # a node that still ends a job does not end
        for daemon in daemons:
            with suppress(OSError):
                os.kill(daemon, number)
        time.sleep(2)


if __name__ == "__main__":
    {"start": start, "stop": stop}[sys.argv[1]](Path(sys.argv[2]).absolute())
