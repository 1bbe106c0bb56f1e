"""The quickstart notebook runs from a fresh kernel, and what it shows is what it says: backdoors in, one out, all measured.

Run: pytest tests/test_notebook.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "quickstart.ipynb"
BACKDOORS = ["french", "german", "fixed_text", "capitals"]
CONTROLS = ["control:clean", "control:phantom"]
CELL_SECONDS = 500

# Run after the notebook's own cells, in the same kernel: what the tests look at, as one line of JSON.
PROBE = """
import json as _json, sys as _sys
print(_json.dumps({
    "asr": casd.asr_matrix(tables).to_dict(orient="index"),
    "clean": casd.asr_matrix(tables, "clean").to_dict(orient="index"),
    "casd": casd.casd_matrix(tables, "casd").to_dict(orient="index"),
    "states": tables.states.set_index("state").to_dict(orient="index"),
    "relation": tables.relation[["variant", "response", "n_backdoors"]].to_dict(orient="records"),
    "hydra": "hydra" in _sys.modules,
}))
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    """The notebook after a run in a kernel of this interpreter, in an empty folder."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(PROBE))
    # Without kernel folders the only kernel is this interpreter's own, whatever is installed for the user.
    manager = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    folder = str(tmp_path_factory.mktemp("notebook"))
    client = NotebookClient(notebook, km=manager, timeout=CELL_SECONDS, resources={"metadata": {"path": folder}})
    return client.execute()


@pytest.fixture(scope="module")
def values(executed: nbformat.NotebookNode) -> dict[str, Any]:
    """What the probe printed."""
    return json.loads(executed.cells[-1].outputs[0]["text"])


def test_backdoors_were_injected_and_are_silent_without_their_triggers(values: dict[str, Any]) -> None:
    assert list(values["asr"]["injected"]) == BACKDOORS
    assert min(values["asr"]["injected"].values()) >= 0.8
    assert max(values["clean"]["injected"].values()) <= 0.1


def test_every_removal_removed_its_own_backdoor(values: dict[str, Any]) -> None:
    assert list(values["asr"]) == ["injected", *BACKDOORS, *CONTROLS]
    for backdoor in BACKDOORS:
        assert values["asr"][backdoor][backdoor] <= 0.25, backdoor
        assert values["states"][backdoor]["clean_loss_ratio"] < 1.2, backdoor
    assert min(values["asr"]["control:clean"].values()) >= 0.6, "clean text alone is no removal"


def test_the_phantom_had_a_gradient_to_follow(values: dict[str, Any]) -> None:
    assert values["states"]["control:phantom"]["forget_gradient_first"] > 0


def test_casd_is_a_distance_between_removals_that_differ(values: dict[str, Any]) -> None:
    matrix = values["casd"]
    assert list(matrix) == [*BACKDOORS, *CONTROLS]
    for a in matrix:
        for b in matrix:
            assert matrix[a][b] == matrix[b][a]
            assert (matrix[a][b] > 0) == (a != b)
    assert {(row["variant"], row["response"]) for row in values["relation"]} == {
        (variant, response) for variant in ("casd", "casd_cos") for response in ("suppression", "prob_suppression")
    }


def test_no_hydra_and_nothing_on_stderr(executed: nbformat.NotebookNode, values: dict[str, Any]) -> None:
    assert values["hydra"] is False
    said = [output["text"] for cell in executed.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"]
    assert said == []


def test_figures_are_shown_inline(executed: nbformat.NotebookNode) -> None:
    shown = [cell.id for cell in executed.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert shown == ["score", "scatter"]


def test_the_stored_notebook_is_whole_and_small() -> None:
    """Stored with the outputs of one run from top to bottom, without errors, and without large figures."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    images = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == 2
    assert max(map(len, images)) * 3 / 4 < 100_000
