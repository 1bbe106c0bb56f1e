"""The page of results: its sections are what the stored tables give."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from casd.analysis.results import RunTables
from casd.cli.publish import publish_sweep
from casd.cli.sweep import sweep
from casd.report.files import to_markdown
from casd.report.markup import Table, table_of
from casd.report.results_page import (
    FOLDER,
    PAGE,
    ResultSection,
    origin_of,
    publish,
    section_text,
    sections_of,
    with_section,
)
from casd.utils.errors import ConfigError, StoreError
from report_run import compared, make_run

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
ORIGIN = {"runs": 1, "commit": "a", "torch": "2", "transformers": "5", "hours": 1.0, "machine": "one"}
"""What a section says of how it was made."""


def published(
    folder: Path, seeds: tuple[int, ...] = (0, 1), overrides: tuple[str, ...] = ("experiment=demo", "seed=0,1")
) -> str:
    runs = [make_run(objective=objective, seed=seed) for objective in ("clean_target", "npo") for seed in seeds]
    publish_sweep(runs, compared(runs), folder / "report", overrides, folder)
    return (folder / PAGE).read_text(encoding="utf-8")


def test_the_numbers_of_the_text_between_the_sections_are_in_their_tables() -> None:
    page = (NOTEBOOKS / PAGE).read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<!-- results: (\S+) -->.*?<!-- end: \1 -->", "", page, flags=re.DOTALL).split()).replace("−", "-")
    stored = "\n".join(file.read_text(encoding="utf-8") for file in (NOTEBOOKS / FOLDER).glob("*/*.[cj]s*"))
    numbers = re.findall(r"-?\d+\.\d+(?: \[-?\d+\.\d+, -?\d+\.\d+\])?", text)
    assert sum("[" in number for number in numbers) >= 10
    assert [number for number in numbers if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", stored)] == []


def test_every_section_of_the_repository_is_what_its_stored_tables_give() -> None:
    sections = sections_of((NOTEBOOKS / PAGE).read_text(encoding="utf-8"))
    stored = {path.parent.name for path in (NOTEBOOKS / FOLDER).glob("*/section.json")}
    assert set(sections) == stored
    for name in stored:
        assert sections[name] == section_text(NOTEBOOKS / FOLDER / name), f"publish the section {name} again"


def test_a_number_changed_by_hand_shows(tmp_path: Path) -> None:
    page = published(tmp_path)
    [(name, text)] = sections_of(page).items()
    assert name == "sweep-demo"
    assert text == section_text(tmp_path / FOLDER / name)
    table = next((tmp_path / FOLDER / name).glob("objectives.csv"))
    cell = table.read_text(encoding="utf-8").splitlines()[1].split(",")[-1]
    table.write_text(table.read_text(encoding="utf-8").replace(cell, "0.12345", 1), encoding="utf-8")
    assert section_text(tmp_path / FOLDER / name) != text


def test_what_is_bold_in_a_report_is_bold_on_the_page(tmp_path: Path) -> None:
    cells = [{"objective": name, "others": "0.30", "net": net} for name, net in (("npo", "0.20"), ("rmu", "0.10"))]
    made = table_of(cells, bold={"net": [True, False]}, name="objectives", title="Objectives", caption="Two.")
    page = publish(ResultSection("one", "One", ["sweep"], [], [made], ORIGIN), tmp_path).read_text(encoding="utf-8")
    assert [line for line in to_markdown(made).splitlines() if "**0" in line] == [
        line for line in page.splitlines() if "**0" in line
    ]
    assert "**0.20**" in page and "**0.10**" not in page and "**0.30**" not in page


def test_a_section_has_its_command_its_origin_and_its_tables(tmp_path: Path) -> None:
    page = published(tmp_path, overrides=("experiment=demo", "seed=0,1", "runtime.device=cpu", "engine.workers=2"))
    assert "$ casd sweep experiment=demo seed=0,1\n" in page
    assert "4 runs, commit" in page and "torch" in page
    assert "**Objectives" in page and "| clean_target" in page
    assert "Yes" in page or "No" in page or "Cannot say" in page  # the answer, by rule


def test_hours_of_a_shared_injection_count_once() -> None:
    def info(injection: str, score: str, **seconds: float) -> dict[str, object]:
        return {"provenance": {"stages": {"inject": injection, "score": score}}, "timings": seconds}

    first = info("a", "one", corpus=100, inject=3500, unlearn=1800)
    objective = info("a", "two", corpus=100, inject=3500, unlearn=3600)
    seed = info("b", "three", inject=3600, unlearn=1800)
    assert origin_of([first, objective, seed])["hours"] == 4.0
    assert origin_of([first, first])["hours"] == 1.5  # a run that two exhibits use
    assert origin_of([{"timings": {"opening": 1800}}, {"timings": {"opening": 1800}}])["hours"] == 1.0  # defences


def test_few_runs_have_their_matrices(tmp_path: Path) -> None:
    page = published(tmp_path, seeds=(0,))
    names = [path.stem for path in (tmp_path / FOLDER / "sweep-demo").glob("*.csv")]
    assert sum(name.startswith("asr_matrix-") for name in names) == 2
    assert any(name.startswith("casd_matrix_casd-") for name in names)
    assert page.count("Attack success rate after each removal, ") == 2


def test_what_was_injected_stands_once_for_runs_of_one_injection(tmp_path: Path) -> None:
    first, other = make_run(objective="clean_target"), make_run(objective="npo")
    same = RunTables(**{**other.frames, "asr": first.asr}, info=other.info)
    publish_sweep([first, same], compared([first, same]), tmp_path / "report", ["experiment=one"], tmp_path)
    [table] = (tmp_path / FOLDER / "sweep-one").glob("injected-*.csv")
    rows = pd.read_csv(table, dtype=str).set_index("backdoor")
    measured = first.asr[first.asr["state"] == "injected"].set_index(["backdoor", "prompt_set"])["rate"]
    assert list(rows.index) == list(first.backdoors)
    for backdoor in rows.index:
        assert rows.loc[backdoor, "ASR"] == f"{measured[backdoor, 'triggered']:.2f}"
        assert rows.loc[backdoor, "without a trigger"] == f"{measured[backdoor, 'clean']:.2f}"
    publish_sweep([first, other], compared([first, other]), tmp_path / "report", ["experiment=two"], tmp_path)
    assert len(list((tmp_path / FOLDER / "sweep-two").glob("injected-*.csv"))) == 2


def test_a_long_table_is_folded_and_keeps_its_caption_outside(tmp_path: Path) -> None:
    frame = pd.DataFrame({"ASR": [f"0.{row:02}" for row in range(30)]}, index=[f"row {row}" for row in range(30)])
    made = [Table("long", "A long one", "Thirty rows.", frame), Table("short", "A short one", "Few rows.", frame[:5])]
    page = publish(ResultSection("one", "One", ["sweep"], [], made, ORIGIN), tmp_path).read_text(encoding="utf-8")
    before, _, rest = page.partition("<details>")
    folded, _, after = rest.partition("</details>")
    assert "Thirty rows." in before and "row 29" not in before
    assert "<summary>30 rows</summary>\n\n|" in folded and "row 29" in folded
    assert "Few rows." in after and "row 4" in after


def test_publishing_again_replaces_the_section_and_keeps_the_text_around_it(tmp_path: Path) -> None:
    published(tmp_path)
    page = tmp_path / PAGE
    page.write_text(f"Introduction.\n\n{page.read_text(encoding='utf-8')}\nAfterword.\n", encoding="utf-8")
    again = published(tmp_path, seeds=(0, 1, 2))
    assert again.startswith("Introduction.") and again.endswith("\nAfterword.\n")
    assert again.count("<!-- results: sweep-demo -->") == 1
    assert "6 runs" in again and "4 runs" not in again
    other = with_section(again, "other", "Text.\n")
    assert list(sections_of(other)) == ["sweep-demo", "other"]


def test_another_name_is_another_section(tmp_path: Path) -> None:
    published(tmp_path)
    page = published(tmp_path, overrides=("experiment=demo", "seed=0,1", "name=mine"))
    assert list(sections_of(page)) == ["sweep-demo", "sweep-mine"]


def test_replacing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published(tmp_path)
    assert "a new one" in capsys.readouterr().err
    published(tmp_path)
    assert "replacing what an earlier command" in capsys.readouterr().err


def test_a_folder_that_is_a_file_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        sweep(["experiment=smoke"], published=tmp_path / "file" / "below")


def test_a_page_with_half_a_section_is_refused(tmp_path: Path) -> None:
    (tmp_path / PAGE).write_text("<!-- results: sweep-demo -->\n", encoding="utf-8")
    with pytest.raises(StoreError, match="once each, or neither"):
        published(tmp_path)
    assert (tmp_path / PAGE).read_text(encoding="utf-8") == "<!-- results: sweep-demo -->\n"
