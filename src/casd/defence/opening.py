"""The log of openings: when a defence was opened, with which code, and what had been decided before.

A line is written before the attacker's backdoors are measured, so that an opening that is killed counts. An opening that is
repeated without a change reads its stage and adds no line; a changed defence of the same model adds one.
"""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

from casd.config import ModelConfig
from casd.defence.choice import Decision
from casd.pipeline.stage import Stage
from casd.utils.atomic import locked
from casd.utils.disk import explaining_disk_errors
from casd.utils.versions import software_versions


def note_opening(store: Path, suspect: ModelConfig, stage: Stage, decision: Decision) -> None:
    """Add a line to the log of the sealed model.

    Raises:
        StoreError: the log cannot be written.
    """
    file = log_file(store, suspect)
    line = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "opening": stage.key,
        "decided": vars(decision),
        "made_with": software_versions(),
    }
    with explaining_disk_errors("the log of openings", file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with locked(file.with_suffix(".lock"), "an opening of the same model"), file.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
            log.flush()
            os.fsync(log.fileno())


def openings(store: Path, suspect: ModelConfig) -> list[str]:
    """Return the keys of the different openings of a sealed model, in the order of their first line."""
    file = log_file(store, suspect)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return list(dict.fromkeys(json.loads(line)["opening"] for line in lines))


def log_file(store: Path, suspect: ModelConfig) -> Path:
    """The log of a sealed model."""
    return store / "openings" / f"{Path(str(suspect.path)).name}.jsonl"
