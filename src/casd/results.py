"""The tables of one run: what scoring produces, what is written to a run's folder and read back.

A finished run's folder holds `tables/NAME.parquet` and `tables/NAME.csv` for every table and `tables/info.json`, which is
written last: a folder without it is not a finished run. Of `casd` the CSV has the rows without the grid only: those of the
grid are many thousand, and ten times as large in CSV.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from casd.errors import StoreError

SCHEMAS: Final[dict[str, tuple[str, ...]]] = {
    "asr": ("state", "backdoor", "probe", "successes", "n", "rate", "rate_low", "rate_high", "first_token_prob"),
    "states": (
        *("state", "kind", "clean_loss", "retain_loss", "clean_loss_ratio", "degenerate_rate", "steps", "train_seconds"),
        *("forget_gradient_first", "forget_gradient_last", "forget_gradient_share"),
        *("validation_asr", "reached_target", "stopped", "collapsed", "collapse_reason"),
    ),
    "transfer": (
        *("source", "target", "source_kind", "same", "asr_before", "asr_after"),
        *("suppression", "suppression_net_clean", "suppression_net_phantom", "prob_before", "prob_after"),
        *("prob_suppression", "prob_suppression_net_clean", "prob_suppression_net_phantom", "collapsed"),
    ),
    "casd": ("variant", "a", "b", "distance", "grid"),
    "casd_layers": ("variant", "a", "b", "layer_idx", "distance"),
    "relation": (
        *("variant", "response", "n_backdoors", "n_pairs", "rho", "p_value", "permutations", "exact"),
        *("tau", "p_tau", "rho_pairs", "p_pairs", "rho_partial", "p_partial", "excluded", "note"),
    ),
    "specificity": (),
    "samples": ("state", "backdoor", "probe", "prompt", "generated", "success"),
    "utility": ("state", "task", "metric", "value", "stderr", "n"),
    "rivals": ("predictor", "a", "b", "distance"),
    "tuning": ("setting", "backdoor", "reached", "asr", "clean_loss_ratio", "step", "chosen"),
    "curves": ("state", "step", "loss", "gradient_norm", "validation_asr", "validation_clean_loss", "guard_clean_loss"),
}
"""The columns each table must have; further ones are kept. `specificity` is free: means, with `_low` and `_high` bounds."""
SWEEP_INFO: Final = "sweep.json"
"""In the tables of a report over several runs what info.json is in those of a run."""
UTILITY_PREFIX: Final = "utility/"
"""How the columns of `states` begin that hold the main metric of a benchmark task."""
_READ_TOGETHER: Final = ("asr", "states", "transfer", "casd", "relation", "rivals")
"""What is said of many runs is said of these tables."""
_IDENTITY: Final = {"model", "objective", "seed"}
"""What `info` has to say of every run."""
TABLES_VERSION: Final = 6
"""STAGE_VERSION of the scores: raise it when tables, columns or what they mean change. Runs of others are not read together."""
_ROW_GROUP: Final = 4096
"""Rows that a Parquet file has in a group: a reader that filters skips whole groups, so those of the grid stay on the disk."""


@dataclass
class RunTables:
    """All tables of one run, tidy: a row per observation. Rates and probabilities are fractions.

    Attributes:
        asr: a row per model state × backdoor × kind of prompt ("triggered", "clean", "fake").
        states: a row per model state: the injected model, each removal, each control. `clean_loss` and `retain_loss` are in
            nats per token, on passages of the evaluation and of the retain split. For each task of `utility` there may be a
            column `utility/TASK`, its main metric. `forget_gradient_first` and
            `forget_gradient_last` are the L2 norms, before clipping, of the gradient of the forget term alone at the first
            and the last training step; NaN for a state that took none.
            `forget_gradient_share` is the share of its steps at which that gradient was not zero. `validation_asr` is the
            removed backdoor's ASR on validation prompts at the step that was kept, and `reached_target` whether (1 or 0) it
            came down to the target within the clean budget; NaN where nothing was validated. `steps` are those that the kept
            model has done.
        transfer: a row per removal or control (`source`) × measured backdoor (`target`).
        casd: a row per CASD variant × pair of removals. `grid` tells the variants of the grid (`casd.metric.variant_grid`),
            with each pair once, from the headline variants and those that the configuration names, with both orders.
        casd_layers: the same for each layer, without the grid.
        relation: a row per CASD variant × response; empty where there were too few backdoors.
        specificity: one row of named means with intervals.
        samples: some of the generated texts, as they were generated.
        utility: a row per model state × benchmark task × metric, with its standard error and the number of items; empty where
            no benchmark was run.
        rivals: a row per rival of CASD (`casd.rivals.RIVALS`) × pair of removals.
        tuning: the trials by which the objective's settings were chosen; empty if they were given.
        curves: a row per removal or control × number of training steps done: the training loss of the next batch, in `loss`
            and for each of the objective's terms in a column `loss/TERM`, and the L2 norm of its gradient before clipping;
            where they were measured, the removed backdoor's ASR and the clean loss (nats per token) on what is held out for
            validation, and the clean loss on the guard's passages; NaN elsewhere.
        info: "model", "objective", "seed" (all needed); "run" (a name), "config" (the resolved YAML), "provenance" and
            "timings" (nested dicts of names and values; seconds), "headline" (the names of the CASD variants to show)
            and "targets" (backdoor → name of its target behavior), each where known; "folder" and "setting" of runs that were
            read together (`casd.report.read_runs`).
    """

    asr: pd.DataFrame
    states: pd.DataFrame
    transfer: pd.DataFrame
    casd: pd.DataFrame
    casd_layers: pd.DataFrame
    relation: pd.DataFrame
    specificity: pd.DataFrame
    samples: pd.DataFrame
    utility: pd.DataFrame
    rivals: pd.DataFrame
    tuning: pd.DataFrame
    curves: pd.DataFrame
    info: dict[str, Any]

    def __post_init__(self) -> None:
        for name, columns in SCHEMAS.items():
            missing = set(columns) - set(getattr(self, name).columns)
            if missing:
                raise ValueError(f"table {name!r} lacks the columns {sorted(missing)}")

    @property
    def treatment(self) -> str:
        """The objective, and what of the configuration sets the run apart from others where `info["setting"]` says so."""
        return treatment(self.info)

    @property
    def backdoors(self) -> list[str]:
        """The measured backdoors, in the order of the `asr` table."""
        return list(dict.fromkeys(backdoor for (backdoor,) in self.rows("asr", "backdoor")))

    @property
    def collapsed(self) -> set[str]:
        """The states whose model no longer works on clean text."""
        return {state for state, collapsed in self.rows("states", "state", "collapsed") if collapsed}

    @property
    def headline(self) -> list[str]:
        """The CASD variants to show: those `info` names, else every one that was computed outside the grid."""
        named = self.info.get("headline")
        return list(named or dict.fromkeys(variant for variant, grid in self.rows("casd", "variant", "grid") if not grid))

    @property
    def tasks(self) -> list[str]:
        """The benchmark tasks whose main metric the `states` table has."""
        columns = map(str, self.states.columns)
        return [column.removeprefix(UTILITY_PREFIX) for column in columns if column.startswith(UTILITY_PREFIX)]

    def states_of(self, kind: str) -> list[str]:
        """The states of one kind: "injected", "removal" or "control"."""
        return [state for state, found in self.rows("states", "state", "kind") if found == kind]

    def columns(self, table: str, *names: str) -> list[np.ndarray]:
        """Some columns of a table, shape (rows,) each; not to be written to."""
        frame = getattr(self, table)
        return [frame[name].to_numpy() for name in names]

    def rows(self, table: str, *names: str) -> Iterator[tuple[Any, ...]]:
        """The rows of some columns of a table, as plain values."""
        return zip(*(column.tolist() for column in self.columns(table, *names)), strict=True)

    @property
    def lacks_grid(self) -> bool:
        """Whether the rows of the CASD grid were left on the disk, where `every_variant` finds them.

        Raises:
            StoreError: the run can no longer be read from `info["folder"]`.
        """
        if "folder" not in self.info or self.casd["grid"].astype(bool).any():
            return False
        with _opened(Path(self.info["folder"]), "casd") as file:
            return bool(file.metadata.num_rows != len(self.casd))

    def every_variant(self) -> pd.DataFrame:
        """The `casd` table with the rows of the grid, even if the run was read without them.

        Raises:
            StoreError: they can no longer be read from `info["folder"]`.
        """
        return read_table(Path(self.info["folder"]), "casd") if self.lacks_grid else self.casd

    def write(self, folder: Path) -> None:
        """Write every table as Parquet and CSV, then `info`, under `folder/tables`.

        Raises:
            StoreError: a file cannot be written.
        """
        missing = _IDENTITY - set(self.info)
        if missing:
            raise ValueError(f"info lacks {sorted(missing)}")
        write_frames({name: getattr(self, name) for name in SCHEMAS}, self.info, folder, "info.json")

    @classmethod
    def read(cls, folder: Path, *, grid: bool = True, info: dict[str, Any] | None = None) -> RunTables:
        """Read what `write` wrote.

        Args:
            folder: of the run.
            grid: read the rows of the CASD grid, too; they are nearly all of a run that has them, and `every_variant` reads
                them later.
            info: what is to be its `info`, where that was read before (and "folder" added to it).

        Raises:
            StoreError: the folder holds no finished run, a table in it is damaged, or an older version wrote it.
        """
        info = info or read_info(folder)
        return cls(**{name: read_table(folder, name, grid=grid) for name in SCHEMAS}, info=info)


class FinishedTables(RunTables):
    """The tables of a finished run, without the rows of the CASD grid; each is read, or made a frame, when it is first used."""

    def __init__(self, info: dict[str, Any]) -> None:
        """`info` has the "folder"."""
        self.info = info
        self._shared: dict[str, _Shared] = {}
        self._lacks_grid: bool | None = None

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

    @property
    def lacks_grid(self) -> bool:
        """As of any run, as it was when the run was read."""
        return super().lacks_grid if self._lacks_grid is None or "casd" in vars(self) else self._lacks_grid


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
        read = [_read(Path(info["folder"]), name, grid=False) for info in infos]
        for tables, shared, (_, lacks_grid) in zip(runs, _share([table for table, _ in read]), read, strict=True):
            tables._shared[name] = shared
            if name == "casd":
                tables._lacks_grid = lacks_grid
    return list(runs)


def treatment(info: Mapping[str, Any]) -> str:
    """As `RunTables.treatment`, of a run of which only `info` was read."""
    setting = info.get("setting")
    return f"{info['objective']}, {setting}" if setting else str(info["objective"])


def read_info(folder: Path) -> dict[str, Any]:
    """The `info` of the finished run in `folder`.

    Raises:
        StoreError: the folder holds no finished run, or the file is damaged.
    """
    tables = Path(folder) / "tables"
    path = tables / "info.json"
    if not path.is_file():
        what = "it has no tables/info.json"
        if (tables / SWEEP_INFO).is_file():
            what = "it is the report of several runs"
        elif tables.is_dir():
            what = "its tables are not complete (no tables/info.json), so the run that writes them has not come to its end"
        raise StoreError(
            f"{folder} is not the folder of a finished run: {what}."
            " Name a folder that `casd run` or `casd report` has finished, or run its command again."
        )
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # json's errors are ValueErrors
        raise StoreError(f"{path} cannot be read ({error}). Make the run's report again: casd report.") from error
    if not isinstance(info, dict) or (missing := _IDENTITY - set(info)):
        lacks = ", ".join(sorted(missing if isinstance(info, dict) else _IDENTITY))
        raise StoreError(f"{path} does not say what was run: it lacks {lacks}. Run its command again.")
    return info


def read_table(folder: Path, name: str, *, grid: bool = True) -> pd.DataFrame:
    """One table of the finished run in `folder`.

    Args:
        folder: of the run.
        name: one of SCHEMAS.
        grid: of `casd` the rows of the grid, too.

    Raises:
        StoreError: the table is damaged, or an older version wrote the run: the table is not there, or lacks a column.
    """
    table, _ = _read(folder, name, grid=grid)
    return _frame(table)


def _share(tables: Sequence[pa.Table]) -> list[_Shared]:
    """Tables of one kind, those with the same columns in one frame: making one takes longer than reading its rows."""
    alike: dict[pa.Schema, list[int]] = {}
    for place, table in enumerate(tables):
        alike.setdefault(table.schema.remove_metadata(), []).append(place)
    found: dict[int, _Shared] = {}
    for places in alike.values():
        whole = _frame(pa.concat_tables([tables[place] for place in places]).combine_chunks())
        # Few texts at a time are taken out several times as fast as plain strings than as Arrow's; so are columns by name.
        whole.columns = whole.columns.astype(object)
        whole = whole.astype({name: object for name, dtype in whole.dtypes.items() if isinstance(dtype, pd.StringDtype)})
        columns: dict[str, np.ndarray] = {}
        end = 0
        for place in places:
            start, end = end, end + len(tables[place])
            found[place] = _Shared(whole, columns, slice(start, end))
    return [found[place] for place in range(len(tables))]


def _read(folder: Path, name: str, *, grid: bool) -> tuple[pa.Table, bool]:
    """As Arrow has it, and whether rows of the grid were left out. Tables this small are read faster without threads."""
    with _opened(folder, name) as file:
        table = file.read(use_threads=False) if grid or name != "casd" else _without_grid(file)
        return table, len(table) != file.metadata.num_rows


def _frame(table: pa.Table) -> pd.DataFrame:
    return table.to_pandas(use_threads=False)


def _without_grid(file: pq.ParquetFile) -> pa.Table:
    """The rows of `casd` that are not of the grid; groups of rows that are all of it stay on the disk."""
    place = file.schema_arrow.get_field_index("grid")
    ranges = [file.metadata.row_group(group).column(place).statistics for group in range(file.num_row_groups)]
    mixed = [group for group, values in enumerate(ranges) if values is None or not values.has_min_max or not values.min]
    table = file.read_row_groups(mixed, use_threads=False)
    of_grid = table["grid"].to_numpy().astype(bool)
    return table.filter(pa.array(~of_grid)) if of_grid.any() else table


@contextmanager
def _opened(folder: Path, name: str) -> Iterator[pq.ParquetFile]:
    """The file of one table, with its errors in words.

    Raises:
        StoreError: as `read_table`.
    """
    path = Path(folder) / "tables" / f"{name}.parquet"
    try:
        with pq.ParquetFile(path) as file:
            if missing := set(SCHEMAS[name]) - set(file.schema_arrow.names):
                raise _older(folder, f"its table {name!r} lacks {', '.join(sorted(missing))}")
            yield file
    except FileNotFoundError:
        raise _older(folder, f"it has no table {name!r}") from None
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise StoreError(f"{path} cannot be read ({error}). Make the run's report again: casd report.") from error


def _older(folder: Path, what: str) -> StoreError:
    return StoreError(
        f"The run in {folder} was made by an older version of casd: {what}."
        " Run its command again: what is still valid of its stages is reused."
    )


def write_frames(frames: Mapping[str, pd.DataFrame], info: Mapping[str, Any], folder: Path, info_name: str) -> None:
    """Write each frame as Parquet and CSV under `folder/tables`; the file `info_name` goes away first, comes back last.

    Raises:
        StoreError: a file cannot be written.
    """
    tables = Path(folder) / "tables"
    finished = tables / info_name
    try:
        tables.mkdir(parents=True, exist_ok=True)
        finished.unlink(missing_ok=True)
        for name, frame in frames.items():
            frame.to_parquet(tables / f"{name}.parquet", index=False, row_group_size=_ROW_GROUP)
            named = frame[~frame["grid"].astype(bool)] if name == "casd" else frame
            named.to_csv(tables / f"{name}.csv", index=False, lineterminator="\n")
        partial = tables / f"{info_name}.partial"
        partial.write_text(json.dumps(info, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
        partial.replace(finished)
    except OSError as error:
        raise StoreError(f"The tables cannot be written to {tables}: {error}. Free space or choose another folder.") from error
