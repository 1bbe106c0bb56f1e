"""Checkpoints of a training run, from which it goes on after a kill; and its log, which is part of them."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from casd.weights import Weights, restore_weights, trained_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    """Write a checkpoint whole (temporary folder, then rename), then drop the older ones; `kept` is the best step so far."""
    from safetensors.torch import save_file

    temporary = folder / "writing"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file({name: value.detach() for name, value in trained_parameters(model).items()}, temporary / "weights.safetensors")
    state = optimizer.state_dict()["state"]
    flat = {f"{index}/{name}": torch.as_tensor(value) for index, entry in state.items() for name, value in entry.items()}
    save_file(flat, temporary / "optimizer.safetensors")
    if kept is not None:
        save_file({name: value.contiguous() for name, value in kept.items()}, temporary / "kept.safetensors")
    log.write(temporary / "log.json")
    for file in temporary.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    older = list(folder.glob("step-*"))
    temporary.rename(folder / f"step-{done:08d}")
    for path in older:
        shutil.rmtree(path)


def restore_checkpoint(
    folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> tuple[int, TrainingLog, Weights | None]:
    """Load the newest whole checkpoint, if there is one; the steps done, the log up to there, and the best step's weights."""
    from safetensors.torch import load_file

    found = sorted(folder.glob("step-*"))
    if not found:
        return 0, TrainingLog(), None
    newest = found[-1]
    restore_weights(model, load_file(newest / "weights.safetensors"))
    state: dict[int, dict[str, Any]] = {}
    for key, value in load_file(newest / "optimizer.safetensors").items():
        index, _, name = key.partition("/")
        # bitsandbytes counts its steps in a plain integer, torch in a float tensor.
        state.setdefault(int(index), {})[name] = int(value) if value.shape == () and value.dtype == torch.int64 else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    kept = load_file(newest / "kept.safetensors") if (newest / "kept.safetensors").is_file() else None
    return int(newest.name.removeprefix("step-")), TrainingLog.read(newest / "log.json"), kept
