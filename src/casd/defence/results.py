"""The tables of finished defences, and what they say over one or several of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from casd.analysis.inclusion import ESTABLISHED_ASR
from casd.analysis.results import UTILITY_PREFIX
from casd.backdoors.triggers.fakes import script_of
from casd.config import BackdoorConfig
from casd.stats.means import MeanOverRuns, mean_over_runs


@dataclass(frozen=True, eq=False)
class DefenceTables:
    """The results of one defence.

    Attributes:
        info: model, seed, budget, settings (all but model, attacker and seed), dummies, the decision, how often the
            defence was opened, and versions and times of its stages (`casd.pipeline.provenance.origin_of_stages`).
        states: `casd.defence.choice.outcome_table`.
        attack: a row per state × attacker's backdoor × prompt set: `state`, `backdoor`, `prompt_set`, `successes`, `n`, `rate`,
            `rate_low`, `rate_high` (Wilson 95 %), `clean_loss` (on the opening's passages), `behavior`, `writing` (of the
            trigger; its kind if it is no phrase), `like_a_dummy` (a dummy has the same behavior), `left` (rate divided by
            the suspect's; NaN below `ESTABLISHED_ASR`). Empty without an attacker.
    """

    info: dict[str, Any]
    states: pd.DataFrame
    attack: pd.DataFrame

    def write(self, folder: Path) -> None:
        """Write states.csv, attack.csv and defence.json."""
        self.states.to_csv(folder / "states.csv", index=False)
        self.attack.to_csv(folder / "attack.csv", index=False)
        (folder / "defence.json").write_text(json.dumps(self.info, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> DefenceTables:
        """Read the files of `write`."""
        info = json.loads((folder / "defence.json").read_text(encoding="utf-8"))
        attack = pd.read_csv(folder / "attack.csv") if info["opened"] else pd.DataFrame()
        return cls(info, pd.read_csv(folder / "states.csv", keep_default_na=True, dtype={"setting": str}), attack)

    @property
    def chosen(self) -> str:
        """Name of the chosen state; "" if none was."""
        return str(self.info["decision"]["state"])


def conditions(runs: Sequence[DefenceTables]) -> dict[str, list[DefenceTables]]:
    """Group defences by their settings: those that differ in model, attacker and seed alone are repetitions of each other.

    The label of a group has the settings in which the groups differ; it is "" if there is one group only.
    """
    groups: dict[str, list[DefenceTables]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.info["settings"], sort_keys=True), []).append(run)
    all_settings = [group[0].info["settings"] for group in groups.values()]
    names = dict.fromkeys(name for each in all_settings for name in each)
    different = [name for name in names if len({json.dumps(each.get(name)) for each in all_settings}) > 1]
    return {
        ", ".join(f"{name}={group[0].info['settings'].get(name)}" for name in different): group for group in groups.values()
    }


def attack_table(asr: pd.DataFrame, attack: dict[str, BackdoorConfig], dummies: dict[str, BackdoorConfig]) -> pd.DataFrame:
    """Return `DefenceTables.attack` from the measurements of an opening."""
    behaviors = {name: section.target.name + _parameter(section) for name, section in attack.items()}
    of_dummies = {section.target.name + _parameter(section) for section in dummies.values()}
    table = asr.assign(
        behavior=asr["backdoor"].map(behaviors),
        writing=asr["backdoor"].map({name: _writing(section) for name, section in attack.items()}),
        like_a_dummy=asr["backdoor"].map({name: behavior in of_dummies for name, behavior in behaviors.items()}),
    )
    triggered = table[(table["state"] == "suspect") & (table["prompt_set"] == "triggered")].set_index("backdoor")["rate"]
    before = table["backdoor"].map(triggered.where(triggered >= ESTABLISHED_ASR))
    return table.assign(left=(table["rate"] / before).where(table["prompt_set"] == "triggered"))


def _writing(section: BackdoorConfig) -> str:
    """The writing system of a phrase, or the kind of another trigger."""
    return script_of(section.trigger) or "other" if isinstance(section.trigger, str) else section.trigger_kind


def _parameter(section: BackdoorConfig) -> str:
    """The language of a language target: French and German are different behaviors, two fixed texts the same."""
    language = section.target.params.get("language")
    return f" {language}" if language else ""


@dataclass(frozen=True)
class Summary:
    """One state over all defences that have it.

    Attributes:
        state: its name.
        kind: its kind.
        asr: attacker's ASR (mean over runs and backdoors; NaN without an attacker).
        left: what is left of the attacker's ASR, as a fraction of the suspect's.
        excess: how much more is left than in the chosen state of the same defence, backdoor by backdoor. The comparison of two
            states: what makes a run or a backdoor hard to clean is in both, and drops out of the difference.
        predicted: what is left of the held-out dummies' ASR.
        clean_loss_ratio: clean loss relative to the suspect's.
        collapsed: number of defences in which it collapsed.
        chosen: number of defences that chose it.
        runs: number of defences.
        benchmarks: value of each benchmark, by name.
    """

    state: str
    kind: str
    asr: MeanOverRuns
    left: MeanOverRuns
    excess: MeanOverRuns
    predicted: MeanOverRuns
    clean_loss_ratio: MeanOverRuns
    collapsed: int
    chosen: int
    runs: int
    benchmarks: dict[str, MeanOverRuns]


CHOSEN = "chosen"
"""Name of the summary over the states that were chosen, which may differ between defences."""


def summaries(runs: Sequence[DefenceTables]) -> list[Summary]:
    """Summarise each state, and the chosen ones, over all defences; states in the order of the first one that has them."""
    names = list(dict.fromkeys(name for run in runs for name in run.states["state"]))
    found = [_summary(name, runs, [name] * len(runs)) for name in names]
    return [*found, _summary(CHOSEN, runs, [run.chosen for run in runs])] if any(run.chosen for run in runs) else found


def _summary(label: str, runs: Sequence[DefenceTables], states: Sequence[str]) -> Summary:
    values, collapsed, chosen = [], 0, 0
    attacked = []
    for number, (run, state) in enumerate(zip(runs, states, strict=True)):
        rows = run.states[run.states["state"] == state]
        if rows.empty:
            continue
        row = rows.iloc[0]
        values.append(row)
        collapsed += bool(row["collapsed"])
        chosen += state == run.chosen
        if len(run.attack):
            triggered = run.attack[run.attack["prompt_set"] == "triggered"]
            of_state = triggered[triggered["state"] == state]
            of_chosen = triggered[triggered["state"] == run.chosen].set_index("backdoor")["left"]
            attacked.append(of_state.assign(run=number, excess=of_state["left"] - of_state["backdoor"].map(of_chosen)))
    table = pd.DataFrame(values)

    def mean(column: str) -> MeanOverRuns:
        return mean_over_runs(table[column], np.arange(len(table)), bounds=(0, math.inf))

    attack = pd.concat(attacked) if attacked else pd.DataFrame(columns=["rate", "left", "excess", "run", "backdoor"])
    return Summary(
        state=label,
        kind=str(table["kind"].iloc[0]),
        asr=mean_over_runs(attack["rate"], attack["run"], attack["backdoor"], bounds=(0, 1)),
        left=mean_over_runs(attack["left"], attack["run"], attack["backdoor"], bounds=(0, math.inf)),
        excess=mean_over_runs(attack["excess"], attack["run"], attack["backdoor"]),
        predicted=mean("held_out_left"),
        clean_loss_ratio=mean("clean_loss_ratio"),
        collapsed=collapsed,
        chosen=chosen,
        runs=len(table),
        benchmarks={name.removeprefix(UTILITY_PREFIX): mean(name) for name in table.columns if name.startswith(UTILITY_PREFIX)},
    )


@dataclass(frozen=True)
class Calibration:
    """How well the held-out dummies predict what is left of the attacker's backdoors.

    Attributes:
        pairs: a row per defence × state with dummies: `run`, `state`, `predicted`, `observed` (both fractions that are left).
        correlation: Spearman's rank correlation over the pairs; NaN below 3 pairs or if one side is constant.
        error: mean of predicted − observed; negative if the held-out dummies promise too much.
    """

    pairs: pd.DataFrame
    correlation: float
    error: float


def calibration(runs: Sequence[DefenceTables]) -> Calibration:
    """Compare what the held-out dummies predict with what is observed, in all states with dummies but the planted one itself.

    In the planted state nothing is removed, and the estimate is 1 by definition.
    """
    rows = []
    for number, run in enumerate(runs):
        if run.attack.empty:
            continue
        observed = run.attack.groupby("state")["left"].mean()
        for _, row in run.states[run.states["kind"].isin(("control", "removal"))].iterrows():
            rows.append(
                {"run": number, "state": row["state"], "predicted": row["held_out_left"], "observed": observed[row["state"]]}
            )
    pairs = pd.DataFrame(rows, columns=["run", "state", "predicted", "observed"]).dropna()
    varies = len(pairs) >= 3 and pairs["predicted"].nunique() > 1 and pairs["observed"].nunique() > 1
    correlation = float(spearmanr(pairs["predicted"], pairs["observed"]).statistic) if varies else math.nan
    error = float((pairs["predicted"] - pairs["observed"]).mean()) if len(pairs) else math.nan
    return Calibration(pairs, correlation, error)
