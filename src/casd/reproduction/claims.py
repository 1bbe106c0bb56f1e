"""What is claimed, and what decides whether it holds in a set of runs: *holds*, *does not hold*, or *not decided*.

The claims called the paper's are its claims in our words, from summaries of it; its text was not at hand, and no number of it.
The statistics, the thresholds and the claims called ours are our choices. Verdicts are not corrected for being several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from casd.analysis.comparison import POOLED, compare_objectives, grouped, over_runs
from casd.analysis.inclusion import MIN_REMOVALS
from casd.analysis.predictors import predictor_table
from casd.analysis.results import RunTables
from casd.config.states import CLEAN_CONTROL
from casd.report.statements import SIGNIFICANT
from casd.report.wording import fraction, mean_with_interval, p_text, percent
from casd.stats import MeanOverRuns, mean_interval, mean_over_runs

Outcome = Literal["holds", "does not hold", "not decided"]

NEGLIGIBLE: Final = 0.05
"""A mean suppression of the ASR (fraction) that is surely below this is called none."""
NEGLIGIBLE_RHO: Final = 0.1
"""So is a correlation that is surely weaker."""
CLEAN_LOSS_RISE: Final = 0.05
"""The relative rise of the clean loss up to which clean language counts as kept."""
REMOVED_ASR: Final = 0.2
"""A setting whose removals leave their own backdoor a higher mean ASR removes nothing, and is not asked for its transfer."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """A set of finished runs, and what they say together, each computed when it is first asked for."""

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
    """What a claim comes to in one group of the runs.

    Attributes:
        model: whose; POOLED over several.
        objective: of the removals, with the setting where it differs; "every setting" over several.
        statistic: what decided it.
        outcome: what it came to.
    """

    model: str
    objective: str
    statistic: str
    outcome: Outcome


@dataclass(frozen=True)
class Claim:
    """Something that runs can speak to.

    Attributes:
        text: what is claimed.
        source: "the paper" or "ours".
        rule: what is measured, and what decides.
        decide: gives the verdicts, one for each model and objective and over all models.
    """

    text: str
    source: Literal["the paper", "ours"]
    rule: str
    decide: Callable[[Evidence], list[Verdict]]


def above_zero(low: float, high: float) -> Outcome:
    """Whether a mean with this interval is above zero: it is, it is surely negligible, or neither can be said."""
    if low > 0:
        return "holds"
    return "does not hold" if high < NEGLIGIBLE else "not decided"


def negative(rho: float, p_value: float, low: float) -> Outcome:
    """Whether a correlation is negative.

    Args:
        rho: the correlation.
        p_value: two-sided, against none.
        low: the lower end of an interval of it over independent runs; NaN without one.
    """
    if p_value <= SIGNIFICANT:
        return "holds" if rho < 0 else "does not hold"
    return "does not hold" if low > -NEGLIGIBLE_RHO else "not decided"


def all_of(outcomes: Sequence[Outcome]) -> Outcome:
    """Whether something holds everywhere: one place where it does not is enough that it does not."""
    if "does not hold" in outcomes:
        return "does not hold"
    return "holds" if outcomes and set(outcomes) == {"holds"} else "not decided"


def _mean_suppression(column: str) -> Callable[[Evidence], list[Verdict]]:
    """Of a column of `compare_objectives`: is the mean above zero?"""

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


def _clean_control_spares(evidence: Evidence) -> list[Verdict]:
    """Is the suppression under training on clean text alone surely negligible?"""
    verdicts = []
    for (model, objective), runs in grouped(evidence.runs).items():
        cells = over_runs(runs, "transfer")
        cells = cells[(cells["source"] == CLEAN_CONTROL) & (cells["excluded"] == "")]
        found = mean_over_runs(cells["suppression"], cells["run"], cells["target"])
        kept: Outcome = "holds" if found.high < NEGLIGIBLE else "does not hold" if found.low > NEGLIGIBLE else "not decided"
        text = f"mean {_with_interval(found)}, {len(cells)} of {sum(len(tables.backdoors) for tables in runs)} cells included"
        verdicts.append(Verdict(model, objective, text, kept))
    return verdicts


def _falls_with(variant: str, statistic: str, p_value: str) -> Callable[[Evidence], list[Verdict]]:
    """Of a variant of CASD: does the suppression of a pair fall with its distance?"""

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
            low, high = mean_interval(_rho_of_runs(runs, variant, statistic))
            interval = "" if math.isnan(low) else f"; over runs {fraction(low)} to {fraction(high)}"
            text = f"ρ {fraction(record[statistic])}, Mantel p {p_text(record[p_value])}, {record['n_pairs']} pairs{interval}"
            if record["excluded"]:
                text += f"; excluded: {record['excluded']} of {record['removals']} removals"
            verdicts.append(Verdict(*group, text, negative(record[statistic], record[p_value], low)))
        return verdicts

    return decide


def _rho_of_runs(runs: Sequence[RunTables], variant: str, statistic: str) -> np.ndarray:
    """Each run's own correlation, of the runs that the pooled one is of: those with enough included removals."""
    relations = over_runs(runs, "relation")
    named = relations[(relations["variant"] == variant) & (relations["response"] == "suppression")]
    return named.loc[named["n_backdoors"] >= MIN_REMOVALS, statistic].dropna().to_numpy(dtype=float)


def _clean_language_kept(evidence: Evidence) -> list[Verdict]:
    """Is the rise of the removals' clean loss below the limit? Over all removals: one that broke the model is no exception."""
    verdicts = []
    for (model, objective), runs in grouped(evidence.runs).items():
        states = over_runs(runs, "states")
        removals = states[states["kind"] == "removal"]
        rises = removals["clean_loss_ratio"].astype(float) - 1
        broken = int((~np.isfinite(rises)).sum())
        found = mean_over_runs(rises, removals["run"], removals["state"])
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


def _at_every_setting(column: str) -> Callable[[Evidence], list[Verdict]]:
    """Is the mean of a column of `compare_objectives` above zero at every setting that removes backdoors?"""

    def decide(evidence: Evidence) -> list[Verdict]:
        own_asr = evidence.objectives["own_asr"].tolist()
        verdicts = []
        asked: list[Outcome] = []
        for verdict, left in zip(_mean_suppression(column)(evidence), own_asr, strict=True):
            if left <= REMOVED_ASR:
                asked.append(verdict.outcome)
                verdicts.append(verdict)
            else:
                text = f"removes nothing: own ASR {fraction(left)}"
                verdicts.append(Verdict(verdict.model, verdict.objective, text, "not decided"))
        holds = sum(outcome == "holds" for outcome in asked)
        text = f"holds at {holds} of {len(asked)} settings that remove backdoors"
        models = {verdict.model for verdict in verdicts}
        return [*verdicts, Verdict(models.pop() if len(models) == 1 else POOLED, "every setting", text, all_of(asked))]

    return decide


def _in_every_model(claim: str) -> Callable[[Evidence], list[Verdict]]:
    """Does another claim hold in each of the models?"""

    def decide(evidence: Evidence) -> list[Verdict]:
        found = [verdict for verdict in CLAIMS[claim].decide(evidence) if verdict.model != POOLED]
        verdicts = []
        for objective in dict.fromkeys(verdict.objective for verdict in found):
            of_models = {verdict.model: verdict.outcome for verdict in found if verdict.objective == objective}
            text = "; ".join(f"{model}: {outcome}" for model, outcome in of_models.items())
            verdicts.append(Verdict(POOLED, objective, text, all_of(list(of_models.values()))))
        return verdicts

    return decide


def _with_interval(found: MeanOverRuns) -> str:
    return mean_with_interval({"mean": found.mean, "mean_low": found.low, "mean_high": found.high}, "mean")


def _counted(record: dict[Any, Any]) -> str:
    """How many removals are included, and why others are not."""
    excluded = f" ({record['excluded']})" if record["excluded"] else ""
    return f"{record['included']} of {record['removals']} removals included{excluded}"


_ABOVE: Final = (
    f"It holds where the 95 % interval over runs and backdoors is above zero, does not where it is below {NEGLIGIBLE}; else not"
    " decided."
)
_NEGATIVE: Final = (
    f"It holds where ρ is negative with a Mantel p of at most {SIGNIFICANT}; it does not where ρ is positive with such a p, or"
    f" where the 95 % t interval over three or more runs is above −{NEGLIGIBLE_RHO}; else not decided."
)

CLAIMS: Final[dict[str, Claim]] = {
    "others_weaken": Claim(
        "Training a model to ignore one backdoor also suppresses others that were not targeted, more than clean training does.",
        "the paper",
        f"Mean suppression of the other backdoors' ASR, net of the clean control. {_ABOVE}",
        _mean_suppression("suppression_net_clean"),
    ),
    "more_than_phantoms": Claim(
        "The others are suppressed more than by the removal of triggers that were never injected.",
        "ours",
        f"Mean suppression of the other backdoors' ASR, net of the phantoms. {_ABOVE}",
        _mean_suppression("suppression_net_phantom"),
    ),
    "clean_text_spares": Claim(
        "Training on clean text alone, for the same steps, leaves the backdoors.",
        "ours",
        f"Mean suppression of the ASR under the clean control. It holds where the 95 % interval is below {NEGLIGIBLE}, does not"
        " where it is above; else not decided.",
        _clean_control_spares,
    ),
    "casd_tells": Claim(
        "The smaller the CASD of two removals, the more do they suppress each other's backdoors.",
        "the paper",
        f"Spearman's ρ of casd (L1, the nearest reading of the paper) and suppression over pairs. {_NEGATIVE}",
        _falls_with("casd", "rho", "p_value"),
    ),
    "casd_cos_tells": Claim(
        "The smaller the cosine distance of two removals' shifts, the more do they suppress each other's backdoors.",
        "ours",
        f"Spearman's ρ of casd_cos and suppression over pairs. {_NEGATIVE}",
        _falls_with("casd_cos", "rho", "p_value"),
    ),
    "casd_tells_pairs": Claim(
        "CASD goes with what of the suppression is about pairs, and not with single backdoors alone.",
        "ours",
        f"ρ of casd and suppression after the effects of single backdoors are taken out of both. {_NEGATIVE}",
        _falls_with("casd", "rho_pairs", "p_pairs"),
    ),
    "casd_tells_more_than_targets": Claim(
        "CASD tells more than that two backdoors have the same target.",
        "ours",
        f"Partial ρ of casd and suppression given the same target, pairs with which lie close in any case. {_NEGATIVE}",
        _falls_with("casd", "rho_partial", "p_partial"),
    ),
    "casd_cos_tells_more_than_targets": Claim(
        "The cosine distance tells more than that two backdoors have the same target.",
        "ours",
        f"Partial ρ of casd_cos and suppression given the same target. {_NEGATIVE}",
        _falls_with("casd_cos", "rho_partial", "p_partial"),
    ),
    "language_kept": Claim(
        "Removals leave the model's clean language intact.",
        "the paper",
        "Mean relative rise of the clean loss over all removals, collapsed models included (one without a finite loss decides"
        " against it). It holds where the 95 % interval"
        f" ends at {CLEAN_LOSS_RISE:.0%} or below, does not where it begins above; else not decided.",
        _clean_language_kept,
    ),
    "at_every_setting": Claim(
        "Others are suppressed more than by training on clean text at every setting that removes backdoors.",
        "ours",
        f"The first claim at each setting with a mean own ASR of at most {REMOVED_ASR}. What the paper concludes from its"
        " ablations is not known here.",
        _at_every_setting("suppression_net_clean"),
    ),
    "more_than_phantoms_at_every_setting": Claim(
        "And more than by the removal of triggers that were never injected, at every such setting.",
        "ours",
        "The same, net of the phantoms: where they weaken the backdoors as much as removals do, any trigger's removal does.",
        _at_every_setting("suppression_net_phantom"),
    ),
    "others_weaken_everywhere": Claim(
        "Removing one backdoor weakens others in every family.",
        "the paper",
        "The claim on the suppression of others, net of the clean control, in every model.",
        _in_every_model("others_weaken"),
    ),
    "casd_tells_everywhere": Claim(
        "CASD goes with the suppression in every family.",
        "the paper",
        "The claim on ρ of casd and suppression in every model.",
        _in_every_model("casd_tells"),
    ),
}


def headline(verdicts: Sequence[Verdict]) -> Iterator[Verdict]:
    """Of a claim's verdicts those over all that there is: over all models where there are several, over every setting."""
    if whole := [verdict for verdict in verdicts if verdict.objective == "every setting"]:
        yield from whole
        return
    pooled = any(verdict.model == POOLED for verdict in verdicts)
    yield from (verdict for verdict in verdicts if (verdict.model == POOLED) == pooled)
