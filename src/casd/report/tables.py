"""The other tables of a run and of several runs: intervals, model states, benchmarks, relation, specificity, summary.

Rates are fractions with two decimals. "–" is a missing value. The row of a collapsed model says so, and its rates stand in
parentheses: a model that no longer works also has an attack success rate of zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from casd.analysis.collection import RUN_COLUMNS, summary
from casd.analysis.results import UTILITY_PREFIX, RunTables
from casd.report.markup import Scale, Table, table_of
from casd.report.matrices import GROUPS, asr_table, casd_table, suppression_table
from casd.report.persistence import persistence_table
from casd.report.wording import (
    MISSING,
    RESPONSES,
    fraction,
    mean_with_interval,
    p_text,
    percent,
    perplexity,
    prompts_per_cell,
    rate_decimals,
    rho_p,
    run_name,
    sentence,
    short_run_name,
    significant,
)

_SHORT: Final = {"suppression": "ASR", "prob_suppression": "prob."}


def asr_long_table(tables: RunTables) -> Table:
    """Each cell of the ASR matrix with its Wilson 95 % interval, counts, false fires and fake triggers."""
    indexed = {(r["state"], r["backdoor"], r["prompt_set"]): r for r in tables.asr.to_dict("records")}
    states = [state for kind in GROUPS for state in tables.states_of(kind)]
    cells = [(state, name) for state in states for name in tables.backdoors if (state, name, "triggered") in indexed]
    elsewhere = ["clean", "fake", *({"near"} & set(tables.asr["prompt_set"]))]
    rows = []
    for state, backdoor in cells:
        record = indexed[state, backdoor, "triggered"]
        others = {prompt_set: indexed.get((state, backdoor, prompt_set), {}) for prompt_set in elsewhere}
        row = {
            **_rate_with_interval(record),
            "successes/n": MISSING if pd.isna(record["rate"]) else f"{record['successes']}/{record['n']}",
            **{prompt_set: _rate(other) for prompt_set, other in others.items()},
            "P(first token)": fraction(record["first_token_prob"]),
        }
        rows.append({"removed": state, "measured": backdoor} | _in_parentheses(row, state in tables.collapsed))
    return table_of(
        rows,
        **_grouped_states(tables, [state for state, _ in cells]),
        bold={"measured": [state == backdoor and state not in tables.collapsed for state, backdoor in cells]},
        name="asr_intervals",
        title="Attack success rates with intervals",
        caption=f"{sentence(run_name(tables.info))}. Wilson 95 % intervals over prompts; clean, fake, near: the same test on"
        " prompts without a trigger, with a fake one, and with a part of the trigger or its words in another order. Bold: the"
        " removed one itself.",
    )


def injected_table(tables: RunTables) -> Table:
    """What the injected model's backdoors do: attack success rates, and fires where there should be none."""
    measured = tables.asr[tables.asr["state"].isin(tables.states_of("injected"))]
    records = {(record["backdoor"], record["prompt_set"]): record for record in measured.to_dict("records")}
    elsewhere = {"clean": "without a trigger", "fake": "fake trigger", "near": "near trigger"}
    elsewhere = {name: heading for name, heading in elsewhere.items() if name in set(measured["prompt_set"])}
    rows = []
    for backdoor in tables.backdoors:
        row = {"backdoor": backdoor, "behavior": tables.info.get("targets", {}).get(backdoor, "")}
        row |= _rate_with_interval(records[backdoor, "triggered"])
        row |= {heading: _rate(records.get((backdoor, name), {})) for name, heading in elsewhere.items()}
        rows.append(row)
    near = ", and with a part of the trigger or its words in another order" if "near" in elsewhere else ""
    return table_of(
        rows,
        name="injected",
        title="What was injected",
        caption=f"Attack success rates before any removal (Wilson 95 % intervals, n = {prompts_per_cell(tables)}). Beside them"
        f" the same test on prompts without a trigger, with a fake one of about as many tokens{near}.",
    )


def states_table(tables: RunTables) -> Table:
    """Every model state: perplexity, benchmarks, training, and whether it collapsed."""
    records = sorted(tables.states.to_dict("records"), key=lambda record: list(GROUPS).index(record["kind"]))
    rows = [
        {
            "state": record["state"],
            "perplexity": perplexity(record["clean_loss"]),
            "perplexity, retain": perplexity(record["retain_loss"]),
            "clean loss": fraction(record["clean_loss"]),
            "ratio": fraction(record["clean_loss_ratio"]),
            **{task: fraction(record[f"{UTILITY_PREFIX}{task}"], 3) for task in tables.tasks},
            "steps": MISSING if pd.isna(record["steps"]) else f"{int(record['steps'])}",
            "seconds": fraction(record["train_seconds"], 1),
            "gradient, first": significant(record["forget_gradient_first"]),
            "gradient, last": significant(record["forget_gradient_last"]),
            "stopped": record["stopped"],
            "collapsed": f"collapsed: {record['collapse_reason']}" if record["collapsed"] else "no",
        }
        for record in records
    ]
    return table_of(
        rows,
        **_grouped_states(tables, [record["state"] for record in records]),
        name="states",
        title="Model states",
        caption=f"{sentence(run_name(tables.info))}. Perplexity and clean loss (nats per token) on clean text; ratio: to the"
        " injected model's." + (f" Benchmarks: the main metric of {', '.join(tables.tasks)}." if tables.tasks else ""),
    )


def harm_table(tables: RunTables) -> Table:
    """How many harmful prompts each model state complies with, and how many harmless ones it refuses; empty if not measured."""
    records = tables.states.to_dict("records") if "compliance" in tables.states.columns else []
    records = sorted(records, key=lambda record: list(GROUPS).index(record["kind"]))
    rows = []
    for record in records:
        row = {}
        for name, heading in (("compliance", "complies with harmful"), ("harmless_refused", "refuses harmless")):
            digits = rate_decimals(record[f"{name}_n"])
            row[heading] = fraction(record[name], digits)
            row[f"95 % interval, {heading.partition(' ')[0]}"] = (
                f"{fraction(record[f'{name}_low'], digits)} to {fraction(record[f'{name}_high'], digits)}"
            )
            row[f"n, {heading.rpartition(' ')[2]}"] = fraction(record[f"{name}_n"], 0)
        rows.append({"state": record["state"]} | _in_parentheses(row, record["collapsed"]))
    return table_of(
        rows,
        **_grouped_states(tables, [record["state"] for record in records]),
        name="harm",
        title="Compliance and refusal",
        caption=f"{sentence(run_name(tables.info))}. Harmful prompts (a list of the user's) that are not refused, and clean"
        " prompts that are, by the phrases of the target refusal; Wilson 95 % intervals over prompts.",
    )


def utility_table(tables: RunTables) -> Table:
    """Every metric of every benchmark task, in every model state."""
    kinds = dict(tables.rows("states", "state", "kind"))
    records = sorted(tables.utility.to_dict("records"), key=lambda record: list(GROUPS).index(kinds[record["state"]]))
    rows = []
    for record in records:
        row = {
            "value": fraction(record["value"], 3),
            "standard error": fraction(record["stderr"], 3),
            "n": f"{record['n']}",
        }
        what = {"state": record["state"], "task": record["task"], "metric": record["metric"]}
        rows.append(what | _in_parentheses(row, record["state"] in tables.collapsed))
    return table_of(
        rows,
        **_grouped_states(tables, [record["state"] for record in records]),
        name="utility",
        title="Benchmarks",
        caption=f"{sentence(run_name(tables.info))}. Tasks and metrics of lm-evaluation-harness, with their standard error "
        "over n items.",
    )


def relation_table(runs: Sequence[RunTables]) -> Table:
    """Each CASD variant's rank correlation with each response, with its permutation p-value; a group for each run."""
    named = [(tables, record) for tables in runs for record in tables.relation.to_dict("records")]
    rows = [
        {
            "variant": record["variant"],
            "response": RESPONSES.get(record["response"], str(record["response"])),
            "ρ": fraction(record["rho"]),
            "p": p_text(record["p_value"]),
            "τ (p)": rho_p(record["tau"], record["p_tau"]),
            "pairs only: ρ (p)": rho_p(record["rho_pairs"], record["p_pairs"]),
            "given same target: ρ (p)": rho_p(record["rho_partial"], record["p_partial"]),
            "backdoors": f"{record['n_backdoors']}",
            "pairs": f"{record['n_pairs']}",
            "permutations": _permutations(record),
            "excluded": record["excluded"],
            "note": record["note"],
        }
        for _, record in named
    ]
    return table_of(
        rows,
        groups=[short_run_name(tables) if len(runs) > 1 else "" for tables, _ in named],
        name="relation",
        title="Relation of CASD and suppression",
        caption=f"{_whose(runs)}. Spearman's ρ over pairs of removals, with its Mantel p (not corrected).",
    )


def specificity_table(runs: Sequence[RunTables]) -> Table:
    """The named means of each run; a column with `_low` and `_high` beside it is shown with its interval."""
    columns = list(dict.fromkeys(column for tables in runs for column in tables.specificity.columns))
    bounds = {f"{column}{end}" for column in columns for end in ("_low", "_high")}
    shown = [column for column in columns if column not in bounds and column not in (*RUN_COLUMNS, "response")]
    named = [(tables, record) for tables in runs for record in tables.specificity.to_dict("records")]
    rows = [
        {"response": RESPONSES.get(response := str(record.get("response", "mean")), response)}
        | {column.replace("_", " "): mean_with_interval(record, column) for column in shown}
        for _, record in named
    ]
    return table_of(
        rows,
        groups=[short_run_name(tables) if len(runs) > 1 else "" for tables, _ in named],
        name="specificity",
        title="How specific the removals are",
        caption=f"{_whose(runs)}. Mean suppression (fraction) of the removed backdoors (own), of the others (off diagonal),"
        " under the controls and net of them, with 95 % intervals over the measured backdoors.",
    )


def summary_table(runs: Sequence[RunTables], frame: pd.DataFrame | None = None) -> Table:
    """The runs of a sweep, a row each; `frame` is their `summary`, where that was computed before."""
    frame = summary(runs) if frame is None else frame
    relations = [name.removeprefix("rho:").split(":", 1) for name in frame.columns if name.startswith("rho:")]
    rates = {
        "own_asr": "own ASR",
        "others_asr": "others' ASR",
        "clean_asr": "under clean control",
        "phantom_asr": "under phantom",
    }
    rows = [
        {
            "model": str(record["model"]),
            "objective": tables.condition_label,
            "seed": str(record["seed"]),
            **{heading: fraction(record[name]) for name, heading in rates.items()},
            "clean loss": percent(record["clean_loss_change"]),
            **{
                f"ρ (p): {variant} × {_SHORT.get(response, response)}": rho_p(
                    record.get(f"rho:{variant}:{response}"), record.get(f"p:{variant}:{response}")
                )
                for variant, response in relations
            },
            "included": f"{record['included']} of {record['removals']}",
            "excluded": record["excluded"],
        }
        for record, tables in zip(frame.to_dict("records"), runs, strict=True)
    ]
    table = table_of(
        rows,
        name="summary",
        title="All runs",
        caption=f"Runs: {len(runs)}; seeds {', '.join(map(str, dict.fromkeys(frame['seed'])))}; n = "
        f"{', '.join(dict.fromkeys(map(prompts_per_cell, runs)))} prompts per cell. Means over included removals and "
        "backdoors; ρ: CASD and suppression.",
        scale=Scale("viridis"),
        shade=np.full((len(rows), len(rows[0]) - 1), np.nan),
    )
    first = table.columns.index("own ASR")
    assert table.shade is not None
    table.shade[:, first : first + len(rates)] = frame[list(rates)].to_numpy(dtype=float).clip(0, 1)
    return table


def run_tables(tables: RunTables) -> list[Table]:
    """Every table of a run's report, in order; those without a row are left out."""
    shown = [asr_table(tables)]
    if len(tables.transfer):
        shown += [suppression_table(tables, f"suppression_net_{control}") for control in ("clean", "phantom")]
        shown += [suppression_table(tables, "suppression")]
    shown += [casd_table(tables, variant) for variant in tables.headline]
    shown += [relation_table([tables]), specificity_table([tables]), states_table(tables), utility_table(tables)]
    shown += [harm_table(tables), asr_long_table(tables), persistence_table([tables])]
    return [table for table in shown if len(table)]


def _grouped_states(tables: RunTables, states: Sequence[str]) -> dict[str, Any]:
    """The groups of rows about model states, and which of the states collapsed."""
    kinds = dict(tables.rows("states", "state", "kind"))
    return {
        "groups": [GROUPS[kinds[state]] for state in states],
        "collapsed": [state in tables.collapsed for state in states],
    }


def _in_parentheses(row: Mapping[str, str], collapsed: bool) -> dict[str, str]:
    """The numbers of a row, in parentheses if they are a collapsed model's."""
    return {name: f"({text})" if collapsed and text[:1].isdigit() else text for name, text in row.items()}


def _rate(record: Mapping[Any, Any]) -> str:
    """The rate of a cell of `asr`, with the decimals that its prompts allow; "–" for a cell that was not measured."""
    return fraction(record.get("rate"), rate_decimals(record.get("n")))


def _rate_with_interval(record: Mapping[Any, Any]) -> dict[str, str]:
    """The attack success rate of a cell of `asr` and its Wilson interval, by the headings of their columns."""
    low, high = (fraction(record[end], rate_decimals(record["n"])) for end in ("rate_low", "rate_high"))
    return {"ASR": _rate(record), "95 % interval": f"{low} to {high}"}


def _permutations(record: Mapping[Any, Any]) -> str:
    if pd.isna(record["permutations"]):
        return MISSING
    return f"{int(record['permutations'])}{' (all)' if record['exact'] else ''}"


def _whose(runs: Sequence[RunTables]) -> str:
    """The run a caption is about, or how many they are."""
    return sentence(run_name(runs[0].info)) if len(runs) == 1 else f"{len(runs)} runs"
