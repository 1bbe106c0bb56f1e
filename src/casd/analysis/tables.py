"""The tables of a run on the disk, and what is said of a folder that has none, or others.

A finished run's folder holds `tables/NAME.parquet` and `tables/NAME.csv` for every table and `tables/info.json`, which is
written last: a folder without it is not a finished run. Of `casd` the CSV has the rows without the grid only: those of the
grid are many thousand, and ten times as large in CSV.

Every file is checked when it is read: against the manifest of the stage that the folder is, or against the `checksums.json`
of a published report. Folders of earlier versions and what `RunTables.write` wrote have neither.

Parquet has texts as they are, and is what is read back. CSV is for people and spreadsheets: control characters in a text are
escape sequences (`\\x1b`), and a text that a spreadsheet would take for a formula begins with an apostrophe
(`casd.utils.text.spreadsheet_cell`). Numbers are the same in both.
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
"""The columns each table must have; further ones are kept. `specificity` is free: means, with `_low` and `_high` bounds."""
SWEEP_INFO: Final = "sweep.json"
"""In the tables of a report over several runs what info.json is in those of a run."""
IDENTITY: Final = {"model", "objective", "seed"}
"""What `info` has to say of every run."""
TABLES_VERSION: Final = 8
"""STAGE_VERSION of the scores: raise it when tables, columns or what they mean change. Runs of others are not read together."""
_ROW_GROUP: Final = 4096
"""Rows that a Parquet file has in a group: a reader that filters skips whole groups, so those of the grid stay on the disk."""


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
        info = json.loads(_content(Path(folder), "tables/info.json"))
    except (OSError, ValueError) as error:  # json's errors are ValueErrors
        raise StoreError(f"{path} cannot be read ({error}). Make the run's report again: casd report.") from error
    if not isinstance(info, dict) or (missing := IDENTITY - set(info)):
        lacks = ", ".join(sorted(missing if isinstance(info, dict) else IDENTITY))
        raise StoreError(f"{path} does not say what was run: it lacks {lacks}. Run its command again.")
    return info


def read_table(folder: Path, name: str, *, grid: bool = True) -> pd.DataFrame:
    """One table of the finished run in `folder`.

    Args:
        folder: of the run.
        name: one of SCHEMAS.
        grid: of `casd`, read the rows of the grid, too.

    Raises:
        StoreError: the table is damaged, or an older version wrote the run: the table is not there, or lacks a column.
    """
    path = Path(folder) / "tables" / f"{name}.parquet"
    filters = None if grid or name != "casd" else [("grid", "==", False)]
    try:
        content = pa.BufferReader(_content(Path(folder), f"tables/{name}.parquet"))
        if missing := set(SCHEMAS[name]) - set(pq.read_schema(content).names):
            raise _older(folder, f"its table {name!r} lacks {', '.join(sorted(missing))}")
        return pq.read_table(content, filters=filters).to_pandas()
    except FileNotFoundError:
        raise _older(folder, f"it has no table {name!r}") from None
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise StoreError(f"{path} cannot be read ({error}). Make the run's report again: casd report.") from error


def _content(folder: Path, name: str) -> bytes:
    """A file of the run in `folder`, checked if its checksum is known.

    Raises:
        FileNotFoundError: it is not of the run.
        StoreError: it is damaged or cannot be read.
    """
    try:
        entries = _entries(folder)
        if entries is None:
            return (folder / name).read_bytes()
        if name not in entries:
            raise FileNotFoundError(folder / name)
        return checked_bytes(folder, name, entries[name])
    except Damage as damage:
        advice = "Run the command that made it again: what is damaged is made anew."
        if (folder / MANIFEST).exists():
            advice = f"Delete the folder {folder} and run its command again; only this stage is made anew."
        raise StoreError(f"{folder} is damaged: {damage}. {advice}") from damage


def _entries(folder: Path) -> Entries | None:
    """The checksums of the files in a finished run's folder; None if an older version published it.

    Raises:
        Damage: the list is damaged.
        StoreError: it cannot be read.
    """
    for name in (MANIFEST, CHECKSUMS):
        if (path := folder / name).exists():
            status = path.stat()
            return _entries_of(path, status.st_size, status.st_mtime_ns)
    return None


@functools.lru_cache(maxsize=1024)
def _entries_of(path: Path, size: int, changed: int) -> Entries:
    """The list in a file, read once for all tables as long as its size and time of change are the same."""
    return (stage_manifest(path.parent) if path.name == MANIFEST else read_manifest(path))["files"]


def _older(folder: Path, what: str) -> StoreError:
    return StoreError(
        f"The run in {folder} was made by an older version of casd: {what}."
        " Run its command again: what is still valid of its stages is reused."
    )


def _for_spreadsheets(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its texts, and the names of its columns, as cells of a CSV file."""
    changed: dict[str, list[Any]] = {}
    for name, column in frame.items():
        if column.dtype.kind == "O":  # few values that often come back, and hardly ever one to change
            texts = {value: spreadsheet_cell(value) for value in column.unique() if isinstance(value, str)}
            if any(value != shown for value, shown in texts.items()):
                changed[str(name)] = [texts.get(value, value) for value in column]
    return frame.assign(**changed).rename(columns=spreadsheet_cell)


def write_frames(frames: Mapping[str, pd.DataFrame], info: Mapping[str, Any], folder: Path, info_name: str) -> None:
    """Write each frame as Parquet and CSV under `folder/tables`; the file `info_name` goes away first, comes back last.

    Raises:
        OSError: a file cannot be written.
    """
    tables = Path(folder) / "tables"
    finished = tables / info_name
    tables.mkdir(parents=True, exist_ok=True)
    finished.unlink(missing_ok=True)
    (Path(folder) / CHECKSUMS).unlink(missing_ok=True)  # they were of what is written over
    for name, frame in frames.items():
        frame.to_parquet(tables / f"{name}.parquet", index=False, row_group_size=_ROW_GROUP)
        named = frame[~frame["grid"].astype(bool)] if name == "casd" else frame
        _for_spreadsheets(named).to_csv(tables / f"{name}.csv", index=False, lineterminator="\n")
    write_text(finished, json.dumps(info, indent=2, ensure_ascii=False, default=str) + "\n")
