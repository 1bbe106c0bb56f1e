"""A page of a report: sections of blocks, rendered into one self-contained HTML file without scripts or links to resources.

Generated text is untrusted: everything passes through jinja2's escaping, and characters that are invisible or that reorder a
line are shown as their escape sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jinja2

from casd import __version__
from casd.analysis.results import RunTables
from casd.report.drawing import cell_colors
from casd.report.markup import Table, numeric_columns
from casd.report.wording import broken_injections
from casd.utils.atomic import write_text
from casd.utils.text import printable

LONGEST_TEXT: Final = 600
"""Characters of a prompt or generation that are shown."""
SHADES: Final = 24
"""Steps in which the colors of a matrix are given, a CSS class for each: shorter than a color in each cell."""


@dataclass(frozen=True)
class Block:
    """A part of a section; `kind` is the macro in `macros.html.j2` that shows `content`."""

    kind: str
    content: Any
    title: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    anchor: str
    title: str
    blocks: list[Block] = field(default_factory=list)


def table_block(table: Table, *, folded: bool = False) -> Block:
    """A table with its caption."""
    return Block("table", table, table.title, folded)


def matrices_block(tables: Sequence[Table], title: str = "", *, folded: bool = False) -> Block:
    """Matrices beside each other, where there is room."""
    return Block("matrices", [table for table in tables if len(table)], title, folded)


def warning_blocks(runs: Sequence[RunTables]) -> list[Block]:
    """The warning at the top of a page if the injected model of a run is broken."""
    warning = broken_injections(runs)
    return [Block("warning", warning)] if warning else []


def render(
    title: str, question: str, facts: Mapping[str, Any], sections: Sequence[Section], answer: tuple[str, str] | None = None
) -> str:
    """The page as text: the question and its short answer, a few facts, the sections that have blocks."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": lambda value: visible(str(value), limit=1_000_000), "excerpt": visible}
    environment.globals |= {"numeric_columns": numeric_columns, "cell_classes": _cell_classes}
    steps = [step / (SHADES - 1) for step in range(SHADES)]
    return environment.get_template("template.html.j2").render(
        title=title,
        question=question,
        answer=answer,
        facts=facts,
        sections=[section for section in sections if section.blocks],
        palettes={name: [cell_colors(name, step) for step in steps] for name in ("viridis", "viridis_r", "cividis")},
        version=__version__,
    )


def write_page(text: str, path: Path) -> Path:
    """Write a page; returns its path.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def visible(text: str, limit: int = LONGEST_TEXT) -> str:
    """At most `limit` characters of a text, invisible and reordering ones as escape sequences."""
    shown = printable(text[:limit])
    return shown if len(text) <= limit else f"{shown} … ({len(text):,} characters)"


def _cell_classes(table: Table, row: int, column: int) -> str:
    """The CSS classes of a cell: its color, whether it is emphasized, or that it is a rate of a collapsed model."""
    shade = table.shade_of(row, column)
    classes = [] if shade is None else [f"s{round(shade * (SHADES - 1))}"]
    if (
        shade is None
        and table.shade is not None
        and table.is_collapsed(row)
        and str(table.frame.iat[row, column]).startswith("(")
    ):
        classes.append("void")
    if table.is_bold(row, column):
        classes.append("own" if table.scale else "best")
    return " ".join(classes)
