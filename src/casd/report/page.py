"""A page of a report: sections of blocks, rendered into one self-contained HTML file with no script and nothing fetched.

What a model generated is text from an untrusted source: everything passes through jinja2's escaping, and characters that
cannot be seen or that reorder a line are shown as their escape sequences.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jinja2

from casd import __version__
from casd.analysis.results import RunTables
from casd.config.states import CONTROL_PREFIX
from casd.report.colors import palette, step_of, text_on
from casd.report.markup import Cell, Row, Table, numeric_columns
from casd.report.wording import MISSING, broken_injections
from casd.utils.atomic import write_text
from casd.utils.text import printable

LONGEST_TEXT: Final = 600
"""Characters of a prompt or generation that are shown."""


@dataclass(frozen=True)
class Block:
    """A piece of a section; `kind` says which macro of the template shows `content`."""

    kind: str
    content: Any
    title: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A titled part of the report."""

    anchor: str
    title: str
    blocks: list[Block] = field(default_factory=list)


def table_block(table: Table, *, folded: bool = False) -> Block:
    """A table as text."""
    return Block("table", {"table": table, "numeric": numeric_columns(table)}, table.title, folded)


def matrices_block(tables: Sequence[Table], title: str = "", *, folded: bool = False) -> Block:
    """Matrices beside each other, where there is room."""
    return Block("matrices", [table for table in tables if table.rows], title, folded)


def warning_blocks(runs: Sequence[RunTables]) -> list[Block]:
    """What a page begins with where the injected model of a run is broken."""
    warning = broken_injections(runs)
    return [Block("warning", warning)] if warning else []


@functools.cache
def template() -> jinja2.Template:
    """The page's, compiled, which takes about as long as to fill it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": lambda value: visible(str(value), limit=1_000_000), "excerpt": visible}
    environment.globals |= {"row_title": _row_title, "cell_classes": _cell_classes}
    return environment.get_template("template.html.j2")


def render(title: str, question: str, facts: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """The page as text: the question, a few facts, the sections."""
    return template().render(
        title=title,
        question=question,
        facts=facts,
        sections=[section for section in sections if section.blocks],
        palettes={name: _palette(name) for name in _color_maps(sections)},
        version=__version__,
    )


def write_page(text: str, path: Path) -> Path:
    """Write a report; returns its path.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def visible(text: str, limit: int = LONGEST_TEXT) -> str:
    """Text as it can be shown: at most `limit` characters, invisible and reordering ones as escape sequences."""
    shown = printable(text[:limit])
    return shown if len(text) <= limit else f"{shown} … ({len(text):,} characters)"


def _color_maps(sections: Sequence[Section]) -> list[str]:
    """The color maps of the tables of a page."""
    names: dict[str, None] = {}
    for block in (block for section in sections for block in section.blocks):
        tables = block.content if block.kind == "matrices" else [block.content["table"]] if block.kind == "table" else []
        names |= dict.fromkeys(table.scale.colors for table in tables if table.scale)
    return list(names)


def _palette(name: str) -> list[tuple[str, str]]:
    """The colors of the steps of a color map, each with that of the text on it."""
    return [(color, {"black": "#000", "white": "#fff"}[text_on(color)]) for color in palette(name)]


def _row_title(row: Row, group: str) -> str:
    """A row's title; in a group of controls without the word that the group's name says."""
    return row.title.removeprefix(CONTROL_PREFIX) if group == "controls" else row.title


def _cell_classes(cell: Cell, row: Row) -> str:
    """The classes of a matrix's cell: its step of the color map, whose it is, or that it is of a collapsed model."""
    classes = []
    if cell.shade is not None:
        classes.append(f"s{step_of(cell.shade)}")
    elif row.collapsed and cell.text != MISSING:
        classes.append("void")
    return " ".join([*classes, *(["own"] if cell.own else [])])
