"""The results of a run in sentences: observations and associations, no causes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import pandas as pd

from casd.analysis.collection import asr_matrix, has_pairs, summarize
from casd.analysis.results import RunTables
from casd.config.states import CONTROL_PREFIX, INJECTED, PHANTOM_CONTROL
from casd.report.wording import (
    NO_PAIRS,
    RESPONSES,
    broken_injections,
    fraction,
    mean_with_interval,
    p_text,
    percent,
    prompts_per_cell,
    significant,
)

SIGNIFICANT: Final = 0.05
"""Permutation p-value below which a statement reports a relation."""
LOW_ASR: Final = 0.05
"""Attack success rate up to which a removal counts as complete in a statement."""


def statements(tables: RunTables, *, controls: bool = True) -> list[str]:
    """The results of a run, one per sentence; with `controls`, also those of each control."""
    row = summarize(tables)
    matrix = asr_matrix(tables)
    removals = tables.states_of("removal")
    before = matrix.loc[INJECTED] if INJECTED in matrix.index else pd.Series(dtype=float)
    reasons = tables.exclusions
    included = [name for name in removals if not reasons[name]]
    own = {name: matrix[name].get(name, math.nan) for name in included if name in matrix}
    complete = sum(rate <= LOW_ASR for rate in own.values())
    texts = [broken] if (broken := broken_injections([tables])) else []
    if len(before):
        texts.append(
            f"Injected model: ASR {fraction(before.min())} to {fraction(before.max())} over {len(before)} backdoors "
            f"(n = {prompts_per_cell(tables)} prompts each)."
        )
    texts += _exclusion_statements({name: reasons[name] for name in removals if reasons[name]}, len(removals))
    pairs = has_pairs(tables)
    own_text = (
        f"{complete} of {len(removals)} removals left their own backdoor an ASR of at most {LOW_ASR} "
        f"(mean own ASR {fraction(row['own_asr'])})"
        if len(removals) != 1
        else f"The one removal left its own backdoor an ASR of {fraction(row['own_asr'])}"
    )
    texts.append(f"{own_text}; the other backdoors' mean ASR is {fraction(row['others_asr'])}." if pairs else f"{own_text}.")
    texts += control_statements(tables) if controls else []
    if not pd.isna(row["clean_loss_change"]):
        texts.append(f"Clean loss changed by {percent(row['clean_loss_change'])} on average over the removals.")
    if not pairs:
        return [*texts, NO_PAIRS]
    texts += _net_statements(tables)
    shown = [record for record in tables.relation.to_dict("records") if record["variant"] in tables.headline]
    if not shown:
        texts.append("CASD and suppression: no relation was computed.")
    return texts + [_relation_statement(record) for record in shown]


def _exclusion_statements(excluded: Mapping[str, str], removals: int) -> list[str]:
    """The removals that are excluded from every mean and correlation, a sentence for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in excluded.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        f"{len(names)} of {removals} removals {'is' if len(names) == 1 else 'are'} excluded from every mean and correlation, "
        f"{reason}: {', '.join(names)}."
        for reason, names in by_reason.items()
    ]


def control_statements(tables: RunTables) -> list[str]:
    """The remaining ASR under each control, and whether the phantoms' removals could change the model."""
    matrix = asr_matrix(tables)
    texts = [_control_statement(tables, matrix, state) for state in tables.states_of("control")]
    return texts + _phantom_gradient_statements(tables)


def _control_statement(tables: RunTables, matrix: pd.DataFrame, state: str) -> str:
    if state in tables.collapsed:
        return f"Control {state.removeprefix(CONTROL_PREFIX)}: collapsed, so it says nothing about the removals."
    rates = matrix.loc[state]
    return (
        f"Control {state.removeprefix(CONTROL_PREFIX)}: mean ASR {fraction(rates.mean())} "
        f"({fraction(rates.min())} to {fraction(rates.max())})."
    )


def _phantom_gradient_statements(tables: RunTables) -> list[str]:
    """Whether the removal of a trigger that was never injected had a gradient; without one it is no control."""
    texts = []
    for state in tables.states.to_dict("records"):
        if not state["state"].startswith(PHANTOM_CONTROL):
            continue
        what = f"Control {state['state'].removeprefix(CONTROL_PREFIX)}: the gradient of its forget term"
        first, last = state["forget_gradient_first"], state["forget_gradient_last"]
        if pd.isna(first) or pd.isna(last):
            trained = tables.curves.loc[tables.curves["state"] == state["state"], "loss"].notna().any()
            why = "the objective has no such term" if trained else "no training step was finished"
            texts.append(f"{what} is not known: {why}.")
            continue
        zero = [step for step, norm in (("first", first), ("last", last)) if norm == 0]
        verdict = f"zero at the {' and the '.join(zero)} step" if zero else "not zero, so this control could move the model"
        norms = f"{significant(first)} at the first step and {significant(last)} at the last"
        texts.append(f"{what} was {verdict} (L2 norm before clipping, of the forget term alone: {norms}).")
    return texts


def _net_statements(tables: RunTables) -> list[str]:
    """The others' mean suppression net of each control, if `specificity` has it."""
    texts = []
    for record in tables.specificity.to_dict("records"):
        if record.get("response") == "suppression" and {"net_clean", "net_phantom"} <= set(record):
            texts.append(
                "Mean ASR suppression of the other backdoors: net of the clean control "
                f"{mean_with_interval(record, 'net_clean')}, net of the phantom "
                f"{mean_with_interval(record, 'net_phantom')} (95 % bootstrap intervals over backdoors)."
            )
    return texts


def _relation_statement(record: Mapping[Any, Any]) -> str:
    what = f"{record['variant']} and {RESPONSES.get(record['response'], record['response'])}"
    if pd.isna(record["rho"]) or pd.isna(record["p_value"]):
        return f"{what}: not computed{': ' + record['note'] if record['note'] else ''}."
    p = p_text(record["p_value"])
    numbers = f"ρ = {fraction(record['rho'])}, p {p if p.startswith('<') else '= ' + p}, {record['n_pairs']} pairs"
    if record["p_value"] >= SIGNIFICANT:
        return f"{what}: no relation found ({numbers})."
    size = "smaller" if record["rho"] < 0 else "larger"
    return f"{what}: {size} distances go with stronger suppression ({numbers})."
