"""Named choices: look-up, construction from a config's parameters, and errors that name the mistake.

Run: python -m pytest tests/test_registry.py
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest

from casd.backdoors.targets import TARGETS
from casd.backdoors.triggers import TRIGGERS
from casd.data.corpora import CORPORA
from casd.unlearning import OBJECTIVES
from casd.unlearning.cleaning import CLEANINGS
from casd.utils.errors import ConfigError
from casd.utils.registry import build, look_up, unknown


@dataclass(frozen=True)
class Example:
    """One field of each kind that the project's choices have."""

    text: str
    number: float = 1.0
    count: int = 1
    flag: bool = False
    names: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    bound: float | None = 2.0
    mode: Literal["fast", "slow"] = "fast"
    sizes: dict[str, dict[str, int]] | None = None
    kind: ClassVar[str] = "example"

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ConfigError("count must not be negative")


REGISTRY = {"example": f"{__name__}:Example", "broken": "casd.no_such_module:Nothing"}


def make(**params: Any) -> Example:
    return build(REGISTRY, "choice", "example", params)


def test_values_that_fit() -> None:
    made = make(text="a", number=3, count=2, flag=True, names=["x", "y"], layers=[0, 1], bound=None, mode="slow")
    assert made == Example("a", 3, 2, True, ("x", "y"), (0, 1), None, "slow")
    assert isinstance(made.names, tuple)
    assert make(text="a", bound=1, layers=None) == Example("a", bound=1)
    assert make(text="a", sizes={"x": {"y": 1}, "z": {}}).sizes == {"x": {"y": 1}, "z": {}}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"text": 3}, "'text' .* is 3; expected str"),
        ({"text": None}, "expected str"),
        ({"text": "a", "number": "1.0"}, "'number' .* expected float"),
        ({"text": "a", "number": True}, "expected float"),
        ({"text": "a", "number": None}, "expected float"),
        ({"text": "a", "count": 1.0}, "expected int"),
        ({"text": "a", "count": True}, "expected int"),
        ({"text": "a", "flag": 1}, "expected bool"),
        ({"text": "a", "flag": "false"}, "expected bool"),
        ({"text": "a", "names": "xy"}, "expected .*str"),
        ({"text": "a", "names": ["x", 1]}, "expected .*str"),
        ({"text": "a", "layers": [0, "1"]}, "expected .*int"),
        ({"text": "a", "bound": "none"}, r"expected float \| None"),
        ({"text": "a", "mode": "medium"}, "expected .*'fast'.*'slow'"),
        ({"text": "a", "sizes": {"x": 1}}, r"expected a mapping from str to a mapping from str to int \| None"),
        ({"text": "a", "sizes": {"x": {"y": 1.5}}}, "expected a mapping"),
        ({"text": "a", "sizes": {1: {"y": 1}}}, "expected a mapping"),
        ({"text": "a", "sizes": ["x"]}, "expected a mapping"),
        ({"text": "a", "conut": 1}, "'conut'.* Did you mean 'count'.*text"),
        ({"text": "a", "kind": "other"}, "Unknown parameter .*'kind'"),
        ({}, "needs the parameter 'text'"),
        ({"text": "a", "count": -1}, "count must not be negative"),
    ],
)
def test_values_that_do_not_fit(params: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as error:
        make(**params)
    assert "\n" not in str(error.value)


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match=r"Unknown choice 'exmaple'\. Did you mean 'example'\? Choices: broken, example"):
        look_up(REGISTRY, "choice", "exmaple")
    assert "Did you mean" not in str(unknown("choice", "zzz", ["example"]))
    assert str(unknown("choice", "x", [])) == "Unknown choice 'x'. Choices: none."


def test_of_hundreds_of_choices_only_the_nearest_are_listed() -> None:
    message = str(unknown("thing", "name7", (f"name{i}" for i in range(1000))))
    assert "Did you mean 'name" in message
    assert len(message) < 300
    assert "1000" in message


def test_a_bug_in_a_module_is_not_taken_for_a_user_s_mistake() -> None:
    with pytest.raises(ModuleNotFoundError):
        look_up(REGISTRY, "choice", "broken")


@pytest.mark.parametrize(
    "registry",
    [CORPORA, TARGETS, TRIGGERS, OBJECTIVES, CLEANINGS],
    ids=["corpora", "targets", "triggers", "objectives", "cleanings"],
)
def test_every_entry_leads_to_a_documented_frozen_dataclass(registry: dict[str, str]) -> None:
    for name in registry:
        cls = look_up(registry, "choice", name)
        assert dataclasses.is_dataclass(cls)
        assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
        hints = typing.get_type_hints(cls)
        for each in dataclasses.fields(cls):
            documented = " ".join(base.__doc__ or "" for base in cls.__mro__)  # a base class's fields in its own docstring
            assert each.name in documented, f"{name}.{each.name} is not documented"
            assert each.name in hints


def test_listing_the_names_imports_no_torch() -> None:
    """`casd list` and error messages are to come at once."""
    code = (
        "import sys, casd.utils.registry, casd.data.corpora, casd.unlearning, casd.cli.main, casd.pipeline.store, casd.config;"
        "sys.exit(', '.join({'torch', 'transformers', 'pandas'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
