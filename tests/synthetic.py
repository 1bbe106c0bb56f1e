"""Runs of made-up numbers with a known truth, for the tests of what several runs say together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from casd.analysis.inclusion import exclusions
from casd.analysis.relation import relate
from casd.analysis.results import RunTables
from casd.analysis.tables import SCHEMAS
from casd.analysis.transfer import specificity, transfer_table

N_PROMPTS = 64


def run_of(
    after: np.ndarray,
    *,
    before: Sequence[float] | None = None,
    controls: Mapping[str, Sequence[float]] | None = None,
    distances: Mapping[str, np.ndarray] | None = None,
    baselines: Mapping[str, np.ndarray] | None = None,
    repeats: Mapping[str, Mapping[str, float]] | None = None,
    collapsed: Sequence[str] = (),
    reached: Mapping[str, float] | None = None,
    steps: Mapping[str, int] | None = None,
    config: str = "",
    model: str = "m",
    objective: str = "o",
    seed: int = 0,
) -> RunTables:
    """A run from its matrix of remaining ASRs, `after[removed, measured]`, and its matrices of distances by name.

    Backdoors are called b0, b1, …; `controls` are rows of remaining ASRs; `repeats` the distances of a control
    "control:repeat:b0" to the removals, by variant "casd" alone; `reached` whether a removal came down to its target; `steps`
    how many training steps a state kept, where that is not 4 and more; `config` the configuration as YAML.
    """
    n = len(after)
    names = [f"b{i}" for i in range(n)]
    rows = {"injected": list(before or [1.0] * n)} | dict(zip(names, after.tolist(), strict=True)) | dict(controls or {})
    asr = [
        {"state": state, "backdoor": name, "prompt_set": "triggered", "n": N_PROMPTS, "rate": rate, "first_token_prob": rate}
        for state, rates in rows.items()
        for name, rate in zip(names, rates, strict=True)
    ]
    kinds = {"injected": "injected"} | dict.fromkeys(names, "removal") | dict.fromkeys(controls or {}, "control")
    states = [
        {
            "state": state,
            "kind": kind,
            "clean_loss": 2.0,
            "clean_loss_ratio": 1.1,
            "steps": (steps or {}).get(state, 4 + place),
            "train_seconds": 1.0,
            "stopped": "",
            "collapsed": state in collapsed,
            "collapse_reason": "made up" if state in collapsed else "",
            "reached_target": (reached or {}).get(state, math.nan),
        }
        for place, (state, kind) in enumerate(kinds.items())
    ]
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    casd = [
        (variant, names[i], names[j], float(matrix[i, j]), False)
        for variant, matrix in (distances or {}).items()
        for i, j in pairs
    ]
    casd += [("casd", repeat, name, d, False) for repeat, row in (repeats or {}).items() for name, d in row.items()]
    baseline = [(name, names[i], names[j], float(matrix[i, j])) for name, matrix in (baselines or {}).items() for i, j in pairs]
    asr_frame = pd.DataFrame(asr, columns=list(SCHEMAS["asr"]))
    states_frame = pd.DataFrame(states, columns=list(SCHEMAS["states"]))
    states_frame["excluded"] = states_frame["state"].map(exclusions(asr_frame, states_frame))
    empty = {name: pd.DataFrame(columns=list(columns)) for name, columns in SCHEMAS.items()}
    made = empty | {
        "asr": asr_frame,
        "states": states_frame,
        "transfer": transfer_table(asr_frame, states_frame),
        "casd": pd.DataFrame(casd, columns=list(SCHEMAS["casd"])),
        "baselines": pd.DataFrame(baseline, columns=list(SCHEMAS["baselines"])),
    }
    info = {"model": model, "objective": objective, "seed": seed, "config": config, "headline": ["casd"]}
    return RunTables(**made, info=info)


def related(tables: RunTables) -> RunTables:
    """The run with its `relation` and `specificity`, as scoring makes them."""
    tables.relation = relate(tables.casd, tables.transfer, permutations=99, seed=0)
    tables.specificity = specificity(tables.transfer)
    return tables


def symmetric(rng: np.random.Generator, n: int) -> np.ndarray:
    """A random symmetric matrix with a zero diagonal."""
    upper = np.triu(rng.random((n, n)), k=1)
    return upper + upper.T
