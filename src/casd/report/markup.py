"""The tables of a report: their data, which pages, files and the terminal show alike."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from casd.report.wording import MISSING

_NUMBER: Final = re.compile(r"[(<+]?-?\d[\d.,/%]*(e[+-]\d+)?\)?( \(.*\)| to -?[\d.]+| \[.*\]| of \d+)?|–")


@dataclass(frozen=True)
class Scale:
    """The colors of a matrix: `low` and `high` are the ends of its color bar in words, `largest` the value at the upper one."""

    colormap: str
    low: str = "0"
    high: str = "1"
    largest: float = 1.0
    details: str = ""
    """What the details of the cells are; empty if they have none."""


@dataclass(frozen=True, eq=False)
class Table:
    """A table to show: texts, and what stands out among them.

    Attributes:
        name: stem of its files.
        title: a few words.
        caption: which run, how many prompts, what a cell means.
        frame: the texts (n_rows × n_columns); the index holds the row labels, its name is the heading above them.
        groups: the group of each row, consecutive rows of one group belong together; empty for no groups.
        collapsed: for each row, whether it is of a collapsed model; empty for none.
        bold: (n_rows, n_columns), whether a cell is emphasized; None for none.
        scale: the colors of a matrix; None for a table without colors.
        shade: (n_rows, n_columns), the place of each cell on `scale`, in [0, 1]; NaN for a cell without a color.
        detail: (n_rows, n_columns), more about each cell, shown where there is room; None for nothing.
    """

    name: str
    title: str
    caption: str
    frame: pd.DataFrame
    groups: Sequence[str] = ()
    collapsed: Sequence[bool] = ()
    bold: np.ndarray | None = None
    scale: Scale | None = None
    shade: np.ndarray | None = None
    detail: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def corner(self) -> str:
        """The heading of the row labels."""
        return str(self.frame.index.name or "")

    @property
    def columns(self) -> list[str]:
        """The headings of the other columns."""
        return [str(column) for column in self.frame.columns]

    @property
    def labels(self) -> list[str]:
        """The row labels, with "(collapsed)" behind those of collapsed models."""
        return [f"{label} (collapsed)" if self.is_collapsed(row) else str(label) for row, label in enumerate(self.frame.index)]

    def text(self, row: int, column: int) -> str:
        """The text of a cell."""
        return str(self.frame.iat[row, column])

    def is_collapsed(self, row: int) -> bool:
        """Whether a row is of a collapsed model."""
        return bool(len(self.collapsed)) and bool(self.collapsed[row])

    def is_bold(self, row: int, column: int) -> bool:
        """Whether a cell is emphasized."""
        return self.bold is not None and bool(self.bold[row, column])

    def shade_of(self, row: int, column: int) -> float | None:
        """The place of a cell on the scale, in [0, 1]; None for a cell without a color."""
        return None if self.shade is None or np.isnan(self.shade[row, column]) else float(self.shade[row, column])

    def grouped(self) -> Iterator[tuple[str, list[int]]]:
        """The groups in order, each with the numbers of its rows."""
        groups = list(self.groups) or [""] * len(self)
        for group in dict.fromkeys(groups):
            yield group, [row for row, name in enumerate(groups) if name == group]

    @property
    def keys(self) -> int:
        """How many of the first columns are needed, beside the row labels, to tell the rows of a group apart."""
        groups = list(self.groups) or [""] * len(self)
        for count in range(len(self.columns)):
            rows = zip(groups, self.labels, *(self.frame.iloc[:, place] for place in range(count)), strict=True)
            if len(set(rows)) == len(self):
                return count
        return 0


def table_of(
    records: Sequence[Mapping[str, str]],
    *,
    groups: Sequence[str] = (),
    collapsed: Sequence[bool] = (),
    bold: Mapping[str, Sequence[bool]] | None = None,
    **what: Any,
) -> Table:
    """A table of records that all have the same keys.

    Args:
        records: a row each; the first entry is its label, the others are the cells, by their columns' headings.
        groups: see `Table`.
        collapsed: see `Table`.
        bold: by the headings of columns, whether the cell in each row is emphasized (`excluding_zero`).
        **what: name, title and caption of the table.
    """
    headings = list(records[0]) if records else [""]
    cells = [[record[heading] or MISSING for heading in headings] for record in records]
    labels = pd.Index([row[0] for row in cells], dtype=object, name=headings[0])
    columns = pd.Index(headings[1:], dtype=object)
    frame = pd.DataFrame([row[1:] for row in cells], index=labels, columns=columns, dtype=object)
    marked = np.zeros(frame.shape, dtype=bool)
    for heading, rows in (bold or {}).items():
        marked[:, columns.get_loc(heading)] = rows
    return Table(frame=frame, groups=groups, collapsed=collapsed, bold=marked if marked.any() else None, **what)


def excluding_zero(frame: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, list[bool]]:
    """Return for `table_of` which means are to be bold: those whose 95 % interval is above or below zero.

    Args:
        frame: a row for each row of the table, with the limits NAME_low and NAME_high of each mean.
        columns: the NAME of each heading.
    """
    return {
        heading: list((frame[f"{name}_low"] > 0) | (frame[f"{name}_high"] < 0))
        for heading, name in columns.items()
        if len(frame)
    }


def numeric_columns(table: Table) -> list[bool]:
    """For each column, whether all its cells are numbers (or missing): such columns are aligned to the right."""
    return [all(map(_NUMBER.fullmatch, table.frame.iloc[:, column])) for column in range(table.frame.shape[1])]
