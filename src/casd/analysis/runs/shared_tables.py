"""Many finished runs read together: the tables that they are compared by are shared, the others read on demand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from casd.analysis.results import RunTables
from casd.analysis.runs.joined_tables import FinishedRuns, JoinedTable
from casd.analysis.tables import SCHEMAS, as_frame, read_table


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


def runs_of(found: FinishedRuns) -> list[RunTables]:
    """The runs that were read together, without the rows of the CASD grid; their other tables are read on demand.

    Then, a table that is damaged or that an older version wrote is a StoreError.
    """
    runs = [FinishedTables(info) for info in found.infos]
    for joined in found.tables:
        for number, shared in _shared(joined):
            runs[number]._shared[joined.name] = shared
        for number in joined.lacking_grid:
            runs[number].lacks_grid = True
    return list(runs)


def _shared(joined: JoinedTable) -> Iterator[tuple[int, _Shared]]:
    """The number of each run, and its part of the table."""
    whole = as_frame(joined.rows)
    # Few texts at a time are taken out several times as fast as plain strings than as Arrow's; so are columns by name.
    whole.columns = whole.columns.astype(object)
    whole = whole.astype({name: object for name, dtype in whole.dtypes.items() if isinstance(dtype, pd.StringDtype)})
    columns: dict[str, np.ndarray] = {}
    end = 0
    for run, length in joined.lengths.items():
        start, end = end, end + length
        yield run, _Shared(whole, columns, slice(start, end))
