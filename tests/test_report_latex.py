"""The tables of reports in LaTeX fit a page's width: by the font's own metrics, and by pdflatex where there is one.

Run: pytest tests/test_report_latex.py
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from casd.report.answer import answers_table
from casd.report.files import GAP_CM, PAGE_CM, to_latex
from casd.report.markup import Table, table_of
from casd.report.matrices import asr_table, mean_asr_table
from casd.report.tables import relation_table, run_tables, specificity_table, summary_table
from report_run import EIGHT, compared, make_run

SETTING = "gradient_difference, learning_rate=0.001, steps=64, lora.rank=16"
NAMES = {"textbackslash": "x", "rho": "r", "tau": "t", "times": "x", "ldots": "...", "rightarrow": "->", "le": "<", "ge": ">"}


@pytest.fixture(scope="module")
def tables() -> list[Table]:
    """Those of a run with long names and of a sweep with long settings, whose rows are many."""
    names = (*EIGHT, *(f"{name}_in_capitals" for name in EIGHT))
    run = make_run(names, collapsed=("german",))
    run.states.loc[run.states["state"] == "german", "collapse_reason"] = "75% of the clean prompts answered with a loop"
    runs = [make_run(objective=objective, seed=seed) for objective in ("npo", SETTING) for seed in (0, 1)]
    for each in runs:
        each.baselines = each.casd[["a", "b", "distance"]].assign(predictor="weights_l2")[:28]
        each.relation["excluded"] = "2 collapsed, 1 target ASR not reached"
    comparisons = compared(runs)
    several = [*comparisons.tables, mean_asr_table(runs), summary_table(runs), relation_table(runs), specificity_table(runs)]
    return [*run_tables(run), asr_table(run), *several, answers_table(comparisons.answers)]


def width_cm(cell: str, font: Mapping[int, float]) -> float:
    """The width of a cell's longest line at 8 pt. cmr8, which has no metrics here, is some 7 % wider than cmr10 scaled."""
    lines = re.sub(r"\\shortstack\[\w\]\{(.*)\}$", r"\1", cell.strip()).split(r" \\ ")
    plain = [re.sub(r"\\(\w+)(\{\})?", lambda match: NAMES.get(match[1], ""), line) for line in lines]
    plain = [re.sub(r"[\\${}]", "", line).encode("ascii", "ignore").decode() for line in plain]
    return max(sum(font[ord(each)] for each in line) for line in plain) / 1000 * 8 * 1.07 * 2.54 / 72.27


def test_every_part_of_a_table_fits_the_page_by_the_font_s_widths(tables: list[Table]) -> None:
    metrics = (Path(matplotlib.get_data_path()) / "fonts" / "afm" / "cmr10.afm").read_text(encoding="latin-1")
    font = {int(code): float(width) for code, width in re.findall(r"^C (\d+) ; WX ([\d.]+)", metrics, re.MULTILINE)}
    font |= dict.fromkeys(map(ord, " _"), 333.0) | dict.fromkeys(map(ord, "<>"), 778.0)
    for table in tables:
        for part in re.findall(r"\\begin\{(?:tabular|longtable)\}(.*?)\\end\{", to_latex(table), re.DOTALL):
            form = re.match(r"\{((?:[lr]|p\{[\d.]+cm\})*)\}", part)
            assert form
            columns = re.findall(r"[lr]|p\{[\d.]+cm\}", form[1])
            rows = [row for row in re.findall(r"^(.*) \\\\$", part, re.MULTILINE) if not re.match(r"\\(multi|cap|lab)", row)]
            widths = np.array([[width_cm(cell, font) for cell in re.split(r"(?<!\\)&", row)] for row in rows]).max(axis=0)
            fixed = [
                float(column[2:-3]) if column.startswith("p") else width for column, width in zip(columns, widths, strict=True)
            ]
            assert sum(fixed) + GAP_CM * len(columns) <= PAGE_CM, table.name
            assert len(columns) > 1


def test_pdflatex_finds_nothing_overfull(tables: list[Table], tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex here")
    body = "\n\\clearpage\n".join(map(to_latex, tables))
    (tmp_path / "tables.tex").write_text(
        f"\\documentclass{{article}}\\usepackage[a4paper,textwidth={PAGE_CM}cm,textheight=25cm]{{geometry}}"
        f"\\usepackage{{booktabs,longtable}}\\begin{{document}}\n{body}\n\\end{{document}}\n"
    )
    for _ in range(2):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert "Float too large" not in done.stdout


def test_rows_of_a_split_table_can_be_told_apart() -> None:
    rows = [
        {"model": "m", "seed": str(seed)} | {f"a rather long heading {i}": f"0.{i:02d} [0.10, 0.20]" for i in range(12)}
        for seed in range(2)
    ]
    table = table_of(rows, name="summary", title="", caption="")
    assert table.keys == 1
    text = to_latex(table)
    assert text.count(r"\begin{tabular}") > 1
    assert len(re.findall(r"^m & 0 & ", text, re.MULTILINE)) == text.count(r"\begin{tabular}")
