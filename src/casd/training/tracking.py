"""Send the records of a training log to experiment trackers (TensorBoard, Weights & Biases) through accelerate."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from casd.training.checkpoints import TrainingLog
from casd.utils.disk import explaining_disk_errors
from casd.utils.distributed import is_main
from casd.utils.errors import ConfigError, first_line
from casd.utils.runtime import Runtime

PROJECT: Final = "casd"
"""Name of the project on Weights & Biases."""
_GROUPS: Final = {"steps": "train", "guard": "guard", "validation": "validation"}
"""Prefix of the tracked names for each list of records of a training log."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of the trackers are installed.

    Raises:
        ConfigError: a package is missing.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"runtime.trackers has {name}, which is not installed: pip install {name}")


class Trackers:
    """The trackers of one training, as a context manager that closes them. Only the main process writes.

    TensorBoard's files are in `runtime.tracking_folder/TRAINING`, which is emptied first: a resumed training sends its whole
    log.

    Args:
        training: name of the training ("unlearn french_a").
        runtime: names of the trackers, and the folder that they write to.

    Raises:
        ConfigError: a tracker's package is missing, or it cannot be started.
        StoreError: the folder cannot be written.
    """

    def __init__(self, training: str, runtime: Runtime):
        self._sent = dict.fromkeys(_GROUPS, 0)
        self._trackers: list[Any] = []
        if not runtime.trackers or not is_main():
            return
        check_trackers(runtime.trackers)
        folder = Path(runtime.tracking_folder).absolute() / re.sub(r"[^\w.-]+", "_", training)
        with explaining_disk_errors("the tracked losses", folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self._trackers = [_started(name, training, folder) for name in runtime.trackers]

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self._trackers:
            tracker.finish()

    def send(self, log: TrainingLog) -> None:
        """Send the records that were added since the last call, in the order of their steps.

        The names are `train/loss`, `train/loss/TERM`, `train/learning_rate`, `train/gradient_norm`, `guard/clean_loss`,
        `validation/asr` and `validation/clean_loss`; a step is the number of training steps done before the measurement.
        """
        if not self._trackers:
            return
        new = [(group, record) for group in _GROUPS for record in getattr(log, group)[self._sent[group] :]]
        for group, record in sorted(new, key=lambda each: each[1]["step"]):
            values = {f"{_GROUPS[group]}/{name}": value for name, value in record.items() if name != "step"}
            for tracker in self._trackers:
                tracker.log(values, step=int(record["step"]))
        self._sent = {group: len(getattr(log, group)) for group in _GROUPS}


def _started(name: str, training: str, folder: Path) -> Any:
    """Start one of accelerate's trackers."""
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    PartialState()  # the trackers' messages need it
    if name == "tensorboard":
        tracker = TensorBoardTracker(folder.name, folder.parent)
    else:
        tracker = WandBTracker(PROJECT, name=training, group=folder.parent.parent.name, dir=str(folder))
    try:
        tracker.start()
    except OSError:
        raise
    except Exception as error:  # W&B raises errors of many types, such as for a missing login
        raise ConfigError(f"runtime.trackers: {name} cannot be started: {first_line(error)}") from error
    return tracker
