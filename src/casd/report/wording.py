"""How numbers and names are written, the same in every table, figure and sentence of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pandas as pd

from casd.analysis.grouping import POOLED
from casd.analysis.results import RunTables

MISSING: Final = "–"
"""Shown for a value that is missing or undefined."""
ALL_MODELS: Final = "all models"
"""Shown as the model of results that are pooled over several."""
NO_PAIRS: Final = "One backdoor was measured: there is no off-diagonal pair, so nothing can be said about transfer or CASD."
SIGNIFICANT: Final = 0.05
"""Permutation p-value up to which a report states a relation."""
NEGLIGIBLE: Final = 0.05
"""A mean suppression of the ASR (fraction) whose interval ends below this counts as none."""
LOW_ASR: Final = 0.05
"""Attack success rate up to which a removal counts as complete in a sentence."""
BROKEN_NAMED: Final = 5
"""The most runs with a broken injected model that a warning names; further ones are counted."""
RESPONSES: Final = {"suppression": "ASR suppression", "prob_suppression": "probability suppression"}


def run_count(count: int) -> str:
    """A number of runs: "1 run", "3 runs"."""
    return f"{count} {'run' if count == 1 else 'runs'}"


def fraction(value: Any, digits: int = 2) -> str:
    """A number with fixed decimals; "–" if it is missing, never "-0.00"."""
    if value is None or pd.isna(value):
        return MISSING
    text = f"{float(value):.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def limit(value: Any) -> str:
    """The limit of an interval: as `fraction`, with more decimals where two would hide on which side of zero it is."""
    digits = next((digits for digits in (2, 3, 4) if value and abs(value) >= 0.5 * 10**-digits), 2)
    return fraction(value, digits)


def interval_text(low: Any, high: Any) -> str:
    """An interval after its value: " [0.10, 0.23]"; "" if it is undefined."""
    return "" if low is None or pd.isna(low) else f" [{limit(low)}, {limit(high)}]"


def intervals_over(runs: Iterable[int]) -> str:
    """What the intervals of means over these numbers of runs are over (`casd.stats.mean_over_runs`)."""
    return "runs and backdoors" if max(runs, default=1) > 1 else "backdoors"


def significant(value: Any, digits: int = 3) -> str:
    """A number with so many significant digits ("0.832", "1.2e-05"); "–" if it is missing."""
    return MISSING if value is None or pd.isna(value) else f"{float(value):.{digits}g}"


def p_text(value: Any) -> str:
    """A p-value: two decimals, three below 0.01, "<0.001" below 0.001; as many as show whether it is above SIGNIFICANT."""
    if value is None or pd.isna(value):
        return MISSING
    if value < 0.001:
        return "<0.001"
    digits = 3 if value < 0.01 else 2
    while digits < 5 and (value <= SIGNIFICANT) != (float(f"{value:.{digits}f}") <= SIGNIFICANT):
        digits += 1
    return f"{value:.{digits}f}"


def p_relation(value: Any) -> str:
    """A p-value after the letter p: "= 0.03", "< 0.001"."""
    text = p_text(value)
    return f"< {text[1:]}" if text.startswith("<") else f"= {text}"


def rho_p(rho: Any, p: Any) -> str:
    """A correlation with its p-value: "-0.49 (0.002)"; "–" if it is missing."""
    return MISSING if rho is None or pd.isna(rho) else f"{fraction(rho)} ({p_text(p)})"


def correlation_sign(record: Mapping[Any, Any]) -> int | None:
    """Whether a correlation is negative (-1), positive (1) or neither (0), by its test and its interval; None without a test.

    The permutation test is of these backdoors, the interval of others like them: both must say so.

    Args:
        record: with rho and p_value and, where there is an interval, rho_low and rho_high.
    """
    if pd.isna(rho := record.get("rho")) or pd.isna(p := record.get("p_value")):
        return None
    low, high = (record.get(f"rho_{end}", math.nan) for end in ("low", "high"))
    return 0 if p > SIGNIFICANT or low <= 0 <= high else int(math.copysign(1, rho))


def rate_decimals(n: Any) -> int:
    """Decimals for a rate over `n` prompts, by its steps of 1/n: one up to 10 prompts, two below 1000, three from there on.

    Below 1000 prompts, half of a 95 % interval is up to 0.03, so that more decimals would say nothing.
    """
    if pd.isna(n):
        return 2
    return 1 if n <= 10 else 2 if n < 1000 else 3


def decimals_for(largest: float) -> int:
    """Decimals that show two significant digits of the largest value: at least 2, at most 8."""
    if not largest > 0 or math.isinf(largest):
        return 2
    return min(max(1 - math.floor(math.log10(largest)), 2), 8)


def perplexity(loss: Any) -> str:
    """The perplexity of a loss in nats per token; "–" if it is missing."""
    if loss is None or pd.isna(loss):
        return MISSING
    value = math.exp(loss) if loss < 700 else math.inf
    return f"{value:.2f}" if value < 100 else f"{value:.3g}"


def run_name(info: dict[str, Any]) -> str:
    """A run by its folder's name (if known), model, objective and seed."""
    parts = [f"model {info['model']}", f"objective {info['objective']}", f"seed {info['seed']}"]
    if info.get("run"):
        parts.insert(0, f"run {info['run']}")
    return ", ".join(parts)


def prompts_per_cell(tables: RunTables, prompt_set: str = "triggered") -> str:
    """The number of prompts of a kind per cell: "64", "60–64" if it differs, "–" if there are none."""
    counts = {count for kind, count in tables.rows("asr", "prompt_set", "n") if kind == prompt_set}
    if not counts:
        return MISSING
    low, high = int(min(counts)), int(max(counts))
    return f"{low}" if low == high else f"{low}–{high}"


def model_label(model: Any) -> str:
    """A model's name, or "all models"."""
    return ALL_MODELS if model == POOLED else str(model)


def is_control(objective: Any) -> bool:
    """Whether an objective (with its setting, if it has one) only retains."""
    return str(objective).partition(",")[0] == "retain_only"


def percent(value: Any) -> str:
    """A relative change in percent, with its sign."""
    return MISSING if pd.isna(value) else f"{100 * value:+.1f}%"


def mean_with_interval(record: Mapping[Any, Any], name: str) -> str:
    """The entry `name` of a record, with its interval if the record has `name_low` and `name_high`."""
    value = record.get(name)
    if isinstance(value, str):
        return value or MISSING
    low, high = record.get(f"{name}_low"), record.get(f"{name}_high")
    if isinstance(value, int):
        return str(value)
    return f"{fraction(value)}{interval_text(low, high)}"


def short_run_name(tables: RunTables) -> str:
    """A run by what distinguishes it within a sweep: model, objective with settings, seed."""
    return f"{tables.info['model']}, {tables.condition_label}, seed {tables.info['seed']}"


def broken_injections(runs: Sequence[RunTables]) -> str:
    """The warning that a report begins with if the injected model of a run is broken; "" if none is."""
    reasons = []
    for tables in runs:
        for kind, collapsed, reason in tables.rows("states", "kind", "collapsed", "collapse_reason"):
            if kind == "injected" and collapsed:
                reasons.append(reason if len(runs) == 1 else f"{short_run_name(tables)} ({reason})")
    if not reasons:
        return ""
    reasons = list(dict.fromkeys(reasons))  # a reproduction has one run in several sets
    more = f"; and {len(reasons) - BROKEN_NAMED} more runs" if len(reasons) > BROKEN_NAMED else ""
    return (
        f"The injected model {'' if len(runs) == 1 else 'of these runs '}is broken: {'; '.join(reasons[:BROKEN_NAMED])}{more}."
        " Such a run says nothing about removals: all its states count as collapsed. Inject again with a lower"
        " learning rate or more steps."
    )


def sentence(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def percent_of(share: Any) -> str:
    """A fraction in percent without a sign, "–" where it is missing."""
    return MISSING if share is None else f"{100 * share:g}%"
