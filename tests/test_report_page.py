"""What stands in the report's page beside tables: the design in words, samples, figures as SVG, learning curves.

Run: pytest tests/test_report_page.py
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pandas as pd
import pytest
from matplotlib.figure import Figure

from casd.analysis.tables import SCHEMAS
from casd.config.compose import load_config, to_yaml
from casd.report.curves import learning_curves
from casd.report.design import backdoors_table, design, triggers
from casd.report.html import run_html
from casd.report.matrices import asr_table, casd_table, suppression_table
from casd.report.samples import samples_of
from casd.report.svg import to_svg
from report_run import EIGHT, make_run

# ------------------------------------------------------------------------------------------------ the design in words


@pytest.fixture(scope="module")
def demo() -> str:
    return to_yaml(load_config(["experiment=demo", "weights=lora", "unlearning.stopping.target_asr=0.05"]))


def test_the_design_is_told_from_the_configuration(demo: str) -> None:
    told = dict(design(demo))
    assert list(told) == ["Model", "Text", "Injection", "Removal", "Controls", "Measurement"]
    assert told["Model"] == (
        "llama3_tiny; random weights of the architecture llama, trained for this run; 4 layers, 128 features; float32."
    )
    assert re.match(r"microworld: Seeded short passages.*\. Passages: \d+ to inject with, \d+ to be forgotten", told["Text"])
    assert (
        "from the start, by pretraining on poisoned text: 300 steps of 32 documents, learning rate 0.003" in told["Injection"]
    )
    assert re.search(r" At most \d+ steps of \d documents, learning rate [\d.]+, adapters of rank 16 only\.", told["Removal"])
    assert "attack success rate on held-out prompts is at most 0.05; its best step is kept" in told["Removal"]
    assert "trigger that was never injected (matched)" in told["Controls"]
    assert "64 triggered prompts for each backdoor and model state, continued greedily" in told["Measurement"]
    assert "learning rate 0.0" in told["Removal"]
    tuned = dict(design(demo, "learning_rate=0.5"))["Removal"]
    assert "without a look at the other backdoors: learning_rate=0.5." in tuned
    assert "learning rate 0.0" not in tuned, "the one that was not used"


def test_backdoors_are_told_with_triggers_and_targets(demo: str) -> None:
    table = backdoors_table(demo)
    rows = {row.label: [cell.text for cell in row.cells] for row in table.rows}
    assert rows["french_a"] == ["mirvane osquel", "before a word of the last sentence", "goes on in French", "4%"]
    assert rows["fixed_text"][2] == "says “The silver fox sees all of this.”"
    assert triggers(demo)["german"] == "quandel fesk"
    own = "backdoor:\n  mine:\n    trigger: x y\n    target: {name: rhyme, params: {meter: 5}}\n"
    assert [cell.text for cell in backdoors_table(own).rows[0].cells] == ["x y", "–", "rhyme 5", "–"]


@pytest.mark.parametrize("config", ["", "model:\n  name: <b>\n", "backdoor:\n  a: {}\nunlearning: {}\n"])
def test_what_a_configuration_does_not_have_is_not_told(config: str) -> None:
    assert set(dict(design(config))) <= {"Model", "Controls"}
    assert triggers(config) == {}
    tables = make_run(("a", "b"))
    tables.info["config"] = config
    page = run_html(tables, {})
    assert "<b>.<" not in page
    assert not re.search(r"\b(nan|NaN|None)\b", page)


def test_fake_triggers_that_were_not_evaluated_are_told() -> None:
    tables = make_run(("a", "b"))
    with_fakes = tables.asr.assign(probe="fake")
    tables.asr = tables.asr[tables.asr["probe"] != "fake"]
    assert "this control is missing" in run_html(tables, {})
    tables.asr = pd.concat([tables.asr, with_fakes.drop_duplicates(["state", "backdoor"])], ignore_index=True)
    assert "this control is missing" not in run_html(tables, {})


# ------------------------------------------------------------------------------------------------ samples


def test_samples_are_before_and_after_by_the_first_prompts() -> None:
    tables = make_run(("a", "b"), collapsed=("b",))
    triggered = [
        (state, name, "triggered", f"Say {i} trig {name}", f"{state} {name} {i}", i == 0)
        for state in tables.states["state"]
        for name in "ab"
        for i in range(3)
    ]
    clean = [(state, "", "clean", "Say it", f"clean of {state}", False) for state in tables.states["state"]]
    rows = pd.DataFrame([*reversed(triggered), *clean], columns=list(SCHEMAS["samples"]))
    tables.samples = rows.sort_values("prompt", kind="stable")
    found = samples_of(tables, {"a": "trig a"})
    assert list(found) == ["a", "b", ""]
    first, second = found["a"]
    assert first.prompt == [("Say 0 ", False), ("trig a", True)]
    assert found["b"][0].prompt == [("Say 0 trig b", False)], "a trigger that is not known is not marked"
    assert [(each.state, each.text) for each in first.pair] == [("injected", "injected a 0"), ("a", "a a 0")]
    assert [each.success for each in (*first.pair, *second.pair)] == [True, True, False, False]
    assert [each.state for each in first.others] == ["b", "control:clean", "control:phantom"]
    assert [each.collapsed for each in first.others] == [True, False, False]
    assert second.others == []
    [sample] = found[""]
    assert [each.text for each in sample.pair] == ["clean of injected"]
    assert [each.success for each in (*sample.pair, *sample.others)] == [None] * 5


def test_a_run_without_samples_has_none() -> None:
    tables = make_run(("a", "b"))
    tables.samples = tables.samples.head(0)
    assert samples_of(tables, {}) == {}
    assert "What the models wrote" not in run_html(tables, {})


# ------------------------------------------------------------------------------------------------ matrices


def test_every_cell_has_its_details() -> None:
    tables = make_run(collapsed=("german",))
    row = tables.asr.set_index(["state", "backdoor", "probe"]).loc[("german", "refusal", "fake")]
    table = asr_table(tables, "fake")
    cell = next(each for each in table.rows if each.label == "german").cells[EIGHT.index("refusal")]
    assert cell.detail == f"{row.successes:.0f}/64, {row.rate_low:.2f}–{row.rate_high:.2f}"
    own = casd_table(tables, "casd").rows[0].cells[0]
    assert (own.text, own.shade, own.detail) == ("–", None, "")
    for each in (asr_table(tables), suppression_table(tables, "suppression"), suppression_table(tables, "prob_suppression")):
        assert all(cell.detail for line in each.rows for cell in line.cells)
        assert each.scale is not None


def test_the_darkest_cell_of_a_distance_is_the_smallest_and_controls_set_no_other_scale() -> None:
    tables = make_run(("a", "b", "c"))
    far = pd.DataFrame([("casd", "control:clean", "control:phantom", 9.0, False)], columns=list(SCHEMAS["casd"]))
    tables.casd = pd.concat([tables.casd, far])
    table = casd_table(tables, "casd")
    shades = [cell.shade for row in table.rows for cell in row.cells if cell.shade is not None]
    assert max(shades) == 1, "the largest distance that is shown"
    assert table.scale is not None
    headline = tables.casd[tables.casd["variant"] == "casd"]
    assert table.scale.high == f"{headline.loc[headline['distance'] < 9, 'distance'].max():.3f}"


# ------------------------------------------------------------------------------------------------ figures


def test_a_figure_as_svg_is_small_escaped_and_the_same_each_time() -> None:
    def drawn() -> Figure:
        figure = Figure(figsize=(3, 2))
        axes = figure.subplots()
        axes.plot([0, 1, 2], [0.123456, 3.0, 1.0], marker="o")
        axes.set_title('<script>"&')
        return figure

    svg = to_svg(drawn(), 'the "alt" & <text>')
    assert svg == to_svg(drawn(), 'the "alt" & <text>')
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'the "alt" & <text>'
    names = [element.get("id") for element in root.iter() if element.get("id")]
    used = re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', svg)
    assert set(names) == set(used), "no name that nothing refers to"
    texts = ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("}text")]
    assert '<script>"&' in texts
    assert "<script" not in svg
    assert not re.search(r' d="[^"]*\d\.\d{3}', svg)
    assert "font-family" not in svg
    assert not set(names) & set(re.findall(r'id="([^"]+)"', to_svg(drawn(), "another")))


def test_learning_curves_have_a_line_for_each_state_and_a_dot_where_one_was_chosen() -> None:
    tables = make_run(("a", "b", "c"))
    figure = learning_curves(tables)
    assert figure is not None
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["loss, forget term", "loss, retain term"]
    assert [title.partition(" (")[0] for title in titles[2:]] == [
        *("gradient norm", "own ASR on validation prompts", "clean loss, validation")
    ]
    forget, asr = figure.axes[0], figure.axes[3]
    assert len(forget.lines) == 5, "two controls, too"
    assert list(forget.lines[0].get_ydata()) == [-step for step in range(9)]
    curves = [line for line in asr.lines if len(line.get_xdata()) > 1]
    assert [list(line.get_xdata()) for line in curves] == [[0, 4, 8]] * 3
    assert [list(line.get_xdata()) for line in asr.lines if len(line.get_xdata()) == 1] == [[8]] * 3


def test_without_curves_there_is_no_figure_of_them() -> None:
    tables = make_run(("a", "b"))
    tables.curves = tables.curves.groupby("state").head(1)
    assert learning_curves(tables) is None
    tables.curves = tables.curves.head(0)
    assert learning_curves(tables) is None
