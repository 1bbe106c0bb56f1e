"""The tables people read beside the matrices: built once as `Table`s, written as Markdown, LaTeX, HTML or to the terminal.

Rates are fractions with two decimals. "–" stands for a missing value. The row of a collapsed model says so, and its
numbers stand in parentheses: a model that no longer works also has an attack success rate of zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pandas as pd

from casd.analysis.collection import RUN_COLUMNS, summary
from casd.analysis.results import UTILITY_PREFIX, RunTables
from casd.config.states import CLEAN_CONTROL
from casd.report.markup import Cell, Row, Scale, Table
from casd.report.matrices import asr_table, by_kind, casd_table, shade, suppression_table
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
    run_name,
    sentence,
    short_run_name,
    significant,
)

_OTHER_FORMS: Final = (("tau", "tau"), ("rho_pairs", "pairs"), ("rho_partial", "partial"))
_SHORT: Final = {"suppression": "ASR", "prob_suppression": "prob."}


def asr_long_table(tables: RunTables) -> Table:
    """Each cell of the ASR matrix with its Wilson 95 % interval, counts, false fires and fake triggers."""
    rows: dict[str, list[Row]] = {}
    kinds = dict(zip(tables.states["state"], tables.states["kind"], strict=True))
    indexed = {(r["state"], r["backdoor"], r["probe"]): r for r in tables.asr.to_dict("records")}
    for state in tables.states["state"]:
        for backdoor in tables.backdoors:
            record = indexed.get((state, backdoor, "triggered"))
            if record is None:
                continue
            digits = rate_decimals(record["n"])
            others = [indexed.get((state, backdoor, probe), {}) for probe in ("clean", "fake")]
            texts = [
                backdoor,
                fraction(record["rate"], digits),
                f"{fraction(record['rate_low'], digits)} to {fraction(record['rate_high'], digits)}",
                MISSING if pd.isna(record["rate"]) else f"{record['successes']}/{record['n']}",
                *(fraction(other.get("rate"), rate_decimals(other.get("n"))) for other in others),
                fraction(record["first_token_prob"]),
            ]
            row = _row(state, texts, collapsed=state in tables.collapsed, own=state == backdoor)
            rows.setdefault(str(kinds[state]), []).append(row)
    return Table(
        name="asr_intervals",
        title="Attack success rates with intervals",
        caption=f"{sentence(run_name(tables.info))}. Interval: Wilson, 95 %, over prompts. Clean: the same test fires on "
        "prompts without a trigger; fake: on prompts with a fake trigger of about the same token length. P(first token): mean "
        "probability of the target's first-token class after a triggered prompt. All but counts are fractions.",
        corner="removed",
        columns=("measured", "ASR", "95 % interval", "successes/n", "clean", "fake", "P(first token)"),
        groups=by_kind(rows),
    )


def states_table(tables: RunTables) -> Table:
    """Every model state: perplexity, benchmarks, training, and whether it collapsed."""
    rows: dict[str, list[Row]] = {}
    for record in tables.states.to_dict("records"):
        verdict = f"collapsed: {record['collapse_reason']}" if record["collapsed"] else "no"
        texts = [
            perplexity(record["clean_loss"]),
            perplexity(record["retain_loss"]),
            fraction(record["clean_loss"]),
            fraction(record["clean_loss_ratio"]),
            *(fraction(record[f"{UTILITY_PREFIX}{task}"], 3) for task in tables.tasks),
            MISSING if pd.isna(record["steps"]) else f"{int(record['steps'])}",
            fraction(record["train_seconds"], 1),
            significant(record["forget_gradient_first"]),
            significant(record["forget_gradient_last"]),
            record["stopped"] or MISSING,
            verdict,
        ]
        row = _row(record["state"], texts, collapsed=bool(record["collapsed"]), parentheses=False)
        rows.setdefault(str(record["kind"]), []).append(row)
    return Table(
        name="states",
        title="Model states",
        caption=f"{sentence(run_name(tables.info))}. Perplexity: exp of the mean loss per token, on clean passages of the "
        "evaluation split and of the retain split, which is the clean text of the removals. Clean loss: in nats per token on "
        "the evaluation split; ratio: to the injected model's."
        + (f" Benchmarks: the main metric of {', '.join(tables.tasks)}." if tables.tasks else "")
        + " Gradient: L2 norm before clipping of the gradient of the forget term alone, at the first and at the last "
        f"training step; for {CLEAN_CONTROL} that term is the loss of clean text. Stopped: why training ended before its last "
        "step.",
        corner="state",
        columns=(
            *("perplexity", "perplexity, retain", "clean loss", "ratio", *tables.tasks, "steps", "seconds"),
            *("gradient, first", "gradient, last", "stopped", "collapsed"),
        ),
        groups=by_kind(rows),
    )


def utility_table(tables: RunTables) -> Table:
    """Every metric of every benchmark task, in every model state."""
    rows: dict[str, list[Row]] = {}
    kinds = dict(zip(tables.states["state"], tables.states["kind"], strict=True))
    for record in tables.utility.to_dict("records"):
        numbers = [fraction(record["value"], 3), fraction(record["stderr"], 3), f"{record['n']}"]
        row = _row(record["state"], [record["task"], record["metric"], *numbers], collapsed=record["state"] in tables.collapsed)
        rows.setdefault(str(kinds[record["state"]]), []).append(row)
    return Table(
        name="utility",
        title="Benchmarks",
        caption=f"{sentence(run_name(tables.info))}. Tasks and metrics of lm-evaluation-harness, with their standard error "
        "over n items.",
        corner="state",
        columns=("task", "metric", "value", "standard error", "n"),
        groups=by_kind(rows),
    )


def relation_table(runs: Sequence[RunTables]) -> Table:
    """Each CASD variant's rank correlation with each response, with its permutation p-value; a group for each run."""
    groups = []
    for tables in runs:
        rows = []
        for record in tables.relation.to_dict("records"):
            texts = [
                RESPONSES.get(record["response"], str(record["response"])),
                fraction(record["rho"]),
                p_text(record["p_value"]),
                *(_rho_p(record[kind], record[f"p_{name}"]) for kind, name in _OTHER_FORMS),
                f"{record['n_backdoors']}",
                f"{record['n_pairs']}",
                _permutations(record),
                record["excluded"] or MISSING,
                record["note"] or MISSING,
            ]
            rows.append(_row(record["variant"], texts))
        if rows:
            groups.append((short_run_name(tables) if len(runs) > 1 else "", tuple(rows)))
    return Table(
        name="relation",
        title="Relation of CASD and suppression",
        caption=f"{_whose(runs)}. Spearman's ρ over pairs of removals between the distance and the suppression (symmetrized, "
        "centered by column); p: two-sided Mantel permutation test, not corrected for the number of rows. τ: "
        "Kendall's. Pairs only: after the effects of single backdoors are taken out of both. Given same target: partial ρ with "
        "the indicator of the same target held constant. Excluded: removals that are in none of these numbers, and why.",
        corner="variant",
        columns=(
            *("response", "ρ", "p", "τ (p)", "pairs only: ρ (p)", "given same target: ρ (p)"),
            *("backdoors", "pairs", "permutations", "excluded", "note"),
        ),
        groups=tuple(groups),
    )


def specificity_table(runs: Sequence[RunTables]) -> Table:
    """The named means of each run; a column with `_low` and `_high` beside it is shown with its interval."""
    columns = list(dict.fromkeys(column for tables in runs for column in tables.specificity.columns))
    bounds = {f"{column}{end}" for column in columns for end in ("_low", "_high")}
    shown = [column for column in columns if column not in bounds and column not in (*RUN_COLUMNS, "response")]
    groups = []
    for tables in runs:
        rows = []
        for record in tables.specificity.to_dict("records"):
            response = str(record.get("response", "mean"))
            rows.append(_row(RESPONSES.get(response, response), [mean_with_interval(record, column) for column in shown]))
        if rows:
            groups.append((short_run_name(tables) if len(runs) > 1 else "", tuple(rows)))
    return Table(
        name="specificity",
        title="How specific the removals are",
        caption=f"{_whose(runs)}. Mean suppression (fraction) of the removed backdoors themselves (own), of the others (off "
        "diagonal), under the controls, and of the others net of each control; of the included removals and backdoors. "
        "Intervals: 95 % bootstrap over the measured backdoors, not over seeds.",
        corner="response",
        columns=tuple(column.replace("_", " ") for column in shown),
        groups=tuple(groups),
    )


def summary_table(runs: Sequence[RunTables], frame: pd.DataFrame | None = None) -> Table:
    """The runs of a sweep, a row each; `frame` is their `summary`, where that was computed before."""
    frame = summary(runs) if frame is None else frame
    relations = [name.removeprefix("rho:") for name in frame.columns if name.startswith("rho:")]
    seeds = frame["seed"].nunique() > 1
    rows = []
    for record, treatment in zip(frame.to_dict("records"), (tables.treatment for tables in runs), strict=True):
        rates = [record[name] for name in ("own_asr", "others_asr", "clean_asr", "phantom_asr")]
        cells = [
            Cell(treatment),
            *([Cell(str(record["seed"]))] if seeds else []),
            *(Cell(fraction(rate), shade(rate, 1.0)) for rate in rates),
            Cell(percent(record["clean_loss_change"])),
            *(Cell(_rho_p(record.get(f"rho:{name}"), record.get(f"p:{name}"))) for name in relations),
            Cell(f"{record['included']} of {record['removals']}"),
            Cell(record["excluded"] or MISSING),
        ]
        rows.append(Row(str(record["model"]), tuple(cells)))
    headings = [f"ρ (p): {variant} × {_SHORT.get(r, r)}" for variant, r in (name.split(":", 1) for name in relations)]
    return Table(
        name="summary",
        title="All runs",
        caption=f"Runs: {len(runs)}; seeds {', '.join(map(str, dict.fromkeys(frame['seed'])))}; n = "
        f"{', '.join(dict.fromkeys(map(prompts_per_cell, runs)))} prompts per cell. Mean attack success rate (fraction) of "
        "the removed backdoor itself, of the others, and of all under each control, over the removals and backdoors that are "
        "included; mean change of the clean loss; Spearman's ρ (Mantel p) of a CASD and the suppression of ASR or of the "
        "first-token probability.",
        corner="model",
        columns=(
            "objective",
            *(["seed"] if seeds else []),
            *("own ASR", "others' ASR", "under clean control", "under phantom", "clean loss"),
            *headings,
            "included",
            "excluded",
        ),
        groups=(("", tuple(rows)),),
        scale=Scale("viridis", "0", "1"),
    )


def run_tables(tables: RunTables) -> list[Table]:
    """Every table of a run's report, in order; those without a row are left out."""
    shown = [asr_table(tables)]
    if len(tables.transfer):
        shown += [suppression_table(tables, f"suppression_net_{control}") for control in ("clean", "phantom")]
        shown += [suppression_table(tables, "suppression")]
    shown += [casd_table(tables, variant) for variant in tables.headline]
    shown += [relation_table([tables]), specificity_table([tables]), states_table(tables), utility_table(tables)]
    shown += [asr_long_table(tables)]
    return [table for table in shown if table.rows]


def _row(label: Any, texts: Iterable[str], *, collapsed: bool = False, own: bool = False, parentheses: bool = True) -> Row:
    """A row of plain texts; the numbers of a collapsed model go in parentheses."""
    cells = tuple(
        Cell(f"({text})" if collapsed and parentheses and text[:1].isdigit() else text, own=own and not collapsed)
        for text in texts
    )
    return Row(str(label), cells, collapsed)


def _permutations(record: Mapping[Any, Any]) -> str:
    if pd.isna(record["permutations"]):
        return MISSING
    return f"{int(record['permutations'])}{' (all)' if record['exact'] else ''}"


def _rho_p(rho: Any, p: Any) -> str:
    return MISSING if rho is None or pd.isna(rho) else f"{fraction(rho)} ({p_text(p)})"


def _whose(runs: Sequence[RunTables]) -> str:
    """The run a caption is about, or how many they are."""
    return sentence(run_name(runs[0].info)) if len(runs) == 1 else f"{len(runs)} runs"
