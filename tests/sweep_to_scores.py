"""A sweep up to the scores, as a process that the tests of engines can kill.

Run: python -m tests.sweep_to_scores OVERRIDE…
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
from tests.calls import perform
from tests.tiny import OVERRIDES

from casd.config.compose import jobs
from casd.pipeline.sweep import engine_of, run_units
from casd.utils.sealed import read_json

SWEEP = [
    *OVERRIDES,
    *("backdoor=[french_a,refusal]", "unlearning=npo,gradient_ascent", "seed=0,1", "runtime.device=cpu"),
]


def start_sweep(folder: Path, *more: str) -> subprocess.Popen[str]:
    """Start the sweep as a process; its units are noted in `units.log`."""
    folder.mkdir(exist_ok=True)
    root = Path(__file__).parents[1]
    environment = os.environ | {"UNITS_LOG": str(folder / "units.log"), "PYTHONPATH": f"{root / 'src'}:{root}"}
    command = [
        sys.executable,
        "-m",
        "tests.sweep_to_scores",
        *SWEEP,
        f"runtime.output={folder}",
        f"runtime.store={folder}/store",
        *more,
    ]
    return subprocess.Popen(command, env=environment, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ended(folder: Path) -> list[list[str]]:
    """The keys of the stages that each unit made, for those that have ended."""
    log = folder / "units.log"
    return [line.split()[1:] for line in log.read_text().splitlines() if line.startswith("ends")] if log.exists() else []


def results(folder: Path) -> dict[str, str]:
    """The checksums of all files of all stages but those that tell how long something took."""
    return {
        f"{manifest.parent.name}/{name}": entry["sha256"]
        for manifest in (folder / "store").glob("*/*/manifest.json")
        for name, entry in read_json(manifest)["files"].items()
        if name not in ("log.json", "tables/info.json") and not name.startswith("tables/states.")
    } | {
        str(table.relative_to(folder)): pd.read_csv(table).drop(columns="train_seconds").to_csv()
        for table in (folder / "store").glob("score/*/tables/states.csv")
    }


if __name__ == "__main__":
    configs = [job.config for job in jobs(sys.argv[1:])]
    outcomes = run_units(configs, perform, engine_of(configs), description="sweep", end="score")
    errors = [each.error for each in outcomes if each.error]
    print("\n".join(errors) or "all runs are finished")
    sys.exit(bool(errors))
