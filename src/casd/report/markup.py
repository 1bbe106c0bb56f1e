"""Tables as data, and as Markdown and LaTeX text. HTML and the terminal show the same `Table`s."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from casd.utils.text import printable

LONG_TABLE_ROWS: Final = 40
"""More rows than this become a longtable in LaTeX."""
_NUMBER: Final = re.compile(r"[(<+]?-?\d[\d.,/%]*(e[+-]\d+)?\)?( \(.*\)| to -?[\d.]+| \[.*\]| of \d+)?|–")


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: what it says.
        shade: in [0, 1], colors it where colors can be had; None for no color.
        own: whether it is of the removed backdoor itself.
        detail: what more is known of its number, for where there is room for that; may be empty.
        best: whether it is of the best of a group of rows.
    """

    text: str
    shade: float | None = None
    own: bool = False
    detail: str = ""
    best: bool = False

    @property
    def bold(self) -> bool:
        """Whether it is to stand out."""
        return self.own or self.best


@dataclass(frozen=True)
class Scale:
    """What the shades of a table mean.

    Attributes:
        colors: name of a matplotlib color map.
        low: the value that shade 0 stands for.
        high: the value that shade 1 stands for.
        details: what the cells' details are; empty if they have none.
    """

    colors: str
    low: str
    high: str
    details: str = ""


@dataclass(frozen=True)
class Row:
    """A labelled row."""

    label: str
    cells: tuple[Cell, ...]
    collapsed: bool = False

    @property
    def title(self) -> str:
        """The label, with "(collapsed)" where the model did."""
        return f"{self.label} (collapsed)" if self.collapsed else self.label


@dataclass(frozen=True)
class Table:
    """A table to show.

    Attributes:
        name: stem of its files.
        title: a few words.
        caption: which run, how many prompts, what a cell means.
        corner: heading of the row labels.
        columns: headings of the other columns.
        groups: (name, rows) blocks, set apart from each other; the name may be empty.
        scale: what the cells' shades mean, if they have any.
    """

    name: str
    title: str
    caption: str
    corner: str
    columns: tuple[str, ...]
    groups: tuple[tuple[str, tuple[Row, ...]], ...]
    scale: Scale | None = None

    @property
    def rows(self) -> list[Row]:
        """All rows, in order."""
        return [row for _, rows in self.groups for row in rows]


def to_markdown(table: Table) -> str:
    """The table in GitHub's Markdown, its caption above it."""
    from tabulate import tabulate  # here: it takes as long to import as many tables to write

    lines = []
    for number, (name, rows) in enumerate(table.groups):
        if name or number:
            lines.append([f"*{_markdown(name)}*" if name else "", *[""] * len(table.columns)])
        for row in rows:
            cells = [f"**{_markdown(cell.text)}**" if cell.bold else _markdown(cell.text) for cell in row.cells]
            lines.append([_markdown(row.title), *cells])
    body = tabulate(
        lines,
        headers=[_markdown(heading) for heading in (table.corner, *table.columns)],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=("left", *("right" if numeric else "left" for numeric in numeric_columns(table))),
    )
    return f"**{_markdown(table.title)}.** {_markdown(table.caption)}\n\n{body}\n"


def to_latex(table: Table) -> str:
    """The table in LaTeX with booktabs (a longtable where it is long), its caption above it."""
    columns = "l" + "".join("r" if numeric else "l" for numeric in numeric_columns(table))
    label = re.sub(r"[^a-z0-9]+", "-", table.name.lower())
    head = f"\\caption{{{_latex(table.title)}. {_latex(table.caption)}}}\n\\label{{tab:{label}}}"
    lines = ["\\toprule", _latex_line(map(_latex, (table.corner, *table.columns)))]
    for name, rows in table.groups:
        lines.append("\\midrule")
        if name:
            lines.append(_latex_line([f"\\emph{{{_latex(name)}}}", *[""] * len(table.columns)]))
        for row in rows:
            cells = [f"\\textbf{{{_latex(cell.text)}}}" if cell.bold else _latex(cell.text) for cell in row.cells]
            lines.append(_latex_line([_latex(row.title), *cells]))
    lines.append("\\bottomrule")
    body = "\n".join(lines)
    if len(table.rows) > LONG_TABLE_ROWS:
        needs = "booktabs,longtable"
        text = f"\\begin{{longtable}}{{{columns}}}\n{head} \\\\\n{body}\n\\end{{longtable}}"
    else:
        needs = "booktabs"
        text = (
            f"\\begin{{table}}[t]\n\\centering\\footnotesize\\setlength{{\\tabcolsep}}{{4pt}}\n{head}\n"
            f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n\\end{{table}}"
        )
    return f"% \\usepackage{{{needs}}}\n{text}\n"


def write_tables(tables: Iterable[Table], folder: Path, warning: str = "") -> None:
    """Write each table as `NAME.md` and `NAME.tex` into `folder`.

    Args:
        tables: what to write.
        folder: where.
        warning: what each caption begins with; may be empty.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        table = replace(table, caption=f"{warning} {table.caption}".strip())
        (folder / f"{table.name}.md").write_text(to_markdown(table), encoding="utf-8")
        (folder / f"{table.name}.tex").write_text(to_latex(table), encoding="utf-8")


def numeric_columns(table: Table) -> list[bool]:
    """For each column, whether all its cells are numbers (or missing): such columns are set flush right."""
    return [all(_NUMBER.fullmatch(row.cells[i].text) for row in table.rows) for i in range(len(table.columns))]


def _one_line(text: str) -> str:
    return " ".join(printable(str(text)).split())


def _markdown(text: str) -> str:
    """Text without meaning to Markdown or HTML; underscores within words have none and stay."""
    text = re.sub(r"([\\|`*<\[\]&~])", r"\\\1", _one_line(text))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


_LATEX: Final = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "{}$&#_%"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": "$<$",
    ">": "$>$",
    **{character: f"$\\{name}$" for character, name in zip("ραβγτ", ("rho", "alpha", "beta", "gamma", "tau"), strict=True)},
    "²": r"\textsuperscript{2}",
    "→": r"$\rightarrow$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "…": r"\ldots{}",
    "−": "$-$",
    "×": r"$\times$",
    "–": "--",
    "“": "``",
    "”": "''",
}


def _latex(text: str) -> str:
    """Text without meaning to LaTeX; the minus sign of a number becomes a real one."""
    escaped = "".join(_LATEX.get(character, character) for character in _one_line(text))
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)


def _latex_line(cells: Iterable[str]) -> str:
    # {} keeps a first cell that starts with "[" or "*" from being read as an argument of the line break before it.
    return " & ".join("{}" + cell if cell.startswith(("[", "*")) else cell for cell in cells) + r" \\"
