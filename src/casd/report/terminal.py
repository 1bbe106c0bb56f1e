"""The results on the terminal, at the end of a run or a sweep. Everything can be read without color."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.style import Style
from rich.table import Table as RichTable
from rich.text import Text

from casd.analysis.results import RunTables
from casd.report.colors import palette, step_of, text_on
from casd.report.markup import Cell, Row, Scale, Table, numeric_columns
from casd.report.matrices import asr_table, casd_table
from casd.report.statements import statements
from casd.report.tables import relation_table, states_table, summary_table
from casd.report.wording import ALL_MODELS, MISSING, broken_injections, run_name, short_run_name
from casd.utils.text import printable

PLAIN_WIDTH = 120
"""Columns when the output is no terminal."""
MATRICES = 6
"""Runs of a sweep up to which the matrices of each are printed."""
GROUPS = 8
"""Groups of a comparison up to which all are printed."""
LABEL = 24
"""Columns of a terminal that a row's label gets, if it needs them, before the numbers."""
TEXT = 40
"""Columns of a terminal that a text gets, if it needs them, before it goes on in the next line."""
GAP = 2
"""Columns of a terminal that set two columns of a table apart."""
PERPLEXITIES = ("perplexity", "perplexity, retain")
ASR_NOTE = "Cells: attack success rate that is left (fraction). Rows: removed; columns: measured; * the removed one itself."


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line, which ends all verbs alike; rich would exit here."""
        raise BrokenPipeError


def output_console() -> Console:
    """A console on stdout: as wide as the terminal, or PLAIN_WIDTH and without color where there is none."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    if encoding != "utf8" and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a ρ must not end a run that took hours
    return _Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def shown(text: str, style: str | Style = "") -> Text:
    """Text for a console. Nothing in it is obeyed: neither terminal sequences nor rich's markup."""
    return Text(printable(text), style)


def print_run(tables: RunTables, console: Console | None = None) -> None:
    """Print a run: the ASR matrix, each headline CASD matrix, the relation, every state's quality, and all that in words."""
    console = console or output_console()
    print_warning([tables], console)
    _heading(console, f"Results: {run_name(tables.info)}")
    _print_matrix(console, asr_table(tables))
    _asr_note(console, [tables])
    for variant in tables.headline:
        table = casd_table(tables, variant)
        if table.rows:
            _print_matrix(console, table)
    relation = relation_table([tables])
    if relation.rows:
        print_table(console, relation, leave_out={"permutations", "excluded", "note"})
    states = states_table(tables)
    print_table(console, states, leave_out=set(states.columns) - {*PERPLEXITIES, *tables.tasks})
    for text in statements(tables):
        console.print(_beside([shown("-"), shown(text)], gap=1))
    console.print()


def print_sweep(runs: Sequence[RunTables], console: Console | None = None, *, comparisons: Sequence[Table] = ()) -> None:
    """Print a sweep: the runs' ASR matrices side by side, likewise each headline CASD, then what they say together.

    A sweep of more than MATRICES runs shows the comparisons only; matrices and each run's numbers are in its report. Of a
    comparison of more than GROUPS groups those over all models are shown.
    """
    console = console or output_console()
    print_warning(runs, console)
    if len(runs) <= MATRICES:
        _heading(console, f"Results of {len(runs)} runs: attack success rate after each removal")
        _print_matrices(console, runs, [asr_table(tables) for tables in runs])
        _asr_note(console, runs)
        for variant in dict.fromkeys(name for tables in runs for name in tables.headline):
            distances = [casd_table(tables, variant) for tables in runs]
            if any(table.rows for table in distances):
                _heading(console, f"{variant}: distance between the activation shifts of two removals")
                _print_matrices(console, runs, distances)
        _print_side_by_side(console, summary_table(runs), [_run_heading(tables) for tables in runs])
    print_tables([_pooled(table) for table in comparisons], console)
    print_warning(runs, console)  # once more: the beginning may have scrolled away


def print_warning(runs: Sequence[RunTables], console: Console | None = None) -> None:
    """Print which runs have a broken injected model, if any."""
    if warning := broken_injections(runs):
        console = console or output_console()
        console.print()
        console.print(shown(warning, "bold red"))


def _pooled(table: Table) -> Table:
    """Of a table of many groups those over all models, where there are any."""
    over_all = tuple(group for group in table.groups if group[0].endswith(ALL_MODELS))
    if len(table.groups) <= GROUPS or not over_all:
        return table
    rest = f"{len(table.groups) - len(over_all)} groups of single models are in the report."
    return replace(table, groups=over_all, caption=f"{table.caption} {rest}")


def print_tables(tables: Sequence[Table], console: Console | None = None) -> None:
    """Print tables of several groups, each with its caption."""
    console = console or output_console()
    for table in tables:
        _print_groups(console, table)


def _print_matrices(console: Console, runs: Sequence[RunTables], matrices: Sequence[Table]) -> None:
    """Print one matrix of every run, as many beside each other as fit, and what the columns' numbers stand for."""
    numbers: dict[str, int] = {}
    for column in (column for table in matrices for column in table.columns):
        numbers.setdefault(column, len(numbers) + 1)
    line: list[RichTable] = []
    above: list[str] = []
    for tables, table in zip(runs, matrices, strict=True):
        labels = [row.label for row in table.rows]
        part = _matrix(table, numbers, labels=not line or labels != above, title=_run_heading(tables))
        if line and sum(_width(console, other) + 2 for other in line) + _width(console, part) > console.width:
            console.print(_beside(line))
            line, part = [], _matrix(table, numbers, labels=True, title=_run_heading(tables))
        line.append(part)
        above = labels
    console.print(_beside(line))
    _legend(console, numbers)


def _print_matrix(console: Console, table: Table) -> None:
    """Print one matrix, its columns headed by names where they fit and by numbers where they do not."""
    console.print(shown(table.title, "bold"))
    matrix = _matrix(table, {}, labels=True)
    if _width(console, matrix) <= console.width:
        console.print(matrix)
        return
    numbers = {column: i for i, column in enumerate(table.columns, 1)}
    console.print(_matrix(table, numbers, labels=True))
    _legend(console, numbers)


def _matrix(table: Table, numbers: Mapping[str, int], *, labels: bool, title: str | None = None) -> RichTable:
    """A matrix of shaded numbers; columns are headed by their `numbers`, or by their names where there are none."""
    rich = _frame(title, pad=0)  # the place of the marks sets the columns apart
    if labels:
        rich.add_column(shown(table.corner), no_wrap=True)
    for column in table.columns:
        rich.add_column(shown(str(numbers.get(column, column))), justify="right", no_wrap=True)
    for _, rows in table.groups:
        for row in rows:
            number = f"{numbers[row.label]} " if row.label in numbers else ""
            # A title spans matrices that share their labels; which of them collapsed is then told below them.
            label = [shown(number + (row.label if title else row.title))] if labels else []
            rich.add_row(*label, *(_shaded(cell, row.collapsed, table.scale) for cell in row.cells))
        rich.add_section()
    return rich


def _shaded(cell: Cell, collapsed: bool, scale: Scale | None) -> Text:
    """A number on its color of the map, after a mark: * the removed backdoor itself, x a collapsed model."""
    if cell.shade is None or scale is None:
        return shown(f"x{cell.text.strip('()')}" if collapsed and cell.text != MISSING else cell.text, "dim")
    color = palette(scale.colors)[step_of(cell.shade)]
    foreground = {"black": "#000000", "white": "#ffffff"}[text_on(color)]
    return shown(f"{'*' if cell.own else ' '}{cell.text}", Style(color=foreground, bgcolor=color, bold=cell.own))


def print_table(console: Console, table: Table, leave_out: Collection[str] = (), *, caption: bool = False) -> None:
    """Print a table of texts, and under it its caption if that is wanted; what does not fit is folded."""
    console.print(shown(table.title, "bold"))
    if table.rows:
        rich = _frame()
        kept = [i for i, heading in enumerate(table.columns) if heading not in leave_out]
        numeric = numeric_columns(table)
        rich.add_column(shown(table.corner), overflow="fold")
        for i in kept:
            rich.add_column(shown(table.columns[i]), justify="right" if numeric[i] else "left", overflow="fold")
        for _, rows in table.groups:
            for row in rows:
                rich.add_row(shown(row.title), *(_text(row.cells[i]) for i in kept))
            rich.add_section()
        console.print(rich)
    if caption:
        console.print(shown(table.caption, "dim"))


def print_pairs(console: Console, pairs: Mapping[str, str]) -> None:
    """Print names and what they stand for, a line each."""
    for name, value in pairs.items():
        console.print(_beside([shown(name, "bold"), shown(value)]))
    console.print()


def _text(cell: Cell) -> Text:
    return shown(cell.text, "bold" if cell.best else "")


def _print_groups(console: Console, table: Table) -> None:
    """Print a table of several groups, each under its name, with the caption that says what the columns are.

    Columns that do not fit beside each other follow below, with the rows' labels again.
    """
    console.print()
    console.print(shown(table.title, "bold"))
    numeric = numeric_columns(table)
    for name, rows in table.groups:
        longest = max(len(row.title) for row in rows)
        parts = _side_by_side(table, rows, numeric, console.width - min(LABEL, longest) - GAP)
        for number, widths in enumerate(parts):
            rich = _frame(name if number == 0 else None)
            room = console.width - GAP - sum(width + GAP for width in widths.values())
            rich.add_column(shown(table.corner), overflow="fold", width=min(longest, room))
            for i, width in widths.items():
                rich.add_column(
                    shown(table.columns[i]), justify="right" if numeric[i] else "left", overflow="fold", width=width
                )
            for row in rows:
                rich.add_row(shown(row.title), *(_text(row.cells[i]) for i in widths))
            console.print(rich)
    console.print(shown(table.caption, "dim"))


def _side_by_side(table: Table, rows: Sequence[Row], numeric: Sequence[bool], room: int) -> list[dict[int, int]]:
    """The columns that fit beside each other, with their widths: no word is cut, and no text that is shorter than TEXT."""
    parts: list[dict[int, int]] = [{}]
    left = room
    for i, heading in enumerate(table.columns):
        texts = [row.cells[i].text for row in rows]
        words = [*heading.split(), *(word for text in texts for word in text.split())]
        width = max(map(len, words if numeric[i] else [*words, *texts]), default=1)
        if parts[-1] and min(width, TEXT) + GAP > left:
            parts.append({})
            left = room
        parts[-1][i] = min(width, left - GAP)
        left -= parts[-1][i] + GAP
    return parts


def _print_side_by_side(console: Console, table: Table, headings: Sequence[str]) -> None:
    """Print a table with its rows as columns under `headings`, as many beside each other as fit."""
    console.print(shown(table.title, "bold"))
    named_above = {"objective", "seed"}
    lines = [(i, column) for i, column in enumerate(table.columns) if column not in named_above]
    pending = list(zip(headings, table.rows, strict=True))
    while pending:
        for count in range(len(pending), 0, -1):
            rich = _frame()
            rich.add_column("", overflow="fold")
            for heading, _ in pending[:count]:
                rich.add_column(shown(heading), justify="right", overflow="fold")
            for i, column in lines:
                rich.add_row(shown(column), *(shown(row.cells[i].text) for _, row in pending[:count]))
            if count == 1 or _width(console, rich) <= console.width:
                break
        console.print(rich)
        pending = pending[count:]


def _run_heading(tables: RunTables) -> str:
    treatment = tables.treatment.replace(", ", "\n")
    return f"{tables.info['model']}, seed {tables.info['seed']}\n{treatment}"


def _frame(title: str | None = None, pad: int = 1) -> RichTable:
    rich = RichTable(box=SIMPLE_HEAD, padding=(0, pad, 0, 0), pad_edge=False, header_style="bold", title_justify="left")
    if title:
        rich.title, rich.title_style = shown(title), "bold"
    return rich


def _beside(parts: Iterable[RenderableType], gap: int = 2) -> RichTable:
    grid = RichTable.grid(padding=(0, gap, 0, 0))
    grid.add_row(*parts)
    return grid


def _width(console: Console, table: RichTable) -> int:
    """Columns the table needs for nothing in it to be cut."""
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(shown(text, "bold"))
    console.rule(style="dim")


def _legend(console: Console, numbers: Mapping[str, int]) -> None:
    console.print(shown("Columns: " + ", ".join(f"{number} {name}" for name, number in numbers.items())))


def _asr_note(console: Console, runs: Sequence[RunTables]) -> None:
    """How to read the ASR matrices above, and which of their rows are of collapsed models."""
    console.print(shown(ASR_NOTE, "dim"))
    for tables in runs:
        if tables.collapsed:
            run = f" ({short_run_name(tables)})"
            names = ", ".join(state for state in tables.states["state"] if state in tables.collapsed)
            text = f"x collapsed{run if len(runs) > 1 else ''}: {names}. These rates are no success of the removal."
            console.print(shown(text, "bold"))
    console.print()
