"""What a worker of an engine does with a unit of a run. In a worker, importing this module imports all that most units need.

As a program (`python -m casd.cli.worker FOLDER`, under torchrun) it is one of several processes that make a unit together.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from casd.cli.quiet import quiet_libraries
from casd.config import DefendConfig
from casd.engines import make_engine
from casd.engines.base import LOG, Engine
from casd.pipeline import worker
from casd.pipeline.units import Unit, UnitReport
from casd.planning.check import check
from casd.utils.distributed import is_main, processes
from casd.utils.processes import end_with_this_thread

if multiprocessing.parent_process():  # a worker imports this while it waits for its first unit; the command never needs it
    importlib.import_module("transformers.modeling_utils")


def perform(unit: Unit) -> UnitReport:
    """Check that the run fits into memory, and make the stages of the unit that are not in the store."""
    quiet_libraries()
    if isinstance(unit.config, DefendConfig):
        return worker.reporting(unit, partial(_defend, unit.config))
    engine = make_engine(unit.config.engine)
    if engine.gpus_per_unit > 1 and unit.kind != "finish" and processes() == 1:
        return _in_processes(unit, engine)
    return worker.perform(unit, check)


def _defend(config: DefendConfig) -> dict[str, Any]:
    """Make a whole defence."""
    from casd.defence.protocol import run_defence

    worker.forget()
    finished = run_defence(config)
    return {"executed": finished.executed, "folder": str(finished.folder.absolute()), "reused": len(finished.reused)}


def _in_processes(unit: Unit, engine: Engine) -> UnitReport:
    """Make a unit in a process for each of its GPUs; they end with this one."""
    worker.forget()
    count = engine.gpus_per_unit
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = os.environ | ({"ACCELERATE_USE_FSDP": "true"} if engine.shard else {})
    with TemporaryDirectory() as folder:
        Path(folder, "unit").write_bytes(pickle.dumps(unit))
        command = [*launcher, "-m", "casd.cli.worker", folder]
        code = subprocess.run(command, env=environment, preexec_fn=end_with_this_thread, check=False).returncode
        if (report := Path(folder, "report")).is_file():
            return pickle.loads(report.read_bytes())  # written by this user's own process
    log = os.environ.get(LOG, "")
    return UnitReport(f"one of its {count} processes ended with {code}; its log says why", socket.gethostname(), log=log)


def _main(folder: Path) -> None:
    report = perform(pickle.loads((folder / "unit").read_bytes()))  # written by `_in_processes`
    if is_main():
        (folder / "report.partial").write_bytes(pickle.dumps(report))
        (folder / "report.partial").rename(folder / "report")
    if report.error:  # the others may wait for this process
        sys.exit(report.error)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
