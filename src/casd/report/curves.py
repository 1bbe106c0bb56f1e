"""The learning curves of the removals and controls: a panel for each quantity that was recorded in training."""

from __future__ import annotations

from typing import Any, Final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from casd.analysis.results import RunTables
from casd.config.states import CLEAN_CONTROL, PHANTOM_CONTROL
from casd.report.drawing import figure_title, legend_below, plain, short_name, without_frame

COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette without its yellow, which is hard to see on white."""
STYLES: Final = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
"""Line styles of the first removals, of as many more when the colors are used up, and so on."""
_TERM: Final = "loss/"
_MEASURED: Final = {
    "gradient_norm": "gradient norm (L2, before clipping)",
    "validation_asr": "own ASR on validation prompts (fraction)",
    "validation_clean_loss": "clean loss, validation (nats per token)",
    "guard_clean_loss": "clean loss, guard (nats per token)",
}
_SEEN: Final = 2
"""Measurements of one state that are needed for a curve."""
_ACROSS: Final = 2


def learning_curves(tables: RunTables) -> Figure | None:
    """Loss terms, gradient norm, validation ASR and clean loss over the steps, a line for each state; None without any.

    Removals have a color each, controls are gray. A dot marks the step that was kept, where one was chosen by validation.
    """
    quantities = _quantities(tables.curves)
    if not quantities:
        return None
    rows = -(-len(quantities) // _ACROSS)
    across = min(_ACROSS, len(quantities))
    figure = Figure(figsize=(4.3 * across, 2.5 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, across, squeeze=False).ravel()
    for axes, (column, title) in zip(panels, quantities.items(), strict=False):
        _draw_curves(axes, tables, column)
        axes.set_title(plain(title), fontsize=9.5)
        axes.set_xlabel("training steps done", fontsize=9)
        without_frame(axes)
    for axes in panels[len(quantities) :]:
        axes.remove()
    legend_below(figure, 4)
    figure.suptitle(figure_title("Learning curves of the removals and controls", tables), fontsize=10.5)
    return figure


def _quantities(curves: pd.DataFrame) -> dict[str, str]:
    """The columns of `curves` in which some state has enough values for a curve, and their titles."""
    titles = {c: f"loss, {c.removeprefix(_TERM)} term" for c in map(str, curves.columns) if c.startswith(_TERM)}
    titles = titles or {"loss": "loss"}
    return {
        column: title
        for column, title in {**titles, **_MEASURED}.items()
        if column in curves and curves.groupby("state")[column].count().max() >= _SEEN
    }


def _draw_curves(axes: Axes, tables: RunTables, column: str) -> None:
    kept = tables.states.set_index("state")["steps"]
    styles = _line_styles(tables)
    for state, rows in tables.curves.groupby("state", sort=False):
        values = rows.set_index("step")[column].astype(float).dropna()
        if values.empty:
            continue
        style = styles[str(state)]
        axes.plot(values.index, values, **style)
        if kept.get(state) in values.index and column.startswith("validation"):
            axes.plot(kept[state], values[kept[state]], "o", markersize=4, color=style["color"], zorder=style["zorder"])
    values = tables.curves[column].astype(float).dropna()
    if column == "gradient_norm" and values.min() > 0 and values.max() > 30 * values.min():
        axes.set_yscale("log")
    if column == "validation_asr":
        axes.set_ylim(-0.03, 1.03)
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]


def _line_styles(tables: RunTables) -> dict[str, dict[str, Any]]:
    """The style of each state's line, with its label in the legend."""
    styles: dict[str, dict[str, Any]] = {}
    for place, state in enumerate(tables.states_of("removal")):
        turn, color = divmod(place, len(COLORS))
        label, line = plain(short_name(state)), STYLES[turn % len(STYLES)]
        styles[state] = {"color": COLORS[color], "linestyle": line, "linewidth": 1.4, "zorder": 3, "label": label}
    for state in tables.states_of("control"):
        label, line = "other controls", STYLES[2]
        if state == CLEAN_CONTROL:
            label, line = "clean control", STYLES[0]
        elif state.startswith(PHANTOM_CONTROL):
            label, line = "phantoms", STYLES[1]
        styles[state] = {"color": "#8c8c8c", "linestyle": line, "linewidth": 1.1, "zorder": 2, "label": label}
    return styles
