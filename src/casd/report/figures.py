"""Figures of the pairs of removals: CASD over the layers, and CASD against suppression."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from casd.analysis.comparison import by_condition
from casd.analysis.results import RunTables
from casd.analysis.transfer import relation_points
from casd.config.states import REPEAT_CONTROL
from casd.report.drawing import BLUE, VERMILLION, figure_title, plain, short_name, without_frame
from casd.report.svg import name_points
from casd.report.wording import RESPONSES, fraction, p_relation

_SEED_MARKS: Final = ((BLUE, "o"), (VERMILLION, "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"))
NOISE_FLOOR: Final = "noise floor: one removal, repeated with other documents"


def casd_by_layer(tables: RunTables) -> Figure:
    """Each headline CASD over the layers: each pair of included removals a thin line, their mean, and the middle 80 %."""
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
            label = plain(f"same target: {short_name(pair[0])}, {short_name(pair[1])}" if number == 0 else "")
            axes.plot(wide.index, wide[pair], color=VERMILLION, marker="s", markersize=3.5, label=label or None)
        axes.set_xlabel("layer index (0 = first decoder block)")
        axes.set_ylabel("distance between shifts, per pair")
        axes.set_title(plain(variant), fontsize=10)
        axes.set_ylim(bottom=0)
        if len(wide.index) <= 12:
            axes.set_xticks(list(wide.index))
        without_frame(axes)
    marks = panels[0].get_legend_handles_labels()
    if marks[0]:  # below both panels: among so many lines there is no place that covers none
        figure.legend(*marks, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(figure_title("CASD by layer", tables), fontsize=10.5)
    return figure


def relation_scatter(scatter: pd.DataFrame, tables: RunTables) -> Figure:
    """CASD against suppression, a point per pair of removals; ρ and p from the `relation` table stand in the titles.

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
    marks = panels[0][0].get_legend_handles_labels()
    if len(marks[0]) > 1:  # below all panels, where it covers no point
        figure.legend(*marks, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.suptitle(figure_title("CASD and suppression, pair by pair", tables), fontsize=10.5)
    return figure


def relation_panels(runs: Sequence[RunTables], variant: str, predictors: pd.DataFrame) -> Figure:
    """One CASD against suppression in several runs: a row for each objective, a column for each model, a mark for each seed.

    Args:
        runs: finished runs.
        variant: of CASD.
        predictors: as `casd.analysis.predictors.predictor_table` gives it: ρ and p over the runs of a panel stand in its title.
    """
    groups = by_condition(runs)
    models, objectives = (list(dict.fromkeys(names)) for names in zip(*groups, strict=True))
    size = (2.9 * len(models) + 0.6, 2.6 * len(objectives) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(objectives), len(models), squeeze=False)
    found = predictors[(predictors["predictor"] == variant) & (predictors["role"] == "headline")]
    tested = found.set_index(["objective", "model"])[["rho", "p_value"]].T.to_dict()
    for axes, (objective, model) in zip(panels.ravel(), itertools.product(objectives, models), strict=True):
        axes.axhline(0, color="#b8b8b8", linewidth=0.8, zorder=0)
        members = groups.get((model, objective), [])
        for tables, (color, marker) in zip(members, itertools.cycle(_SEED_MARKS), strict=False):
            named = tables.casd[tables.casd["variant"] == variant]
            points = relation_points(named, tables.transfer)
            points = points[points["response"] == "suppression"]
            x, y = points["distance"], points["response_value"]
            seed = f"seed {tables.info['seed']}"
            drawn = axes.scatter(x, y, s=16, color=color, marker=marker, alpha=0.75, linewidths=0, label=plain(seed))
            name_points(drawn, [f"{seed}: {name}" for name in _point_names(points)])
        result = tested.get((objective, model))
        numbers = f"ρ = {fraction(result['rho'])}, p {p_relation(result['p_value'])}" if result else "no test"
        axes.set_title(plain(f"{model}, {objective}\n{numbers}"), fontsize=8.5)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        without_frame(axes)
    for axes in panels[-1]:
        axes.set_xlabel(f"distance {plain(variant)}", fontsize=9)
    for axes in panels[:, 0]:
        axes.set_ylabel("ASR suppression\n(fraction, centered)", fontsize=9)
    marks = {label: mark for axes in panels.ravel() for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=len(marks) or 1, fontsize=8, frameon=False)
    return figure


def _draw_scatter(axes: Axes, points: pd.DataFrame, tables: RunTables, variant: str, response: str) -> None:
    targets = tables.info.get("targets") or {}
    same = np.array([_same_target(pair, targets) for pair in zip(points["a"], points["b"], strict=True)], dtype=bool)
    named = points[same][["a", "b"]].to_numpy().tolist()
    same_label = plain(f"same target: {', '.join(map(short_name, named[0]))}") if len(named) == 1 else "same target"
    axes.axhline(0, color="#b8b8b8", linewidth=0.8, zorder=0)
    for mask, color, marker, label in ((~same, BLUE, "o", "pair of removals"), (same, VERMILLION, "s", same_label)):
        if mask.any():
            chosen = points[mask]
            x, y = chosen["distance"], chosen["response_value"]
            drawn = axes.scatter(x, y, s=26, color=color, marker=marker, alpha=0.8, linewidths=0, label=label)
            name_points(drawn, _point_names(chosen))
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


def _point_names(points: pd.DataFrame) -> list[str]:
    """What the points of a scatter plot stand for, with their numbers."""
    rows = zip(*(points[name] for name in ("a", "b", "distance", "response_value")), strict=True)
    return [f"{a}, {b}: distance {fraction(x, 3)}, suppression {fraction(y)}" for a, b, x, y in rows]


def _is_floor(pair: Any, tables: RunTables) -> bool:
    """Whether the pair is an included removal and its included repeat."""
    a, b = pair
    repeated = f"{REPEAT_CONTROL}:{a}" == b or f"{REPEAT_CONTROL}:{b}" == a
    return repeated and not any(tables.exclusions[name] for name in pair)


def _same_target(pair: Any, targets: Mapping[str, str]) -> bool:
    a, b = pair
    return targets.get(a) is not None and targets.get(a) == targets.get(b)
