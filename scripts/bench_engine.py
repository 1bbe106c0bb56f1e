"""What two workers gain over one process with two threads, for one run and for two objectives of one seed; with timelines.

Run: python scripts/bench_engine.py   (on this machine's CPU; other overrides than --overrides' default after it)

Each command starts with an empty store. Those with one thread a process have to make the same tables; two threads round
otherwise. A timeline has a line for each worker: what it did, from when to when, and how long it waited between its first unit
and the last removal of all.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from casd.analysis.tables import SCHEMAS, read_table

DEFAULT = [
    "experiment=smoke",
    "backdoor=[french_a,french_b,german,sentiment,fixed_text,refusal,repetition,capitals]",
    "runtime.device=cpu",
]
LINE = re.compile(r"^(?P<unit>.*): (?P<seconds>[\d.]+) s on .*process (?P<process>\d+)")
Unit = tuple[str, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overrides", nargs="*", default=DEFAULT)
    options = parser.parse_args()
    single = measured(["run", *options.overrides, "runtime.threads=1"])
    one = measured(["run", *options.overrides, "runtime.threads=2"], like=single[1])
    two = measured(["run", *options.overrides, "engine.workers=2", "runtime.threads=1"], like=single[1])
    print(f"one run: two workers take {two[0] / one[0]:.2f} × the time of one process with two threads\n")
    objectives = [*options.overrides, "unlearning=gradient_difference,clean_target"]
    one = measured(["sweep", *objectives, "runtime.threads=2"])
    two = measured(["sweep", *objectives, "engine.workers=2", "runtime.threads=1"])
    print(f"two objectives: two workers take {two[0] / one[0]:.2f} × the time of one process with two threads")


def measured(command: list[str], like: Path | None = None) -> tuple[float, Path]:
    """Run `casd`, print its time and its timeline, and return the time and its folder of outputs."""
    output = Path(tempfile.mkdtemp())
    full = [sys.executable, "-m", "casd", *command, f"runtime.output={output}"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    begun = time.perf_counter()
    workers: dict[str, list[Unit]] = {}
    with subprocess.Popen(full, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            now = time.perf_counter() - begun
            if found := LINE.match(line):
                unit = (found["unit"].rpartition(": ")[2], now - float(found["seconds"]), now)
                workers.setdefault(found["process"], []).append(unit)
    seconds = time.perf_counter() - begun
    if process.returncode:
        raise SystemExit(f"{' '.join(full)} failed")
    same = "" if like is None else f", {compared(output, like)}"
    print(f"{seconds:6.1f} s{same}: casd {' '.join(command)}")
    removals = [end for units in workers.values() for name, _, end in units if name != "finish"]
    for worker, units in workers.items():
        idle, free = 0.0, units[0][2]
        for _, start, end in units[1:]:
            idle += max(0.0, min(start, max(removals)) - free)
            free = end
        print(f"  worker {worker}, waited {idle:.1f} s: " + ", ".join(f"{name} {a:.1f}-{b:.1f}" for name, a, b in units))
    return seconds, output


def compared(output: Path, like: Path) -> str:
    """Say whether the tables of all runs are the same."""
    for expected in like.glob("store/score/[!.]*"):
        for name in SCHEMAS:
            tables = [read_table(each, name) for each in (output / expected.relative_to(like), expected)]
            found, wanted = (table.drop(columns="train_seconds", errors="ignore") for table in tables)
            try:
                pd.testing.assert_frame_equal(found, wanted, check_exact=True)
            except AssertionError as error:
                return f"other tables ({name}: {str(error).splitlines()[-1]})"
    return "the same tables"


if __name__ == "__main__":
    main()
