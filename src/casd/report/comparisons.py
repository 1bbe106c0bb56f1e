"""Tables over several runs: objectives compared, CASD and its baselines as predictors, the noise floor, shares of variance,
and kinds of triggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Final

import pandas as pd

from casd.analysis.comparison import MEASURES, REFERENCE
from casd.analysis.grouping import POOLED
from casd.analysis.kinds import ALL, EFFECTS, RELATIONS
from casd.config.states import PHANTOM_CONTROL
from casd.report.answer import Answer
from casd.report.markup import Table, excluding_zero, table_of
from casd.report.wording import (
    MISSING,
    fraction,
    intervals_over,
    is_control,
    mean_with_interval,
    model_label,
    p_text,
    percent,
    run_count,
    significant,
)


@dataclass(frozen=True, eq=False)
class Comparisons:
    """What a report over several runs compares: frames as from `compare_objectives`, `compare_phantoms`,
    `predictor_table`, `noise_floor`, `variance_shares` and `trigger_kinds`, and the answers of `sweep_answers`."""

    objectives: pd.DataFrame
    phantoms: pd.DataFrame
    predictors: pd.DataFrame
    noise: pd.DataFrame
    shares: pd.DataFrame
    kinds: pd.DataFrame
    answers: Sequence[Answer]

    @property
    def frames(self) -> dict[str, pd.DataFrame]:
        """By the names of their files."""
        return {f"comparison_{each.name}": getattr(self, each.name) for each in fields(self) if each.name != "answers"}

    def with_pooled_predictors(self) -> Comparisons:
        """These comparisons with the predictors over all models alone, if there are several models."""
        pooled = self.predictors[self.predictors["model"] == POOLED]
        return replace(self, predictors=pooled) if len(pooled) else self

    @cached_property
    def tables(self) -> list[Table]:
        """The tables to show; those without a row are left out."""
        every = [objectives_table(self.objectives), phantoms_table(self.phantoms), predictors_table(self.predictors)]
        every += [noise_table(self.noise), shares_table(self.shares), kinds_table(self.kinds)]
        return [table for table in every if len(table)]


def objectives_table(frame: pd.DataFrame) -> Table:
    """Every objective, from `compare_objectives`."""
    compared = frame["minus_reference"].notna().any()
    means = MEASURED | ({f"minus {REFERENCE}": "minus_reference"} if compared else {})
    rows = [
        {
            "objective": f"{record['objective']} (control)" if is_control(record["objective"]) else record["objective"],
            "included": f"{record['included']} of {record['removals']}",
            "reached": MISSING if pd.isna(record["reached"]) else f"{record['reached']:.0f} of {record['removals']}",
            "excluded": record["excluded"],
            "own ASR": mean_with_interval(record, "own_asr"),
            **{heading: _mean_of_runs(record, measure) for heading, measure in means.items()},
            "clean": fraction(record["clean_control"]),
            "phantom": fraction(record["phantom_control"]),
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
        bold=excluding_zero(frame, means),
        name="objectives",
        title=objectives_title(frame),
        caption=f"Seeds per model: {seeds}. Means over runs, 95 % intervals over {intervals_over(frame['runs'])};"
        " others: suppression of the other backdoors' ASR, raw and net of controls (bold: excludes zero)."
        + (
            f" Minus {REFERENCE}: the difference of that net of the phantom, within seed and backdoors (uncorrected)."
            if compared
            else ""
        ),
    )


def objectives_title(frame: pd.DataFrame) -> str:
    """The title of the objectives' table and figure: they are of the same strength if all had a target ASR to reach."""
    same_strength = len(frame) > 0 and frame["reached"].notna().all()
    return "Objectives at the same strength" if same_strength else "Objectives compared"


MEASURED: Final = dict(zip(("others", "net of clean", "net of phantom"), MEASURES, strict=True))
"""`casd.analysis.comparison.MEASURES` by their headings."""


def _mean_of_runs(record: Mapping[Any, Any], measure: str) -> str:
    """A mean with its interval, and the number of its runs where that is not all."""
    text, count = mean_with_interval(record, measure), record[f"{measure}_runs"]
    return text if count in (0, record["runs"]) else f"{text} ({count} of {run_count(record['runs'])})"


def phantoms_table(frame: pd.DataFrame) -> Table:
    """What the removal of each kind of phantom does, from `compare_phantoms`."""
    kinds = {name: str(name).removeprefix(PHANTOM_CONTROL).removeprefix(":") or "matched" for name in frame["phantom"]}
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for record in frame.to_dict("records"):
        # A kind that collapsed in all runs of a group has no record.
        row = {"objective": str(record["objective"])} | dict.fromkeys(kinds.values(), MISSING)
        group = rows.setdefault((record["model"], record["objective"]), row)
        group[kinds[record["phantom"]]] = mean_with_interval(record, "suppression")
    return table_of(
        list(rows.values()),
        groups=[model_label(model) for model, _ in rows],
        name="phantoms",
        title="Phantoms of several kinds",
        caption="Suppression of all backdoors by the removal of triggers that were never injected: made like that of the first"
        " backdoor (matched; “net of phantom” refers to it), of another length, or of another writing system. Intervals: 95 %,"
        f" over {intervals_over(frame['runs'])}.",
    )


def predictors_table(frame: pd.DataFrame) -> Table:
    """CASD beside its baselines as a predictor of transfer, from `predictor_table`."""
    rows, groups = [], []
    for record in frame.to_dict("records"):
        rows.append(
            {
                "predictor": str(record["predictor"]),
                "role": record["role"],
                "ρ": mean_with_interval(record, "rho"),
                "minus casd": mean_with_interval(record, "minus_casd"),
                "p": p_text(record["p_value"]),
                "p corrected": p_text(record["p_corrected"]),
                "q": p_text(record["q_value"]),
                "ρ, pairs only": fraction(record["rho_pairs"]),
                "p, pairs only": p_text(record["p_pairs"]),
                "p corrected, pairs only": p_text(record["p_pairs_corrected"]),
                "ρ, given same target": fraction(record["rho_partial"]),
                "p, given same target": p_text(record["p_partial"]),
                "p corrected, given same target": p_text(record["p_partial_corrected"]),
                "R²": fraction(record["r_squared"]),
                "rank error": fraction(record["rank_error"]),
            }
        )
        count = f"{run_count(record['runs'])}, {record['n_pairs']} pairs"
        if record["excluded"]:
            count += f", excluded: {record['excluded']} of {record['removals']} removals"
        groups.append(f"{record['objective']} ({count}), {model_label(record['model'])}")
    return table_of(
        rows,
        groups=groups,
        bold=excluding_zero(frame, {"ρ": "rho", "minus casd": "minus_casd"}),
        name="predictors",
        title="Predictors of transfer",
        caption="Spearman's ρ of each predictor and the suppression of ASR [95 % interval over"
        f" {intervals_over(frame['runs'])}], the same minus CASD's (below 0: the more negative), p for these backdoors alone,"
        " and prediction of a backdoor that was left out. Bold: the interval excludes zero.",
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
        caption="Distance between two removals of one backdoor (same) and to removals of other backdoors (different), means"
        " over runs. A ratio of 1 or more: the distance cannot tell removals apart.",
    )


def shares_table(frame: pd.DataFrame) -> Table:
    """How much of the variance of the others' suppression belongs to pairs, from `variance_shares`."""
    columns = {"sd": "standard deviation", "pair": "pair share", "noise": "noise share", "pair_net": "pair net of noise"}
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
        caption="Variance of the other backdoors' suppression that is specific to pairs, and the part of it that the sampling"
        " noise of rates explains; means over seeds.",
    )


def kinds_table(frame: pd.DataFrame) -> Table:
    """Backdoors by kind of trigger and behavior, from `trigger_kinds`."""
    headings = {
        "injected_asr": "ASR injected",
        "injected_fake": "fake triggers",
        "injected_clean": "no trigger",
        "own_asr": "ASR removed",
        "same_kind": "others: same kind",
        "same_target": "same behavior",
        "neither": "neither",
        "kind_effect": "same kind adds",
        "target_effect": "same behavior adds",
        "phantom": "by a phantom",
    }
    rows = [
        {"trigger": str(record["kind"]), "behavior": str(record["target"])}
        | {heading: mean_with_interval(record, column) for column, heading in headings.items()}
        for record in frame.to_dict("records")
    ]
    return table_of(
        rows,
        groups=[f"{record['objective']}, {model_label(record['model'])}" for record in frame.to_dict("records")],
        bold=excluding_zero(frame, {headings[column]: column for column in (*RELATIONS, *EFFECTS, "phantom")}),
        name="trigger_kinds",
        title="Kinds of triggers",
        caption="Means over runs with 95 % intervals (bold: excludes zero). Injected model: success rate with the trigger, with"
        " fake triggers of the same kind (– where none can be made), and without a trigger. Others: how far the removal lowered"
        " the ASR of other backdoors, net of training on clean text: those with a trigger of the same kind, with the same"
        " behavior, with neither; adds: minus how far removals of neither lowered the same backdoor. By a"
        " phantom: how far the removal of a trigger that was never injected lowered these backdoors themselves, also net of"
        " training on clean text.",
    )


def kinds_statements(frame: pd.DataFrame) -> list[str]:
    """Sentences on each condition: which other backdoors a removal lowers, from `trigger_kinds`."""
    texts = []
    for record in frame.to_dict("records"):
        if not record["kind"] == record["target"] == ALL:
            continue
        means = {column: mean_with_interval(record, column) for column in (*RELATIONS, *EFFECTS, "phantom")}
        texts.append(
            f"{record['objective']}, {record['model']}: a removal lowered the backdoors with the same behavior and another"
            f" kind of trigger by {means['same_target']}, those with the same kind and another behavior by"
            f" {means['same_kind']}, those with neither by {means['neither']}, net of training on clean text; a phantom lowered"
            f" them by {means['phantom']}."
        )
        if not pd.isna(record["neither"]):
            texts.append(
                "Compared with how far the same backdoor was lowered by removals of neither, the same behavior adds"
                f" {means['target_effect']}, the same kind of trigger {means['kind_effect']}."
            )
    return texts
