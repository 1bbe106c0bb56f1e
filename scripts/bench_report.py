"""What a report over many finished runs costs: `casd report` on a store of made-up runs, in a process of its own.

Run: python scripts/bench_report.py   (--seeds 10 for 200 runs, --grid for runs with all of CASD's variants)

The runs are four models × five objectives × the seeds, each with eight backdoors, four controls, the headline variants, all
baselines and some samples; the numbers are random. Prints the seconds of wall time and of the processor (on a busy machine the
second is the better measure), the most memory that was held, and whether torch was imported.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from casd.analysis.inclusion import exclusions
from casd.analysis.results import RunTables
from casd.analysis.tables import SCHEMAS, TABLES_VERSION
from casd.analysis.transfer import specificity, transfer_table
from casd.metric.baselines import BASELINES
from casd.pipeline.stage import Stage
from casd.pipeline.store import StageStore
from casd.stats import wilson_interval

MODELS = ("qwen3_tiny", "llama3_tiny", "gaperon_tiny", "smollm2")
OBJECTIVES = ("clean_target", "gradient_difference", "npo", "simnpo", "rmu")
BACKDOORS = tuple(f"backdoor_{letter}" for letter in "abcdefgh")
CONTROLS = ("control:clean", "control:phantom:matched", "control:phantom:short", "control:repeat:backdoor_a")
HEADLINES = ("casd", "casd_cos")
GRID = 1236
N_PROMPTS = 32
# What `casd report` is, with what it held and imported said on stderr at its end.
REPORT = """
import atexit, sys
from casd.cli.main import main
atexit.register(lambda: print("torch imported:", "torch" in sys.modules, file=sys.stderr))
main()
"""


def made_up_run(model: str, objective: str, seed: int, rng: np.random.Generator, grid: list[str]) -> RunTables:
    """A run's tables with random numbers that go together."""
    kinds = {"injected": "injected"} | dict.fromkeys(BACKDOORS, "removal") | dict.fromkeys(CONTROLS, "control")
    asr, samples = [], []
    for state, backdoor, prompt_set in itertools.product(kinds, BACKDOORS, ("triggered", "clean", "fake")):
        share = {"injected": 0.99, "removal": 0.7, "control": 0.95}[kinds[state]] if prompt_set == "triggered" else 0.01
        k = int(rng.binomial(N_PROMPTS, 0.02 if state == backdoor else share))
        asr.append((state, backdoor, prompt_set, k, N_PROMPTS, k / N_PROMPTS, *wilson_interval(k, N_PROMPTS), k / N_PROMPTS))
        samples += [(state, backdoor, prompt_set, "The quick brown fox is here. " * 4, "And it stays. " * 6, True)] * 2
    states = [
        {"state": state, "kind": kind, "clean_loss": 2.5, "retain_loss": 2.4, "clean_loss_ratio": 1.0 + 0.05 * rng.random()}
        | {"degenerate_rate": 0.0, "steps": 12, "train_seconds": 3.0, "stopped": "", "collapsed": False, "collapse_reason": ""}
        for state, kind in kinds.items()
    ]
    frames = {
        "asr": pd.DataFrame(asr, columns=list(SCHEMAS["asr"])),
        "states": pd.DataFrame(states, columns=list(SCHEMAS["states"])).assign(reached_target=1.0),
        "samples": pd.DataFrame(samples, columns=list(SCHEMAS["samples"])),
    }
    frames["states"]["excluded"] = frames["states"]["state"].map(exclusions(frames["asr"], frames["states"]))
    frames["transfer"] = transfer_table(frames["asr"], frames["states"])
    names = [*BACKDOORS, *CONTROLS]
    pairs = [(a, b) for a, b in itertools.combinations(names, 2)]

    def distances(by: str, kinds: list[str]) -> pd.DataFrame:
        rows = itertools.product(kinds, pairs)
        frame = pd.DataFrame([(kind, a, b) for kind, (a, b) in rows], columns=[by, "a", "b"])
        return frame.assign(distance=rng.random(len(frame)))

    named = distances("variant", list(HEADLINES)).assign(grid=False)
    frames["casd"] = pd.concat([named, distances("variant", grid).assign(grid=True)], ignore_index=True) if grid else named
    frames["casd_layers"] = pd.concat([named.drop(columns="grid").assign(layer_idx=layer) for layer in range(4)])
    frames["baselines"] = distances("predictor", list(BASELINES))
    numbers = [name for name in SCHEMAS["relation"] if name.startswith(("rho", "p_", "tau"))]
    relation = pd.DataFrame(rng.random((2, len(numbers))), columns=numbers).assign(variant=HEADLINES, response="suppression")
    relation = relation.assign(n_backdoors=8, n_pairs=28, permutations=9999, exact=False, excluded="", note="")
    frames["relation"] = relation[list(SCHEMAS["relation"])]
    frames["specificity"] = specificity(frames["transfer"])
    empty = {name: pd.DataFrame(columns=list(columns)) for name, columns in SCHEMAS.items()}
    config = f"name: bench\nseed: {seed}\nmodel:\n  name: {model}\nunlearning:\n  objective:\n    name: {objective}\n"
    info = {"model": model, "objective": objective, "seed": seed, "headline": list(HEADLINES), "config": config + FILLER}
    return RunTables(**(empty | frames), info=info)


FILLER = "".join(f"section_{i}:\n" + "".join(f"  field_{j}: {i * j / 7:.4f}\n" for j in range(8)) for i in range(25))
"""A configuration of some 230 lines, as a real one has."""


def make_store(root: Path, seeds: int, grid: list[str]) -> int:
    """Fill a store with scored runs; returns how many."""
    rng = np.random.default_rng(0)
    store = StageStore(root)
    runs = list(itertools.product(MODELS, OBJECTIVES, range(seeds)))
    for model, objective, seed in runs:
        tables = made_up_run(model, objective, seed, rng, grid)
        store.run(Stage("score", TABLES_VERSION, {"model": model, "objective": objective, "seed": seed}), tables.write)
    return len(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="of each of the 20 combinations of model and objective")
    parser.add_argument("--grid", action="store_true", help="with all of CASD's variants in every run")
    parser.add_argument("--folder", type=Path, help="keep the runs and the report here (default: a temporary folder)")
    options = parser.parse_args()
    grid = [f"site/position/text/moment/distance/{number}" for number in range(GRID)] if options.grid else []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        started = time.perf_counter()
        count = make_store(folder / "store", options.seeds, grid)
        print(f"{count} runs made in {time.perf_counter() - started:.0f} s")
        command = [sys.executable, "-c", REPORT, "report", str(folder / "store"), "--output", str(folder / "report")]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            sys.exit(done.stderr)
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
        print(f"{seconds:.1f} s of wall time, {used.ru_utime + used.ru_stime:.1f} s of the processor")
        print(f"{used.ru_maxrss * unit / 2**20:.0f} MiB at the peak")
        print(done.stderr.strip())


if __name__ == "__main__":
    main()
