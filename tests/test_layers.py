"""Packages import only from those below them, and modules do not import each other in a circle.

Run: pytest tests/test_layers.py
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import casd

ROOT = Path(casd.__file__).parent
LAYERS = (
    *("cli", "reproduction", "planning", "defence", "pipeline", "report", "analysis", "unlearning", "evaluation", "metric"),
    *("backdoors", "activations", "training", "models", "data", "config", "engines", "stats", "utils"),
)
"""From the top down."""


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in ROOT.rglob("*.py")}


def _imports(path: Path) -> set[str]:
    """The project's modules that a module imports, at its top, in functions, or for types."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else node.module
                for alias in node.names
            }
    return {name for name in found if name in MODULES}


IMPORTS = {name: _imports(path) for name, path in MODULES.items() if name not in ("casd", "casd.__main__")}


def test_every_package_has_its_layer() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(LAYERS)
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_imports_point_down() -> None:
    place = {name: number for number, name in enumerate(LAYERS)}
    upward = [
        f"{name} imports {imported}"
        for name, found in IMPORTS.items()
        for imported in found - {"casd"}
        if place[imported.split(".")[1]] < place[name.split(".")[1]]
    ]
    assert upward == []


def test_no_circle_of_modules() -> None:
    TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which names the circle
