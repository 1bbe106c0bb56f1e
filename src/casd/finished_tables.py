"""Many finished runs read together: the tables that they are compared by are shared, the others read on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]

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


def read_finished(infos: Sequence[dict[str, Any]]) -> list[RunTables]:
    """Finished runs, without the rows of the CASD grid: the tables that all of them are compared by, and the others on demand.

    Args:
        infos: of each run what is to be its `info`; with its "folder".

    Raises:
        StoreError: a table is damaged, or an older version wrote it; of those that are read on demand, then.
    """
    runs = [FinishedTables(info) for info in infos]
    for name in _READ_TOGETHER:
        read = [read_arrow(Path(info["folder"]), name, grid=False) for info in infos]
        for tables, shared, (_, lacks_grid) in zip(runs, _share([table for table, _ in read]), read, strict=True):
            tables._shared[name] = shared
            if name == "casd":
                tables.lacks_grid = lacks_grid
    return list(runs)


def _share(tables: Sequence[pa.Table]) -> list[_Shared]:
    """Tables of one kind, those with the same columns in one frame: making one takes longer than reading its rows."""
    alike: dict[pa.Schema, list[int]] = {}
    for place, table in enumerate(tables):
        alike.setdefault(table.schema.remove_metadata(), []).append(place)
    found: dict[int, _Shared] = {}
    for places in alike.values():
        whole = as_frame(pa.concat_tables([tables[place] for place in places]).combine_chunks())
        # Few texts at a time are taken out several times as fast as plain strings than as Arrow's; so are columns by name.
        whole.columns = whole.columns.astype(object)
        whole = whole.astype({name: object for name, dtype in whole.dtypes.items() if isinstance(dtype, pd.StringDtype)})
        columns: dict[str, np.ndarray] = {}
        end = 0
        for place in places:
            start, end = end, end + len(tables[place])
            found[place] = _Shared(whole, columns, slice(start, end))
    return [found[place] for place in range(len(tables))]
