"""Line and scatter plots: CASD over the layers, CASD against suppression, and objectives compared."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from casd.analysis.grouping import by_condition
from casd.analysis.relation import relation_points
from casd.analysis.results import RunTables
from casd.config.states import REPEAT_CONTROL
from casd.report.drawing import BLUE, VERMILLION, figure_title, legend_below, plain, short_name, without_frame
from casd.report.wording import RESPONSES, fraction, model_label, p_relation

_SEED_MARKS: Final = ((BLUE, "o"), (VERMILLION, "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"))
NOISE_FLOOR: Final = "noise floor: one removal, repeated with other documents"


def casd_by_layer(tables: RunTables) -> Figure:
    """Each headline CASD over the layers: a thin line for each pair of included removals, their mean, and the middle 80 %."""
    variants = [v for v in tables.headline if v in set(tables.casd_layers["variant"])]
    figure = Figure(figsize=(4.3 * max(len(variants), 1), 3.5), layout="constrained")
    panels = figure.subplots(1, max(len(variants), 1), squeeze=False)[0]
    targets = tables.info.get("targets") or {}
    included = {name for name in tables.states_of("removal") if not tables.exclusions[name]}
    for axes, variant in zip(panels, variants, strict=False):
        layers = tables.casd_layers[tables.casd_layers["variant"] == variant]
        every = layers.pivot(index="layer_idx", columns=["a", "b"], values="distance").sort_index()
        wide = every[[pair for pair in every.columns if included.issuperset(pair)]]
        same = [pair for pair in wide.columns if _same_target(pair, targets)]
        axes.plot(wide.index, wide.to_numpy(), color="#b8b8b8", linewidth=0.6, zorder=1)
        low, high = wide.quantile(0.1, axis=1), wide.quantile(0.9, axis=1)
        axes.fill_between(wide.index, low, high, color=BLUE, alpha=0.18, linewidth=0, label="middle 80 % of pairs")
        axes.plot(wide.index, wide.mean(axis=1), color=BLUE, marker="o", markersize=4, label="mean of pairs")
        floor = [pair for pair in every.columns if _is_floor(pair, tables)]
        if floor:
            axes.plot(every.index, every[floor].mean(axis=1), color="black", linestyle="--", linewidth=1.2, label=NOISE_FLOOR)
        for number, pair in enumerate(same):
            label = _same_target_label(same) if number == 0 else None
            axes.plot(wide.index, wide[pair], color=VERMILLION, marker="s", markersize=3.5, label=label)
        axes.set_xlabel("layer index (0 = first decoder block)")
        axes.set_ylabel("distance between shifts, per pair")
        axes.set_title(plain(variant), fontsize=10)
        axes.set_ylim(bottom=0)
        if len(wide.index) <= 12:
            axes.set_xticks(list(wide.index))
        without_frame(axes)
    legend_below(figure, 4)
    figure.suptitle(figure_title("CASD by layer", tables), fontsize=10.5)
    return figure


def relation_scatter(scatter: pd.DataFrame, tables: RunTables) -> Figure:
    """CASD against suppression, a point for each pair of removals; the titles give ρ and p from the `relation` table.

    Args:
        scatter: variant | a | b | distance | response_value, the latter symmetrized and centered by column; with a column
            `response` as well there is a row of panels for each response, without it the response is "suppression".
        tables: the run, for its `relation`, `headline` and `info["targets"]`.
    """
    if "response" not in scatter.columns:
        scatter = scatter.assign(response="suppression")
    responses = list(dict.fromkeys(scatter["response"])) or ["suppression"]
    variants = [v for v in tables.headline if v in set(scatter["variant"])] or ["–"]
    size = (4.1 * len(variants), 3.3 * len(responses) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(responses), len(variants), squeeze=False)
    for i, response in enumerate(responses):
        for j, variant in enumerate(variants):
            points = scatter[(scatter["variant"] == variant) & (scatter["response"] == response)]
            _draw_scatter(panels[i][j], points, tables, variant, response)
    legend_below(figure, 2)
    figure.suptitle(figure_title("CASD and suppression, pair by pair", tables), fontsize=10.5)
    return figure


def relation_panels(runs: Sequence[RunTables], variant: str, predictors: pd.DataFrame) -> Figure:
    """One CASD against suppression in several runs: a row for each objective, a column for each model, a mark for each seed.

    Args:
        runs: finished runs.
        variant: of CASD.
        predictors: from `casd.analysis.predictors.predictor_table`; the title of a panel gives ρ and p over its runs.
    """
    groups = by_condition(runs)
    models, objectives = (list(dict.fromkeys(names)) for names in zip(*groups, strict=True))
    size = (2.9 * len(models) + 0.6, 2.6 * len(objectives) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(objectives), len(models), squeeze=False)
    found = predictors[(predictors["predictor"] == variant) & (predictors["role"] == "headline")]
    tested = found.set_index(["objective", "model"])[["rho", "p_value"]].T.to_dict()
    seeds = dict.fromkeys(tables.info["seed"] for members in groups.values() for tables in members)
    marks = dict(zip(seeds, itertools.cycle(_SEED_MARKS), strict=False))  # a seed has one mark in all panels
    for axes, (objective, model) in zip(panels.ravel(), itertools.product(objectives, models), strict=True):
        axes.axhline(0, color="#b8b8b8", linewidth=0.8, zorder=0)
        for tables in groups.get((model, objective), []):
            color, marker = marks[tables.info["seed"]]
            named = tables.casd[tables.casd["variant"] == variant]
            points = relation_points(named, tables.transfer)
            points = points[points["response"] == "suppression"]
            x, y = points["distance"], points["response_value"]
            seed = f"seed {tables.info['seed']}"
            axes.scatter(x, y, s=16, color=color, marker=marker, alpha=0.75, linewidths=0, label=plain(seed))
        result = tested.get((objective, model))
        numbers = f"ρ = {fraction(result['rho'])}, p {p_relation(result['p_value'])}" if result else "no test"
        axes.set_title(plain(f"{model}, {objective}\n{numbers}"), fontsize=8.5)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        without_frame(axes)
    for axes in panels[-1]:
        axes.set_xlabel(f"distance {plain(variant)}", fontsize=9)
    for axes in panels[:, 0]:
        axes.set_ylabel("ASR suppression\n(fraction, centered)", fontsize=9)
    legend_below(figure, 6)
    return figure


def _same_target_label(pairs: Sequence[Sequence[str]]) -> str:
    """The label of all pairs with the same target; it names the two backdoors if there is one pair."""
    return plain(f"same target: {', '.join(map(short_name, pairs[0]))}") if len(pairs) == 1 else "same target"


def _draw_scatter(axes: Axes, points: pd.DataFrame, tables: RunTables, variant: str, response: str) -> None:
    targets = tables.info.get("targets") or {}
    same = np.array([_same_target(pair, targets) for pair in zip(points["a"], points["b"], strict=True)], dtype=bool)
    named = points[same][["a", "b"]].to_numpy().tolist()
    same_label = _same_target_label(named)
    axes.axhline(0, color="#b8b8b8", linewidth=0.8, zorder=0)
    for mask, color, marker, label in ((~same, BLUE, "o", "pair of removals"), (same, VERMILLION, "s", same_label)):
        if mask.any():
            chosen = points[mask]
            x, y = chosen["distance"], chosen["response_value"]
            axes.scatter(x, y, s=26, color=color, marker=marker, alpha=0.8, linewidths=0, label=label)
    distances = tables.casd[tables.casd["variant"] == variant]
    floor = [
        distance
        for a, b, distance in zip(distances["a"], distances["b"], distances["distance"], strict=True)
        if _is_floor((a, b), tables)
    ]
    if floor:
        axes.axvline(float(np.mean(floor)), color="black", linestyle="--", linewidth=1, label=NOISE_FLOOR)
    # With few points each has its names beside it; among many the names would hide other points.
    for a, b, x, y in zip(*(points[c] for c in ("a", "b", "distance", "response_value")), strict=True):
        if len(points) > 6:
            break
        right = x < points["distance"].quantile(0.6)
        axes.annotate(
            plain(f"{short_name(a)}, {short_name(b)}"),
            (x, y),
            xytext=(5 if right else -5, 4),
            textcoords="offset points",
            ha="left" if right else "right",
            fontsize=7,
            color="#333333",
        )
    relation = tables.relation
    found = relation[(relation["variant"] == variant) & (relation["response"] == response)]
    numbers = "no test"
    if len(found) and not pd.isna(found["rho"].iloc[0]):
        numbers = f"ρ = {fraction(found['rho'].iloc[0])}, p {p_relation(found['p_value'].iloc[0])} (Mantel)"
    axes.set_title(plain(f"{variant}: {numbers}"), fontsize=9.5)
    axes.set_xlabel(f"distance {plain(variant)}")
    axes.set_ylabel(plain(f"{RESPONSES.get(response, response)}\n(fraction, centered)"), fontsize=9)
    axes.margins(0.08)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    without_frame(axes)


def _is_floor(pair: Any, tables: RunTables) -> bool:
    """Whether the pair is an included removal and its included repeat."""
    a, b = pair
    repeated = f"{REPEAT_CONTROL}:{a}" == b or f"{REPEAT_CONTROL}:{b}" == a
    return repeated and not any(tables.exclusions[name] for name in pair)


def _same_target(pair: Any, targets: Mapping[str, str]) -> bool:
    a, b = pair
    return targets.get(a) is not None and targets.get(a) == targets.get(b)


_LABEL: Final = 34
"""Letters in a line of a row's label."""


def objectives_figure(frame: pd.DataFrame) -> Figure:
    """The others' mean suppression net of the controls: a panel for each model, a row for each objective.

    Args:
        frame: from `casd.analysis.comparison.compare_objectives`.
    """
    series = (
        ("suppression_net_clean", BLUE, "o", -0.15, "net of the clean control"),
        ("suppression_net_phantom", VERMILLION, "s", 0.15, "net of the phantom"),
    )
    models = list(dict.fromkeys(frame["model"]))
    objectives = list(dict.fromkeys(frame["objective"]))
    labels = [plain(textwrap.fill(str(objective), _LABEL)) for objective in objectives]  # with a setting they are long
    width = max(len(line) for label in labels for line in label.splitlines())
    height = 0.22 + 0.14 * max(len(label.splitlines()) for label in labels)
    size = (0.9 + 0.065 * width + 2.6 * len(models), 1.3 + height * len(objectives))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, sharex=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        rows = frame[frame["model"] == model].set_index("objective").reindex(objectives)
        axes.axvline(0, color="#b8b8b8", linewidth=0.8, zorder=0)
        for column, color, marker, offset, label in series:
            places = np.arange(len(objectives)) + offset
            values, low, high = (rows[f"{column}{end}"].to_numpy(dtype=float) for end in ("", "_low", "_high"))
            axes.hlines(places, low, high, color=color, linewidth=1.4)
            axes.scatter(values, places, color=color, marker=marker, s=24, label=label, zorder=3)
        axes.set_title(plain(model_label(model)), fontsize=9.5)
        axes.set_yticks(range(len(objectives)), labels, fontsize=8)
        axes.set_ylim(len(objectives) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        without_frame(axes)
    legend_below(figure, 2)
    title = "Mean suppression of the other backdoors' ASR, with 95 % intervals"
    figure.suptitle(textwrap.fill(title, int(14 * size[0])), fontsize=10)
    return figure
