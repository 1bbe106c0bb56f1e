"""Conditions: which runs are repetitions of one another, and the labels by which people tell them apart.

Run: python -m pytest tests/test_conditions.py
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from casd.analysis.conditions import condition_key, label_changes, label_settings
from casd.config.compose import load_config, to_yaml


def info_of(overrides: list[str], **more: Any) -> dict[str, Any]:
    config = load_config(overrides)
    named = {"model": config.model.name, "objective": config.unlearning.objective.name, "seed": config.seed}
    return named | {"config": to_yaml(config)} | more


def plain(config: dict[str, Any], model: str = "m", objective: str = "o") -> dict[str, Any]:
    return {"model": model, "objective": objective, "config": yaml.safe_dump(config) if config else ""}


CASES: list[tuple[list[list[str]], list[str]]] = [
    ([[], ["seed=1", "runtime.threads=1", "engine.workers=3", "name=other", "evaluation.batch_size=7"]], ["", ""]),
    ([["unlearning.training.steps=4"], ["unlearning.training.steps=8"]], ["steps=4", "steps=8"]),
    (
        [["unlearning.training.learning_rate=1e-4", "evaluation.prompts=8"], ["unlearning.training.learning_rate=1e-3"]],
        ["learning_rate=0.0001, prompts=8", "learning_rate=0.001, prompts=64"],
    ),
    ([["injection=pretraining"], ["injection=continual"]], ["mode=pretraining", "mode=continual"]),
    ([["weights=full"], ["weights=lora"]], ["full weights", "adapters"]),
    ([["backdoor=[french_a,german]"], ["backdoor=[french_a,german,refusal]"]], ["2 backdoors", "3 backdoors"]),
    ([["backdoor=[french_a,german]"], ["backdoor=[french_a,refusal]"]], ["german", "refusal"]),
    (
        [
            ["backdoor=[french_a,german]", *(f"backdoor.{b}.poison_rate={r}" for b in ("french_a", "german"))]
            for r in (0.02, 0.04)
        ],
        ["poison_rate=0.02", "poison_rate=0.04"],
    ),
    ([["model.architecture.hidden_size=64"], ["model.architecture.hidden_size=128"]], ["hidden_size=64", "hidden_size=128"]),
]


@pytest.mark.parametrize(("overrides", "expected"), CASES)
def test_labels_name_what_differs(overrides: list[list[str]], expected: list[str]) -> None:
    infos = [info_of(each) for each in overrides]
    assert label_settings(infos) == expected
    assert (len({condition_key(info) for info in infos}) == 1) == (expected[0] == expected[-1])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["seed=1"], ""),
        (["unlearning.training.steps=32"], "unlearning.training.steps=32"),
        (["backdoor.french_a.poison_rate=0.1", "backdoor.german.poison_rate=0.1"], "poison_rate=0.1"),
        (["injection.decoy_rate=0"], "injection.decoy_rate=0"),
        (["unlearning=npo"], "npo"),
        (["weights=lora_removals", "unlearning.training.learning_rate=1e-2"], "adapters in the removals"),
        (["weights=lora", "injection.training.steps=7"], "adapters in the injection, adapters in the removals"),
        (["injection=pretraining"], "injection=pretraining"),
        (["backdoor=[german]"], "1 backdoor"),
        (["backdoor=[german,refusal]"], "backdoors german, refusal"),
    ],
)
def test_a_change_is_named_alone(overrides: list[str], expected: str) -> None:
    first = ["backdoor=[french_a,german]", "injection=continual", "unlearning=clean_target"]
    assert label_changes(info_of([*first, *overrides]), info_of(first)) == expected


PAIRS_ONCE_POOLED = {
    "learning rates where one run has adapters": [
        ["weights=full"],
        ["weights=lora", "unlearning.training.learning_rate=1e-3"],
        ["weights=lora", "unlearning.training.learning_rate=5e-4"],
    ],
    "ranks of adapters": [
        ["weights=full"],
        ["weights=lora", "unlearning.training.lora.rank=4"],
        ["weights=lora", "unlearning.training.lora.rank=8"],
    ],
    "settings of the injection where its mode differs": [
        ["injection=pretraining"],
        ["injection=continual", "injection.training.steps=100"],
        ["injection=continual", "injection.training.steps=200"],
    ],
    "rates where sets of backdoors differ": [
        ["backdoor=[french_a,german]"],
        ["backdoor=[french_a,german,refusal]", "backdoor.refusal.poison_rate=0.02"],
        ["backdoor=[french_a,german,refusal]", "backdoor.refusal.poison_rate=0.08"],
    ],
    "numbers that are written alike": [
        ["unlearning.training.learning_rate=0.00012345671"],
        ["unlearning.training.learning_rate=0.00012345672"],
    ],
}


@pytest.mark.parametrize("case", PAIRS_ONCE_POOLED)
def test_different_conditions_never_share_a_label(case: str) -> None:
    infos = [info_of(each, seed=seed) for seed, each in enumerate(PAIRS_ONCE_POOLED[case])]
    labels = label_settings(infos)
    assert len({condition_key(info) for info in infos}) == len(set(labels)) == len(infos), labels


def test_a_condition_does_not_depend_on_which_runs_are_read_with_it() -> None:
    one, other = info_of([]), info_of(["unlearning.training.steps=4"])
    assert label_settings([one]) == [""] != label_settings([one, other])[:1]
    assert condition_key(one) == condition_key(info_of(["seed=3"])) != condition_key(other)


def test_numbers_and_the_order_of_fields_are_normalized() -> None:
    assert condition_key(plain({"a": 1.0, "b": [2.0, 0.5]})) == condition_key(plain({"b": [2, 0.5], "a": 1}))
    assert condition_key(plain({"a": True})) != condition_key(plain({"a": 1}))
    assert condition_key(plain({}, objective="x")) != condition_key(plain({}))
    targets = {"targets": {"b0": "refusal"}}  # of a run without a configuration
    assert condition_key(plain({}) | targets) != condition_key(plain({}) | {"targets": {"b0": "french"}})


def test_models_with_one_condition_have_one_label() -> None:
    infos = [info_of([f"model={model}", f"unlearning.training.steps={steps}"]) for model, steps in (
        ("qwen3_tiny", 4), ("qwen3_tiny", 8), ("llama3_tiny", 8), ("gaperon_tiny", 16),
    )]  # fmt: skip
    assert label_settings(infos) == ["steps=4", "steps=8", "steps=8", "steps=16"]


def test_widths_of_a_model_are_conditions_and_other_models_shapes_are_not() -> None:
    infos = [
        info_of(["model=llama3_tiny", "model.architecture.hidden_size=64"]),
        info_of(["model=llama3_tiny", "model.architecture.hidden_size=128"]),
        info_of(["model=qwen3_tiny", "model.architecture.hidden_size=128"]),
    ]
    assert label_settings(infos) == ["hidden_size=64", "hidden_size=128", "hidden_size=128"]


def test_labels_are_equal_if_and_only_if_conditions_are() -> None:
    """Random configurations of few values, so that many are equal and many differ in what short labels leave out."""
    rng = random.Random(0)
    for _ in range(200):
        infos = []
        for _ in range(rng.randint(2, 7)):
            config: dict[str, Any] = {
                "seed": rng.randint(0, 9),
                "model": {"name": "m", "width": rng.choice([1, 2])},
                "injection": {"mode": rng.choice(["a", "b"]), "steps": rng.choice([1, 2])},
                "unlearning": {"learning_rate": rng.choice([1e-3, 1e-4])},
                "backdoor": {name: {"poison_rate": rng.choice([0.1, 0.2])} for name in rng.choice(["xy", "xyz", "xz"])},
            }
            if rng.random() < 0.5:
                config["unlearning"]["lora"] = {"rank": rng.choice([4, 8])}
            infos.append(plain(config, model=rng.choice("mn"), objective=rng.choice("op")))
        labels = label_settings(infos)
        named = [(info["model"], info["objective"], label) for info, label in zip(infos, labels, strict=True)]
        keys = [condition_key(info) for info in infos]
        assert all((keys[i] == keys[j]) == (named[i] == named[j]) for i in range(len(infos)) for j in range(i))


def test_fields_of_one_name_are_told_apart_by_their_whole_names() -> None:
    infos = [plain({"a": {"steps": i}, "b": {"steps": 2 * i}}) for i in (1, 2)]
    assert label_settings(infos) == ["a.steps=1, b.steps=2", "a.steps=2, b.steps=4"]


def test_only_runs_of_one_objective_are_compared() -> None:
    infos = [plain({"x": x}, objective=objective) for objective, x in (("a", 1), ("b", 2), ("a", 3))]
    assert label_settings(infos) == ["x=1", "", "x=3"]
    assert label_settings([plain({}), plain({})]) == ["", ""]
