"""The results of a run in sentences: the answer, then the observations behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import pandas as pd

from casd.analysis.collection import asr_matrix, has_pairs, summarize
from casd.analysis.kinds import kind_and_target
from casd.analysis.results import RunTables
from casd.config.states import CONTROL_PREFIX, INJECTED, PHANTOM_CONTROL, backdoor_of_phantoms
from casd.report.answer import run_answer
from casd.report.matrices import never_removed
from casd.report.wording import LOW_ASR, NO_PAIRS, broken_injections, fraction, percent, prompts_per_cell, significant

MOST_FAKE: Final = 0.1
"""Success rate under fake triggers up to which a phantom made like them counts as doing nothing in the injected model."""


def statements(tables: RunTables) -> list[str]:
    """The answer of a run (`casd.report.answer`), then what it rests on, a sentence each."""
    answer = run_answer(tables)
    texts = [broken] if (broken := broken_injections([tables])) else []
    return [*texts, f"{answer.lead} {answer.text}", *observations(tables), *control_statements(tables)]


def observations(tables: RunTables) -> list[str]:
    """What was measured in the injected model and after the removals, a sentence each."""
    row = summarize(tables)
    matrix = asr_matrix(tables)
    removals = tables.states_of("removal")
    before = matrix.loc[INJECTED] if INJECTED in matrix.index else pd.Series(dtype=float)
    reasons = tables.exclusions
    included = [name for name in removals if not reasons[name]]
    own = {name: matrix[name].get(name, math.nan) for name in included if name in matrix}
    complete = sum(rate <= LOW_ASR for rate in own.values())
    texts = []
    if len(before):
        texts.append(
            f"Injected model: ASR {fraction(before.min())} to {fraction(before.max())} over {len(before)} backdoors "
            f"(n = {prompts_per_cell(tables)} prompts each)."
        )
    if never := never_removed(tables):
        texts.append(never.strip())
    texts += _exclusion_statements({name: reasons[name] for name in removals if reasons[name]}, len(removals))
    pairs = has_pairs(tables)
    kind = "removals" if len(included) == len(removals) else "included removals"
    own_text = (
        f"{complete} of {len(included)} {kind} left their own backdoor an ASR of at most {LOW_ASR} "
        f"(mean own ASR {fraction(row['own_asr'])})"
        if len(removals) != 1
        else f"The one removal left its own backdoor an ASR of {fraction(row['own_asr'])}"
    )
    if included:
        texts.append(
            f"{own_text}; the other backdoors' mean ASR is {fraction(row['others_asr'])}." if pairs else f"{own_text}."
        )
    if not pd.isna(row["clean_loss_change"]):
        texts.append(f"Clean loss changed by {percent(row['clean_loss_change'])} on average over the removals.")
    return texts if pairs else [*texts, NO_PAIRS]


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
    return texts + _phantom_statements(tables) + _phantom_gradient_statements(tables)


def _control_statement(tables: RunTables, matrix: pd.DataFrame, state: str) -> str:
    if state in tables.collapsed:
        return f"Control {state.removeprefix(CONTROL_PREFIX)}: collapsed, so it says nothing about the removals."
    rates = matrix.loc[state]
    return (
        f"Control {state.removeprefix(CONTROL_PREFIX)}: mean ASR {fraction(rates.mean())} "
        f"({fraction(rates.min())} to {fraction(rates.max())})."
    )


def _phantom_statements(tables: RunTables) -> list[str]:
    """A warning if triggers like the phantom's activate the backdoor that it is made like: then it is no control."""
    removed = set(tables.states_of("removal"))
    kinds = {name: kind for name, (kind, _) in kind_and_target(tables).items() if name in removed}
    if PHANTOM_CONTROL not in tables.states_of("control") or not kinds:
        return []
    model = backdoor_of_phantoms(kinds)
    rows = tables.rows("asr", "state", "backdoor", "prompt_set", "rate")
    rates = [rate for *where, rate in rows if where == [INJECTED, model, "fake"] and rate > MOST_FAKE]
    return [
        f"Fake triggers like the phantom's activated {model} in {fraction(rate)} of the prompts of the injected model: the"
        f" phantom's removal is partly one of {model}, and no control of the others."
        for rate in rates
    ]


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
