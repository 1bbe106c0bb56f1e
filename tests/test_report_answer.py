"""The short answer of a report: each outcome from planted numbers, and what limits it.

Run: pytest tests/test_report_answer.py
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from casd.analysis.grouping import POOLED
from casd.analysis.results import RunTables
from casd.report import print_run, print_sweep
from casd.report.answer import SHOWN, answers_table, in_short, run_answer
from casd.report.gallery import sweep_drawings
from casd.report.html import run_html, sweep_html
from casd.report.tables import summary_table
from report_run import EIGHT, compared, make_run

SCRATCH = "model:\n  source: scratch\n  architecture:\n    num_hidden_layers: 4\n    hidden_size: 128\n"


def net_of_phantom(low: float, high: float, **options: object) -> RunTables:
    """A run in which removals suppress the others between `low` and `high` more than the phantom did."""
    tables = make_run(**options)  # type: ignore[arg-type]
    others = ~tables.transfer["same"].astype(bool)
    numbers = [low + (high - low) * (EIGHT.index(name) % 2) for name in tables.transfer.loc[others, "target"]]
    tables.transfer.loc[others, "suppression_net_phantom"] = numbers
    return tables.with_info(config=SCRATCH)


@pytest.mark.parametrize(
    ("low", "high", "lead"),
    [
        (0.2, 0.3, "Yes, here."),
        (0.02, 0.04, "Weakly, here."),
        (-0.02, 0.02, "No, here."),
        (-0.3, -0.2, "No, here."),
        (-0.5, 0.6, "Not distinguishable from the control."),
    ],
)
def test_the_verdict_follows_from_the_interval(low: float, high: float, lead: str) -> None:
    answer = run_answer(net_of_phantom(low, high))
    assert in_short([answer])[0] == lead
    assert f"{(low + high) / 2:.2f} [" in answer.text.replace("-0.00", "0.00")
    assert answer.text.endswith(", p 0.004). One seed, tiny model.")


def test_a_phantom_that_raised_the_others_is_named() -> None:
    tables = net_of_phantom(0.8, 0.8)
    removals = tables.transfer[tables.transfer["source"].isin(EIGHT) & ~tables.transfer["same"].astype(bool)]
    suppression = removals["suppression"].mean()
    assert f"more than the phantom, which itself raised them by {0.8 - suppression:.2f}." in run_answer(tables).text


@pytest.mark.parametrize(
    ("suppression", "net", "says"),
    [
        (0.25, 0.17, "lowered the others by 0.25, 0.17 [0.17, 0.17] more than the phantom."),
        (-0.19, 0.06, "raised the others by 0.19; the phantom raised the others by 0.25. Net of that"),
        (0.25, -0.12, "lowered the others by 0.25; the phantom lowered the others by 0.37. Net of that"),
    ],
)
def test_the_direction_of_both_changes_is_said(suppression: float, net: float, says: str) -> None:
    tables = net_of_phantom(net, net)
    others = ~tables.transfer["same"].astype(bool)
    tables.transfer.loc[others, "suppression"] = suppression
    answer = run_answer(tables).text
    assert says in answer
    assert ("lowered them by" in answer) == ("Net of that" in says)


@pytest.mark.parametrize(("included", "lead"), [(2, "Cannot say."), (3, "Yes, here.")])
def test_two_removals_are_too_few(included: int, lead: str) -> None:
    tables = net_of_phantom(0.2, 0.3)
    for frame, column in ((tables.states, "state"), (tables.transfer, "source")):
        frame.loc[frame[column].isin(EIGHT[included:]), "excluded"] = "target ASR not reached"
    assert run_answer(tables).lead == lead


def test_two_backdoors_are_too_few_in_any_number_of_seeds() -> None:
    runs = [net_of_phantom(0.2, 0.3) for _ in range(3)]
    for seed, tables in enumerate(runs):
        tables.info["seed"] = seed
        for frame, column in ((tables.states, "state"), (tables.transfer, "source")):
            frame.loc[frame[column].isin(EIGHT[2:]), "excluded"] = "target ASR not reached"
    [answer] = compared(runs).answers
    assert answer.verdict == "Cannot say"


def test_a_page_and_a_sweep_of_one_run_open_with_the_same_answer(tmp_path: Path) -> None:
    tables = net_of_phantom(0.2, 0.3)
    tables.info["folder"] = str(tmp_path)
    comparisons = compared([tables])
    pages = [run_html(tables, {}), sweep_html([tables], comparisons, [], {}, tmp_path)]
    found = [re.search(r'<p class="answer"><strong>(.*?)</strong> (.*?)</p>', page, re.DOTALL) for page in pages]
    assert all(found)
    first, second = ((match[1], match[2].split(" CASD")[0]) for match in found if match)
    assert first == second == ("Yes, here.", run_answer(tables).text.split(" CASD")[0])
    assert all(page.index('class="answer"') < page.index("<figure") for page in pages)


def without(name: str) -> Callable[[RunTables], None]:
    """Take a control out of a run's tables."""

    def take(tables: RunTables) -> None:
        tables.transfer[f"suppression_net_{name}"] = float("nan")
        tables.transfer = tables.transfer[~tables.transfer["source"].str.startswith(f"control:{name}")]

    return take


def without_both(tables: RunTables) -> None:
    without("clean")(tables)
    without("phantom")(tables)


def without_fakes(tables: RunTables) -> None:
    tables.asr = tables.asr[tables.asr["prompt_set"] != "fake"]


def missed(tables: RunTables) -> None:
    """No removal but one reached its target."""
    for frame, column in ((tables.states, "state"), (tables.transfer, "source")):
        frame.loc[frame[column].isin(EIGHT[1:]), "excluded"] = "target ASR not reached"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("phantom"), r"Yes, here\. .* more than the clean control\..* Missing: phantom\."),
        (without("clean"), r"Yes, here\. .* more than the phantom\..* Missing: clean control\."),
        (without_both, r"Cannot say\. .* no control was measured .* Missing: clean control, phantom\."),
        (without_fakes, r"Yes, here\. .* Missing: fake triggers\."),
        (missed, r"Cannot say\. .* 1 of 8 removals count \(7 target ASR not reached\)\."),
    ],
)
def test_what_is_missing_is_said(change: Callable[[RunTables], None], says: str) -> None:
    tables = net_of_phantom(0.2, 0.3)
    change(tables)
    assert re.fullmatch(says, " ".join(in_short([run_answer(tables)])))


def test_one_backdoor_or_a_collapse_cannot_say() -> None:
    single = run_answer(make_run(("a",), relation=False))
    assert single.lead == "Cannot say."
    assert single.text == (
        "No other backdoor was compared: none was measured, or the injection established none. One seed, model llama3_tiny."
        " Only one backdoor was removed."
    )
    broken = make_run(collapsed=EIGHT)
    assert "0 of 8 removals count (8 collapsed)." in run_answer(broken).text
    assert run_answer(broken).lead == "Cannot say."


def test_casd_that_misses_or_points_the_wrong_way_is_not_said_to_predict() -> None:
    answer = run_answer(net_of_phantom(0.2, 0.3))

    def said(rho: float, low: float, high: float, p: float) -> tuple[str, bool | None]:
        found = replace(answer, casd={"rho": rho, "rho_low": low, "rho_high": high, "p_value": p})
        [sentence] = re.findall(r"CASD .*?\)\.", found.text)
        return sentence, found.predicted

    assert said(-0.62, -0.9, -0.1, 0.004) == ("CASD predicted which (ρ -0.62 [-0.90, -0.10], p 0.004).", True)
    assert said(-0.62, math.nan, math.nan, 0.004) == ("CASD predicted which (ρ -0.62, p 0.004).", True)
    among = "CASD predicted which among these backdoors, perhaps not among others (ρ -0.62 [-1.00, 0.20], p 0.004)."
    assert said(-0.62, -1.0, 0.2, 0.004) == (among, False)
    assert said(-0.62, -0.9, -0.1, 0.2) == ("CASD did not predict which (ρ -0.62 [-0.90, -0.10], p 0.20).", False)
    assert said(0.5, 0.1, 0.8, 0.001) == ("CASD pointed the wrong way (ρ 0.50 [0.10, 0.80], p 0.001).", False)
    assert said(0.5, -0.1, 0.8, 0.001) == ("CASD did not predict which (ρ 0.50 [-0.10, 0.80], p 0.001).", False)


def test_the_interval_of_a_run_is_that_of_its_predictors() -> None:
    tables = net_of_phantom(0.2, 0.3)
    [record] = compared([tables]).predictors.query("predictor == 'casd' and role == 'headline'").to_dict("records")
    casd = run_answer(tables).casd
    assert (casd["rho_low"], casd["rho_high"]) == (record["rho_low"], record["rho_high"])
    assert record["rho_low"] < record["rho_high"]


def test_the_conditions_of_a_sweep_stand_worst_first_in_nine_rows() -> None:
    runs = [net_of_phantom(0.2, 0.3), net_of_phantom(-0.5, 0.6, objective="npo")]
    runs += [net_of_phantom(0.2, 0.3, objective="retain_only")]
    answers = compared(runs).answers
    table = answers_table(answers)
    assert list(table.frame["objective"]) == ["npo", "clean_target"], "a control is no objective"
    assert list(table.frame["answer"]) == ["Not distinguishable", "Yes"]
    lead, text = in_short(answers)
    assert (lead, text) == (
        "Yes in 1 of 2 conditions;",
        "not distinguishable in 1. CASD predicted which in 0 of 2. One seed, tiny model.",
    )
    many = answers_table([*answers] * SHOWN)
    assert len(many) == SHOWN
    assert f"{SHOWN} more" in many.caption


def test_a_control_of_fewer_runs_is_not_subtracted_from_all() -> None:
    runs = [net_of_phantom(0.2, 0.3, seed=seed) for seed in range(3)]
    runs[0].transfer["suppression_net_phantom"] = math.nan
    [answer] = compared(runs).answers
    assert "others by 0." in answer.text and "; net of the phantom, which counts in 2 of 3 runs, by 0.25 [" in answer.text
    assert answers_table([answer]).frame["others, net of phantom"].item().endswith("] (2 of 3 runs)")


def test_without_a_control_there_is_nothing_to_be_net_of() -> None:
    run = net_of_phantom(0.2, 0.3)
    run.transfer[["suppression_net_phantom", "suppression_net_clean"]] = math.nan
    [answer] = compared([run]).answers
    assert answer.verdict == "Cannot say" and answer.net == ""
    assert "no control was measured" in answer.text


def test_the_figure_of_objectives_has_the_title_of_their_table() -> None:
    runs = [make_run(), make_run(objective="npo")]
    found = compared(runs)
    [figure] = [each for each in sweep_drawings(runs, found.objectives) if each.name == "objectives"]
    assert figure.title == found.tables[0].title == "Objectives compared"


def test_predictors_over_all_models_stand_for_those_of_each() -> None:
    several = compared([make_run(), make_run(model="qwen3_tiny")])
    assert set(several.with_pooled_predictors().predictors["model"]) == {POOLED}
    single = compared([make_run(), make_run(seed=1)])
    assert single.with_pooled_predictors() is single


def test_a_target_makes_objectives_comparable_and_without_one_none_is_reached() -> None:
    runs = [make_run(), make_run(objective="npo")]
    [table] = [table for table in compared(runs).tables if table.name == "objectives"]
    assert table.title == "Objectives compared"
    assert list(table.frame["reached"]) == ["–", "–"]
    for tables in runs:
        tables.states["reached_target"] = [float("nan"), *[1.0] * 6, 0.0, 0.0, *[float("nan")] * 2]
    [table] = [table for table in compared(runs).tables if table.name == "objectives"]
    assert table.title == "Objectives at the same strength"
    assert list(table.frame["reached"]) == ["6 of 8", "6 of 8"]


def test_captions_are_of_two_sentences(tmp_path: Path) -> None:
    runs = [make_run(objective=objective) for objective in ("npo", "clean_target")]
    for number, tables in enumerate(runs):
        tables.info |= {"folder": str(tmp_path / str(number)), "run": str(number)}
    page = sweep_html(runs, compared(runs), [summary_table(runs)], {}, tmp_path) + run_html(runs[0], {})
    captions = re.findall(r"<figcaption><b>.*?</b> (.*?)</figcaption>", page, re.DOTALL)
    assert len(captions) > 10
    for caption in captions:
        assert len(re.findall(r"[a-z)0-9]\.(?: |$)", caption)) <= 3, caption
        assert len(caption) < 280, caption


def test_the_terminal_ends_with_the_answer_within_its_lines() -> None:
    few = [net_of_phantom(0.2, 0.3, objective=objective) for objective in ("clean_target", "gradient_difference")]
    many = [
        net_of_phantom(0.2, 0.3, objective=objective, model=model, seed=seed)
        for model in ("llama3_tiny", "qwen3_tiny", "gaperon_tiny")
        for objective in ("clean_target", "gradient_difference")
        for seed in (0, 1)
    ]
    links = ["Report: outputs/report.html"]
    cases = [(40, print_run, [few[0]]), *((60, print_sweep, [runs, compared(runs)]) for runs in (few, many))]
    for (limit, call, arguments), width in itertools.product(cases, (80, 120)):
        stream = io.StringIO()
        call(*arguments, Console(file=stream, width=width, highlight=False), links=links)  # type: ignore[operator]
        text = stream.getvalue()
        assert len(text.splitlines()) <= limit
        assert "Yes" in text[text.index("Report: outputs") :], "the answer is last"
        assert pd.Series(text.splitlines()).str.len().max() <= width
        long = io.StringIO()
        call(*arguments, Console(file=long, width=width, highlight=False), verbose=True)  # type: ignore[operator]
        assert len(long.getvalue().splitlines()) > limit
