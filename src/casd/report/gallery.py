"""Which figures a report has, and writing them.

A figure is drawn when it is written, and forgotten then; what shows no figure does not wait for matplotlib.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup, escape

from casd.analysis.collection import DETAILED_RUNS
from casd.analysis.results import RunTables
from casd.report.page import Block
from casd.report.wording import run_name
from casd.utils.registry import import_named
from casd.utils.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure with the stem of its files, a title, and a text for those who cannot see it.

    Attributes:
        name: the stem.
        title: what it is called.
        alt: the text.
        drawn_by: "module:function" that makes the figure, or None where there is nothing to draw.
        arguments: of that function.
    """

    name: str
    title: str
    alt: str
    drawn_by: str
    arguments: tuple[Any, ...]

    def figure(self) -> Figure | None:
        """Draw it."""
        figure: Figure | None = import_named(self.drawn_by)(*self.arguments)
        return figure


def run_drawings(tables: RunTables, scatter: pd.DataFrame) -> list[Drawing]:
    """The figures of one run; a figure without data is left out."""
    n_removals, n_backdoors = len(tables.states_of("removal")), len(tables.backdoors)
    drawings = [
        Drawing(
            "asr_heatmap",
            "Attack success rate after each removal",
            f"Heatmap of the attack success rate of {n_backdoors} backdoors after {n_removals} removals and under the "
            "controls. All its numbers are in the table of the same title.",
            "casd.report.heatmaps:asr_heatmap",
            (tables,),
        )
    ]
    if len(tables.casd):
        drawings.append(
            Drawing(
                "casd_heatmap",
                "Cross Activation Shift Distance between removals",
                f"Heatmaps of {', '.join(tables.headline)} between removals. All their numbers are in the CASD tables.",
                "casd.report.heatmaps:casd_heatmaps",
                (tables,),
            )
        )
    if len(tables.casd_layers):
        drawings.append(
            Drawing(
                "casd_by_layer",
                "CASD by layer",
                "Line plots of the distance of each pair of removals over the layers, with mean and middle 80 %.",
                "casd.report.figures:casd_by_layer",
                (tables,),
            )
        )
    if len(scatter):
        drawings.append(
            Drawing(
                "casd_scatter",
                "CASD and suppression, pair by pair",
                "Scatter plots of the distance of each pair of removals against their mutual suppression; the rank "
                "correlations are in the relation table.",
                "casd.report.figures:relation_scatter",
                (scatter, tables),
            )
        )
    drawings.append(
        Drawing(
            "learning_curves",
            "Learning curves of the removals and controls",
            "Line plots over the training steps: loss terms, gradient norm and, where they were validated, the own attack "
            "success rate and the clean loss of each removal; the table curves.csv has the numbers.",
            "casd.report.curves:learning_curves",
            (tables,),
        )
    )
    return drawings


def sweep_drawings(runs: Sequence[RunTables]) -> list[Drawing]:
    """The figures of a sweep; of many runs no matrix can be read any more, and their means are in a table."""
    if len(runs) > DETAILED_RUNS:
        return []
    names = "; ".join(run_name(tables.info) for tables in runs)
    alt = f"Heatmaps of the attack success rate after each removal, one per run ({names}). The tables hold the numbers."
    title = "Attack success rate after each removal, all runs"
    return [Drawing("asr_heatmaps", title, alt, "casd.report.heatmaps:asr_heatmaps", (runs,))]


def draw(drawings: Sequence[Drawing], folder: Path, shown: Sequence[str]) -> dict[str, Block]:
    """Write all figures into `folder`; those whose names are in `shown` come back as blocks, by their names.

    Raises:
        OSError: a file cannot be written.
    """
    blocks = {drawing.name: _draw(drawing, folder, drawing.name in shown) for drawing in drawings}
    return {name: block for name, block in blocks.items() if block}


def _draw(drawing: Drawing, folder: Path, shown: bool) -> Block | None:
    """Write a figure's files; as a block if it is shown."""
    from casd.report.drawing import own_style, save

    with own_style():
        figure = drawing.figure()
        if figure is None:
            return None
        png = save(figure, folder / drawing.name)
        return Block("figure", _smaller(figure, drawing.alt, png), drawing.title) if shown else None


def _smaller(figure: Figure, alt: str, png: Path) -> Markup:
    """The figure as an SVG element or as an embedded PNG, whichever is smaller: many points make an SVG large."""
    from casd.report.svg import to_svg

    svg = to_svg(figure, alt)
    data = base64.b64encode(png.read_bytes()).decode("ascii")
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(printable(alt))}">'
    return Markup(min(svg, image, key=len))
