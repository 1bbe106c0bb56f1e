"""What sets runs apart, in words.

Run: python -m pytest tests/test_settings.py
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from casd.compose import load_config, to_yaml
from casd.settings import distinguish


def labels(*overrides: list[str], group: str = "g") -> list[str]:
    return distinguish([(group, to_yaml(load_config(each))) for each in overrides])


CASES: list[tuple[list[list[str]], list[str]]] = [
    ([[], ["seed=1", "runtime.threads=1", "name=other"]], ["", ""]),
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
def test_settings_in_words(overrides: list[list[str]], expected: list[str]) -> None:
    assert labels(*overrides) == expected


def test_only_runs_of_one_group_are_compared() -> None:
    texts: list[tuple[Any, str]] = [(group, yaml.safe_dump({"x": x})) for group, x in (("a", 1), ("b", 2), ("a", 3))]
    assert distinguish(texts) == ["x=1", "", "x=3"]
    assert distinguish([("a", ""), ("a", "")]) == ["", ""]


def test_fields_of_one_name_are_told_apart_by_their_whole_names() -> None:
    texts = [("g", yaml.safe_dump({"a": {"steps": i}, "b": {"steps": 2 * i}})) for i in (1, 2)]
    assert distinguish(texts) == ["a.steps=1, b.steps=2", "a.steps=2, b.steps=4"]
