"""The results on the terminal, at the end of a run or a sweep. Everything can be read without color."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.style import Style
from rich.table import Table as RichTable
from rich.text import Text

from casd.analysis.collection import DETAILED_RUNS
from casd.analysis.results import RunTables
from casd.report.answer import Answer, answers_table, in_short, run_answer
from casd.report.comparisons import Comparisons
from casd.report.drawing import cell_colors
from casd.report.markup import Table, numeric_columns
from casd.report.matrices import asr_table, casd_table
from casd.report.persistence import persistence_statements, persistence_table
from casd.report.statements import control_statements, observations
from casd.report.tables import harm_table, relation_table, states_table, summary_table
from casd.report.wording import MISSING, broken_injections, run_name, short_run_name
from casd.utils.text import printable

PLAIN_WIDTH = 120
"""Columns when the output is not a terminal."""
RUN_LINES, SWEEP_LINES = 39, 59
"""Lines that a run and a sweep take at most; the command says in one more what it cost."""
UNNEEDED = ("included", "excluded", "permutations", "note")
"""Columns that are printed for a verbose sweep only."""
LASTING = 6
"""Sentences on persistence that are printed without --verbose."""
MORE = ("More tables: --verbose, and the report.",)
MATRICES = 6
"""Sweeps of at most so many runs are printed with the matrices of each run."""
LABEL, TEXT = 28, 40
"""Columns of a terminal that a row's label and a text get, if they need them, before they are wrapped."""
ASR_NOTE = "Cells: remaining attack success rate (fraction). Rows: removed; columns: measured; *: the removed backdoor itself."


Piece = Callable[[Console], None]


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


def print_run(tables: RunTables, console: Console | None = None, *, verbose: bool = False, links: Sequence[str] = ()) -> None:
    """Print a run in at most RUN_LINES lines, its answer last.

    Args:
        tables: the run.
        console: where to; None for stdout.
        verbose: print every headline CASD matrix, the whole relation, the model states and controls, and what was measured
            besides (harmful prompts, persistence), too.
        links: lines that are printed just before the answer.
    """
    states = states_table(tables)
    quality = {"perplexity", "perplexity, retain", *tables.tasks}
    matrices = [asr_table(tables), *[casd_table(tables, variant) for variant in tables.headline if verbose]]
    main = tables.relation[tables.relation["response"] == "suppression"]
    relation = relation_table([tables if verbose else replace(tables, relation=main)])
    pieces: list[Piece] = [
        lambda console: _print_matrices(console, matrices, [tables]),
        lambda console: print_table(console, relation, leave_out=UNNEEDED),
    ]
    lasting = persistence_statements(tables)
    texts = [*observations(tables), *(lasting if verbose else lasting[:LASTING])]
    if verbose:
        pieces.append(lambda console: print_table(console, states, leave_out={*states.columns} - quality))
        besides = [table for table in (harm_table(tables), persistence_table([tables])) if len(table)]
        pieces += [partial(print_table, table=table) for table in besides]
        texts += control_statements(tables)
    lines = [*(f"- {text}" for text in texts), *links, *MORE[verbose:]]
    end = partial(_print_ending, runs=[tables], answers=[run_answer(tables)], lines=lines)
    _print_results(
        console or output_console(), f"Results: {run_name(tables.info)}", pieces, end, None if verbose else RUN_LINES
    )


def print_sweep(
    runs: Sequence[RunTables],
    comparisons: Comparisons,
    console: Console | None = None,
    *,
    verbose: bool = False,
    links: Sequence[str] = (),
) -> None:
    """Print a sweep in at most SWEEP_LINES lines, its answer last: the matrices and the runs, as far as they fit.

    Args:
        runs: the runs of the sweep.
        comparisons: over them.
        console: where to; None for stdout.
        verbose: print the matrices of each run (of at most MATRICES runs), every run, and every comparison with its caption.
        links: lines that are printed just before the answer.
    """
    few = runs if len(runs) <= MATRICES else []
    matrices = [
        replace(table, title=f"{table.title}; {short_run_name(tables)}")
        for tables in few
        for table in (asr_table(tables), *[casd_table(tables, variant) for variant in tables.headline if verbose])
    ]
    summary = summary_table(runs) if verbose or len(runs) <= DETAILED_RUNS else None
    pieces: list[Piece] = [lambda console: _print_matrices(console, matrices, few)] if matrices else []
    if summary is not None:
        unneeded = set() if verbose else {name for name in summary.columns if name in UNNEEDED or name.endswith("prob.")}
        pieces.append(lambda console: print_table(console, summary, leave_out=unneeded))
    if verbose:
        pieces.append(lambda console: print_tables(comparisons.tables, console))
    end = partial(_print_ending, runs=runs, answers=comparisons.answers, lines=[*links, *MORE[verbose:]])
    _print_results(console or output_console(), f"Results of {len(runs)} runs", pieces, end, None if verbose else SWEEP_LINES)


def _print_ending(console: Console, runs: Sequence[RunTables], answers: Sequence[Answer], lines: Sequence[str]) -> None:
    """Print what stands last: some lines, the warning of broken models, and the answer."""
    if len(answers) > 1:
        print_table(console, answers_table(answers))
    for line in lines:
        console.print(shown(line))
    print_warning(runs, console)
    lead, text = in_short(answers)
    console.print()
    console.print(shown(f"{lead} ", "bold") + shown(text))


def _print_results(console: Console, title: str, pieces: Sequence[Piece], end: Piece, limit: int | None) -> None:
    """Print a heading, those pieces that leave the whole within `limit` lines (all without a limit), and the end."""
    heading, ending = (_captured(console, piece) for piece in (lambda console: _heading(console, title), end))
    left = math.inf if limit is None else limit - heading.count("\n") - ending.count("\n")
    console.file.write(heading)
    for text in (_captured(console, piece) for piece in pieces):
        if text.count("\n") <= left:
            console.file.write(text)
            left -= text.count("\n")
    console.file.write(ending)


def _captured(console: Console, piece: Piece) -> str:
    """What a piece prints."""
    with console.capture() as captured:
        piece(console)
    return captured.get()


def _print_matrices(console: Console, matrices: Sequence[Table], runs: Sequence[RunTables]) -> None:
    """Print matrices of some runs, the note on them, and the collapsed models in them."""
    for table in matrices:
        print_table(console, table)
    console.print(shown(ASR_NOTE, "dim"))
    for tables in runs:
        if tables.collapsed:
            run = f" ({short_run_name(tables)})" if len(runs) > 1 else ""
            names = ", ".join(state for state in tables.states["state"] if state in tables.collapsed)
            console.print(shown(f"x collapsed{run}: {names}. These rates are no success of the removal.", "bold"))
    console.print()


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
    """Print some columns and rows. Columns that do not fit continue below, with what tells the rows apart (`Table.keys`)."""
    keys = [place for place in columns if place < table.keys]
    while columns:
        count = len(columns)
        while count > len(keys) + 1 and _width(console, _rich_table(table, columns[:count], sections, title)) > console.width:
            count -= 1
        console.print(_rich_table(table, columns[:count], sections, title))
        columns, title = [*keys, *columns[count:]] if columns[count:] else [], ""


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


def _width(console: Console, table: RichTable) -> int:
    """The columns that a table needs if no word is cut."""
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(shown(text, "bold"))
    console.rule(style="dim")
