"""Read and write the tables of a run.

The folder of a finished run contains `tables/NAME.parquet` and `tables/NAME.csv` for every table, and `tables/info.json`. The
latter is written last: a folder without it is not a finished run. `casd.csv` leaves out the rows of the grid, which are many
thousand, and ten times as large in CSV as in Parquet.

Every file is checked when it is read, against the manifest if the folder is a stage, or the `checksums.json` if it is a
published report. Folders of earlier versions and those of `RunTables.write` have neither and are not checked.

Parquet files store texts unmodified and are the ones that are read. CSV files are for people and spreadsheets: control
characters in a text are written as escape sequences (`\\x1b`), and a text that a spreadsheet would interpret as a formula is
prefixed with an apostrophe (`casd.utils.text.spreadsheet_cell`). Numbers are the same in both.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from casd.analysis.conditions import flatten
from casd.config.inputs import model_label
from casd.utils.atomic import write_text
from casd.utils.errors import StoreError
from casd.utils.sealed import CHECKSUMS, MANIFEST, Damage, Entries, checked_bytes, read_manifest, stage_manifest
from casd.utils.text import spreadsheet_cell

SCHEMAS: Final[dict[str, tuple[str, ...]]] = {
    "asr": ("state", "backdoor", "prompt_set", "successes", "n", "rate", "rate_low", "rate_high", "first_token_prob"),
    "states": (
        *("state", "kind", "clean_loss", "retain_loss", "clean_loss_ratio", "degenerate_rate", "steps", "train_seconds"),
        *("forget_gradient_first", "forget_gradient_last", "forget_gradient_share"),
        *("validation_asr", "reached_target", "stopped", "collapsed", "collapse_reason", "excluded"),
    ),
    "transfer": (
        *("source", "target", "source_kind", "same", "asr_before", "asr_after"),
        *("suppression", "suppression_net_clean", "suppression_net_phantom", "prob_before", "prob_after"),
        *("prob_suppression", "prob_suppression_net_clean", "prob_suppression_net_phantom", "collapsed", "excluded"),
    ),
    "casd": ("variant", "a", "b", "distance", "grid"),
    "casd_layers": ("variant", "a", "b", "layer_idx", "distance"),
    "relation": (
        *("variant", "response", "n_backdoors", "n_pairs", "rho", "p_value", "permutations", "exact"),
        *("tau", "p_tau", "rho_pairs", "p_pairs", "rho_partial", "p_partial", "excluded", "note"),
    ),
    "specificity": (),
    "samples": ("state", "backdoor", "prompt_set", "prompt", "generated", "success"),
    "utility": ("state", "task", "metric", "value", "stderr", "n"),
    "baselines": ("predictor", "a", "b", "distance"),
    "tuning": ("setting", "backdoor", "reached", "asr", "clean_loss_ratio", "step", "chosen"),
    "curves": ("state", "step", "loss", "gradient_norm", "validation_asr", "validation_clean_loss", "guard_clean_loss"),
}
"""Required columns of each table; others are kept. `specificity` requires none."""
PERSISTENCE: Final = (
    *("state", "model", "treatment", "source", "documents", "bits", "step"),
    *("backdoor", "prompt_set", "successes", "n", "rate", "rate_low", "rate_high", "clean_loss"),
)
"""Columns of the table `persistence`, which runs have only if they measured it."""
SWEEP_INFO: Final = "sweep.json"
"""In a report over several runs, the counterpart of info.json."""
IDENTITY: Final = {"model", "objective", "seed"}
"""Required keys of `info`."""
TABLES_VERSION: Final = 9
"""STAGE_VERSION of the scores: increment it if tables or columns, or their meaning, change. Other versions are not read."""
_ROW_GROUP: Final = 4096
"""Rows per row group of a Parquet file. A filtered read skips whole groups, so most rows of the grid are not read."""


def read_info(folder: Path) -> dict[str, Any]:
    """Read the `info` of the finished run in `folder`.

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
            what = "its tables are not complete (no tables/info.json), so the run has not finished"
        raise StoreError(
            f"{folder} is not the folder of a finished run: {what}."
            " Name a folder that `casd run` or `casd report` has finished, or run its command again."
        )
    try:
        info = json.loads(_content(Path(folder), "tables/info.json"))
    except (OSError, ValueError) as error:  # json's errors are ValueErrors
        raise StoreError(f"{path} cannot be read ({error}). Make the run's report again: casd report.") from error
    if not isinstance(info, dict) or (missing := IDENTITY - set(info)):
        lacks = ", ".join(sorted(missing if isinstance(info, dict) else IDENTITY))
        raise StoreError(f"{path} lacks {lacks}. Run its command again.")
    return info | {"model": model_label(info["model"], flatten(str(info.get("config") or "")).get("model.path"))}


def read_table(folder: Path, name: str, *, grid: bool = True) -> pd.DataFrame:
    """Read one table of the finished run in `folder`.

    Args:
        folder: folder of the run.
        name: a key of SCHEMAS, or "persistence".
        grid: for `casd`, also read the rows of the grid.

    Raises:
        StoreError: the table is damaged, is missing, or lacks a column (an older version wrote the run).
    """
    path = Path(folder) / "tables" / f"{name}.parquet"
    filters = None if grid or name != "casd" else [("grid", "==", False)]
    try:
        content = pa.BufferReader(_content(Path(folder), f"tables/{name}.parquet"))
        if missing := set(SCHEMAS.get(name, PERSISTENCE)) - set(pq.read_schema(content).names):
            raise _older(folder, f"its table {name!r} lacks {', '.join(sorted(missing))}")
        return pq.read_table(content, filters=filters).to_pandas()
    except FileNotFoundError:
        raise _older(folder, f"it has no table {name!r}") from None
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise StoreError(f"{path} cannot be read ({error}). Make the run's report again: casd report.") from error


def read_persistence(folder: Path) -> pd.DataFrame:
    """Read the table `persistence` of the finished run in `folder`, without a row if the run did not measure it.

    Raises:
        StoreError: the table is damaged.
    """
    entries, name = _entries(folder), "tables/persistence.parquet"
    there = (folder / name).is_file() if entries is None else name in entries
    return read_table(folder, "persistence") if there else pd.DataFrame(columns=list(PERSISTENCE))


def _content(folder: Path, name: str) -> bytes:
    """Read a file of the run in `folder`, and check it if its checksum is known.

    Raises:
        FileNotFoundError: the file does not belong to the run.
        StoreError: the file is damaged or cannot be read.
    """
    try:
        entries = _entries(folder)
        if entries is None:
            return (folder / name).read_bytes()
        if name not in entries:
            raise FileNotFoundError(folder / name)
        return checked_bytes(folder, name, entries[name])
    except Damage as damage:
        advice = "Run the command that made it again, which replaces damaged files."
        if (folder / MANIFEST).exists():
            advice = f"Delete the folder {folder} and run its command again; only this stage is computed again."
        raise StoreError(f"{folder} is damaged: {damage}. {advice}") from damage


def _entries(folder: Path) -> Entries | None:
    """Return the checksums of the files in a finished run's folder; None if the folder has none.

    Raises:
        Damage: the list of checksums is damaged.
        StoreError: the list of checksums cannot be read.
    """
    for name in (MANIFEST, CHECKSUMS):
        if (path := folder / name).exists():
            status = path.stat()
            return _entries_of(path, status.st_size, status.st_ctime_ns)
    return None


@functools.lru_cache(maxsize=1024)
def _entries_of(path: Path, size: int, changed: int) -> Entries:
    """Read a list of checksums. Cached as long as the file's size and time of change stay the same."""
    return (stage_manifest(path.parent) if path.name == MANIFEST else read_manifest(path))["files"]


def _older(folder: Path, what: str) -> StoreError:
    return StoreError(
        f"The run in {folder} was made by an older version of casd: {what}."
        " Run its command again; stages that are still valid are reused."
    )


def _for_spreadsheets(frame: pd.DataFrame) -> pd.DataFrame:
    """Escape the texts and column names of a frame for CSV."""
    changed: dict[str, list[Any]] = {}
    for name, column in frame.items():
        if column.dtype.kind == "O":  # by unique values, which are few, and rarely need escaping
            texts = {value: spreadsheet_cell(value) for value in column.unique() if isinstance(value, str)}
            if any(value != escaped for value, escaped in texts.items()):
                changed[str(name)] = [texts.get(value, value) for value in column]
    return frame.assign(**changed).rename(columns=spreadsheet_cell)


def write_frames(frames: Mapping[str, pd.DataFrame], info: Mapping[str, Any], folder: Path, info_name: str) -> None:
    """Write each frame as Parquet and CSV under `folder/tables`, and last `info` as `info_name`.

    An old `info_name` is deleted first, so that a folder with that file is always complete.

    Raises:
        OSError: a file cannot be written.
    """
    tables = Path(folder) / "tables"
    finished = tables / info_name
    tables.mkdir(parents=True, exist_ok=True)
    finished.unlink(missing_ok=True)
    (Path(folder) / CHECKSUMS).unlink(missing_ok=True)  # of the files that are overwritten
    for name, frame in frames.items():
        frame.to_parquet(tables / f"{name}.parquet", index=False, row_group_size=_ROW_GROUP)
        without_grid = frame[~frame["grid"].astype(bool)] if name == "casd" else frame
        _for_spreadsheets(without_grid).to_csv(tables / f"{name}.csv", index=False, lineterminator="\n")
    write_text(finished, json.dumps(info, indent=2, ensure_ascii=False, default=str) + "\n")
