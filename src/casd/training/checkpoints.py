"""Checkpoints from which a killed training run resumes, and the training log, which is part of them."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from casd.models.weights import Weights, restore_weights, trained_parameters
from casd.utils.atomic import flush, flush_all, give_default_rights, remove, remove_leftovers, temporary_beside, write_text
from casd.utils.distributed import is_main
from casd.utils.progress import say
from casd.utils.sealed import CHECKSUMS, Damage, Entries, check_file, checksums, read_manifest, write_manifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KEPT: Final = "kept.safetensors"


@dataclass
class TrainingLog:
    """Log of a training run.

    Attributes:
        steps: one record per step: `step`, `learning_rate`, `loss` (sum of the terms), `loss/<term>`, `gradient_norm` (total,
            before clipping), `gradient_norm/<first term>` (of the first term alone: for unlearning, the forget term).
        guard: one record per measurement: `step` (number of completed steps), `clean_loss` in nats per token.
        validation: one record per validation of a removal (`casd.unlearning.stopping`): `step` (number of completed steps),
            `asr` of the removed backdoor on validation prompts, `clean_loss` on validation passages.
        kept_step: number of steps after which the weights were kept; None for all.
        stopped: why the guard or the clean budget ended the run, or that the loss was not finite; else empty.
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
        """The validation record of the kept step; empty if nothing was validated."""
        return next((record for record in self.validation if record["step"] == self.kept_step), {})

    def write(self, path: Path) -> None:
        """Write as JSON, under a temporary name first."""
        write_text(path, json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> TrainingLog:
        """Read a file written by `write`."""
        return cls(**json.loads(path.read_text()))


def save_checkpoint(
    folder: Path,
    done: int,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    log: TrainingLog,
    kept: Weights | None = None,
) -> None:
    """Write a checkpoint atomically (temporary folder, then rename); `kept` holds the weights of the best step so far.

    The previous checkpoint is kept as a fallback if this one is damaged. Older ones are removed first, so that the disk never
    holds more than two complete ones.
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
        # Without file locks another process may have written this checkpoint, or finished the stage and removed all of them.
        if temporary.exists() and not place.is_dir():
            raise
    finally:
        remove(temporary)


def _write_checkpoint(
    folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, log: TrainingLog, kept: Weights | None
) -> None:
    """Write the files of a checkpoint and their checksums, and flush them to disk."""
    from safetensors.torch import save_file

    save_file({name: value.detach() for name, value in trained_parameters(model).items()}, folder / "weights.safetensors")
    save_file(_flat_state(optimizer), folder / "optimizer.safetensors")
    if kept is not None:
        save_file({name: value.contiguous() for name, value in kept.items()}, folder / _KEPT)
    log.write(folder / "log.json")
    write_manifest(folder / CHECKSUMS, {"files": checksums(folder)})
    give_default_rights(folder, folder / CHECKSUMS)
    flush_all(folder)


def _flat_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the tensors of an optimizer's state by "number of the parameter/name", none of which shares memory with another.

    They are read from the optimizer itself: `state_dict` of bitsandbytes nests its 8-bit tensors. Its parameters share the
    tables of quantization levels, and safetensors refuses tensors that share memory.
    """
    flat: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for index, parameter in enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]):
        for name, value in optimizer.state.get(parameter, {}).items():
            tensor = torch.as_tensor(value)
            flat[f"{index}/{name}"] = tensor.clone() if tensor.data_ptr() in seen else tensor
            seen.add(tensor.data_ptr())
    return flat


def restore_checkpoint(
    folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> tuple[int, TrainingLog, Weights | None]:
    """Load the newest intact checkpoint, if any; damaged ones are reported and removed.

    Returns:
        Number of completed steps (0 without a checkpoint), the log, and the weights of the best step.

    Raises:
        StoreError: a checkpoint exists but cannot be read.
    """
    for path in reversed(_checkpoints(folder)):
        try:
            files = _checked(path)
        except Damage as damage:
            say(f"The checkpoint {path} is damaged: {damage}. Resuming from the previous one, or from the start.")
            if is_main():
                remove(path)
            continue
        return _load_checkpoint(path, _KEPT in files, model, optimizer)
    return 0, TrainingLog(), None


def _load_checkpoint(
    folder: Path, has_kept: bool, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> tuple[int, TrainingLog, Weights | None]:
    """Load a checkpoint whose files were checked."""
    from safetensors.torch import load_file

    restore_weights(model, load_file(folder / "weights.safetensors"))
    state: dict[int, dict[str, Any]] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        index, _, name = key.partition("/")
        # bitsandbytes stores its step count as a plain integer, torch as a float tensor.
        state.setdefault(int(index), {})[name] = int(value) if value.shape == () and value.dtype == torch.int64 else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    kept = load_file(folder / _KEPT) if has_kept else None
    return int(folder.name.removeprefix("step-")), TrainingLog.read(folder / "log.json"), kept


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name))


def _checked(checkpoint: Path) -> Entries:
    """Check all files of a checkpoint and return its manifest entries.

    Raises:
        Damage: a file is missing or altered, or the checkpoint comes from a version that wrote no checksums.
        StoreError: a file cannot be read.
    """
    try:
        files: Entries = read_manifest(checkpoint / CHECKSUMS)["files"]
    except FileNotFoundError:
        raise Damage(f"{CHECKSUMS} is missing") from None
    for name, entry in files.items():
        check_file(checkpoint, name, entry)
    return files
