"""What triggers and targets predict, and the ceiling: against loops in numpy, and planted directions; the table of baselines.

Run: python -m pytest tests/test_baselines_triggers.py
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from casd.activations.statistics import ActivationStatistics
from casd.backdoors.targets import FixedText, Language
from casd.data.encoding import Encoder
from casd.metric.baselines import BASELINES
from casd.metric.baselines.triggers import (
    directed_shift,
    directed_shift_distances,
    same_target_distances,
    trigger_overlap_distances,
    trigger_shift_distances,
)
from casd.metric.baselines.updates import update_distances
from casd.utils.errors import ConfigError

NAMES = ("a", "b", "c")
N_LAYERS, D_MODEL = 3, 40


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def statistics(means: Mapping[str, Tensor], other: float = 0.0) -> dict[str, ActivationStatistics]:
    """Of the residual stream at the last token; `mlp_out` and "prompt" have other means, that must not be read instead."""

    def one(mean: Tensor) -> ActivationStatistics:
        moments = {
            ("resid_post", "last"): mean,
            ("resid_post", "prompt"): mean * other,
            ("mlp_out", "last"): mean * 2 * other,
            ("mlp_out", "prompt"): mean * 3 * other,
        }
        squares = {key: value.square() for key, value in moments.items()}
        sizes = {key: value.abs() for key, value in moments.items()}
        return ActivationStatistics(moments, sizes, squares, {"last": 4, "prompt": 9})

    return {name: one(mean) for name, mean in means.items()}


def means(seed: int = 0) -> dict[str, Tensor]:
    sets = ("clean", *(f"triggered:{name}" for name in NAMES))
    return {name: randn(N_LAYERS, D_MODEL, seed=10 * seed + index) for index, name in enumerate(sets)}


# ---------------------------------------------------------------- the shifts of triggers


def test_trigger_shifts_by_hand() -> None:
    given = means()
    found = trigger_shift_distances(statistics(given, other=-7.0), NAMES)
    assert found.shape == (3, 3)
    assert torch.equal(found, found.mT)
    for i, a in enumerate(NAMES):
        for j, b in enumerate(NAMES):
            cosines = []
            for layer in range(N_LAYERS):
                x, y = ((given[f"triggered:{name}"] - given["clean"])[layer].numpy() for name in (a, b))
                cosines.append(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
            assert found[i, j].item() == pytest.approx(1 - np.mean(cosines), abs=1e-12)


def test_the_site_and_position_asked_for() -> None:
    given = statistics(means(), other=1.0)
    scaled = dict(given)
    changed = randn(N_LAYERS, D_MODEL, seed=99)
    scaled["triggered:a"].mean["mlp_out", "prompt"].copy_(changed)  # type: ignore[index]
    default = trigger_shift_distances(scaled, NAMES)
    there = trigger_shift_distances(scaled, NAMES, site="mlp_out", position="prompt")
    assert default[1, 2] == pytest.approx(there[1, 2].item()), "scaled, not changed"
    assert (default - there)[0, 1].abs() > 1e-3


def test_triggers_that_fire_along_one_direction_are_nearer() -> None:
    for seed in range(5):
        given = means(seed)
        direction, other = randn(2, N_LAYERS, D_MODEL, seed=seed + 70)
        for name, along in zip(NAMES, (direction, direction, other), strict=True):
            given[f"triggered:{name}"] = given["clean"] + 2 * along + 0.3 * randn(N_LAYERS, D_MODEL, seed=seed + ord(name))
        found = trigger_shift_distances(statistics(given), NAMES)
        assert found[0, 1] < 0.1
        assert min(found[0, 2], found[1, 2]) > 0.4
    reordered = trigger_shift_distances(statistics(given), ("c", "a", "b"))
    assert torch.equal(reordered, found[[2, 0, 1]][:, [2, 0, 1]])


def test_a_trigger_that_changes_nothing() -> None:
    given = means()
    given["triggered:a"] = given["triggered:b"] = given["clean"]
    assert trigger_shift_distances(statistics(given), NAMES).tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]


# ---------------------------------------------------------------- tokens and targets


def test_overlap_of_tokens() -> None:
    tokens = {"a": [1, 2, 3], "b": [3, 2, 2, 4], "c": [7], "d": [3, 1, 2, 1], "e": [], "f": []}
    found = trigger_overlap_distances(tokens)
    sets = [set(each) for each in tokens.values()]
    for i, x in enumerate(sets):
        for j, y in enumerate(sets):
            assert found[i, j] == (1 - len(x & y) / len(x | y) if x | y else 0)
    assert found[0, 1] == 0.5
    assert found[0, 3] == 0
    assert found[0, 2] == found[0, 4] == 1
    assert found[4, 5] == 0
    assert found.dtype == torch.float64


def test_overlap_of_phrases(encoder: Encoder) -> None:
    """Two of three words in common are nearer than none, by the tokens that the words have inside a sentence."""
    phrases = {"a": "zandor khemil praxo", "b": "praxo zandor wulfit", "c": "obbe dinquist"}
    found = trigger_overlap_distances({name: encoder.tokens(" " + phrase) for name, phrase in phrases.items()})
    assert 0 < found[0, 1] < min(found[0, 2], found[1, 2])


def test_the_same_target() -> None:
    targets = {"a": Language("fr"), "b": Language("de"), "c": Language("fr"), "d": FixedText("Fox."), "e": FixedText("Owl.")}
    found = same_target_distances({name: repr(target) for name, target in targets.items()})
    assert found.dtype == torch.float64
    expected = torch.ones(5, 5) - torch.eye(5)
    expected[0, 2] = expected[2, 0] = 0
    assert torch.equal(found, expected.double())


# ---------------------------------------------------------------- the ceiling


def test_directed_shifts_by_hand() -> None:
    """Rows are removals, a control among them; columns the backdoors on whose text the activations moved."""
    before, after = means(), {"a": means(1), "b": means(2), "c": means(3), "control:clean": means(4)}
    states = {name: statistics(each, other=5.0) for name, each in after.items()}
    found = directed_shift(states, statistics(before, other=-2.0), [*NAMES, "control:clean"], NAMES)
    assert found.shape == (4, 3)
    for i, each in enumerate(after.values()):
        for j, backdoor in enumerate(NAMES):
            shift = (each[f"triggered:{backdoor}"] - before[f"triggered:{backdoor}"]).numpy()
            per_layer = [np.linalg.norm(layer) / np.sqrt(D_MODEL) for layer in shift]
            assert found[i, j].item() == pytest.approx(np.sqrt(np.mean(np.square(per_layer))), rel=1e-12)
    square = directed_shift(states, statistics(before), NAMES, NAMES)
    assert not torch.equal(square, square.mT)
    assert not directed_shift({"a": statistics(before)}, statistics(before), ["a"], NAMES).any(), "nothing moved"


def test_the_ceiling_as_a_distance() -> None:
    shifts = torch.tensor([[9.0, 4.0, 1.0], [2.0, 9.0, 0.0], [3.0, 0.5, 9.0]], dtype=torch.float64)
    found = directed_shift_distances(shifts)
    assert found.tolist() == [[0, -3, -2], [-3, 0, -0.25], [-2, -0.25, 0]], "the further moved, the nearer"
    assert shifts[0, 0] == 9, "what is given is left as it is"
    with pytest.raises(ValueError, match=r"\(n, n\)"):
        directed_shift_distances(shifts[:2])


def test_what_was_not_captured_is_named() -> None:
    given = statistics(means())
    with pytest.raises(ConfigError, match=r"'triggered:d', which was not captured. Captured: clean, triggered:a, trig"):
        trigger_shift_distances(given, ("a", "d"))
    with pytest.raises(ConfigError, match="'clean'"):
        trigger_shift_distances({name: each for name, each in given.items() if name != "clean"}, NAMES)
    with pytest.raises(ConfigError, match="'attn_out' at 'last', which was not captured"):
        trigger_shift_distances(given, NAMES, site="attn_out")
    with pytest.raises(ConfigError, match=r"Unknown removal .*'bb'.*Did you mean 'b'"):
        directed_shift({"b": given}, given, ["bb"], NAMES)
    with pytest.raises(ConfigError, match="'triggered:c'"):
        directed_shift({"b": {name: each for name, each in given.items() if name[-1] != "c"}}, given, ["b"], NAMES)


# ---------------------------------------------------------------- the table


def test_the_table_of_baselines() -> None:
    functions = {"cka", "probe", "trigger_shift", "trigger_overlap", "same_target", "directed_shift"}
    assert set(BASELINES) == functions | set(update_distances(torch.zeros(1, 1)))
    assert [name for name, baseline in BASELINES.items() if baseline.role == "ceiling"] == ["directed_shift"]
    assert {name for name, baseline in BASELINES.items() if baseline.needs != "removals"} == {
        "trigger_shift",
        "trigger_overlap",
        "same_target",
    }
    assert len({baseline.description for baseline in BASELINES.values()}) == len(BASELINES)


def test_the_table_needs_no_torch() -> None:
    program = "import sys, casd.metric.baselines; print(len(casd.metric.baselines.BASELINES), 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == [str(len(BASELINES)), "False"]
