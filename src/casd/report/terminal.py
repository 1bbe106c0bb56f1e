"""The results on the terminal, at the end of a run or a sweep. Everything can be read without color."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.style import Style
from rich.table import Table as RichTable
from rich.text import Text

from casd.analysis.results import RunTables
from casd.report.drawing import cell_colors
from casd.report.markup import Table, numeric_columns
from casd.report.matrices import asr_table, casd_table
from casd.report.statements import statements
from casd.report.tables import relation_table, states_table, summary_table
from casd.report.wording import ALL_MODELS, MISSING, broken_injections, run_name, short_run_name
from casd.utils.text import printable

PLAIN_WIDTH = 120
"""Columns when the output is not a terminal."""
MATRICES = 6
"""Sweeps of at most so many runs are printed with the matrices of each run."""
GROUPS = 8
"""Comparisons of at most so many groups are printed whole."""
LABEL, TEXT = 28, 40
"""Columns of a terminal that a row's label and a text get, if they need them, before they are wrapped."""
ASR_NOTE = "Cells: remaining attack success rate (fraction). Rows: removed; columns: measured; *: the removed backdoor itself."


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line, which handles it for all verbs; rich would exit here."""
        raise BrokenPipeError


def output_console() -> Console:
    """A console on stdout: as wide as the terminal, or PLAIN_WIDTH and without color if stdout is not a terminal."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    if encoding != "utf8" and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a ρ must not end a run that took hours
    return _Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def shown(text: str, style: str | Style = "") -> Text:
    """Text for a console: neither terminal sequences nor rich's markup in it have an effect."""
    return Text(printable(text), style)


def print_run(tables: RunTables, console: Console | None = None) -> None:
    """Print a run: the ASR matrix, each headline CASD matrix, the relation, the model states' quality, and statements."""
    console = console or output_console()
    print_warning([tables], console)
    _heading(console, f"Results: {run_name(tables.info)}")
    print_table(console, asr_table(tables))
    _asr_note(console, [tables])
    for table in [casd_table(tables, variant) for variant in tables.headline]:
        print_table(console, table)
    print_table(console, relation_table([tables]), leave_out={"permutations", "excluded", "note"})
    states = states_table(tables)
    print_table(console, states, leave_out={*states.columns} - {"perplexity", "perplexity, retain", *tables.tasks})
    for text in statements(tables):
        console.print(shown(f"- {text}"))
    console.print()


def print_sweep(runs: Sequence[RunTables], console: Console | None = None, *, comparisons: Sequence[Table] = ()) -> None:
    """Print a sweep: the matrices of each run and a row for each run (up to MATRICES runs), then the comparisons.

    If a comparison has more than GROUPS groups, only those over all models are printed.
    """
    console = console or output_console()
    print_warning(runs, console)
    if len(runs) <= MATRICES:
        _heading(console, f"Results of {len(runs)} runs")
        for tables in runs:
            matrices = [asr_table(tables), *(casd_table(tables, variant) for variant in tables.headline)]
            for table in matrices:
                print_table(console, replace(table, title=f"{table.title}; {short_run_name(tables)}"))
        _asr_note(console, runs)
        print_table(console, summary_table(runs))
    print_tables([_pooled(table) for table in comparisons], console)
    print_warning(runs, console)  # again: the beginning may have scrolled away


def print_warning(runs: Sequence[RunTables], console: Console | None = None) -> None:
    """Print which runs have a broken injected model, if any."""
    if warning := broken_injections(runs):
        console = console or output_console()
        console.print()
        console.print(shown(warning, "bold red"))


def print_tables(tables: Sequence[Table], console: Console | None = None) -> None:
    """Print tables with their captions, each group of rows under its name."""
    console = console or output_console()
    for table in tables:
        console.print()
        console.print(shown(table.title, "bold"))
        for group, rows in table.grouped():
            _print_rows(console, table, range(len(table.columns)), [rows], group)
        console.print(shown(table.caption, "dim"))


def print_table(console: Console, table: Table, leave_out: Collection[str] = (), *, caption: bool = False) -> None:
    """Print a table in which groups are set apart, and its caption if wanted."""
    if len(table) or caption:
        console.print(shown(table.title, "bold"))
    if len(table):
        columns = [place for place, heading in enumerate(table.columns) if heading not in leave_out]
        _print_rows(console, table, columns, [rows for _, rows in table.grouped()])
    if caption:
        console.print(shown(table.caption, "dim"))


def _print_rows(
    console: Console, table: Table, columns: Sequence[int], sections: Sequence[Sequence[int]], title: str = ""
) -> None:
    """Print some columns and rows of a table. Columns that do not fit continue below, with the row labels again."""
    while columns:
        count = len(columns)
        while count > 1 and _width(console, _rich_table(table, columns[:count], sections, title)) > console.width:
            count -= 1
        console.print(_rich_table(table, columns[:count], sections, title))
        columns, title = columns[count:], ""


def print_pairs(console: Console, pairs: Mapping[str, str]) -> None:
    """Print names and what they stand for, a line each."""
    for name, value in pairs.items():
        console.print(shown(f"{name}  ", "bold") + shown(value))
    console.print()


def _rich_table(table: Table, columns: Sequence[int], sections: Sequence[Sequence[int]], title: str) -> RichTable:
    """Some columns and rows of a table, with their labels."""
    numeric, labels = numeric_columns(table), table.labels
    padding = (0, 0 if table.detail is not None else 1, 0, 0)  # in a matrix the place of the marks separates the columns
    rich = RichTable(box=SIMPLE_HEAD, padding=padding, pad_edge=False, header_style="bold", title_justify="left")
    rich.title, rich.title_style = shown(title, "bold") if title else None, ""
    rich.add_column(shown(table.corner), overflow="fold", max_width=LABEL)
    for place in columns:
        justify: Any = "right" if numeric[place] else "left"
        heading = shown(table.columns[place])
        longest = max(map(len, [*str(heading).split(), *map(printable, table.frame.iloc[:, place])]))
        longest += bool(table.scale)  # for the mark of a matrix's cell
        rich.add_column(heading, justify=justify, overflow="fold", max_width=min(longest, TEXT))
    for rows in sections:
        for row in rows:
            rich.add_row(shown(labels[row]), *(_cell(table, row, place) for place in columns))
        rich.add_section()
    return rich


def _cell(table: Table, row: int, column: int) -> Text:
    """A cell. In a matrix it is on its color, after a mark: * the removed backdoor itself, x a collapsed model."""
    text, shade, bold = table.text(row, column), table.shade_of(row, column), table.is_bold(row, column)
    if table.scale is None:
        return shown(text, "bold" if bold else "")
    if shade is None:
        collapsed = table.is_collapsed(row) and text != MISSING
        return shown(f"x{text.strip('()')}" if collapsed else text, "dim" if table.detail is not None else "")
    background, foreground = cell_colors(table.scale.colormap, shade)
    return shown(f"{'*' if bold else ' '}{text}", Style(color=foreground, bgcolor=background, bold=bold))


def _pooled(table: Table) -> Table:
    """Of a table of many groups only those over all models, where there are any."""
    names = list(dict.fromkeys(table.groups))
    over_all = [name for name in names if name.endswith(ALL_MODELS)]
    if len(names) <= GROUPS or not over_all:
        return table
    rest = f"{len(names) - len(over_all)} groups of single models are in the report."
    return replace(table.of_groups(over_all), caption=f"{table.caption} {rest}")


def _width(console: Console, table: RichTable) -> int:
    """The columns that a table needs if no word is cut."""
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(shown(text, "bold"))
    console.rule(style="dim")


def _asr_note(console: Console, runs: Sequence[RunTables]) -> None:
    """Explain the ASR matrices above, and name the collapsed models in them."""
    console.print(shown(ASR_NOTE, "dim"))
    for tables in runs:
        if tables.collapsed:
            run = f" ({short_run_name(tables)})" if len(runs) > 1 else ""
            names = ", ".join(state for state in tables.states["state"] if state in tables.collapsed)
            console.print(shown(f"x collapsed{run}: {names}. These rates are no success of the removal.", "bold"))
    console.print()
