"""The matrices of a report as heat maps: the same tables, with every number in its cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from casd.analysis.results import RunTables
from casd.report.drawing import VERMILLION, cell_colors, figure_title, plain, short_name
from casd.report.markup import Table
from casd.report.matrices import asr_table, casd_table
from casd.report.wording import MISSING

COLLAPSED_FACE: Final = "#e4e4e4"
CELL: Final = (0.52, 0.34)
"""Width and height of a cell, inches."""
LABEL: Final = 0.075
"""Width of a letter of a row's label, inches."""
RATE: Final = "attack success rate (fraction)"


def asr_heatmap(tables: RunTables) -> Figure:
    """The ASR matrix: the injected model above, the removals with their own backdoor outlined, the controls below."""
    figure = heatmaps([asr_table(tables)], 1, [RATE])
    figure.suptitle(figure_title("Attack success rate after each removal", tables), fontsize=10.5)
    return figure


def asr_heatmaps(runs: Sequence[RunTables], across: int = 3) -> Figure:
    """The ASR matrices of several runs, `across` in a row."""
    figure = heatmaps(list(map(asr_table, runs)), min(across, len(runs)), [RATE] * len(runs))
    seeds = len({tables.info["seed"] for tables in runs}) > 1
    for axes, tables in zip(figure.axes, runs, strict=False):
        seed = f", seed {tables.info['seed']}" if seeds else ""
        axes.set_title(plain(f"{tables.info['model']}\n{tables.condition_label}{seed}"), fontsize=9.5)
    return figure


def casd_heatmaps(tables: RunTables) -> Figure:
    """The matrix of each headline CASD variant, each on its own scale."""
    shown = [casd_table(tables, variant, square=True) for variant in tables.headline]
    units = ["cosine distance" if "cos" in variant else "distance between shifts" for variant in tables.headline]
    figure = heatmaps(shown, max(len(shown), 1), [f"{unit}, A to B" for unit in units])
    for axes, variant in zip(figure.axes, tables.headline, strict=False):
        axes.set_title(plain(variant), fontsize=10)
        axes.set_xlabel("removed backdoor B")
        axes.set_ylabel("removed backdoor A")
    figure.suptitle(figure_title("Cross Activation Shift Distance", tables), fontsize=10.5)
    return figure


def heatmaps(shown: Sequence[Table], across: int, labels: Sequence[str]) -> Figure:
    """Matrices as panels, `across` in a row, each with its color bar and a label for that."""
    rows = math.ceil(len(shown) / across)
    n_columns = max(max((len(table.columns) for table in shown), default=0), 4)
    n_rows = max(max(map(len, shown), default=0), 4)
    longest = max((len(short_name(name)) for table in shown for name in table.labels), default=0)
    size = (across * (CELL[0] * n_columns + LABEL * longest + 1.2) + 0.4, rows * (CELL[1] * n_rows + 1.6) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, across, squeeze=False).ravel()
    for axes, table, label in zip(panels, shown, labels, strict=False):
        _draw(axes, table)
        axes.set_xlabel("measured backdoor")
        axes.set_ylabel("removed backdoor")
        assert table.scale is not None
        scale = ScalarMappable(Normalize(0, table.scale.largest or 1.0), table.scale.colormap)
        bar = figure.colorbar(scale, ax=axes, fraction=0.04, pad=0.02)
        bar.set_label(label, fontsize=8.5)
        bar.ax.tick_params(labelsize=8)
    for axes in panels[len(shown) :]:
        axes.remove()
    return figure


def _draw(axes: Axes, table: Table) -> None:
    """Cells with their numbers. Rates of a collapsed model are on gray: no color of success."""
    assert table.scale is not None
    assert table.shade is not None
    places = (np.arange(len(table.columns)), np.arange(len(table)))
    style: dict[str, Any] = {"cmap": table.scale.colormap, "shading": "nearest", "edgecolors": "white", "linewidth": 0.6}
    axes.pcolormesh(*places, np.ma.masked_invalid(table.shade), vmin=0, vmax=1, **style)
    axes.invert_yaxis()
    for row in range(len(table)):
        for column, text in enumerate(table.frame.iloc[row]):
            shade = table.shade_of(row, column)
            if shade is None and table.is_collapsed(row) and text != MISSING:
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=COLLAPSED_FACE, edgecolor="white"))
            color = "black" if shade is None else cell_colors(table.scale.colormap, shade)[1]
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=color)
            if table.is_bold(row, column):
                axes.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=VERMILLION, lw=1.8))
    for _, rows in list(table.grouped())[1:]:
        axes.axhline(rows[0] - 0.5, color="white", linewidth=5)
    columns = [plain(short_name(name)) for name in table.columns]
    tilt: dict[str, Any] = (
        {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, columns), default=0) > 5 else {}
    )
    axes.set_xticks(range(len(columns)), columns, **tilt)
    labels = [
        short_name(str(name)) + (" (collapsed)" if table.is_collapsed(row) else "")
        for row, name in enumerate(table.frame.index)
    ]
    axes.set_yticks(range(len(labels)), list(map(plain, labels)))
    axes.tick_params(length=0, labelsize=8.5)
    axes.spines[:].set_visible(False)
