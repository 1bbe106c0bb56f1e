"""Text from names and models on its way to people: no writer lets through what steers a terminal, a page or a spreadsheet.

Run: pytest tests/test_escapes.py
"""

from __future__ import annotations

import csv
import io
import re
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import yaml
from matplotlib.text import Text
from rich.console import Console

from casd.analysis.results import RunTables
from casd.cli.compare import print_two_runs
from casd.cli.main import main
from casd.pipeline.stage import Stage
from casd.pipeline.store import StageStore
from casd.report import print_run, print_sweep, read_runs, write_report, write_sweep_report
from casd.report.files import to_latex, to_markdown
from casd.report.gallery import run_drawings, sweep_drawings
from casd.report.markup import table_of
from casd.utils import progress
from casd.utils.text import printable, spreadsheet_cell
from report_run import compared, make_run, make_scatter

TITLE, CLEAR, FORMULA, REORDERED, C1 = "\x1b]0;owned\x07", "\x1b[2J\r", "=cmd|'/C calc'!A0", "\u202egnp.exe", "$\x9b31m$\x85"
HOSTILE = (TITLE, CLEAR, FORMULA, REORDERED, C1)


def steering(text: str) -> set[str]:
    """The characters of a text that nobody sees and something obeys."""
    return {each for each in text if unicodedata.category(each) in ("Cc", "Cf", "Cs") and each != "\n"}


def hostile_run(seed: int = 0, objective: str = "o\x1b[31m") -> RunTables:
    tables = make_run(HOSTILE, model="m\u2066\x1b[2J", objective=objective, seed=seed, generated="".join(HOSTILE))
    tables.states.loc[1, ["collapsed", "collapse_reason"]] = [True, f"stopped {CLEAR}"]
    tables.relation["note"] = TITLE
    tables.info["provenance"] = {"versions": {TITLE: CLEAR}}
    tables.info["config"] = yaml.safe_dump({"backdoor": {name: {"trigger": f"t {name}"} for name in HOSTILE}})
    tables.info["targets"] = dict.fromkeys(HOSTILE[:2], "one")
    return tables


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, no_rendering: None) -> Path:
    """The report of a run of hostile names and texts, and that over it and another."""
    root = tmp_path_factory.mktemp("hostile")
    tables = hostile_run(0, "o0\x1b[31m")
    write_report(tables, root / "0", make_scatter(tables))
    hostile_run(1, "o1\x1b[31m").write(root / "1")
    write_sweep_report(read_runs([root / "0", root / "1"]), root / "sweep")
    return root


@pytest.mark.parametrize("text", ["", "Le chat, « été » — 猫\u3000犬\n", "a\u00a0b\u202fc", "∅🙂"])
def test_what_can_be_seen_stays(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("\x1b]0;x\x07", r"\x1b]0;x\x07"),
        ("a\rb\tc\x00\x7f", r"a\rb\tc\x00\x7f"),
        ("\x9b31m\x85", r"\x9b31m\x85"),
        ("\u202a\u202e\u2066\u2069\u200f", r"\u202a\u202e\u2066\u2069\u200f"),
        ("\u2028\ud800", r"\u2028\ud800"),
    ],
)
def test_what_steers_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\n =1", "\uff1d1", FORMULA])
def test_no_cell_is_a_formula(text: str) -> None:
    assert spreadsheet_cell(text) == f"'{text}"


def test_other_cells_are_as_they_are() -> None:
    assert [spreadsheet_cell(text) for text in ("a=1", "1-2", "'x", "", "\t=1")] == ["a=1", "1-2", "'x", "", r"\t=1"]


def test_every_text_file_of_a_report_can_be_looked_at(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.suffix in (".md", ".tex", ".csv", ".html")]
    assert {path.suffix for path in files} == {".md", ".tex", ".csv", ".html"}
    assert {path: found for path in files if (found := steering(path.read_bytes().decode()))} == {}


def test_pages_and_the_figures_in_them_are_whole(folder: Path) -> None:
    class Whole(HTMLParser):
        opened: list[str]

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("meta", "img", "br", "link", "input"):
                self.opened.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.opened.pop() == tag

    for path in folder.rglob("report.html"):
        text = path.read_text(encoding="utf-8")
        page = Whole()
        page.opened = []
        page.feed(text)
        page.close()
        assert page.opened == []
        assert text.count("data:image/png;base64,") == (1 if path.parent.name == "sweep" else 3)


@pytest.mark.parametrize("name", ["asr_heatmap", "casd_heatmap", "asr_heatmaps"])
def test_figures_beside_the_page_show_names_and_obey_none(name: str) -> None:
    tables = hostile_run()
    drawings = [*run_drawings(tables, make_scatter(tables)), *sweep_drawings([tables], compared([tables]).objectives)]
    figure = next(drawing.figure for drawing in drawings if drawing.name == name)
    texts = [each.get_text() for each in figure.findobj(Text)]
    assert [text for text in texts if steering(text)] == []
    assert any(r"\x1b]0;owned\x07" in text for text in texts)
    assert any(r"\$\x9b31m\$\x85" in text for text in texts), "dollars are not mathematics"


def test_tables_are_shown_and_read_back_as_they_were(folder: Path) -> None:
    """CSV is for people; Parquet has the text itself, and the numbers are the same in both."""
    made = hostile_run(0, "o0\x1b[31m")
    read = RunTables.read(folder / "0")
    assert read.backdoors == list(HOSTILE)
    assert set(read.samples["generated"]) == {"".join(HOSTILE)}
    pd.testing.assert_frame_equal(read.asr, made.asr)
    shown = pd.read_csv(folder / "0" / "tables" / "asr.csv", float_precision="round_trip")
    assert list(dict.fromkeys(shown["backdoor"])) == [
        *(r"\x1b]0;owned\x07", r"\x1b[2J\r", f"'{FORMULA}", r"\u202egnp.exe", r"$\x9b31m$\x85")
    ]
    for column in ("successes", "n", "rate", "rate_low", "rate_high", "first_token_prob"):
        assert (shown[column].to_numpy() == made.asr[column].to_numpy()).all()
    with (folder / "0" / "tables" / "transfer.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert any(row["suppression_net_phantom"].startswith("-") for row in rows), "a negative number is no formula"
    every = [cell for path in folder.rglob("*.csv") for row in csv.reader(path.open(encoding="utf-8")) for cell in row]
    numbers = re.compile(r"[+-]?[\d.]+(e[+-]\d+)?|-?inf")
    assert [cell for cell in every if cell.lstrip()[:1] in ("=", "+", "-", "@") and not numbers.fullmatch(cell)] == []


def test_columns_are_named_as_safely(tmp_path: Path) -> None:
    tables = make_run(("a", "b"))
    tables.states["utility/\x1b[2J"] = 0.5
    tables.write(tmp_path)
    assert r"utility/\x1b[2J" in pd.read_csv(tmp_path / "tables" / "states.csv").columns
    assert "utility/\x1b[2J" in RunTables.read(tmp_path).states.columns


def test_markup_has_no_control_character() -> None:
    row = {CLEAR: TITLE, C1: C1, "\ud800": f"{CLEAR}\n{REORDERED}"}
    table = table_of([row], groups=[TITLE], bold={C1: [True]}, name="name", title=TITLE, caption=REORDERED)
    for text in (to_markdown(table), to_latex(table)):
        assert steering(text) == set()
        text.encode()
    assert r"\textbackslash{}x1b]0;owned\textbackslash{}x07" in to_latex(table)
    assert r"\\x1b]0;owned\\x07" in to_markdown(table).replace(r"\[", "[").replace(r"\]", "]")


def test_markdown_reads_no_entity_and_strikes_nothing_out() -> None:
    table = table_of([{"": "&#27;", "b": "c"}], name="name", title="a &lt;b&gt; ~~c~~", caption="")
    assert r"**a \&lt;b\&gt; \~\~c\~\~.**" in to_markdown(table)
    assert r"\&#27;" in to_markdown(table)


def test_the_terminal_is_not_steered(folder: Path) -> None:
    runs = read_runs([folder / "0", folder / "1"])
    for width in (60, 200):
        stream = io.StringIO()
        console = Console(file=stream, width=width, highlight=False)
        print_run(runs[0], console, verbose=True)
        print_sweep(runs, compared(runs), console, verbose=True)
        print_two_runs(*runs, console)
        assert steering(stream.getvalue()) == set()
        assert r"\x1b]0;owned\x07" in stream.getvalue() or width == 60


def test_lines_on_stderr_steer_nothing(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    progress.set_progress("auto")
    progress.say(f"Downloading {TITLE}")
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.0)
    with progress.track(f"inject {CLEAR}", 2) as advance:
        advance(note=f"loss {REORDERED}")
    out, err = capfd.readouterr()
    assert out == ""
    assert steering(err) == set()
    assert err.splitlines()[0] == r"Downloading \x1b]0;owned\x07"
    assert r"inject \x1b[2J\r 1/2" in err
    assert r"loss \u202egnp.exe" in err


def test_bars_are_not_steered(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress.track(f"inject {TITLE}", 1) as advance:
        advance(note=f"loss {REORDERED}")
    shown = stream.getvalue()
    assert TITLE not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown


@pytest.mark.parametrize("arguments", [["run", f"{TITLE}=1"], ["compare", CLEAR, TITLE], ["list", TITLE], ["report", CLEAR]])
def test_errors_repeat_nothing_raw(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 1
    err = capfd.readouterr().err
    assert err.startswith("casd: ")
    assert steering(err) == set()
    assert r"\x1b" in err


def test_what_argparse_refuses_is_repeated_safely(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["status", "a", TITLE])
    err = capfd.readouterr().err
    assert steering(err) == set()
    assert r"\x1b]0;owned\x07" in err


def test_the_status_of_a_store_is_not_steered(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    StageStore(tmp_path).run(Stage("evaluate", 1, {}, label=TITLE), lambda place: None)
    main(["status", str(tmp_path), "--all"])
    out = capfd.readouterr().out
    assert steering(out) == set()
    assert r"\x1b]0;owned\x07" in out
