"""Reports of a run whose injected model is broken begin with that, and show no rate of a model without a finite loss.

Run: pytest tests/test_broken_injection.py
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from casd.analysis.results import RunTables
from casd.cli.compare import cells_table, print_two_runs
from casd.report import print_run, print_sweep, print_warning
from casd.report.files import to_markdown, write_tables
from casd.report.html import run_html, sweep_html
from casd.report.matrices import asr_table
from casd.report.statements import statements
from casd.report.tables import asr_long_table, run_tables
from casd.report.wording import BROKEN_NAMED, broken_injections
from report_run import compared, make_run

REASON = "clean loss 11.02 nats per token, expected at most 6.40"
WARNING = f"The injected model is broken: {REASON}."


def broken_run(seed: int = 0) -> RunTables:
    """As `casd.analysis.states` gives it: every state counts as collapsed."""
    tables = make_run(("a", "b", "c"), seed=seed, collapsed=("injected", "a", "b", "c", "control:clean", "control:phantom"))
    tables.states["collapse_reason"] = [REASON, *["the injected model is broken"] * 5]
    tables.transfer[[column for column in tables.transfer if "suppression" in column]] = math.nan
    tables.relation[["rho", "p_value"]] = math.nan
    return tables


def said(call: Callable[..., object], *arguments: object) -> str:
    """On a terminal so wide that no line is folded."""
    stream = io.StringIO()
    call(*arguments, Console(file=stream, width=400, highlight=False))
    return stream.getvalue()


def words(page: str) -> str:
    """The text of a page's main part."""
    return " ".join(re.sub(r"<[^>]*>", " ", page[page.index("<main") :]).split())


def test_the_page_begins_with_it() -> None:
    page = words(run_html(broken_run(), {}))
    assert page.startswith(f"In short {WARNING}")
    assert "No model collapsed" not in page
    assert f"injected: {REASON}." in page
    assert "injected (collapsed)" in page


def test_the_terminal_says_it_before_the_answer() -> None:
    lines = said(print_run, broken_run()).split("\n")
    assert [line for line in lines if line.strip()][-2].startswith(WARNING)
    assert statements(broken_run())[0].startswith(WARNING)
    runs = [make_run(("a", "b", "c")), broken_run(1)]
    lines = [line for line in said(print_sweep, runs, compared(runs)).split("\n") if line.strip()]
    assert lines[-2].startswith("The injected model of these runs is broken: llama3_tiny, ")
    assert f"seed 1 ({REASON})" in lines[-2]
    assert "seed 0" not in lines[-2]
    assert lines[-1].startswith("Cannot say in 1 of 1 conditions") or "seeds" in lines[-1]
    assert said(print_two_runs, *runs).lstrip().startswith("The injected model of these runs is broken: ")


def test_every_table_on_the_disk_begins_with_it(tmp_path: Path) -> None:
    tables = broken_run()
    write_tables(run_tables(tables), tmp_path, broken_injections([tables]))
    files = [*tmp_path.glob("*.md"), *tmp_path.glob("*.tex")]
    assert len(files) > 10
    for file in files:
        assert re.match(
            r"(\*\*[^*]*\*\* |%.*\n(?:.*\n)*?\\caption\{[^.]*?\. )The injected model is broken", file.read_text()
        ), file


def test_reports_over_runs_begin_with_it(tmp_path: Path) -> None:
    runs = [make_run(("a", "b", "c"), seed=0), make_run(("a", "b", "c"), seed=1), broken_run(2)]
    for number, tables in enumerate(runs):
        tables.info |= {"folder": str(tmp_path / str(number)), "run": str(number)}
    comparisons = compared(runs)
    page = words(sweep_html(runs, comparisons, [], {}, tmp_path))
    assert page.startswith("In short The injected model of these runs is broken: llama3_tiny, clean_target, seed 2 (")


def test_of_many_broken_runs_some_are_named() -> None:
    runs = [broken_run(seed) for seed in range(BROKEN_NAMED + 2)]
    text = broken_injections(runs)
    assert f"seed {BROKEN_NAMED - 1} (" in text
    assert f"seed {BROKEN_NAMED} (" not in text
    assert "; and 2 more runs." in text
    assert broken_injections([runs[0], runs[0]]).count("seed 0") == 1


def test_of_a_run_that_is_not_broken_nothing_is_said() -> None:
    tables = make_run(("a", "b", "c"), collapsed=("a",))
    assert broken_injections([tables]) == ""
    assert said(print_warning, [tables]) == ""
    assert "broken" not in words(run_html(tables, {}))


@pytest.fixture
def without_rates() -> RunTables:
    """A run in which the model without "b" has no finite loss."""
    tables = make_run(("a", "b", "c"), collapsed=("b",))
    tables.asr.loc[tables.asr["state"] == "b", ["rate", "rate_low", "rate_high", "first_token_prob"]] = math.nan
    return tables


def test_no_rate_is_shown_of_a_model_without_any(without_rates: RunTables) -> None:
    assert list(asr_table(without_rates).frame.loc["b"]) == ["–", "–", "–"]
    assert "b (collapsed)" in asr_table(without_rates).labels
    long = asr_long_table(without_rates).frame.loc["b"].drop(columns="measured")
    assert long.to_numpy().tolist() == [["–", "– to –", *["–"] * 4]] * 3
    assert "nan" not in to_markdown(asr_long_table(without_rates))


def test_cells_without_a_rate_are_no_difference(without_rates: RunTables) -> None:
    table = cells_table(make_run(("a", "b", "c"), seed=1), without_rates)
    assert len(table)
    assert not any(label.startswith("b →") for label in table.labels)
