"""The library's surface: every name resolves, says what it is, is known to type checkers, and importing casd is instant.

Run: pytest tests/test_public_api.py
"""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import casd

HEAVY = ("torch", "transformers", "hydra", "omegaconf", "accelerate", "numpy", "pandas", "scipy", "matplotlib")
NAMES = [name for name in casd.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_resolves_and_says_what_it_is(name: str) -> None:
    value = getattr(casd, name)
    assert callable(value)
    text = inspect.getdoc(value)
    assert text
    assert not text.startswith(f"{name}("), "a dataclass's generated signature is no docstring"
    assert getattr(casd, name) is value


def test_import_casd_loads_nothing_heavy() -> None:
    program = f"import sys, casd; dir(casd); print([name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_dir_lists_the_api_before_it_is_loaded() -> None:
    program = "import casd; print(set(casd.__all__) <= set(dir(casd)), 'inject' in vars(casd))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == ["True", "False"]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"casd.*injekt"):
        _ = casd.injekt  # type: ignore[attr-defined]
    assert not hasattr(casd, "injekt")


def test_the_stub_lists_each_name_once_at_its_home() -> None:
    """What type checkers and editors read is what is imported."""
    tree = ast.parse(Path(casd.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    found = [(alias.name, node.module) for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(name for name, _ in found) == sorted(NAMES)
    for name, module in found:
        assert getattr(casd, name).__module__.startswith(f"casd.{module}"[: len("casd.stats")]), (name, module)
        assert getattr(casd, name).__name__ == name


def test_the_package_tells_type_checkers_that_it_is_typed() -> None:
    assert (Path(casd.__file__).parent / "py.typed").is_file()
