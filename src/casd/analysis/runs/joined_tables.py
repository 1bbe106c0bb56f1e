"""Tables of many finished runs, joined as they are read. Pandas is not needed: reading can begin before it is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa  # type: ignore[import-untyped]

from casd.analysis.runs.finding import find_runs
from casd.analysis.tables import read_arrow
from casd.utils.forking import Begin

_READ_FIRST: Final = ("asr", "states", "transfer", "rivals")
_READ_THEN: Final = ("casd", "relation")
"""What is said of many runs is said of these tables. The first take about as long to read as the report is imported, and the
others to be read, beside it."""


@dataclass(frozen=True, eq=False)
class JoinedTable:
    """A table of several runs in one: to make it a frame takes longer than to read its rows.

    Attributes:
        name: of the table, one of `casd.analysis.tables.SCHEMAS`.
        rows: of all the runs.
        lengths: of each run, by its number, how many of them are its own, in this order.
        lacking_grid: the runs of which rows of the CASD grid were left on the disk.
    """

    name: str
    rows: pa.Table
    lengths: dict[int, int]
    lacking_grid: list[int]


@dataclass(frozen=True, eq=False)
class FinishedRuns:
    """Runs that were read together.

    Attributes:
        infos: of each run, as in `casd.analysis.runs.FinishedRun`.
        tables: those that all of them are compared by, without the rows of the CASD grid; there may be several of one name,
            with different columns.
    """

    infos: list[dict[str, Any]]
    tables: list[JoinedTable]


def read_together(
    paths: str | Path | Iterable[str | Path], begin: Begin = partial, meanwhile: Callable[[], object] | None = None
) -> FinishedRuns:
    """Read the runs that `find_runs` finds.

    Args:
        paths: as there.
        begin: how to begin what need not be waited for (`casd.utils.forking.begin`).
        meanwhile: what else has to be done before the tables can be used, such as to import what uses them.

    Raises:
        StoreError: as there; or a table is damaged, or an older version wrote it.
    """
    runs = find_runs(paths)
    folders = [run.folder for run in runs]
    first = begin(_joined, _READ_FIRST, folders)
    if meanwhile:
        meanwhile()
    then = _joined(_READ_THEN, folders)
    return FinishedRuns([run.info for run in runs], [*first(), *then])


def _joined(names: Sequence[str], folders: Sequence[Path]) -> list[JoinedTable]:
    """Some tables of the runs in these folders, those that have the same columns in one."""
    return [joined for name in names for joined in _with_equal_columns(name, folders)]


def _with_equal_columns(name: str, folders: Sequence[Path]) -> Iterator[JoinedTable]:
    read = [read_arrow(folder, name, grid=False) for folder in folders]
    alike: dict[pa.Schema, list[int]] = {}
    for run, (table, _) in enumerate(read):
        alike.setdefault(table.schema.remove_metadata(), []).append(run)
    for runs in alike.values():
        rows = pa.concat_tables([read[run][0] for run in runs]).combine_chunks()
        lacking = [run for run in runs if name == "casd" and read[run][1]]
        yield JoinedTable(name, rows, {run: len(read[run][0]) for run in runs}, lacking)
