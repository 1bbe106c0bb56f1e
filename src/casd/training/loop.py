"""The ONE training loop: pretraining, injection and unlearning are calls of `train` with other batches and losses.

Batches are a function of the step's number, and so are the learning rate and the losses; a run that was killed needs its
weights, its optimizer and its step to go on, and ends with the same bits on the CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from casd.config import TrainingConfig
from casd.data.batches import Batch, micro_batches, most_rows
from casd.data.shrinking import free_memory, shrinking
from casd.models import sharding
from casd.models.weights import Weights, restore_weights, trained_parameters
from casd.training.checkpoints import TrainingLog, restore_checkpoint, save_checkpoint
from casd.training.gradients import Precision, StepGradients, Terms, divided
from casd.training.losses import clean_loss
from casd.utils import distributed
from casd.utils.errors import ConfigError
from casd.utils.progress import track
from casd.utils.runtime import Runtime, own_numerics

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOW_PRECISION = (torch.bfloat16, torch.float16)


class Callback:
    """Looks at a training after each of its steps; it may end it, and may have an earlier step's weights kept.

    Attributes:
        kept: the weights that the model ends with; None for those of the last step.
    """

    kept: Weights | None = None

    def begin(self, log: TrainingLog) -> None:
        """Called before the first step, but not when a run goes on."""

    def ends(self, done: int, log: TrainingLog) -> bool:
        """Whether the run ends here; `done` steps are done."""
        return False


def learning_rate_at(config: TrainingConfig, step: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then a cosine from the peak to the final rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * (config.final_learning_rate + (1 - config.final_learning_rate) * cosine)


def train(
    model: PreTrainedModel,
    batch_at: Callable[[int], Any],
    terms: Callable[[torch.nn.Module, Any], Terms],
    config: TrainingConfig,
    *,
    guard_batches: Iterable[Batch] = (),
    callback: Callback | None = None,
    runtime: Runtime | None = None,
    checkpoint: Path | None = None,
    seed: int = 0,
    description: str = "training",
) -> TrainingLog:
    """Train `model` in place: those of its parameters that require a gradient, all of them or an adapter's.

    The batch of a step decides the optimisation, however it is divided: into parts of `runtime.micro_batch_size` rows whose
    gradients add up, and over the processes of a launcher. Only the masks of dropout differ with the division.

    Parameters of low precision are float32 while they are trained with `optimizer="adamw"`, as are their gradients and the
    optimizer's state, and the forward pass runs in the low precision (autocast); at the end they are rounded to it again.

    Args:
        model: the model; left in evaluation mode.
        batch_at: the batch of a step, counted from 0; a pure function of it. Batches of `Encoder.document_batch`, or a dict
            of them.
        terms: from model and batch to named scalar losses, whose sum is minimised: sums over tokens or documents, divided by
            the batch's `n_labels` or `n_documents`. Each is differentiated before the next is asked for, so only one graph is
            in memory, and the first term's own gradient is known.
        config: steps, learning rate, optimizer, guard.
        guard_batches: clean documents; the run stops when their loss passes `guard_factor` × its start.
        callback: may end the run, and choose which step's weights are kept; it sees the model in training precision.
        runtime: the device, what fits on it, and how often to write a checkpoint.
        checkpoint: an existing folder for checkpoints; a run found there is continued.
        seed: of dropout masks; nothing else is drawn.
        description: for the progress bar and messages.

    Returns:
        The log. `stopped` says so when the loss became infinite or NaN (the weights are then those before that step) or when
        the clean loss passed its limit.

    Raises:
        ConfigError: an optimizer that is not there, or a launch that cannot make one run
            (`casd.utils.distributed.check_launch`).
        ModelError: out of memory with a single row of a batch, or with any number of them in several processes.
    """
    distributed.check_launch()
    runtime, callback = runtime or Runtime(), callback or Callback()
    guard_batches = [part for batch in guard_batches for part in divided(batch, runtime)]
    sharding.place(model, runtime.torch_device)
    if sharding.is_sharded(model):
        checkpoint = None  # a sharded run that is killed begins anew
    trained = list(trained_parameters(model).values())
    with ExitStack() as undo:
        undo.enter_context(own_numerics())
        undo.callback(model.eval)
        precision = undo.enter_context(precision_of(model, trained, config))
        undo.enter_context(checkpointed_activations(model, runtime.gradient_checkpointing))
        undo.enter_context(torch.random.fork_rng(_cuda_devices(runtime)))
        optimizer = _optimizer(trained, config)
        start, log, callback.kept = (
            restore_checkpoint(checkpoint, model, optimizer) if checkpoint else (0, TrainingLog(), callback.kept)
        )
        undo.callback(free_memory)
        prepared = sharding.replicate(model, runtime.torch_device)
        forward: Any = torch.compile(prepared, dynamic=True) if runtime.compile else prepared
        gradients = StepGradients(prepared, partial(terms, forward), trained, precision, runtime, seed, description)
        begin, saved = time.monotonic() - log.seconds, time.monotonic()
        if guard_batches and not log.guard:
            with precision():
                log.guard.append({"step": 0, "clean_loss": _guard_loss(model, guard_batches)})
        if not start:
            with precision():
                callback.begin(log)
        model.train()
        with track(description, total=config.steps, done=start) as advance:
            for step in range(start, config.steps):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate_at(config, step)
                record, finite = gradients.of(step, batch_at(step))
                if not finite:
                    optimizer.zero_grad(set_to_none=True)
                    log.stopped = f"the loss is not finite at step {step + 1}"
                    break
                torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                log.steps.append({"step": step, "learning_rate": learning_rate_at(config, step), **record})
                advance(note=f"loss {record['loss']:.3f}")
                done = step + 1
                if guard_batches and (done % config.guard_every == 0 or done == config.steps):
                    with precision():
                        now = _guard_loss(model, guard_batches)
                    log.guard.append({"step": done, "clean_loss": now})
                    limit = config.guard_factor * log.guard[0]["clean_loss"]
                    if not now <= limit:
                        log.stopped = f"the clean loss {now:.2f} passed {limit:.2f} nats at step {done}"
                        break
                with precision():
                    if callback.ends(done, log):
                        break
                late = time.monotonic() - saved >= runtime.checkpoint_seconds
                if checkpoint and done < config.steps and late and distributed.is_main():
                    log.seconds = time.monotonic() - begin
                    save_checkpoint(checkpoint, done, model, optimizer, log, callback.kept)
                    saved = time.monotonic()
        if callback.kept is not None:
            restore_weights(model, callback.kept)
        log.seconds = time.monotonic() - begin
    return log


def _guard_loss(model: PreTrainedModel, batches: list[Batch]) -> float:
    """The clean loss of the guard, the same in every process; in smaller batches where memory runs out."""
    rows = max(map(most_rows, batches))

    def measure(size: int) -> float:
        return clean_loss(model, batches if size == rows else [part for each in batches for part in micro_batches(each, size)])

    # Of the main process, so that all of them go on or none: devices of several kinds may round otherwise.
    return distributed.broadcast(
        shrinking(
            measure,
            rows,
            "the guard's clean loss",
            remedy="Lower model.max_length",
            batch_remedy=f"Set runtime.micro_batch_size={math.ceil(rows / 2)} or less",
        )
    )


@contextmanager
def precision_of(model: PreTrainedModel, trained: list[torch.nn.Parameter], config: TrainingConfig) -> Iterator[Precision]:
    """Hold trained parameters of low precision in float32 inside the block; gives the context of a forward pass."""
    low = next((parameter.dtype for parameter in model.parameters() if parameter.dtype in _LOW_PRECISION), None)
    raised = [each for each in trained if each.dtype == low] if config.optimizer == "adamw" else []
    for parameter in raised:
        parameter.data = parameter.data.float()
    try:
        yield nullcontext if low is None else partial(torch.autocast, model.device.type, low)
    finally:
        for parameter in raised:
            parameter.grad = None
            parameter.data = parameter.data.to(low)


@contextmanager
def checkpointed_activations(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Compute activations again in the backward pass inside the block, if that is wanted."""
    if not wanted:
        yield
        return
    named = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # transformers renames it
    # The older, reentrant way gives no gradient to an adapter below weights that are frozen.
    getattr(model, f"{named}_checkpointing_enable")(**{f"{named}_checkpointing_kwargs": {"use_reentrant": False}})
    try:
        yield
    finally:
        getattr(model, f"{named}_checkpointing_disable")()


def _cuda_devices(runtime: Runtime) -> list[int]:
    device = runtime.torch_device
    return [device.index or 0] if device.type == "cuda" else []


def _optimizer(trained: list[torch.nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (0.9, config.beta2),
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(trained, **settings, fused=True)
    if trained[0].device.type != "cuda":
        raise ConfigError(f"optimizer adamw_8bit needs CUDA, and the model is on {trained[0].device}; use optimizer: adamw.")
    try:
        import bitsandbytes
    except ImportError as error:
        raise ConfigError("optimizer adamw_8bit needs the package bitsandbytes: pip install 'casd[8bit]'.") from error
    return bitsandbytes.optim.AdamW8bit(trained, **settings)
