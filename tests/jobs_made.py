"""What the workers of test_jobs.py do: in a module that imports neither torch nor pytest, since each worker imports it.

Not run by itself.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from casd.pipeline.units import Unit, UnitReport
from casd.utils import ending


def perform(unit: Unit) -> UnitReport:
    """Fail in a removal of the seed 1, end the process in the injection of the seed 5, and say where it was done."""
    if unit.config.seed == 5 and unit.kind == "inject":
        os._exit(9)
    if unit.config.seed == 1 and unit.state == "german":
        return UnitReport("seed 1 is no good", "here", 4711, "17", "the.log")
    return UnitReport(process=os.getpid(), executed=frozenset(unit.stages), said=(os.environ["OMP_NUM_THREADS"],))


def own_device(folder: str, workers: int) -> str:
    """Wait until all workers are here, and return the devices that this one sees."""
    Path(folder, str(os.getpid())).touch()
    end = time.monotonic() + 60
    while len(list(Path(folder).iterdir())) < workers and time.monotonic() < end:
        time.sleep(0.02)
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all")


def save_when_told(file: str) -> None:
    """Write this process's id, and once a signal was received, more than that, as a training writes a checkpoint."""
    with ending.saving():
        Path(file).write_text(str(os.getpid()))
        while not ending.requested():
            time.sleep(0.02)
        Path(file).write_text("saved")
