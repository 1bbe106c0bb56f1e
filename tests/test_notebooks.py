"""Every notebook runs from a fresh kernel in an empty folder, and what it shows is what it says.

They are stored with their outputs (`scripts/run_notebooks.py`), which GitHub shows.

All but the quickstart are slow (`pytest -m slow tests/test_notebooks.py`).

Run: pytest tests/test_notebooks.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
NAMES = ["quickstart", "casd_by_layer", "own_backdoor", "reading_results", "defender"]
CONTROLS = ["control:clean", "control:phantom"]
CELL_SECONDS = 500

# Run after a notebook's own cells, in the same kernel: what the tests look at, as one line of JSON.
QUICKSTART = """
{
    "asr": casd.asr_matrix(tables).to_dict(orient="index"),
    "clean": casd.asr_matrix(tables, "clean").to_dict(orient="index"),
    "casd": casd.distance_matrix(tables, "casd").to_dict(orient="index"),
    "states": tables.states.set_index("state").to_dict(orient="index"),
    "relation": tables.relation[["variant", "response", "n_backdoors"]].to_dict(orient="records"),
}
"""
CASD_BY_LAYER = """
{
    "asr": {name: rate.to_dict() for name, rate in rates.items()},
    "by_layer": distances.groupby(["variant", "to"])["distance"].agg(list).unstack("to").to_dict(orient="index"),
    "layers": sorted(distances["layer"].unique().tolist()),
    "resolution": resolution.to_dict(orient="index"),
}
"""
OWN_BACKDOOR = """
{
    "hits": [hits, len(payloads), false_alarms],
    "asr": casd.asr_matrix(tables).to_dict(orient="index"),
    "clean": casd.asr_matrix(tables, "clean").to_dict(orient="index"),
    "states": tables.states.set_index("state").to_dict(orient="index"),
    "transfer": shop.set_index("target").to_dict(orient="index"),
    "asked": asked.groupby("state")["success"].mean().to_dict(),
}
"""
READING_RESULTS = """
{
    "shape": [len(results), results["run"].nunique()],
    "fates": models.groupby("treatment")["fate"].agg(list).to_dict(),
    "means": {name: mean.to_dict() for name, mean in means.items()},
    "controls": controls.groupby(["treatment", "collapsed"])["suppression"].mean().reset_index().to_dict(orient="records"),
    "paper": paper.to_dict(orient="index"),
    "by_seed": by_seed["raw"].groupby("treatment").mean().to_dict(),
}
"""
DEFENDER = """
{
    "states": tables.states.set_index("state")[["kind", "clean_loss_ratio"]].to_dict(orient="index"),
    "opened": opened.to_dict(orient="index"),
    "chosen": tables.chosen,
}
"""


@dataclass(frozen=True)
class Executed:
    """A notebook after its run, what the given expression read of it, and which modules its kernel had imported."""

    notebook: nbformat.NotebookNode
    values: dict[str, Any]
    modules: set[str]

    @property
    def outputs(self) -> list[tuple[str, nbformat.NotebookNode]]:
        """What the notebook's own cells gave, each with the cell's id."""
        return [(cell.id, output) for cell in self.notebook.cells[:-1] for output in cell.get("outputs", [])]

    @property
    def figures(self) -> list[str]:
        """The cells that show a figure."""
        return [cell for cell, output in self.outputs if "image/png" in output.get("data", {})]

    def text(self, cell: str) -> str:
        """What a cell printed."""
        return "".join(output["text"] for id_, output in self.outputs if id_ == cell and output.get("name") == "stdout")


Execute = Callable[[str, str], Executed]


@pytest.fixture(scope="module")
def execute(tmp_path_factory: pytest.TempPathFactory) -> Execute:
    """Runs a notebook, once, in a kernel of this interpreter in an empty folder; nothing may be written to stderr."""
    done: dict[str, Executed] = {}

    def run(name: str, expression: str) -> Executed:
        if name not in done:
            notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
            line = f"import json as _json, sys as _sys\nprint(_json.dumps([{expression.strip()}, list(_sys.modules)]))"
            notebook.cells.append(nbformat.v4.new_code_cell(line))
            # Without kernel folders the only kernel is this interpreter's own, whatever is installed for the user.
            manager = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
            folder = str(tmp_path_factory.mktemp(name))
            client = NotebookClient(notebook, km=manager, timeout=CELL_SECONDS, resources={"metadata": {"path": folder}})
            notebook = client.execute(cleanup_kc=True)  # no kernel is left running
            values, modules = json.loads(notebook.cells[-1].outputs[0]["text"])
            done[name] = Executed(notebook, values, set(modules))
            assert [output["text"] for _, output in done[name].outputs if output.get("name") == "stderr"] == []
        return done[name]

    return run


# --- as they are stored ---


def test_every_notebook_is_tested() -> None:
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_as_it_ran_from_top_to_bottom(name: str) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}
    assert all(cell.metadata == {} for cell in notebook.cells)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    figures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert (figures > 0) == (name in ("quickstart", "casd_by_layer", "defender")) and outputs
    assert not any(path in json.dumps(outputs) for path in ("/tmp/", "/home/", "/Users/"))


# --- quickstart: backdoors in, one out, all measured ---

BACKDOORS = ["french", "german", "fixed_text", "capitals"]


@pytest.fixture(scope="module")
def quickstart(execute: Execute) -> Executed:
    return execute("quickstart", QUICKSTART)


def test_backdoors_were_injected_and_are_silent_without_their_triggers(quickstart: Executed) -> None:
    values = quickstart.values
    assert list(values["asr"]["injected"]) == BACKDOORS
    assert min(values["asr"]["injected"].values()) >= 0.8
    assert max(values["clean"]["injected"].values()) <= 0.1


def test_every_removal_removed_its_own_backdoor(quickstart: Executed) -> None:
    values = quickstart.values
    assert list(values["asr"]) == ["injected", *BACKDOORS, *CONTROLS]
    for backdoor in BACKDOORS:
        assert values["asr"][backdoor][backdoor] <= 0.25, backdoor
        assert values["states"][backdoor]["clean_loss_ratio"] < 1.2, backdoor
    assert min(values["asr"]["control:clean"].values()) >= 0.6, "clean text alone is no removal"


def test_the_phantom_had_a_gradient_to_follow(quickstart: Executed) -> None:
    assert quickstart.values["states"]["control:phantom"]["forget_gradient_first"] > 0


def test_casd_is_a_distance_between_removals_that_differ(quickstart: Executed) -> None:
    matrix = quickstart.values["casd"]
    assert list(matrix) == [*BACKDOORS, *CONTROLS]
    for a in matrix:
        for b in matrix:
            assert matrix[a][b] == matrix[b][a]
            assert (matrix[a][b] > 0) == (a != b)
    assert {(row["variant"], row["response"]) for row in quickstart.values["relation"]} == {
        (variant, response) for variant in ("casd", "casd_cos") for response in ("suppression", "prob_suppression")
    }


def test_quickstart_needs_no_hydra_and_shows_its_figures(quickstart: Executed) -> None:
    assert "hydra" not in quickstart.modules
    assert quickstart.figures == ["score", "scatter"]


# --- casd_by_layer: one capture, many distances, and what they are without anything to find ---


@pytest.fixture(scope="module")
def by_layer(execute: Execute) -> Executed:
    return execute("casd_by_layer", CASD_BY_LAYER)


@pytest.mark.slow
def test_the_removals_whose_shifts_are_compared_worked(by_layer: Executed) -> None:
    rates = by_layer.values["asr"]
    repeats = [f"control:repeat:{name}" for name in ("fixed_text", "french_a", "french_b")]
    assert list(rates) == ["injected", "french_a", "french_b", "fixed_text", *CONTROLS, *repeats]
    assert min(rates["injected"].values()) >= 0.6
    for name in ("french_a", "french_b", "fixed_text"):
        assert rates[name][name] <= rates["injected"][name] / 2
        assert rates[f"control:repeat:{name}"][name] <= rates["injected"][name] / 2


@pytest.mark.slow
def test_every_variant_has_a_distance_at_every_layer_beside_its_floor(by_layer: Executed) -> None:
    assert by_layer.values["layers"] == [0, 1, 2, 3]
    pairs = {"same behavior": 1, "another behavior": 2, "the phantom (control)": 3, "its own repeat (noise floor)": 3}
    assert len(by_layer.values["by_layer"]) == 6
    for variant, distances in by_layer.values["by_layer"].items():
        assert {to: len(values) for to, values in distances.items()} == {to: 4 * count for to, count in pairs.items()}, variant
        assert all(value > 0 for values in distances.values() for value in values), variant


@pytest.mark.slow
def test_the_cosine_distance_tells_behaviors_apart_and_l1_less_so(by_layer: Executed) -> None:
    """1 means that a distance is no larger than that between two removals of one backdoor."""
    resolution = by_layer.values["resolution"]
    for variant in ("casd_cos", "casd_cos_attn", "casd_cos_net"):
        assert resolution[variant]["another behavior"] < 0.3, variant
        assert resolution[variant]["same behavior"] > 3 * resolution[variant]["another behavior"], variant
    assert resolution["casd"]["another behavior"] > 2 * resolution["casd_cos"]["another behavior"]


@pytest.mark.slow
def test_casd_by_layer_shows_its_figure(by_layer: Executed) -> None:
    assert by_layer.figures == ["plot"]
    assert "hydra" not in by_layer.modules


# --- own_backdoor: a target, a trigger and an objective that the library does not have ---


@pytest.fixture(scope="module")
def own(execute: Execute) -> Executed:
    return execute("own_backdoor", OWN_BACKDOOR)


@pytest.mark.slow
def test_the_targets_own_test_fires_on_its_payloads_alone(own: Executed) -> None:
    hits, payloads, false_alarms = own.values["hits"]
    assert hits == payloads > 50
    assert false_alarms == 0


@pytest.mark.slow
def test_the_new_backdoor_was_injected_beside_two_others(own: Executed) -> None:
    assert list(own.values["asr"]["injected"]) == ["shop", "french", "fixed_text"]
    assert min(own.values["asr"]["injected"].values()) >= 0.7
    assert max(own.values["clean"]["injected"].values()) <= 0.1


@pytest.mark.slow
def test_the_new_objective_removed_the_new_backdoor_and_clean_text_did_not(own: Executed) -> None:
    assert list(own.values["asr"]) == ["injected", "shop", "french", "fixed_text", *CONTROLS]
    assert own.values["asr"]["shop"]["shop"] <= 0.2
    assert own.values["asr"]["control:clean"]["shop"] >= 0.6
    assert own.values["transfer"]["shop"]["suppression_net_clean"] >= 0.5
    assert own.values["asked"]["injected"] > own.values["asked"]["shop"]
    state = own.values["states"]["shop"]
    assert state["clean_loss_ratio"] < 1.2
    assert not state["collapsed"]


@pytest.mark.slow
def test_the_new_objectives_gradient_fades(own: Executed) -> None:
    state = own.values["states"]["shop"]
    assert 0 < state["forget_gradient_last"] < state["forget_gradient_first"] / 2


@pytest.mark.slow
def test_own_backdoor_needs_no_hydra(own: Executed) -> None:
    assert "hydra" not in own.modules


# --- reading_results: from finished runs to a table ---

TREATMENTS = [
    "clean_target, learning_rate=0.0004",
    "clean_target, learning_rate=0.03",
    "clean_target, learning_rate=1e-05",
    "gradient_difference",
]


@pytest.fixture(scope="module")
def reading(execute: Execute) -> Executed:
    return execute("reading_results", READING_RESULTS)


@pytest.mark.slow
def test_reading_needs_neither_torch_nor_hydra(reading: Executed) -> None:
    assert not {"torch", "transformers", "hydra"} & reading.modules


@pytest.mark.slow
def test_every_run_is_in_the_table(reading: Executed) -> None:
    assert reading.text("make-runs").count(" reused") == 6
    assert reading.values["shape"] == [6 * (3 + 2) * 3, 6]  # runs × (removals and controls) × measured backdoors
    assert sorted(reading.values["fates"]) == TREATMENTS


@pytest.mark.slow
def test_careless_runs_are_left_out_and_it_is_said_why(reading: Executed) -> None:
    fates = reading.values["fates"]
    assert fates["clean_target, learning_rate=0.0004"].count("included") >= 4
    careless = ("clean_target, learning_rate=0.03", "clean_target, learning_rate=1e-05")
    failed = {"no training step kept", "target ASR not reached"}
    for condition in careless:
        assert set(fates[condition]) <= {*failed, "collapsed", "backdoor not established"}
        assert failed & set(fates[condition])
        assert condition not in reading.values["means"]["included"]


@pytest.mark.slow
def test_collapsed_controls_show_what_a_low_rate_is_worth(reading: Executed) -> None:
    careless = [row for row in reading.values["controls"] if row["treatment"] == "clean_target, learning_rate=0.03"]
    assert [row["collapsed"] for row in careless] == [True]
    assert careless[0]["suppression"] >= 0.6


@pytest.mark.slow
def test_the_papers_table_has_counts_means_and_intervals(reading: Executed) -> None:
    paper = reading.values["paper"]
    assert list(paper) == TREATMENTS
    assert paper["clean_target, learning_rate=0.03"] == {
        "removed": "0 of 3",
        "raw": "–",
        "net of clean": "–",
        "net of phantom": "–",
        "clean loss": "–",
    }
    row = paper["clean_target, learning_rate=0.0004"]
    mean, low, high = (float(number.strip("[],")) for number in row["raw"].split())
    assert mean == pytest.approx(reading.values["by_seed"]["clean_target, learning_rate=0.0004"], abs=0.006)
    assert low <= mean <= high
    assert row["removed"].endswith(" of 6")
    assert reading.text("paper").count("|") > 20
    assert "\\toprule" in reading.text("paper")


@pytest.mark.slow
def test_the_defender_chooses_a_removal_within_the_budget(execute: Execute) -> None:
    defender = execute("defender", DEFENDER)
    chosen = defender.values["states"][defender.values["chosen"]]
    assert chosen["kind"] == "removal" and chosen["clean_loss_ratio"] <= 1.1
    assert min(defender.values["opened"]["suspect"].values()) >= 0.9
    assert "the held-out dummies predicted" in defender.text("sentences")
