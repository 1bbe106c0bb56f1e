"""Tables as files: Markdown, and LaTeX that fits a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from tabulate import tabulate

from casd.report.markup import Table, numeric_columns
from casd.utils.text import printable

LONG_TABLE_ROWS: Final = 40
"""Tables of more lines are a longtable in LaTeX."""
PAGE_CM, WRAPPED_CM, GAP_CM = 17.0, 4.0, 0.22
"""In LaTeX, widths of a page, of a column of long texts, and of two times \\tabcolsep of 3 pt."""
_NARROW, _WIDE = frozenset(" ijlrtf.,:;|'!()[]-"), frozenset("mw%ρτ×→–−<>=+…")


def to_markdown(table: Table) -> str:
    """The table in GitHub's Markdown, its caption above it."""
    lines: list[list[str]] = []
    labels, texts = table.labels, table.frame.to_numpy()
    for group, rows in table.grouped():
        if group:
            lines.append([f"*{_markdown(group)}*", *[""] * table.frame.shape[1]])
        for row in rows:
            cells = [f"**{cell}**" if table.is_bold(row, i) else cell for i, cell in enumerate(map(_markdown, texts[row]))]
            lines.append([_markdown(labels[row]), *cells])
    align = ("left", *("right" if numeric else "left" for numeric in numeric_columns(table)))
    headings = list(map(_markdown, (table.corner, *table.columns)))
    body = tabulate(lines, headings, tablefmt="pipe", disable_numparse=True, colalign=align)
    stop = "" if table.title.endswith("?") else "."
    return f"**{_markdown(table.title)}{stop}** {_markdown(table.caption)}\n\n{body}\n"


def to_latex(table: Table) -> str:
    """The table in LaTeX with booktabs (longtables where it is long), its caption above it; at most PAGE_CM wide.

    Headings and long texts are wrapped. Columns that do not fit the page continue in a part below, with the row labels again.
    """
    columns = [table.labels, *table.frame.to_numpy().T.tolist()]
    widths = [_column_cm(name, texts) for name, texts in zip((table.corner, *table.columns), columns, strict=True)]
    label = f"tab:{re.sub(r'[^a-z0-9]+', '-', table.name.lower())}"
    stop = "" if table.title.endswith("?") else "."
    caption = f"\\caption{{{_latex(table.title)}{stop} {_latex(table.caption)}}}\n\\label{{{label}}}"
    parts = [_latex_part(table, widths, part) for part in _latex_parts(widths, table.keys)]
    long = len(parts) * (len(table) + len(set(table.groups))) > LONG_TABLE_ROWS
    small = "\\footnotesize\\setlength{\\tabcolsep}{3pt}"
    if long:
        heads = [f"{caption}\\\\\n", *[""] * (len(parts) - 1)]
        body = "".join(
            f"\\begin{{longtable}}{{{form}}}\n{first}\\toprule\n{head}\\midrule\n\\endhead\n{rows}\\bottomrule\n"
            "\\end{longtable}\n"
            for first, (form, head, rows) in zip(heads, parts, strict=True)
        )
        return f"% \\usepackage{{booktabs,longtable}}\n{{{small}\\setlength{{\\LTcapwidth}}{{{PAGE_CM}cm}}\n{body}}}\n"
    body = "\\par\\medskip\n".join(
        f"\\begin{{tabular}}{{{form}}}\n\\toprule\n{head}\\midrule\n{rows}\\bottomrule\n\\end{{tabular}}\n"
        for form, head, rows in parts
    )
    return f"% \\usepackage{{booktabs}}\n\\begin{{table}}[t]\n\\centering{small}\n{caption}\n{body}\\end{{table}}\n"


def _text_cm(text: str) -> float:
    """About how wide a text is in Computer Modern Bold at 8 pt, the size \\footnotesize of a 10 pt document."""
    return sum(0.1 if each in _NARROW else 0.25 if each in _WIDE or each.isupper() else 0.17 for each in text)


def _column_cm(heading: str, texts: Sequence[str]) -> float:
    """The width of a column: that of its longest word and, up to WRAPPED_CM, of its longest text."""
    words = [word for text in (heading, *texts) for word in str(text).split()]
    return max([*map(_text_cm, words), *(min(_text_cm(text), WRAPPED_CM) for text in map(str, texts))], default=0.0)


def _latex_parts(widths: Sequence[float], keys: int) -> list[list[int]]:
    """The columns of each part of a table, as far as they fit beside the labels (column 0) and the first `keys` columns."""
    first = list(range(keys))
    parts: list[list[int]] = [[*first]]
    room = PAGE_CM - sum(widths[: keys + 1]) - GAP_CM * (keys + 1)
    taken = 0.0
    for place, width in list(enumerate(widths[1:]))[keys:]:
        if taken and taken + width + GAP_CM > room:
            parts.append([*first])
            taken = 0.0
        parts[-1].append(place)
        taken += width + GAP_CM
    return parts


def _latex_part(table: Table, widths: Sequence[float], columns: Sequence[int]) -> tuple[str, str, str]:
    """The form of a tabular with the row labels and some columns, its line of headings, and its other lines."""
    numeric, labels, texts = numeric_columns(table), table.labels, table.frame.to_numpy()
    shown = [(table.corner, widths[0], labels, False)]
    shown += [(table.columns[place], widths[place + 1], texts[:, place].tolist(), numeric[place]) for place in columns]
    wrapped = [max(map(_text_cm, cells), default=0.0) > width for _, width, cells, _ in shown]
    form = "".join(
        f"p{{{width:.1f}cm}}" if long else "r" if number else "l"
        for long, (_, width, _, number) in zip(wrapped, shown, strict=True)
    )
    head = " & ".join(_latex_heading(name, width, "r" if number else "l") for name, width, _, number in shown)
    lines: list[str] = []
    for group, rows in table.grouped():
        if group:
            total = sum(width + GAP_CM for _, width, _, _ in shown)
            place = f"p{{{total:.1f}cm}}" if _text_cm(group) > total else "l"
            rule = "\\midrule\n" if lines else ""
            lines.append(f"{rule}\\multicolumn{{{len(shown)}}}{{{place}}}{{\\emph{{{_latex(group)}}}}} \\\\\n")
        for row in rows:
            cells = [(_latex(texts[row, place]), table.is_bold(row, place)) for place in columns]
            bold = [f"\\textbf{{{cell}}}" if marked else cell for cell, marked in cells]
            lines.append(" & ".join([_latex(labels[row]), *bold]) + " \\\\\n")
    return form, f"{head} \\\\\n", "".join(lines)


def _latex_heading(name: str, width: float, align: str) -> str:
    """A heading, in several lines where it is wider than its column."""
    lines = [""]
    for word in name.split():
        if lines[-1] and _text_cm(f"{lines[-1]} {word}") > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    stacked = " \\\\ ".join(map(_latex, lines))
    return stacked if len(lines) == 1 else f"\\shortstack[{align}]{{{stacked}}}"


def write_tables(tables: Iterable[Table], folder: Path, warning: str = "") -> None:
    """Write each table as `NAME.md` and `NAME.tex` into `folder`, each caption beginning with `warning`.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        warned = replace(table, caption=f"{warning} {table.caption}".strip())
        (folder / f"{table.name}.md").write_text(to_markdown(warned), encoding="utf-8")
        (folder / f"{table.name}.tex").write_text(to_latex(warned), encoding="utf-8")


def _one_line(text: str) -> str:
    return " ".join(printable(str(text)).split())


def _markdown(text: str) -> str:
    """Escape what has a meaning in Markdown or HTML; underscores within words have none."""
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
"""What pdflatex reads as a command, or may have no letter for."""


def _latex(text: str) -> str:
    """Escape what has a meaning in LaTeX; the hyphen of a negative number becomes a minus sign."""
    escaped = "".join(_LATEX.get(character, character) for character in _one_line(text))
    escaped = re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)
    # After the end of a line LaTeX would read "[" or "*" as an argument of it.
    return "{}" + escaped if escaped.startswith(("[", "*")) else escaped
