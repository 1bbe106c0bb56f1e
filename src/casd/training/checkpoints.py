"""Checkpoints of a training run, from which it goes on after a kill; and its log, which is part of them."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from casd.models.weights import Weights, restore_weights, trained_parameters
from casd.utils.atomic import flush, flush_all, give_default_rights, remove, remove_leftovers, temporary_beside
from casd.utils.distributed import is_main
from casd.utils.progress import say
from casd.utils.sealed import CHECKSUMS, Damage, Entries, check_file, checksums, read_manifest, write_manifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KEPT: Final = "kept.safetensors"


@dataclass
class TrainingLog:
    """What happened in a run.

    Attributes:
        steps: one record a step: `step`, `learning_rate`, `loss` (sum of the terms), `loss/<term>`, `gradient_norm` (of the
            whole, before clipping), `gradient_norm/<first term>` (of the first term alone: for unlearning, the forget term).
        guard: one record a measurement: `step` (how many were done), `clean_loss` in nats per token.
        validation: one record a measurement of a removal that is watched (`casd.unlearning.stopping`): `step` (how many were
            done), `asr` of the removed backdoor on validation prompts, `clean_loss` on validation passages.
        kept_step: how many steps the model that was kept has done; None for all of them.
        stopped: why the run ended early; empty if it did not.
        seconds: wall time of the loop.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    guard: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    kept_step: int | None = None
    stopped: str = ""
    seconds: float = 0.0

    @property
    def kept(self) -> dict[str, float]:
        """The validation's record of the step that was kept; empty if nothing was validated."""
        return next((record for record in self.validation if record["step"] == self.kept_step), {})

    def write(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> TrainingLog:
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_text()))


def save_checkpoint(
    folder: Path,
    done: int,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    log: TrainingLog,
    kept: Weights | None = None,
) -> None:
    """Write a checkpoint whole (temporary folder, then rename); `kept` is the best step so far.

    The one before it is kept, to go on from if this one is damaged; those before that are removed first, so there are never
    more than two on the disk.
    """
    for path in _checkpoints(folder)[:-1]:
        remove(path)
    place = folder / f"step-{done:08d}"
    remove_leftovers(folder / "step")
    temporary = temporary_beside(folder / "step")
    temporary.mkdir(parents=True)
    try:
        _write_checkpoint(temporary, model, optimizer, log, kept)
        temporary.rename(place)
        flush(folder)
    except Exception:
        # Where there are no locks, another process may have made this checkpoint, or finished the stage, which removes all.
        if temporary.exists() and not place.is_dir():
            raise
    finally:
        remove(temporary)


def _write_checkpoint(
    folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, log: TrainingLog, kept: Weights | None
) -> None:
    """Write the files of a checkpoint with their checksums, and flush them to the disk."""
    from safetensors.torch import save_file

    save_file({name: value.detach() for name, value in trained_parameters(model).items()}, folder / "weights.safetensors")
    state = optimizer.state_dict()["state"]
    flat = {f"{index}/{name}": torch.as_tensor(value) for index, entry in state.items() for name, value in entry.items()}
    save_file(flat, folder / "optimizer.safetensors")
    if kept is not None:
        save_file({name: value.contiguous() for name, value in kept.items()}, folder / _KEPT)
    log.write(folder / "log.json")
    write_manifest(folder / CHECKSUMS, {"files": checksums(folder)})
    give_default_rights(folder, folder / CHECKSUMS)
    flush_all(folder)


def restore_checkpoint(
    folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> tuple[int, TrainingLog, Weights | None]:
    """Load the newest checkpoint that is whole, if there is one.

    A damaged one is removed, which is said, and the one before it is loaded; without one the training starts anew.

    Returns:
        The steps done, the log up to there, and the best step's weights.

    Raises:
        StoreError: a checkpoint is there and cannot be read.
    """
    for path in reversed(_checkpoints(folder)):
        try:
            files = _checked(path)
        except Damage as damage:
            say(f"The checkpoint {path} is damaged: {damage}. Going on from the one before it, or from the start.")
            if is_main():
                remove(path)
            continue
        return _load_checkpoint(path, _KEPT in files, model, optimizer)
    return 0, TrainingLog(), None


def _load_checkpoint(
    folder: Path, has_kept: bool, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> tuple[int, TrainingLog, Weights | None]:
    """Load a checkpoint that was checked."""
    from safetensors.torch import load_file

    restore_weights(model, load_file(folder / "weights.safetensors"))
    state: dict[int, dict[str, Any]] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        index, _, name = key.partition("/")
        # bitsandbytes counts its steps in a plain integer, torch in a float tensor.
        state.setdefault(int(index), {})[name] = int(value) if value.shape == () and value.dtype == torch.int64 else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    kept = load_file(folder / _KEPT) if has_kept else None
    return int(folder.name.removeprefix("step-")), TrainingLog.read(folder / "log.json"), kept


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name))


def _checked(checkpoint: Path) -> Entries:
    """The files of a checkpoint, after checking all of them.

    Raises:
        Damage: one is missing or altered, or the checkpoint is of a version that wrote no checksums.
        StoreError: one cannot be read.
    """
    try:
        files: Entries = read_manifest(checkpoint / CHECKSUMS)["files"]
    except FileNotFoundError:
        raise Damage(f"it has no {CHECKSUMS}") from None
    for name, entry in files.items():
        check_file(checkpoint, name, entry)
    return files
