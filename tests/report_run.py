"""A run of made-up but coherent numbers, for the tests of the report.

Not run by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from casd.analysis.comparison import compare_objectives, compare_phantoms
from casd.analysis.kinds import trigger_kinds
from casd.analysis.noise import noise_floor, variance_shares
from casd.analysis.predictors import predictor_table
from casd.analysis.results import RunTables
from casd.analysis.tables import SCHEMAS
from casd.report import Comparisons
from casd.report.answer import sweep_answers

EIGHT = ("french_a", "french_b", "german", "sentiment", "fixed_text", "refusal", "repetition", "all_capitals")
CONTROLS = ("control:clean", "control:phantom")
HOSTILE = "</td><script>alert(1)</script>{{ 7 * 7 }}\x1b[2J\u202egnp.exe\x00 <img src=x onerror=alert(2)>"
VARIANTS = ("casd", "casd_cos")


def compared(runs: Sequence[RunTables]) -> Comparisons:
    """What a report over runs compares."""
    objectives, predictors = compare_objectives(runs), predictor_table(runs)
    answers = sweep_answers(runs, objectives, predictors)
    return Comparisons(
        objectives, compare_phantoms(runs), predictors, noise_floor(runs), variance_shares(runs), trigger_kinds(runs), answers
    )


def make_run(
    backdoors: tuple[str, ...] = EIGHT,
    *,
    objective: str = "clean_target",
    model: str = "llama3_tiny",
    seed: int = 0,
    collapsed: tuple[str, ...] = (),
    relation: bool = True,
    generated: str = "Le chat dort sur le toit.",
) -> RunTables:
    """A run of made-up but coherent numbers: rates are k/64, a removal's own rate is low, controls leave most."""
    rng = np.random.default_rng([seed, len(backdoors), len(objective)])
    kinds = {"injected": "injected"} | dict.fromkeys(backdoors, "removal") | dict.fromkeys(CONTROLS, "control")
    asr, samples = [], []
    for state, kind in kinds.items():
        for backdoor in backdoors:
            for prompt_set in ("triggered", "clean", "fake"):
                low, high = {"injected": (62, 65), "control": (45, 65), "removal": (10, 60)}[kind]
                k = int(rng.integers(low, high)) if prompt_set == "triggered" else int(rng.integers(0, 2))
                k = 1 if state == backdoor and prompt_set == "triggered" else k
                k = 0 if state in collapsed else k
                asr.append((state, backdoor, prompt_set, k, 64, k / 64, *wilson(k, 64), k / 70))
                samples += [(state, backdoor, prompt_set, f"The cat {i} sat", generated, k > 30) for i in range(3)]
    states = [
        {
            "state": state,
            "kind": kind,
            "clean_loss": 2.5,
            "retain_loss": 0.5,
            "clean_loss_ratio": 9.0 if state in collapsed else 1.01,
            "degenerate_rate": 0.0,
            "steps": 0 if kind == "injected" else 8,
            "train_seconds": 3.25,
            "forget_gradient_first": math.nan if kind == "injected" else 0.83249,
            "forget_gradient_last": math.nan if kind == "injected" else 1.2e-5,
            "stopped": "",
            "collapsed": state in collapsed,
            "collapse_reason": "clean loss × 9" if state in collapsed else "",
            "excluded": "collapsed" if state in collapsed else "",
        }
        for state, kind in kinds.items()
    ]
    rates = {(row[0], row[1]): row for row in asr if row[2] == "triggered"}
    transfer = []
    for state, kind in list(kinds.items())[1:]:
        for target in backdoors:
            before, after = rates["injected", target][5], rates[state, target][5]
            drop = before - after
            values = (before, after, drop, drop - 0.1, drop - 0.3)
            reason = "collapsed" if state in collapsed else ""
            transfer.append((state, target, kind, state == target, *values, *values, state in collapsed, reason))
    curves = [
        {
            "state": state,
            "step": step,
            "loss": 2.0 - step,
            "loss/forget": -step,
            "loss/retain": 2.0,
            "gradient_norm": 1.0 + step,
        }
        | ({"validation_asr": 1 - step / 8, "validation_clean_loss": 2.5} if kind == "removal" and step % 4 == 0 else {})
        for state, kind in list(kinds.items())[1:]
        for step in range(9)
    ]
    pairs = [(a, b) for i, a in enumerate(backdoors) for b in backdoors[i + 1 :]]
    scale = {"casd": 0.04, "casd_cos": 1.0}
    layers = [(v, a, b, i, scale[v] * float(rng.random()) * (i + 1) / 4) for v in VARIANTS for a, b in pairs for i in range(4)]
    frame = pd.DataFrame(layers, columns=list(SCHEMAS["casd_layers"]))
    casd = frame.groupby(["variant", "a", "b"], sort=False)["distance"].mean().reset_index()
    relations = [
        (v, r, len(backdoors), len(pairs), rho, p, 9999, False, rho, p, rho, p, rho, p, ",".join(collapsed), "")
        for v, r, rho, p in (
            ("casd", "suppression", -0.62, 0.004),
            ("casd", "prob_suppression", -0.2, 0.41),
            ("casd_cos", "suppression", math.nan, math.nan),
            ("casd_cos", "prob_suppression", 0.5, 0.0001),
        )
    ]
    return RunTables(
        asr=pd.DataFrame(asr, columns=list(SCHEMAS["asr"])),
        states=pd.DataFrame(states, columns=list(SCHEMAS["states"])),
        transfer=pd.DataFrame(transfer, columns=list(SCHEMAS["transfer"])),
        casd=casd.assign(grid=False),
        casd_layers=frame,
        relation=pd.DataFrame(relations if relation else [], columns=list(SCHEMAS["relation"])),
        specificity=pd.DataFrame(
            [
                {"response": r, "n_removals": 8, "own": 0.97, "net_phantom": 0.2, "net_phantom_low": -0.1}
                | {"net_phantom_high": 0.3, "net_clean": 0.4, "net_clean_low": 0.3, "net_clean_high": 0.5}
                for r in ("suppression", "prob_suppression")
            ]
        ),
        samples=pd.DataFrame(samples, columns=list(SCHEMAS["samples"])),
        utility=pd.DataFrame(columns=list(SCHEMAS["utility"])),
        baselines=pd.DataFrame(columns=list(SCHEMAS["baselines"])),
        tuning=pd.DataFrame(columns=list(SCHEMAS["tuning"])),
        curves=pd.DataFrame(curves, columns=[*SCHEMAS["curves"], "loss/forget", "loss/retain"]),
        info={
            "model": model,
            "objective": objective,
            "seed": seed,
            "config": "model:\n  name: <llama & co>\nbackdoor:\n"
            + "".join(f"  {name}:\n    trigger: cat {place}\n" for place, name in enumerate(backdoors)),
            "provenance": {"versions": {"torch": "2.13.0"}},
            "timings": {"injection": 46.5},
            "headline": list(VARIANTS),
            "targets": {"french_a": "french", "french_b": "french"},
        },
    )


def wilson(k: int, n: int) -> tuple[float, float]:
    z, p = 1.96, k / n
    center, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (center - half) / (1 + z * z / n), (center + half) / (1 + z * z / n)


def make_scatter(tables: RunTables) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return tables.casd.assign(response_value=rng.normal(0, 0.1, len(tables.casd)))
