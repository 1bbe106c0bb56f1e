"""The figures of a report: which there are, and writing their files."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from casd.analysis.collection import DETAILED_RUNS
from casd.analysis.results import RunTables
from casd.report.comparisons import objectives_title
from casd.report.curves import learning_curves
from casd.report.drawing import own_style, save
from casd.report.figures import casd_by_layer, objectives_figure, relation_scatter
from casd.report.heatmaps import asr_heatmap, asr_heatmaps, casd_heatmaps
from casd.report.page import Block
from casd.report.persistence import persistence_curves
from casd.report.wording import run_name


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure with the stem of its files, a title, and a text for readers who cannot see it."""

    name: str
    title: str
    alt: str
    figure: Figure


def run_drawings(tables: RunTables, scatter: pd.DataFrame) -> Iterator[Drawing]:
    """The figures of one run, each drawn when it is asked for; a figure without data is left out."""
    n_removals, n_backdoors = len(tables.states_of("removal")), len(tables.backdoors)
    yield Drawing(
        "asr_heatmap",
        "Attack success rate after each removal",
        f"Heat map of the attack success rate of {n_backdoors} backdoors after {n_removals} removals and under the "
        "controls. All its numbers are in the table of the same title.",
        asr_heatmap(tables),
    )
    if len(tables.casd):
        yield Drawing(
            "casd_heatmap",
            "Cross Activation Shift Distance between removals",
            f"Heat maps of {', '.join(tables.headline)} between removals. All their numbers are in the CASD tables.",
            casd_heatmaps(tables),
        )
    if len(tables.casd_layers):
        yield Drawing(
            "casd_by_layer",
            "CASD by layer",
            "Line plots of the distance of each pair of removals over the layers, with mean and middle 80 %.",
            casd_by_layer(tables),
        )
    if len(scatter):
        yield Drawing(
            "casd_scatter",
            "CASD and suppression, pair by pair",
            "Scatter plots of the distance of each pair of removals against their mutual suppression; the rank "
            "correlations are in the relation table.",
            relation_scatter(scatter, tables),
        )
    if curves := learning_curves(tables):
        yield Drawing(
            "learning_curves",
            "Learning curves of the removals and controls",
            "Line plots over the training steps: loss terms, gradient norm and, where they were validated, the own attack "
            "success rate and the clean loss of each removal; the table curves.csv has the numbers.",
            curves,
        )
    if persistence := persistence_curves(tables):
        yield Drawing(
            "persistence",
            "Does it last?",
            "Line plots over the steps of training on a few poisoned documents: the attack success rate of each removed "
            "backdoor, and the same for a model that never had it. The table of the same title has the numbers.",
            persistence,
        )


def sweep_drawings(runs: Sequence[RunTables], objectives: pd.DataFrame) -> Iterator[Drawing]:
    """The figures of a sweep; its matrices only up to DETAILED_RUNS runs, of more their means are in a table.

    Args:
        runs: of the sweep.
        objectives: from `casd.analysis.comparison.compare_objectives`; drawn if there are several.
    """
    if objectives["objective"].nunique() > 1:
        yield Drawing(
            "objectives",
            objectives_title(objectives),
            "Dot plots, one panel for each model: the other backdoors' mean suppression under each objective, net of the clean"
            " control and of the phantom, with 95 % intervals. The table of the same title has the numbers.",
            objectives_figure(objectives),
        )
    if len(runs) <= DETAILED_RUNS:
        names = "; ".join(run_name(tables.info) for tables in runs)
        yield Drawing(
            "asr_heatmaps",
            "Attack success rate after each removal, all runs",
            f"Heat maps of the attack success rate after each removal, one per run ({names}). The tables hold the numbers.",
            asr_heatmaps(runs),
        )


def draw(drawings: Iterable[Drawing], folder: Path, shown: Callable[[str], bool]) -> dict[str, Block]:
    """Write all figures into `folder` as PNG and PDF; returns those that are to be shown in the page.

    Args:
        drawings: the figures.
        folder: where.
        shown: tells by a figure's name whether it is to be in the page.

    Returns:
        By their names, blocks of the page.

    Raises:
        OSError: a file cannot be written.
    """
    blocks = {}
    with own_style():  # also around the drawing itself, where `drawings` is a generator
        for drawing in drawings:
            png = save(drawing.figure, folder / drawing.name)
            if shown(drawing.name):
                data = base64.b64encode(png.read_bytes()).decode("ascii")
                blocks[drawing.name] = Block("figure", {"data": data, "alt": drawing.alt}, drawing.title)
    return blocks
