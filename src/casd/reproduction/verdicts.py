"""Functions that decide from a set of runs whether a claim *holds*, *does not hold*, or is *not decided*."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from casd.analysis.comparison import compare_objectives
from casd.analysis.grouping import POOLED, grouped, over_runs
from casd.analysis.inclusion import MIN_REMOVALS
from casd.analysis.predictors import predictor_table
from casd.analysis.results import RunTables
from casd.config.states import CLEAN_CONTROL
from casd.report.wording import NEGLIGIBLE, correlation_sign, fraction, mean_with_interval, p_text, percent
from casd.stats import MeanOverRuns, mean_over_runs

Outcome = Literal["holds", "does not hold", "not decided"]

CLEAN_LOSS_RISE: Final = 0.05
"""The relative rise of the clean loss up to which clean language counts as kept."""
REMOVED_ASR: Final = 0.2
"""Settings whose removals leave their own backdoor a higher mean ASR remove nothing; claims on transfer skip them."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """A set of finished runs and the comparisons over them, each computed when it is first used."""

    runs: Sequence[RunTables]

    @cached_property
    def objectives(self) -> pd.DataFrame:
        """See `compare_objectives`."""
        return compare_objectives(self.runs)

    @cached_property
    def predictors(self) -> pd.DataFrame:
        """See `predictor_table`."""
        return predictor_table(self.runs)


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim in one group of runs.

    Attributes:
        model: the model, or POOLED over several.
        objective: of the removals, with the setting where it differs; "every setting" over several.
        statistic: the numbers behind the outcome.
        outcome: the outcome.
    """

    model: str
    objective: str
    statistic: str
    outcome: Outcome


Decider = Callable[[Evidence], list[Verdict]]
"""Gives the verdicts on a claim, one for each model and objective and over all models."""


def above_zero(low: float, high: float) -> Outcome:
    """Whether a mean with this interval is above zero: it is, it is negligible, or neither can be concluded."""
    if low > 0:
        return "holds"
    return "does not hold" if high < NEGLIGIBLE else "not decided"


def negative(rho: float, p_value: float, low: float = math.nan, high: float = math.nan) -> Outcome:
    """Whether a correlation is negative, for these backdoors (the test) and for others like them (the interval).

    A correlation near zero decides nothing: runs of the same backdoors are not independent, so that their spread is no measure
    of how small it is for others.

    Args:
        rho: the correlation.
        p_value: two-sided, against none.
        low: lower 95 % limit; NaN where there is no interval.
        high: upper 95 % limit.
    """
    sign = correlation_sign({"rho": rho, "p_value": p_value, "rho_low": low, "rho_high": high})
    return "holds" if sign == -1 else "does not hold" if sign == 1 else "not decided"


def all_of(outcomes: Sequence[Outcome]) -> Outcome:
    """Whether something holds everywhere; one place where it does not decides against it."""
    if "does not hold" in outcomes:
        return "does not hold"
    return "holds" if outcomes and set(outcomes) == {"holds"} else "not decided"


def mean_suppression(column: str) -> Decider:
    """Whether the mean of a column of `compare_objectives` is above zero."""

    def decide(evidence: Evidence) -> list[Verdict]:
        return [
            Verdict(
                str(record["model"]),
                str(record["objective"]),
                f"mean {mean_with_interval(record, column)}, {_counted(record)}",
                above_zero(record[f"{column}_low"], record[f"{column}_high"]),
            )
            for record in evidence.objectives.to_dict("records")
        ]

    return decide


def clean_control_spares(evidence: Evidence) -> list[Verdict]:
    """Whether the suppression under training on clean text alone is negligible."""
    verdicts = []
    for (model, objective), runs in grouped(evidence.runs).items():
        cells = over_runs(runs, "transfer")
        cells = cells[(cells["source"] == CLEAN_CONTROL) & (cells["excluded"] == "")]
        found = mean_over_runs(cells["suppression"], cells["run"], cells["target"].astype(str), bounds=(-1, 1))
        kept: Outcome = "holds" if found.high < NEGLIGIBLE else "does not hold" if found.low > NEGLIGIBLE else "not decided"
        text = f"mean {_with_interval(found)}, {len(cells)} of {sum(len(tables.backdoors) for tables in runs)} cells included"
        verdicts.append(Verdict(model, objective, text, kept))
    return verdicts


def falls_with(variant: str, statistic: str, p_value: str) -> Decider:
    """Whether the suppression of a pair falls with its distance, by a variant of CASD."""

    def decide(evidence: Evidence) -> list[Verdict]:
        frame = evidence.predictors
        named = frame[(frame["predictor"] == variant) & (frame["role"] == "headline")]
        found = {(record["model"], record["objective"]): record for record in named.to_dict("records")}
        verdicts = []
        for group, runs in grouped(evidence.runs).items():
            if group not in found:
                verdicts.append(Verdict(*group, f"no run with {MIN_REMOVALS} included removals that differ", "not decided"))
                continue
            record = found[group]
            of_runs = _rho_of_runs(runs, variant, statistic)
            each = f"; in single runs {fraction(of_runs.min())} to {fraction(of_runs.max())}" if len(of_runs) > 1 else ""
            rho = mean_with_interval(record, statistic)
            text = f"ρ {rho}, Mantel p {p_text(record[p_value])}, {record['n_pairs']} pairs{each}"
            if record["excluded"]:
                text += f"; excluded: {record['excluded']} of {record['removals']} removals"
            limits = [record.get(f"{statistic}_{end}", math.nan) for end in ("low", "high")]
            verdicts.append(Verdict(*group, text, negative(record[statistic], record[p_value], *limits)))
        return verdicts

    return decide


def _rho_of_runs(runs: Sequence[RunTables], variant: str, statistic: str) -> np.ndarray:
    """The correlation of each run that the pooled correlation includes: those with enough included removals."""
    relations = over_runs(runs, "relation")
    named = relations[(relations["variant"] == variant) & (relations["response"] == "suppression")]
    return named.loc[named["n_backdoors"] >= MIN_REMOVALS, statistic].dropna().to_numpy(dtype=float)


def clean_language_kept(evidence: Evidence) -> list[Verdict]:
    """Whether the rise of the clean loss over all removals, collapsed ones included, is below the limit."""
    verdicts = []
    for (model, objective), runs in grouped(evidence.runs).items():
        states = over_runs(runs, "states")
        removals = states[states["kind"] == "removal"]
        rises = removals["clean_loss_ratio"].astype(float) - 1
        broken = int((~np.isfinite(rises)).sum())
        found = mean_over_runs(rises.where(np.isfinite(rises)), removals["run"], removals["state"].astype(str))
        kept: Outcome = "not decided"
        if broken or found.low > CLEAN_LOSS_RISE:
            kept = "does not hold"
        elif found.high <= CLEAN_LOSS_RISE:
            kept = "holds"
        interval = "" if math.isnan(found.low) else f" [{percent(found.low)}, {percent(found.high)}]"
        collapsed = int(removals["collapsed"].astype(bool).sum())
        text = f"mean {percent(found.mean)}{interval}; {collapsed} of {len(removals)} collapsed"
        if broken:
            text += f", {broken} without a finite loss"
        verdicts.append(Verdict(model, objective, text, kept))
    return verdicts


def at_every_setting(column: str) -> Decider:
    """Whether the mean of a column of `compare_objectives` is above zero at every setting that removes backdoors."""

    def decide(evidence: Evidence) -> list[Verdict]:
        own_asr = evidence.objectives["own_asr"].tolist()
        verdicts = []
        asked: list[Outcome] = []
        for verdict, left in zip(mean_suppression(column)(evidence), own_asr, strict=True):
            if verdict.model == POOLED:
                continue
            if left <= REMOVED_ASR:
                asked.append(verdict.outcome)
                verdicts.append(verdict)
            else:
                text = "no removal is included" if math.isnan(left) else f"removes nothing: own ASR {fraction(left)}"
                verdicts.append(Verdict(verdict.model, verdict.objective, text, "not decided"))
        holds = sum(outcome == "holds" for outcome in asked)
        text = f"holds at {holds} of {len(asked)} settings that remove backdoors"
        models = {verdict.model for verdict in verdicts}
        return [*verdicts, Verdict(models.pop() if len(models) == 1 else POOLED, "every setting", text, all_of(asked))]

    return decide


def in_every_model(decide_one: Decider) -> Decider:
    """Whether another claim holds in each of the models."""

    def decide(evidence: Evidence) -> list[Verdict]:
        found = [verdict for verdict in decide_one(evidence) if verdict.model != POOLED]
        verdicts = []
        for objective in dict.fromkeys(verdict.objective for verdict in found):
            of_models = {verdict.model: verdict.outcome for verdict in found if verdict.objective == objective}
            text = "; ".join(f"{model}: {outcome}" for model, outcome in of_models.items())
            verdicts.append(Verdict(POOLED, objective, text, all_of(list(of_models.values()))))
        return verdicts

    return decide


def _with_interval(found: MeanOverRuns) -> str:
    return mean_with_interval(found.columns("mean"), "mean")


def _counted(record: dict[Any, Any]) -> str:
    """The number of included removals, and why others are excluded."""
    excluded = f" ({record['excluded']})" if record["excluded"] else ""
    return f"{record['included']} of {record['removals']} removals included{excluded}"


def headline(verdicts: Sequence[Verdict]) -> Iterator[Verdict]:
    """The overall verdicts on a claim: over every setting, else over all models if there are several."""
    if whole := [verdict for verdict in verdicts if verdict.objective == "every setting"]:
        yield from whole
        return
    pooled = any(verdict.model == POOLED for verdict in verdicts)
    yield from (verdict for verdict in verdicts if (verdict.model == POOLED) == pooled)
