"""No code that comes with a model or a data set is run: every loader of the package is told so.

Run: python -m pytest tests/test_foreign_code.py
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import datasets

ROOT = Path(__file__).parent.parent
LOADERS = {"from_pretrained", "from_config", "pipeline", "HFLM", "Shrinking", "simple_evaluate"}
"""Names of functions and classes that take `trust_remote_code`. (`Shrinking` is the package's own HFLM.)"""
READS_NO_CODE = {
    ("weights.py", "peft.LoraConfig.from_pretrained"),  # a JSON file
    ("adapters.py", "peft.PeftModel.from_pretrained"),  # weights, for a model that is loaded already
}


def calls(file: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))


def named(call: ast.Call) -> str:
    return ast.unparse(call.func)


def test_every_loader_is_told_to_run_no_code() -> None:
    """Left open, transformers asks on the terminal whether to run code that a folder brings."""
    found = 0
    for file in [*(ROOT / "src" / "casd").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        for call in calls(file):
            name = named(call)
            if name.rpartition(".")[2] not in LOADERS or (file.name, name) in READS_NO_CODE:
                continue
            found += 1
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            value = given.get("trust_remote_code")
            assert isinstance(value, ast.Constant), f"{file.name}, line {call.lineno}: {name} without trust_remote_code=False"
            assert value.value is False, f"{file.name}, line {call.lineno}"
    assert found >= 10, "the loaders have other names now"


def test_datasets_with_code_cannot_be_loaded() -> None:
    """From version 4 on `datasets` has no such thing, and refuses the argument."""
    assert int(datasets.__version__.partition(".")[0]) >= 4
    for file in (ROOT / "src" / "casd").rglob("*.py"):
        for call in calls(file):
            if named(call).endswith("load_dataset"):
                assert "trust_remote_code" not in {keyword.arg for keyword in call.keywords}
