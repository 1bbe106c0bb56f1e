"""Whether removed backdoors stay removed: a table for one or several runs, what it says, and the figure of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from casd.analysis.persistence import RETURNED, persistence_summary, returns, trace
from casd.analysis.results import RunTables
from casd.config.states import removed_backdoor
from casd.report.curves import COLORS
from casd.report.drawing import figure_title, legend_below, plain, short_name, without_frame
from casd.report.markup import Table, table_of
from casd.report.wording import MISSING, fraction, percent, run_name, sentence

_CAPTION: Final = (
    f"ASR on triggered prompts before and after each treatment, and training steps until it is {RETURNED} or more; “> N”: not"
    " within N steps. No trigger: the same test on prompts without one. Clean model: the same training of a model that never"
    " had a backdoor. If it is as fast, no trace of the removed backdoor is seen; if it is slower, the removal left the"
    " backdoor near, or at least its behavior, which a clean model may not know."
)
_ACROSS: Final = 2
"""Panels beside each other."""


def persistence_table(runs: Sequence[RunTables]) -> Table:
    """Each treatment of each state, with the control; over several runs medians of steps, and in how many it came back."""
    frame = persistence_summary(runs)
    records: list[dict[Any, Any]] = frame.to_dict("records")
    several = len(runs) > 1
    rows = [
        {
            "treatment": treatment_name(record),
            "measured": str(record["measured"]),
            "before": fraction(record["before"]),
            "after": fraction(record["after"]),
            "no trigger, after": fraction(record["no_trigger"]),
            "steps": _steps(record, "", several),
            "clean model, after": fraction(record["clean_after"]),
            "clean model, steps": _steps(record, "clean_", several),
            "clean loss": percent(record["clean_loss_change"]),
        }
        for record in records
    ]
    labels = frame.groupby(["model", "objective"], sort=False).ngroups if len(frame) else 0
    collapsed = runs[0].collapsed if not several else set()
    return table_of(
        rows,
        groups=[_group(record) if labels > 1 else str(record["state"]) for record in records],
        collapsed=[record["state"] in collapsed for record in records],
        name="persistence",
        title="Does it last?",
        caption=(f"Medians and means over {len(runs)} runs. " if several else f"{sentence(run_name(runs[0].info))}. ")
        + _CAPTION,
    )


def _group(record: Mapping[Any, Any]) -> str:
    return f"{record['state']} ({record['objective']}, {record['model']})"


def treatment_name(record: Mapping[Any, Any]) -> str:
    """A treatment in words: "clean training", "5 documents of french_a", "4 bits"."""
    if record["treatment"] == "relearn":
        return f"{record['documents']} document{'s' if record['documents'] > 1 else ''} of {record['source']}"
    return f"{record['bits']} bits" if record["treatment"] == "quantize" else "clean training"


def _steps(record: Mapping[Any, Any], prefix: str, several: bool) -> str:
    """Steps until a backdoor is there again; over several runs the median, with the number of runs in which it is."""
    steps, within = record[f"{prefix}steps"], record[f"{prefix}within"]
    if math.isnan(within):
        return MISSING
    text = f"> {within:.0f}" if math.isinf(steps) else f"{steps:g}"
    return f"{text} ({record[f'{prefix}returned']:.0f} of {record['runs']})" if several else text


def persistence_statements(tables: RunTables) -> list[str]:
    """A sentence for each removed backdoor and number of its documents: how soon it is back, and what the control says."""
    if tables.persistence.empty:
        return []
    found = returns(tables)
    own = found[(found["source"] == found["measured"]) & (found["measured"] == found["state"].map(removed_backdoor))]
    told = []
    for record in own.to_dict("records"):
        steps, clean = (math.inf if math.isnan(record[name]) else record[name] for name in ("steps", "clean_steps"))
        when = f"not within {record['within']:.0f} steps" if math.isinf(steps) else f"after {steps:g} steps"
        text = f"{record['state']}, {treatment_name(record)}: an ASR of {RETURNED} {when}"
        if math.isnan(record["clean_within"]):
            told.append(f"{text}; there is no clean model to compare with.")
        else:
            clean_when = f"not within {record['clean_within']:.0f}" if math.isinf(clean) else f"after {clean:g}"
            told.append(f"{text}, in the clean model {clean_when}: {trace(steps, clean)}.")
    return told


def persistence_curves(tables: RunTables) -> Figure | None:
    """ASR of each removed backdoor over the steps of training on poisoned documents; None without any.

    A panel for each state and source. Numbers of documents have a color each; the model without backdoors is dashed.
    """
    rows = tables.persistence
    rows = rows[(rows["prompt_set"] == "triggered") & (rows["backdoor"] == rows["state"].map(removed_backdoor))]
    relearned = rows[rows["treatment"] == "relearn"]
    panels = list(dict.fromkeys(zip(relearned["state"], relearned["source"], strict=True)))
    if not panels:
        return None
    across = min(_ACROSS, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4.3 * across, 2.5 * down + 0.9), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for panel, (state, source) in zip(axes, panels, strict=False):
        _draw(panel, rows[rows["state"] == state], source)
        panel.set_title(plain(f"{short_name(state)}: documents of {short_name(source)}"), fontsize=9.5)
    for panel in axes[len(panels) :]:
        panel.remove()
    legend_below(figure, 3)
    figure.suptitle(figure_title("ASR of the removed backdoor in training on poisoned documents", tables), fontsize=10.5)
    return figure


def _draw(axes: Axes, rows: pd.DataFrame, source: str) -> None:
    for model, style in (("state", "-"), ("clean", (0, (4, 1.5)))):
        found = rows[rows["model"] == model]
        start = found[found["treatment"] == "none"]
        trained = found[(found["treatment"] == "relearn") & (found["source"] == source)]
        for place, count in enumerate(sorted({int(each) for each in trained["documents"]})):
            line = pd.concat([start, trained[trained["documents"] == count]])
            label = f"{count} document{'s' if count > 1 else ''}{', clean model' if model == 'clean' else ''}"
            axes.plot(
                line["step"], line["rate"], color=COLORS[place % len(COLORS)], linestyle=style, linewidth=1.4, label=label
            )
    axes.axhline(RETURNED, color="#b8b8b8", linewidth=0.8, zorder=0)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("training steps done", fontsize=9)
    without_frame(axes)
