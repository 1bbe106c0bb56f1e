"""Functions that the tests of engines call in workers. `perform` notes in the file UNITS_LOG when a unit begins or ends."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from casd.cli import worker
from casd.pipeline.units import Unit, UnitReport


def note(line: str) -> None:
    with Path(os.environ["UNITS_LOG"]).open("a") as file:
        file.write(f"{line}\n")


def perform(unit: Unit) -> UnitReport:
    note(f"begins {unit}")
    report = worker.perform(unit)
    note(" ".join(["ends", *sorted(report.executed)]))
    return report


def where(seconds: float) -> dict[str, str]:
    time.sleep(seconds)
    return {"process": str(os.getpid()), **os.environ}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_with_parent_once(flag: str) -> str:
    if not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return "alive"


def fail() -> None:
    raise ValueError("of the call")
