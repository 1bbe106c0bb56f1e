"""The grid of CASD variants: every one against a slow computation pair by pair, and what is left out against what is in.

Run: python -m pytest tests/test_variant_grid.py
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch

from casd.activations.hooks import SITES
from casd.activations.statistics import POSITIONS, ActivationStatistics
from casd.metric import casd as metric
from casd.metric import shifts
from casd.metric.casd import CasdMatrix, CasdVariant, ShiftTable, compute_casd, variant_grid
from casd.utils.errors import ConfigError

N_LAYERS, D_MODEL = 3, 6
BACKDOORS = ("a", "b", "c")
CLEAN, PHANTOM = "control:clean", "control:phantom"
REMOVALS = (*BACKDOORS, CLEAN, PHANTOM)
TEXT_SETS = ("clean", "fake", *(f"triggered:{name}" for name in BACKDOORS))
GRID = variant_grid(SITES, POSITIONS)

Moments = dict[str, np.ndarray]


def random_statistics(seed: int) -> dict[str, ActivationStatistics]:
    """Moments that belong to no activations, different for everything: whatever is mixed up gives another distance."""
    rng = np.random.default_rng(seed)
    made = {}
    for name in TEXT_SETS:
        positions = [position for position in POSITIONS if (position, name) != ("trigger", "clean")]
        moments = [
            {
                (site, position): torch.from_numpy(rng.normal(size=(N_LAYERS, D_MODEL)) ** power + offset)
                for site in SITES
                for position in positions
            }
            for power, offset in ((1, 0.0), (2, 0.0), (2, 0.5))
        ]
        made[name] = ActivationStatistics(*moments, dict.fromkeys(positions, 7))
    return made


STATISTICS = {state: random_statistics(index + 1) for index, state in enumerate(REMOVALS)}
BEFORE = random_statistics(0)


def table() -> ShiftTable:
    return ShiftTable(STATISTICS, BEFORE, BACKDOORS, CLEAN)


def slow(variant: CasdVariant, a: str, b: str) -> np.ndarray:
    """The distance between two removals at each layer and, last, pooled; from the definition, with loops and no sharing."""

    def sets(removal: str, other: str) -> list[str]:
        if variant.text in ("clean", "fake"):
            return [variant.text]
        wanted = {"triggered": BACKDOORS, "triggered_own": (removal,), "triggered_pair": (removal, other)}[variant.text]
        if not set(wanted) <= set(BACKDOORS):
            wanted = BACKDOORS
        return [f"triggered:{name}" for name in sorted(set(wanted))]

    def mean(state: dict[str, ActivationStatistics], names: Sequence[str], moment: str) -> np.ndarray:
        return sum(getattr(state[name], moment)[variant.site, variant.position].numpy() for name in names) / len(names)

    def shift(removal: str, other: str) -> np.ndarray:
        names = sets(removal, other)
        moment = {"signed": "mean", "absolute": "mean_abs"}[variant.moment]
        moved = mean(STATISTICS[removal], names, moment) - mean(BEFORE, names, moment)
        if variant.net_of_control:
            moved = moved - (mean(STATISTICS[CLEAN], names, moment) - mean(BEFORE, names, moment))
        if variant.normalization == "activations":
            moved = moved / np.sqrt(mean(BEFORE, names, "mean_square").mean(axis=1, keepdims=True))
        return moved[sorted(variant.layers)] if variant.layers else moved

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        if variant.distance == "cosine":
            zeros = int(not x.any()) + int(not y.any())
            return (0.0, 1.0, 0.0)[zeros] if zeros else 1 - x @ y / math.sqrt((x @ x) * (y @ y))
        size = {"l1": lambda z: np.abs(z).mean(), "l2": lambda z: math.sqrt((z**2).mean())}[variant.distance]
        if variant.normalization == "shifts":
            return size(x - y) / ((size(x) + size(y)) / 2) if size(x) + size(y) else 0.0
        return size(x - y)

    x, y = shift(a, b), shift(b, a)
    layers = [distance(one, other) for one, other in zip(x, y, strict=True)]
    return np.array([*layers, np.mean(layers) if variant.pooling == "mean" else distance(x.ravel(), y.ravel())])


def assert_is_slow(made: CasdMatrix, removals: Sequence[str] = REMOVALS) -> None:
    for (row, a), (column, b) in itertools.combinations_with_replacement(enumerate(removals), 2):
        got = [*made.per_layer[row, column].tolist(), made.values[row, column].item()]
        np.testing.assert_allclose(got, slow(made.variant, a, b), rtol=1e-9, atol=1e-12, err_msg=f"{made.variant} {a} {b}")
        if a == b:
            assert not any(got)
    assert torch.equal(made.values, made.values.T)
    assert torch.equal(made.per_layer, made.per_layer.transpose(0, 1))


@pytest.mark.parametrize("site", SITES)
def test_every_variant_is_the_slow_one(site: str) -> None:
    """Between two removals, and each and a control; between all: below."""
    shared, removals = table(), ("a", "b", CLEAN)
    for variant in GRID:
        if variant.site == site:
            assert_is_slow(compute_casd(shared, variant, removals), removals)


@pytest.mark.parametrize("text", ["triggered", "triggered_pair", "triggered_own", "clean"])
@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_layers_and_concatenation_are_the_slow_ones(text: str, distance: str) -> None:
    fields = {"text": text, "distance": distance, "position": "last"}
    for net, normalization in itertools.product((False, True), ("raw", "activations", "shifts")):
        if (distance, normalization) != ("cosine", "shifts"):
            options = fields | {"net_of_control": net, "normalization": normalization}
            for layers in (None, (2, 0)):
                variant = CasdVariant("v", pooling="concatenate", layers=layers, **options)
                assert_is_slow(compute_casd(table(), variant, REMOVALS))


def test_pairs_in_parts_and_removals_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pair at a time gives the bits of all at once; controls between the removals change nothing."""
    variant = CasdVariant("v", text="triggered_pair", normalization="activations")
    whole = compute_casd(table(), variant, REMOVALS)
    monkeypatch.setattr(metric, "PAIR_NUMBERS", 1)
    assert torch.equal(compute_casd(table(), variant, REMOVALS).per_layer, whole.per_layer)
    order = [3, 1, 4, 0, 2]
    assert_is_slow(compute_casd(table(), variant, [REMOVALS[index] for index in order]), [REMOVALS[index] for index in order])
    assert_is_slow(compute_casd(table(), variant, ["a", PHANTOM]), ["a", PHANTOM])  # no pair of backdoors


def test_a_table_keeps_few_stacks_and_mixes_none_up() -> None:
    """What is kept of one variant serves the next one of the same shifts alone, in whatever order they come."""
    order = np.random.default_rng(0).permutation(len(GRID))[:150]
    shared = table()
    for index in order:
        mine = compute_casd(shared, GRID[index], REMOVALS)
        assert torch.equal(mine.per_layer, compute_casd(table(), GRID[index], REMOVALS).per_layer)
        assert len(shared._kept) <= shifts.KEPT


def test_the_control_s_own_net_shift_is_exactly_zero() -> None:
    """On pools of several sets as well, where rounding would leave a shift that has a direction."""
    for variant in GRID:
        if variant.net_of_control:
            moved = table().shifts(REMOVALS, variant)
            assert not moved[REMOVALS.index(CLEAN)].any()
            assert moved[0].any()


def test_names_say_what_a_variant_is() -> None:
    names = [variant.name for variant in GRID]
    assert len(set(names)) == len(names) == 3 * 2 * (4 * (10 + 10 + 14 + 10) + 3 * 10)
    assert len({astuple(replace(variant, name="x")) for variant in GRID}) == len(GRID)
    example = next(v for v in GRID if v.name == "resid_post/last/triggered/signed/cosine/raw/net")
    assert replace(example, name="v") == CasdVariant("v", position="last", distance="cosine", net_of_control=True)


def test_the_grid_of_what_is_captured() -> None:
    grid = variant_grid(["mlp_out"], ["last", "trigger"])
    assert Counter((variant.site, variant.position) for variant in grid) == {
        ("mlp_out", "last"): 108,
        ("mlp_out", "trigger"): 88,
    }
    assert not [variant for variant in grid if (variant.position, variant.text) == ("trigger", "clean")]


def test_what_is_left_out_equals_what_is_in_and_nothing_in_equals_another() -> None:
    """All combinations that can be, on moments without any structure: matrices that agree are the ones left out."""
    shared, found = table(), []
    kept = {astuple(replace(variant, name="x")) for variant in GRID}
    texts = ("triggered", "triggered_pair", "triggered_own", "clean", "fake")
    for text, moment, distance, normalization, net in itertools.product(
        texts, ("signed", "absolute"), ("l1", "l2", "cosine"), ("raw", "activations", "shifts"), (False, True)
    ):
        fields = {"text": text, "moment": moment, "distance": distance, "normalization": normalization, "net_of_control": net}
        try:
            variant = CasdVariant("x", position="last", **fields)
        except ConfigError:
            continue
        found.append((compute_casd(shared, variant, REMOVALS).values, astuple(variant) in kept))
    groups: list[list[tuple[torch.Tensor, bool]]] = []
    for values, in_grid in found:
        same = [group for group in groups if torch.allclose(group[0][0], values, rtol=1e-9, atol=1e-12)]
        (same[0] if same else groups.append([]) or groups[-1]).append((values, in_grid))
    assert len(groups) == 108
    assert [sum(in_grid for _, in_grid in group) for group in groups] == [1] * len(groups)
