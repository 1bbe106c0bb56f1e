"""What stands in the report's page beside tables: the settings, samples, learning curves.

Run: pytest tests/test_report_page.py
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from casd.analysis.tables import SCHEMAS
from casd.config.compose import load_config, to_yaml
from casd.report.curves import learning_curves
from casd.report.html import run_html
from casd.report.matrices import asr_table, casd_table, suppression_table
from casd.report.samples import samples_of
from casd.report.settings import backdoors_table, settings_table, triggers
from report_run import EIGHT, make_run

# ------------------------------------------------------------------------------------------------ settings


@pytest.fixture(scope="module")
def demo() -> str:
    return to_yaml(load_config(["experiment=demo", "weights=lora", "unlearning.stopping.target_asr=0.05"]))


def test_the_settings_are_those_of_the_configuration(demo: str) -> None:
    shown = dict(settings_table(demo).frame["value"])
    assert shown["model"] == "llama3_tiny"
    assert shown["injection: learning rate"] == "0.003"
    assert shown["objective"] == "gradient_difference"
    assert "retain_weight=4.0" in shown["objective: parameters"]
    assert (shown["removal: steps"], shown["removal: learning rate"]) == ("20", "0.0003")
    assert shown["removal: target ASR on validation prompts"] == "0.05"
    assert (shown["controls: phantoms"], shown["seed"]) == ("matched", "0")
    assert "removal: largest ratio of the clean loss" not in shown, "it is off"
    tuned = dict(settings_table(demo, "learning_rate=0.5").frame["value"])
    assert tuned["removal: chosen by tuning"] == "learning_rate=0.5"
    assert "removal: learning rate" not in tuned, "the one that was not used"


def test_backdoors_are_shown_with_triggers_and_targets(demo: str) -> None:
    rows = backdoors_table(demo).frame
    assert list(rows.loc["french_a"]) == ["mirvane osquel", "random", "language language=fr", "4%", "all"]
    assert rows.loc["fixed_text", "target"] == "fixed_text text=The silver fox sees all of this."
    assert triggers(demo)["german"] == "quandel fesk"
    own = "backdoor:\n  mine:\n    trigger: x y\n    target: {name: rhyme, params: {meter: 5}}\n"
    assert list(backdoors_table(own).frame.loc["mine"]) == ["x y", "–", "rhyme meter=5", "–", "–"]


@pytest.mark.parametrize("config", ["", "model:\n  name: <b>\n", "backdoor:\n  a: {}\nunlearning: {}\n"])
def test_a_setting_that_the_configuration_lacks_is_left_out(config: str) -> None:
    assert len(settings_table(config)) == ("model" in config)
    assert triggers(config) == {}
    tables = make_run(("a", "b"))
    tables.info["config"] = config
    page = run_html(tables, {})
    assert "<b>.<" not in page
    assert not re.search(r"\b(nan|NaN|None)\b", page)


def test_fake_triggers_that_were_not_evaluated_are_told() -> None:
    tables = make_run(("a", "b"))
    with_fakes = tables.asr.assign(prompt_set="fake")
    tables.asr = tables.asr[tables.asr["prompt_set"] != "fake"]
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
    row = tables.asr.set_index(["state", "backdoor", "prompt_set"]).loc[("german", "refusal", "fake")]
    table = asr_table(tables, "fake")
    assert table.detail is not None
    place = list(table.frame.index).index("german"), EIGHT.index("refusal")
    assert table.detail[place] == f"{row.successes:.0f}/64, {row.rate_low:.2f}–{row.rate_high:.2f}"
    distances = casd_table(tables, "casd")
    assert distances.detail is not None
    assert (distances.frame.iat[0, 0], distances.shade_of(0, 0), distances.detail[0, 0]) == ("–", None, "")
    for each in (asr_table(tables), suppression_table(tables, "suppression"), suppression_table(tables, "prob_suppression")):
        assert each.detail is not None
        assert each.detail.all()
        assert each.scale is not None


def test_the_darkest_cell_of_a_distance_is_the_smallest_and_controls_set_no_other_scale() -> None:
    tables = make_run(("a", "b", "c"))
    far = pd.DataFrame([("casd", "control:clean", "control:phantom", 9.0, False)], columns=list(SCHEMAS["casd"]))
    tables.casd = pd.concat([tables.casd, far])
    table = casd_table(tables, "casd")
    assert table.shade is not None
    assert np.nanmax(table.shade) == 1, "the largest distance that is shown"
    assert table.scale is not None
    headline = tables.casd[tables.casd["variant"] == "casd"]
    assert table.scale.high == f"{headline.loc[headline['distance'] < 9, 'distance'].max():.3f}"


# ------------------------------------------------------------------------------------------------ figures


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
