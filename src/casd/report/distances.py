"""Distances between models (`casd.metric.distance`): tables, heat map, and files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from casd.metric.distance import READINGS, Distances
from casd.report.drawing import own_style, plain, save
from casd.report.heatmaps import heatmaps
from casd.report.markup import Scale, Table
from casd.report.matrices import shades
from casd.report.publish import publishing
from casd.report.wording import decimals_for, fraction

_MEANING = {
    "signed": "shift: mean of the differences",
    "absolute": "shift: mean of the absolute differences",
}


def distance_tables(distances: Distances, *, per_layer: bool = False) -> list[Table]:
    """Return the matrix of each reading, the norms of the shifts and, on request, the distances at each layer."""
    variant = distances.variant
    basis = (
        f"Variant {variant.name}: {variant.site}, position {variant.position}, {variant.distance}, {variant.normalization}."
        f" {distances.n_tokens} tokens of {distances.n_texts} texts, differences to {distances.before}."
    )
    tables = [_matrix(getattr(distances, reading), reading, basis) for reading in READINGS]
    norms = f"{basis} Size: the distance of a model's shift from no change."
    tables.append(_plain_table("norms", "Size of the shifts", norms, distances.norms.rename_axis("model")))
    if per_layer:
        layers = distances.per_layer.assign(pair=distances.per_layer["a"] + " – " + distances.per_layer["b"])
        for reading in READINGS:
            found = layers[layers["reading"] == reading].pivot(index="layer", columns="pair", values="distance")
            tables.append(_plain_table(f"per_layer_{reading}", f"CASD at each layer, {reading}", basis, found))
    return tables


def _matrix(values: pd.DataFrame, reading: str, basis: str) -> Table:
    """The matrix of one reading, without its diagonal of zeros."""
    np.fill_diagonal(numbers := values.to_numpy(copy=True), np.nan)
    largest = float(np.nanmax(numbers, initial=0.0))
    digits = decimals_for(largest)
    shown = pd.DataFrame(numbers, index=values.index, columns=values.columns).rename_axis("model")
    return Table(
        name=reading,
        title=f"CASD between the models, {reading}",
        caption=f"{basis} {reading.capitalize()}: {_MEANING[reading]}.",
        frame=shown.map(lambda value: fraction(value, digits)),
        scale=Scale("cividis", "0", fraction(largest, digits), largest),
        shade=shades(shown, largest),
    )


def _plain_table(name: str, title: str, caption: str, values: pd.DataFrame) -> Table:
    digits = decimals_for(float(np.max(values.to_numpy(), initial=0.0)))
    return Table(name, title, caption, values.map(lambda value: fraction(value, digits)))


def distance_heatmaps(distances: Distances) -> Figure:
    """The matrices of both readings, each on its own scale."""
    figure = heatmaps(distance_tables(distances)[: len(READINGS)], len(READINGS), ["CASD"] * len(READINGS))
    for axes, reading in zip(figure.axes, READINGS, strict=False):
        axes.set_title(reading, fontsize=10)
        axes.set_xlabel("model B")
        axes.set_ylabel("model A")
    figure.suptitle(plain(f"Cross Activation Shift Distance from {distances.before}"), fontsize=10.5)
    return figure


def write_distances(distances: Distances, folder: Path, *, per_layer: bool = False) -> None:
    """Write signed.csv, absolute.csv, norms.csv, distances.json and the heat map distances.png and .pdf to a folder.

    Args:
        distances: the distances.
        folder: a new or empty folder, or that of earlier distances, which are replaced.
        per_layer: write per_layer.csv, too. The JSON has the values of each layer in any case.

    Raises:
        StoreError: the folder cannot be written, or has other files of these names.
    """
    with publishing(folder, "the distances") as begun:
        for name in (*READINGS, "norms"):
            getattr(distances, name).rename_axis("model").to_csv(begun / f"{name}.csv")
        if per_layer:
            distances.per_layer.to_csv(begun / "per_layer.csv", index=False)
        unused = ("text", "moment", "net_of_control")
        variant = {name: value for name, value in dataclasses.asdict(distances.variant).items() if name not in unused}
        record = {
            "before": distances.before,
            "models": list(distances.norms.index),
            "variant": variant,
            "texts": distances.n_texts,
            "tokens": distances.n_tokens,
            **{name: getattr(distances, name).to_dict() for name in (*READINGS, "norms")},
            "per_layer": distances.per_layer.to_dict("records"),
        }
        (begun / "distances.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        with own_style():
            save(distance_heatmaps(distances), begun / "distances")
