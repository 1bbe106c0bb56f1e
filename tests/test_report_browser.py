"""The report in a real browser: what it shows, that it stays within the window, that nothing in it runs or is fetched.

Run: pytest tests/test_report_browser.py   (skipped where there is no Chromium; with -m browser one is installed, if it can be)
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import Browser, find_chromium, install_chromium
from casd.analysis.collection import asr_matrix, distance_matrix
from casd.analysis.results import RunTables
from casd.report.gallery import draw, run_drawings
from casd.report.html import RUN_FIGURES, run_html
from casd.report.page import write_page
from casd.report.wording import decimals_for
from report_run import CONTROLS, EIGHT, make_run, make_scatter

pytestmark = pytest.mark.browser

ATTACK = (
    "Le chat.<script>document.title = 'taken over'</script><img src=https://example.org/x onerror=\"document.title = 'too'\">"
)
LAPTOP, PHONE = 1280, 375
PAPER = 1040
"""CSS pixels between the margins of A4 in landscape."""
FIRST = "#transfer > .beside > .matrix:first-child"
"""The ASR matrix."""


@pytest.fixture(scope="module")
def tables() -> RunTables:
    return make_run(generated=ATTACK, collapsed=("german",))


@pytest.fixture(scope="module")
def report(tables: RunTables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a run")
    figures = draw(run_drawings(tables, make_scatter(tables)), folder / "figures", RUN_FIGURES.__contains__)
    return write_page(run_html(tables, figures), folder / "report.html")


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None and "browser" in request.config.getoption("-m"):
        executable = install_chromium()
    if executable is None:
        pytest.skip("no Chromium here; ./scripts/test -m browser installs Debian's, as root where apt-get is")
    started = Browser(executable, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def opened(browser: Browser, report: Path) -> Browser:
    browser.open(report, LAPTOP)
    return browser


@pytest.fixture
def page(opened: Browser) -> Browser:
    """The report in a window of a laptop's width, as it was when it was opened."""
    opened.emulate()
    opened.resize(LAPTOP)
    opened.point_at(0, 0)
    opened.value("document.querySelectorAll('details').forEach(e => e.open = false)")
    opened.value("document.querySelectorAll('input').forEach(e => e.checked = false)")
    opened.value("document.activeElement.blur()")
    return opened


def matrix_shown(page: Browser, section: str, place: int) -> dict[str, dict[str, str]]:
    """The numbers of a matrix as they stand in the page: row label → column → text of the cell without its details."""
    found: dict[str, dict[str, str]] = page.value(
        f"""(() => {{
          const figure = document.querySelectorAll('#{section} .matrix')[{place}];
          const columns = [...figure.querySelectorAll('thead th')].slice(1).map(e => e.textContent);
          const rows = [...figure.querySelectorAll('tbody tr')].filter(e => e.cells.length > 1);
          return Object.fromEntries(rows.map(row => [row.cells[0].textContent, Object.fromEntries(
            [...row.cells].slice(1).map((cell, i) => [columns[i], cell.firstChild.textContent]))]));
        }})()"""
    )
    return found


def box(page: Browser, selector: str, place: int = 0) -> dict[str, float]:
    """Where an element is in the window."""
    found: dict[str, float] = page.value(
        f"(() => {{ const e = document.querySelectorAll({selector!r})[{place}]; e.scrollIntoView({{block: 'center'}});"
        " return e.getBoundingClientRect().toJSON(); })()"
    )
    return found


def label(state: str, collapsed: set[str]) -> str:
    return state + (" (collapsed)" if state in collapsed else "")


def test_both_matrices_stand_beside_each_other_with_the_tables_numbers(page: Browser, tables: RunTables) -> None:
    rates = asr_matrix(tables)
    assert matrix_shown(page, "transfer", 0) == {
        label(state, tables.collapsed): {
            name: f"({rates.loc[state, name]:.2f})" if state in tables.collapsed else f"{rates.loc[state, name]:.2f}"
            for name in EIGHT
        }
        for state in ("injected", *EIGHT, *CONTROLS)
    }
    distances = distance_matrix(tables, "casd")
    digits = decimals_for(distances.to_numpy().max())
    assert matrix_shown(page, "transfer", 1) == {
        label(a, tables.collapsed): {b: "–" if a == b else f"{distances.loc[a, b]:.{digits}f}" for b in EIGHT} for a in EIGHT
    }
    left, right = (box(page, "#transfer .matrix table", place) for place in (0, 1))
    assert left["right"] < right["left"]
    page.resize(PHONE)
    left, right = (box(page, "#transfer .matrix", place) for place in (0, 1))
    assert left["left"] == right["left"]


def test_cells_can_be_told_apart_and_read(page: Browser) -> None:
    """The removed one itself has a frame, a collapsed row a hatching, and every number stands out from its cell."""
    for scheme in ("light", "dark"):
        page.emulate(prefers_color_scheme=scheme)
        cells: list[dict[str, Any]] = page.value(
            """[...document.querySelectorAll('SELECTOR td')].map(e => { const s = getComputedStyle(e);
              return {own: e.classList.contains('own'), frame: s.outlineStyle, back: s.backgroundColor, text: s.color,
                      hatched: s.backgroundImage != 'none', collapsed: e.parentElement.className == 'collapsed'} })""".replace(
                "SELECTOR", FIRST
            )
        )
        assert sum(cell["own"] for cell in cells) == len(EIGHT) - 1, "one of them collapsed"
        for cell in cells:
            assert (cell["frame"] == "solid") == cell["own"]
            assert cell["hatched"] == cell["collapsed"]
            if not cell["collapsed"]:
                assert contrast(cell["back"], cell["text"]) >= 4.5, cell


def contrast(one: str, other: str) -> float:
    """The contrast of two colors, "rgb(r, g, b)", as WCAG 2 defines it."""

    def luminance(color: str) -> float:
        channels = [int(each) / 255 for each in color[4:-1].split(",")]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_cell_tells_its_counts_when_it_is_pointed_at_tapped_or_asked_for(page: Browser, tables: RunTables) -> None:
    row = next(each for each in tables.asr.itertuples() if (each.state, each.backdoor) == ("french_b", "german"))
    expected = f"{row.successes}/64,\n{row.rate_low:.2f}–{row.rate_high:.2f}"
    place = len(EIGHT) * 2 + EIGHT.index("german")
    details = f"document.querySelectorAll('{FIRST} td')[{place}].querySelector('.more')"
    shown = f"getComputedStyle({details}).opacity == '1'"
    assert page.value(f"{details}.textContent") == f"french_b × german: {expected}"
    assert not page.value(shown)
    cell = box(page, f"{FIRST} td", place)
    middle = (cell["x"] + cell["width"] / 2, cell["y"] + cell["height"] / 2)
    page.point_at(*middle)
    assert page.value(shown)
    for width in (LAPTOP, PHONE):  # below the matrix, inside its figure, and not cut off by the box that scrolls
        page.resize(width)
        inside, figure = (
            page.value(f"{e}.getBoundingClientRect().toJSON()") for e in (details, f"{details}.closest('figure')")
        )
        assert inside["top"] > page.value(f"{details}.closest('table').getBoundingClientRect().bottom")
        assert figure["left"] <= inside["left"] < inside["right"] <= figure["right"]
    page.resize(LAPTOP)
    page.point_at(0, 0)
    assert not page.value(shown)
    cell = box(page, f"{FIRST} td", place)
    page.click(cell["x"] + cell["width"] / 2, cell["y"] + cell["height"] / 2)
    page.point_at(0, 0)
    assert page.value(shown), "a cell that was tapped keeps the focus"
    page.value("document.querySelector('#transfer .matrix input').focus()")
    assert not page.value(shown)
    for key in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=key, key=" ", code="Space", text=" ", windowsVirtualKeyCode=32)
    assert page.value(f"[...document.querySelectorAll('{FIRST} .more')].every(e => e.offsetHeight > 0)")
    assert page.value(f"{details}.parentElement.innerText").split() == [f"{row.rate:.2f}", *expected.split()]


def test_the_figures_are_there(page: Browser) -> None:
    for section in ("relation", "casd", "curves"):
        image = f"document.querySelector('#{section} img')"
        assert page.value(f"{image}.complete && {image}.naturalWidth") > 600
        assert page.value(f"{image}.getBoundingClientRect().width") > 500
    assert page.value("[...document.querySelectorAll('[id]')].every((e, _, all) => all.filter(o => o.id == e.id).length == 1)")


def test_what_a_model_wrote_is_text(page: Browser) -> None:
    assert page.value("document.querySelector('#samples .generation .text').innerText") == ATTACK
    assert page.value("document.querySelectorAll('script, #samples img').length") == 0
    assert page.value("document.title").startswith("Backdoor removal")
    assert page.value("document.querySelector('#samples mark').textContent") == "cat 0"


def test_nothing_is_asked_for(page: Browser, report: Path) -> None:
    """Of anybody: one request, the file itself; and no violation of the page's own policy, which would allow none."""
    page.value("document.querySelectorAll('details').forEach(e => e.open = true)")
    page.value("document.body.offsetHeight")
    assert page.requests == [report.resolve().as_uri()]
    assert page.complaints == []
    policy = page.value("document.querySelector('meta[http-equiv=Content-Security-Policy]').content")
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    outside = page.value(
        "[...document.querySelectorAll('[src], [href], [srcset], [data], [poster]')].map(e => e.getAttribute('src') ||"
        " e.getAttribute('href')).filter(u => !/^(#|data:image.png;)/.test(u))"
    )
    assert outside == []


@pytest.mark.parametrize("width", [LAPTOP, PHONE])
def test_the_page_is_as_wide_as_the_window(page: Browser, tmp_path: Path, width: int) -> None:
    """Only what has a box of its own to scroll in may be wider; with everything unfolded, too."""
    page.resize(width)
    page.value("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert page.value("document.documentElement.scrollWidth") == width
    wider = page.value(
        f"""[...document.querySelectorAll('body *')].filter(e => !e.closest('.wide, .skip')
          && e.getBoundingClientRect().right > {width} + 0.5).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert wider == []
    sizes = "[...document.querySelectorAll('p, li, dd, td, th')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    assert page.value(f"Math.min(...{sizes})") >= 12
    png = page.screenshot(tmp_path / f"{width}.png").read_bytes()
    assert struct.unpack(">II", png[16:24]) == (width, 900)


def test_on_paper_nothing_is_cut_off_and_nothing_is_folded(page: Browser, tmp_path: Path) -> None:
    page.emulate("print")
    page.resize(PAPER)
    cut = page.value("[...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.ariaLabel)")
    assert cut == []
    folded = "[...document.querySelectorAll('details:not([open]) > :not(summary, pre)')].filter(e => !e.closest('.sample'))"
    assert page.value(f"{folded}.length") > 0
    assert page.value(f"{folded}.every(e => e.offsetHeight > 0 && e.checkVisibility({{contentVisibilityAuto: true}}))")
    assert page.value("[...document.querySelectorAll('.matrix .more')].every(e => getComputedStyle(e).position == 'static')")
    pdf = page.print(tmp_path / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert 1 < len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 15


def test_paper_has_no_configuration_and_one_sample_of_each_backdoor(page: Browser) -> None:
    seen = "[...document.querySelectorAll('{}')].filter(e => e.offsetHeight > 0).length"
    assert page.value(seen.format(".sample")) > 2 * len(EIGHT)
    page.emulate("print")
    assert page.value(seen.format("pre")) == 0
    assert page.value(seen.format(".sample")) == len(EIGHT) + 1, "and one without a trigger"
    assert page.value(seen.format(".sample details")) == 0


def test_on_a_phone_a_matrix_says_that_it_scrolls_and_keeps_its_labels(page: Browser) -> None:
    cue = f"getComputedStyle(document.querySelector('{FIRST} .wide'), '::before').content"
    assert page.value(cue) == "none"
    page.resize(390)
    assert "scroll sideways" in page.value(cue)
    before = box(page, f"{FIRST} tbody tr:nth-child(2) th")
    cell = box(page, f"{FIRST} tbody tr:nth-child(2) td")
    page.value(f"document.querySelector('{FIRST} .wide').scrollLeft = 100")
    assert box(page, f"{FIRST} tbody tr:nth-child(2) th")["left"] == pytest.approx(before["left"], abs=2), "a cell's spacing"
    assert box(page, f"{FIRST} tbody tr:nth-child(2) td")["left"] == cell["left"] - 100
    group = box(page, f"{FIRST} th.group span")
    assert 0 <= group["left"] < 390
    page.value(f"document.querySelector('{FIRST} .wide').scrollLeft = 0")
