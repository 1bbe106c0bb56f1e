"""The matrices of a report as heatmaps. Every number in them is also printed in its cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from casd.analysis.collection import asr_matrix, casd_matrix
from casd.analysis.results import RunTables
from casd.report.colors import text_color
from casd.report.drawing import VERMILLION, figure_title, plain, short_name
from casd.report.wording import MISSING, decimals_for, fraction, rate_decimals

COLLAPSED_FACE: Final = "#e4e4e4"
MISSING_FACE: Final = "#ffffff"
GAP: Final = 0.3
"""Space between the blocks of a heatmap's rows, in rows."""
CELL: Final = (0.52, 0.34)
"""Width and height of a heatmap's cell, inches."""


@dataclass(frozen=True)
class _Block:
    """Rows of a heatmap that stand together: their numbers and labels, which of them are collapsed."""

    values: pd.DataFrame
    collapsed: frozenset[str]


def asr_heatmap(tables: RunTables) -> Figure:
    """The ASR matrix: the injected model above, the removals with their own backdoor outlined, the controls below."""
    figure = _heatmap_figure([tables], across=1)
    figure.suptitle(figure_title("Attack success rate after each removal", tables), fontsize=10.5)
    return figure


def asr_heatmaps(runs: Sequence[RunTables], across: int = 3) -> Figure:
    """The ASR matrices of several runs on one scale, `across` beside each other."""
    figure = _heatmap_figure(runs, across=min(across, len(runs)))
    for axes, tables in zip(figure.axes, runs, strict=False):
        seeds = {run.info["seed"] for run in runs}
        seed = f", seed {tables.info['seed']}" if len(seeds) > 1 else ""
        axes.set_title(plain(f"{tables.info['model']}\n{tables.treatment}{seed}"), fontsize=9.5)
    return figure


def casd_heatmaps(tables: RunTables) -> Figure:
    """The matrix of each headline CASD variant, each on its own scale."""
    matrices = {variant: casd_matrix(tables, variant) for variant in tables.headline}
    count = max((len(matrix) for matrix in matrices.values()), default=1)
    side = max(count, 4)
    width = len(matrices) * (CELL[0] * side + 2.2) + 0.2
    figure = Figure(figsize=(width, CELL[1] * side + 2.3), layout="constrained")
    panels = figure.subplots(1, max(len(matrices), 1), squeeze=False)[0]
    for axes, (variant, matrix) in zip(panels, matrices.items(), strict=False):
        largest = float(np.nanmax(matrix.to_numpy(), initial=0.0))
        scale = Normalize(0, largest or 1.0)
        shown = matrix.mask(np.eye(len(matrix), dtype=bool))
        block = _Block(shown, frozenset(tables.collapsed))
        _draw_heatmap(axes, [block], "cividis", scale, decimals_for(largest), outline=False, gray_collapsed=False)
        axes.set_title(plain(variant), fontsize=10)
        axes.set_xlabel("removed backdoor B")
        axes.set_ylabel("removed backdoor A")
        unit = "cosine distance" if "cos" in variant else "distance between shifts"
        _colorbar(figure, axes, "cividis", scale, f"{unit}, A to B")
    figure.suptitle(figure_title("Cross Activation Shift Distance", tables), fontsize=10.5)
    return figure


def _heatmap_figure(runs: Sequence[RunTables], across: int) -> Figure:
    """ASR heatmaps of `runs` on one scale, `across` in a row; one color bar."""
    rows = math.ceil(len(runs) / across)
    n_columns = max(max(len(tables.backdoors) for tables in runs), 3)
    n_rows = max(max(len(tables.states) for tables in runs), 4)
    longest = max(len(short_name(str(state))) for tables in runs for state in tables.states["state"])
    width = across * (CELL[0] * n_columns + 0.3) + 0.075 * longest + 1.5
    figure = Figure(figsize=(max(width, 4.6), rows * (CELL[1] * n_rows + 1.6) + 0.4), layout="constrained")
    panels = figure.subplots(rows, across, squeeze=False).ravel()
    scale = Normalize(0, 1)
    labels = _row_labels(runs[0])
    for number, (axes, tables) in enumerate(zip(panels, runs, strict=False)):
        digits = rate_decimals(tables.asr.loc[tables.asr["probe"] == "triggered", "n"].min())
        _draw_heatmap(axes, _state_blocks(tables), "viridis", scale, digits, outline=True)
        axes.set_xlabel("measured backdoor")
        if number % across and _row_labels(tables) == labels:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("removed backdoor")
    for axes in panels[len(runs) :]:
        axes.remove()
    _colorbar(figure, list(panels[: len(runs)]), "viridis", scale, "attack success rate (fraction)")
    return figure


def _state_blocks(tables: RunTables) -> list[_Block]:
    """The rows of the ASR matrix in three blocks: injected, removals, controls."""
    matrix = asr_matrix(tables)
    blocks = [matrix.loc[tables.states_of(kind)] for kind in ("injected", "removal", "control")]
    return [_Block(values, frozenset(tables.collapsed)) for values in blocks if len(values)]


def _row_labels(tables: RunTables) -> list[str]:
    return [f"{state}{state in tables.collapsed}" for state in tables.states["state"]]


def _draw_heatmap(
    axes: Axes,
    blocks: Sequence[_Block],
    colors: str,
    scale: Normalize,
    digits: int,
    *,
    outline: bool,
    gray_collapsed: bool = True,
) -> None:
    """Cells with their numbers. Collapsed rows are gray, hatched, with numbers in parentheses: no color of success."""
    palette = mpl.colormaps[colors]
    ticks, labels, top = [], [], 0.0
    size = 8 if digits <= 2 else 7
    for block in blocks:
        for row, (name, values) in enumerate(block.values.iterrows()):
            y = top + row
            collapsed = name in block.collapsed
            for x, (column, value) in enumerate(values.items()):
                missing = pd.isna(value)
                face: Any = MISSING_FACE if missing else palette(scale(value))
                if collapsed and gray_collapsed:
                    face = COLLAPSED_FACE
                color = text_color(mpl.colors.to_rgb(face))
                axes.add_patch(Rectangle((x, y), 1, 1, facecolor=face, edgecolor="white", linewidth=0.6))
                text = MISSING if missing else fraction(value, digits)
                text = f"({text})" if collapsed and gray_collapsed and not missing else text
                axes.text(x + 0.5, y + 0.52, text, ha="center", va="center", fontsize=size, color=color)
                if outline and column == name and not collapsed:
                    inset = Rectangle((x + 0.05, y + 0.05), 0.9, 0.9, fill=False, edgecolor=VERMILLION, linewidth=1.8)
                    axes.add_patch(inset)
            ticks.append(y + 0.5)
            labels.append(short_name(str(name)) + (" (collapsed)" if collapsed else ""))
        top += len(block.values) + GAP
    columns = [short_name(str(column)) for column in blocks[0].values.columns] if blocks else []
    axes.set_xlim(0, max(len(columns), 1))
    axes.set_ylim(max(top - GAP, 1), 0)
    tilt: dict[str, Any] = (
        {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, columns), default=0) > 5 else {}
    )
    axes.set_xticks(np.arange(len(columns)) + 0.5, [plain(column) for column in columns], **tilt)
    axes.set_yticks(ticks, [plain(label) for label in labels])
    axes.tick_params(length=0, labelsize=8.5)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _colorbar(figure: Figure, axes: Any, colors: str, scale: Normalize, label: str) -> None:
    bar = figure.colorbar(ScalarMappable(scale, mpl.colormaps[colors]), ax=axes, fraction=0.04, pad=0.02)
    bar.set_label(label, fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
