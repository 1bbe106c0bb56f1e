"""Many finished runs read together: the tables that they are compared by are shared, the others read on demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]

from casd.forking import Begin
from casd.results import RunTables
from casd.table_files import SCHEMAS, as_frame, read_arrow, read_table

_READ_TOGETHER: Final = ("asr", "states", "transfer", "casd", "relation", "rivals")
"""What is said of many runs is said of these tables."""


class FinishedTables(RunTables):
    """The tables of a finished run, without the rows of the CASD grid; each is read, or made a frame, when it is first used."""

    def __init__(self, info: dict[str, Any]) -> None:
        """`info` has the "folder"."""
        self.info = info
        self._shared: dict[str, _Shared] = {}
        self.lacks_grid = False

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name not in SCHEMAS:
            raise AttributeError(name)
        shared = self._shared.get(name)
        frame = shared.frame if shared else read_table(Path(self.info["folder"]), name, grid=False)
        setattr(self, name, frame)
        return frame

    def columns(self, table: str, *names: str) -> list[np.ndarray]:
        """As of any run, without making the table a frame."""
        shared = self._shared.get(table)
        return super().columns(table, *names) if shared is None or table in vars(self) else [shared[name] for name in names]


@dataclass(frozen=True, eq=False)
class _Shared:
    """The rows of one run in a table of many: to take them out of the columns costs nothing, to make them a frame does.

    Attributes:
        whole: of all runs.
        whole_columns: its columns, as far as they were asked for.
        rows: those of the run.
    """

    whole: pd.DataFrame
    whole_columns: dict[str, np.ndarray]
    rows: slice

    @property
    def frame(self) -> pd.DataFrame:
        return self.whole.iloc[self.rows].reset_index(drop=True)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.whole_columns:
            self.whole_columns[name] = self.whole[name].to_numpy()
        return self.whole_columns[name][self.rows]


def read_finished(infos: Sequence[dict[str, Any]], begin: Begin = partial) -> list[RunTables]:
    """Finished runs, without the rows of the CASD grid: the tables that all of them are compared by, and the others on demand.

    Args:
        infos: of each run what is to be its `info`; with its "folder".
        begin: how to begin what need not be waited for (`casd.forking.begin`).

    Raises:
        StoreError: a table is damaged, or an older version wrote it; of those that are read on demand, then.
    """
    folders = [Path(info["folder"]) for info in infos]
    half = len(_READ_TOGETHER) // 2
    others = begin(_read, _READ_TOGETHER[half:], folders)
    read = [*_read(_READ_TOGETHER[:half], folders), *others()]
    runs = [FinishedTables(info) for info in infos]
    for joined in read:
        for run, shared in joined.shared():
            runs[run]._shared[joined.name] = shared
        for run in joined.lacking_grid:
            runs[run].lacks_grid = True
    return list(runs)


@dataclass(frozen=True, eq=False)
class _Joined:
    """A table of several runs in one: to make it a frame takes longer than to read its rows.

    Attributes:
        name: of the table.
        rows: of all the runs.
        lengths: of each run, by its number, how many of them are its own, in this order.
        lacking_grid: the runs of which rows of the grid were left on the disk.
    """

    name: str
    rows: pa.Table
    lengths: dict[int, int]
    lacking_grid: list[int]

    def shared(self) -> Iterator[tuple[int, _Shared]]:
        """The number of each run, and its part of the frame."""
        whole = as_frame(self.rows)
        # Few texts at a time are taken out several times as fast as plain strings than as Arrow's; so are columns by name.
        whole.columns = whole.columns.astype(object)
        whole = whole.astype({name: object for name, dtype in whole.dtypes.items() if isinstance(dtype, pd.StringDtype)})
        columns: dict[str, np.ndarray] = {}
        end = 0
        for run, length in self.lengths.items():
            start, end = end, end + length
            yield run, _Shared(whole, columns, slice(start, end))


def _read(names: Sequence[str], folders: Sequence[Path]) -> list[_Joined]:
    """Some tables of the runs in these folders, those of one name that have the same columns in one."""
    joined = []
    for name in names:
        read = [read_arrow(folder, name, grid=False) for folder in folders]
        alike: dict[pa.Schema, list[int]] = {}
        for run, (table, _) in enumerate(read):
            alike.setdefault(table.schema.remove_metadata(), []).append(run)
        for runs in alike.values():
            rows = pa.concat_tables([read[run][0] for run in runs]).combine_chunks()
            lacking = [run for run in runs if name == "casd" and read[run][1]]
            joined.append(_Joined(name, rows, {run: len(read[run][0]) for run in runs}, lacking))
    return joined
