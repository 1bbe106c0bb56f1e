"""The ONE training loop: pretraining, injection and unlearning are calls of `train` with other batches and losses.

Batches are a function of the step's number, and so are the learning rate and the losses; a run that was killed needs its
weights, its optimizer and its step to go on, and ends with the same bits on the CPU.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from casd.config import TrainingConfig
from casd.encoding import Batch
from casd.errors import ConfigError
from casd.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Terms = Iterator[tuple[str, Tensor]]


@dataclass
class TrainingLog:
    """What happened in a run.

    Attributes:
        steps: one record a step: `step`, `learning_rate`, `loss` (sum of the terms), `loss/<term>`, `gradient_norm` (of the
            whole, before clipping), `gradient_norm/<first term>` (of the first term alone: for unlearning, the forget term).
        guard: one record a measurement: `step` (how many were done), `clean_loss` in nats per token.
        stopped: why the run ended early; empty if it did not.
        seconds: wall time of the loop.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    guard: list[dict[str, float]] = field(default_factory=list)
    stopped: str = ""
    seconds: float = 0.0

    def write(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> TrainingLog:
        """Read what `write` wrote."""
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True)
class Runtime:
    """Where and how a computation runs; nothing here may change its result beyond floating-point order.

    Attributes:
        device: "auto" (CUDA if there is one, else the CPU), or a torch device.
        checkpoint_seconds: time between two checkpoints of a training stage.
    """

    device: str = "auto"
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.device == "auto":
            return
        device = torch.device(self.device)
        there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(device.type, 1)
        if (device.index or 0) >= there:
            raise ConfigError(
                f"runtime.device is {self.device!r}, and torch {torch.__version__} finds {there} {device.type} devices here."
                " Use runtime.device=auto or cpu."
            )

    @property
    def torch_device(self) -> torch.device:
        """The device meant."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)


def learning_rate_at(config: TrainingConfig, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then a cosine from the peak to the final rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * cosine)


def token_nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each token given those before it.

    Args:
        logits: (batch, tokens, vocabulary).
        labels: (batch, tokens); -100 where no loss is taken.

    Returns:
        The NLL in nats, 0 where there is no label, and the mask of labels, both (batch, tokens − 1).
    """
    following = labels[:, 1:]
    nll = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), following.flatten(), ignore_index=-100, reduction="none"
    )
    return nll.view(following.shape), following != -100


def batch_nll(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """`token_nll` of a model on a document batch."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return token_nll(logits, batch["labels"])


def mean_nll(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Mean NLL over the labelled tokens of a batch, in nats; a scalar."""
    nll, mask = batch_nll(model, batch)
    return nll.sum() / mask.sum()


@torch.inference_mode()
def clean_loss(model: PreTrainedModel, batches: Iterable[Batch]) -> float:
    """Mean NLL in nats over all labelled tokens of all batches, each token counted once. `exp` of it is the perplexity."""
    total, count = 0.0, 0
    training = model.training
    model.eval()
    for batch in batches:
        nll, mask = batch_nll(model, {name: tensor.to(model.device) for name, tensor in batch.items()})
        total += float(nll.double().sum())
        count += int(mask.sum())
    model.train(training)
    return total / count


def train(
    model: PreTrainedModel,
    batch_at: Callable[[int], Any],
    terms: Callable[[torch.nn.Module, Any], Terms],
    config: TrainingConfig,
    *,
    guard_batches: Iterable[Batch] = (),
    runtime: Runtime | None = None,
    checkpoint: Path | None = None,
    description: str = "training",
) -> TrainingLog:
    """Train `model` in place.

    Args:
        model: the model; left in evaluation mode.
        batch_at: the batch of a step, counted from 0; a pure function of it. Tensors, or dicts of them, in dicts.
        terms: from model and batch to named scalar losses, whose sum is minimised. Each is differentiated before the next is
            asked for, so only one graph is in memory, and the first term's own gradient is known.
        config: steps, learning rate, guard.
        guard_batches: clean documents; the run stops when their loss passes `guard_factor` × its start.
        runtime: the device, and how often to write a checkpoint.
        checkpoint: an existing folder for checkpoints; a run found there is continued.
        description: for the progress bar.

    Returns:
        The log. `stopped` says so when the loss became infinite or NaN (the weights are then those before that step) or when
        the clean loss passed its limit.
    """
    from accelerate import Accelerator

    runtime = runtime or Runtime()
    guard_batches = list(guard_batches)
    accelerator = Accelerator(cpu=runtime.torch_device.type == "cpu")
    model.to(runtime.torch_device)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )
    start, log = _restore(checkpoint, model, optimizer) if checkpoint else (0, TrainingLog())
    prepared, prepared_optimizer = accelerator.prepare(model, optimizer)
    begin, saved = time.monotonic() - log.seconds, time.monotonic()
    if guard_batches and not log.guard:
        log.guard.append({"step": 0, "clean_loss": clean_loss(model, guard_batches)})
    model.train()
    with track(description, total=config.steps, done=start) as advance:
        for step in range(start, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(config, step)
            record, finite = _backward(accelerator, prepared, _to(batch_at(step), runtime.torch_device), terms)
            if not finite:
                optimizer.zero_grad(set_to_none=True)
                log.stopped = f"the loss is not finite at step {step + 1}"
                break
            accelerator.clip_grad_norm_(prepared.parameters(), config.max_gradient_norm)
            prepared_optimizer.step()
            prepared_optimizer.zero_grad(set_to_none=True)
            log.steps.append({"step": step, "learning_rate": learning_rate_at(config, step), **record})
            advance(note=f"loss {record['loss']:.3f}")
            done = step + 1
            if guard_batches and (done % config.guard_every == 0 or done == config.steps):
                now = clean_loss(model, guard_batches)
                log.guard.append({"step": done, "clean_loss": now})
                limit = config.guard_factor * log.guard[0]["clean_loss"]
                if not now <= limit:
                    log.stopped = f"the clean loss {now:.2f} passed {limit:.2f} nats at step {done}"
                    break
            if checkpoint and done < config.steps and time.monotonic() - saved >= runtime.checkpoint_seconds:
                log.seconds = time.monotonic() - begin
                _save(checkpoint, done, model, optimizer, log)
                saved = time.monotonic()
    log.seconds = time.monotonic() - begin
    accelerator.free_memory()
    model.eval()
    return log


def _backward(accelerator: Any, model: torch.nn.Module, batch: Any, terms: Any) -> tuple[dict[str, float], bool]:
    """Differentiate the terms one after another; the record of the step, and whether all was finite."""
    record: dict[str, float] = {"loss": 0.0}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for name, loss in terms(model, batch):
        first = len(record) == 1
        accelerator.backward(loss)
        record[f"loss/{name}"] = float(loss.detach())
        record["loss"] += record[f"loss/{name}"]
        if first:
            record[f"gradient_norm/{name}"] = _gradient_norm(parameters)
    record["gradient_norm"] = _gradient_norm(parameters)
    return record, math.isfinite(record["loss"]) and math.isfinite(record["gradient_norm"])


def _gradient_norm(parameters: list[torch.nn.Parameter]) -> float:
    """L2 norm of the gradient over all parameters."""
    norms = [torch.linalg.vector_norm(parameter.grad.float()) for parameter in parameters if parameter.grad is not None]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return {name: _to(value, device) for name, value in batch.items()}


def _save(folder: Path, done: int, model: PreTrainedModel, optimizer: torch.optim.Optimizer, log: TrainingLog) -> None:
    """Write a checkpoint whole (temporary folder, then rename), then drop the older ones."""
    from safetensors.torch import save_file

    temporary = folder / "writing"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save_file(weights, temporary / "weights.safetensors")
    state = optimizer.state_dict()["state"]
    flat = {f"{index}/{name}": value for index, entry in state.items() for name, value in entry.items()}
    save_file(flat, temporary / "optimizer.safetensors")
    log.write(temporary / "log.json")
    for file in temporary.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    older = list(folder.glob("step-*"))
    temporary.rename(folder / f"step-{done:08d}")
    for path in older:
        shutil.rmtree(path)


def _restore(folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> tuple[int, TrainingLog]:
    """Load the newest whole checkpoint, if there is one; the number of steps done, and the log up to there."""
    from safetensors.torch import load_file

    found = sorted(folder.glob("step-*"))
    if not found:
        return 0, TrainingLog()
    newest = found[-1]
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in load_file(newest / "weights.safetensors").items():
            parameters[name].copy_(value)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(newest / "optimizer.safetensors").items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(newest.name.removeprefix("step-")), TrainingLog.read(newest / "log.json")
