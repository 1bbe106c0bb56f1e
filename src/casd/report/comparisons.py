"""Tables over several runs: objectives compared, CASD and its baselines as predictors, the noise floor, shares of variance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import pandas as pd

from casd.analysis.comparison import MEASURES, POOLED
from casd.metric.baselines import BASELINES
from casd.report.markup import Table, table_of
from casd.report.wording import ALL_MODELS, fraction, mean_with_interval, p_text, percent, run_count, significant


@dataclass(frozen=True, eq=False)
class Comparisons:
    """The frames over all runs of a sweep: see `compare_objectives`, `predictor_table`, `noise_floor`, `variance_shares`."""

    objectives: pd.DataFrame
    predictors: pd.DataFrame
    noise: pd.DataFrame
    shares: pd.DataFrame

    @property
    def frames(self) -> dict[str, pd.DataFrame]:
        """By the names of their files."""
        return {f"comparison_{each.name}": getattr(self, each.name) for each in fields(self)}

    @cached_property
    def tables(self) -> list[Table]:
        """The tables to show; those without a row are left out."""
        every = [objectives_table(self.objectives), predictors_table(self.predictors)]
        every += [noise_table(self.noise), shares_table(self.shares)]
        return [table for table in every if len(table)]


def objectives_table(frame: pd.DataFrame) -> Table:
    """Every objective at the same strength, from `compare_objectives`."""
    rows = [
        {
            "objective": f"{record['objective']} (control)" if _is_control(record["objective"]) else record["objective"],
            "included": f"{record['included']} of {record['removals']}",
            "excluded": record["excluded"],
            "own ASR": mean_with_interval(record, "own_asr"),
            **{heading: _mean_of_runs(record, measure) for heading, measure in zip(_MEASURED, MEASURES, strict=True)},
            "clean": fraction(record["clean_control"]),
            "phantoms": fraction(record["phantom_control"]),
            "clean loss": percent(record["clean_loss_change"]),
            "steps": fraction(record["steps"], 1),
            "seconds": fraction(record["seconds"], 1),
        }
        for record in frame.to_dict("records")
    ]
    seeds = ", ".join(map(str, sorted(set(frame.loc[frame["model"] != POOLED, "seeds"]))))
    return table_of(
        rows,
        groups=list(map(model_label, frame["model"])),
        bold=_best(frame, ["model"], frame["suppression_net_phantom"].where(~frame["objective"].map(_is_control))),
        name="objectives",
        title="Objectives at the same strength",
        caption=f"Seeds for each model: {seeds}. Included are removals that did not collapse and reached the target ASR of"
        " their own backdoor on validation prompts (where a target was set), and backdoors that the injected model obeys. Own"
        " ASR: on evaluation prompts. Others: mean suppression of the other backdoors' ASR (fraction), raw, and net"
        " of the same backdoor's suppression under the clean control and under the phantoms; in parentheses the number of runs"
        " behind the mean, where others have none (their controls collapsed, or no removal is included). Every mean is the mean"
        " over runs of each run's mean. Brackets: 95 % bootstrap interval of it over seeds and backdoors. Clean, phantoms: mean"
        " suppression under these controls. Clean loss, steps, seconds: means of a removal. Bold: the objective whose removals"
        " suppress the others most, net of phantoms; (control): an objective that forgets nothing.",
    )


_MEASURED = ("others", "net of clean", "net of phantoms")
"""The headings of `MEASURES`."""


def _mean_of_runs(record: Mapping[Any, Any], measure: str) -> str:
    """A mean with its interval, and the number of its runs where that is not all."""
    text, count = mean_with_interval(record, measure), record[f"{measure}_runs"]
    return text if count in (0, record["runs"]) else f"{text} ({count} of {run_count(record['runs'])})"


def predictors_table(frame: pd.DataFrame) -> Table:
    """CASD beside its baselines as a predictor of transfer, from `predictor_table`."""
    rows, groups = [], []
    for record in frame.to_dict("records"):
        p_partial = record["p_partial"] if record["role"] == "headline" else record["p_partial_corrected"]
        rows.append(
            {
                "predictor": str(record["predictor"]),
                "role": record["role"],
                "ρ": fraction(record["rho"]),
                "p": p_text(record["p_value"]),
                "p corrected": p_text(record["p_corrected"]),
                "q": p_text(record["q_value"]),
                "ρ, pairs only": fraction(record["rho_pairs"]),
                "p, pairs only": p_text(record["p_pairs"]),
                "p corrected, pairs only": p_text(record["p_pairs_corrected"]),
                "ρ, given same target": fraction(record["rho_partial"]),
                "p, given same target": p_text(p_partial),
                "R²": fraction(record["r_squared"]),
                "rank error": fraction(record["rank_error"]),
            }
        )
        count = f"{run_count(record['runs'])}, {record['n_pairs']} pairs"
        if record["excluded"]:
            count += f", excluded: {record['excluded']} of {record['removals']} removals"
        groups.append(f"{record['objective']} ({count}), {model_label(record['model'])}")
    baselines = "; ".join(f"{name}: {each.description}" for name, each in BASELINES.items() if name in set(frame["predictor"]))
    return table_of(
        rows,
        groups=groups,
        bold=_best(frame, ["model", "objective"], frame["rho"].abs().where(frame["role"] != "ceiling")),
        name="predictors",
        title="Predictors of transfer",
        caption="Response: suppression of ASR, centered by column, mean of both directions of a pair. ρ: Spearman, pooled"
        " over runs; negative where small distances go with strong transfer. p: Mantel test that permutes within"
        " runs; corrected: by the maximum over all variants that were looked at, or over all baselines; headline"
        " variants were named before. q: Benjamini and Hochberg. Pairs only: the effects of single backdoors are"
        " taken out of both sides first, since shared effects alone can cause a ρ. Given same target: partial ρ"
        " with the indicator of the same target held constant; its p is corrected, except for a headline variant."
        " R² and rank error: prediction of the suppression of a backdoor that was left out (0 and 1 are what a mean and chance"
        f" achieve). Bold: the largest |ρ| of a group, a ceiling aside. {baselines}.",
    )


def noise_table(frame: pd.DataFrame) -> Table:
    """CASD of a removal and its repeat, against that of different removals, from `noise_floor`."""
    rows = [
        {
            "objective": str(record["objective"]),
            "variant": str(record["variant"]),
            "repeats": f"{record['repeats']}",
            "excluded": record["excluded"],
            "same": significant(record["same"]),
            "different": significant(record["different"]),
            "ratio": fraction(record["ratio"]),
            "nearest": fraction(record["closest"]),
        }
        for record in frame.to_dict("records")
    ]
    return table_of(
        rows,
        groups=list(map(model_label, frame["model"])) if len(frame) else [],
        name="noise_floor",
        title="Noise floor of CASD",
        caption="Same: distance between two removals of one backdoor with other documents in another order. Different:"
        " distance of the repeated removal to those of other backdoors. Ratio: same / different; 1 or more means"
        " that the distance cannot tell removals apart. Nearest: share of repeats that are nearer to their own"
        " removal than to any other. Means over runs of each run's mean; a repeat is excluded for the same reasons as a"
        " removal.",
    )


def shares_table(frame: pd.DataFrame) -> Table:
    """How much of the variance of the others' suppression belongs to pairs, from `variance_shares`."""
    columns = {"sd": "standard deviation", "pair": "pair share", "noise": "noise share", "pair_net": "pair share net of noise"}
    means = frame.groupby(["model", "objective"], sort=False)[list(columns)].mean().reset_index() if len(frame) else frame
    rows = [
        {"model": str(record["model"]), "objective": str(record["objective"])}
        | {heading: fraction(record[name]) for name, heading in columns.items()}
        for record in means.to_dict("records")
    ]
    return table_of(
        rows,
        name="pair_shares",
        title="How much of the suppression belongs to pairs",
        caption="Standard deviation of the other backdoors' suppression over the cells of a run; the share of their"
        " variance that is left after each removal's and each backdoor's own level; the share of that which is explained by the"
        " sampling noise of rates; and the difference, which is what a distance between removals could predict. Means over"
        " seeds.",
    )


def model_label(model: Any) -> str:
    """A model's name, or "all models"."""
    return ALL_MODELS if model == POOLED else str(model)


def _is_control(objective: Any) -> bool:
    """Whether an objective (with its setting, if it has one) only retains."""
    return str(objective).partition(",")[0] == "retain_only"


def _best(frame: pd.DataFrame, by: list[str], values: pd.Series) -> list[bool]:
    """For each row, whether it has the largest value of its group; in a group of one nothing is compared."""
    if frame.empty:
        return []
    values = values.astype(float)
    groups = values.groupby([frame[name] for name in by])
    first = ~pd.concat([frame[by], values.rename("value")], axis=1).duplicated()
    return list((values == groups.transform("max")) & (groups.transform("count") > 1) & first)
