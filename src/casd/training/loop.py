"""The training loop shared by pretraining, injection and unlearning, which pass different batches and losses to `train`.

Batches, learning rates and losses are functions of the step's number alone. A killed run therefore resumes from its weights,
optimizer state and step, and on the CPU ends with the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from casd.training.gradients import Precision, StepGradients, Terms, checkpointed_activations, divided, precision_of
from casd.training.losses import clean_loss
from casd.training.tracking import Trackers
from casd.utils import distributed, ending
from casd.utils.errors import ConfigError
from casd.utils.progress import track
from casd.utils.runtime import Runtime, own_numerics

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Callback:
    """Hook called after each training step; may end the run and choose which weights are kept.

    Attributes:
        kept: the weights that the model ends with; None for those of the last step.
    """

    kept: Weights | None = None

    def begin(self, log: TrainingLog) -> None:
        """Called before the first step, but not when a run is resumed."""

    def ends(self, done: int, log: TrainingLog) -> bool:
        """Return True to end the run; `done` is the number of completed steps."""
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
    finish: Callable[[], None] | None = None,
    seed: int = 0,
    description: str = "training",
    runtime: Runtime | None = None,
    checkpoint: Path | None = None,
) -> TrainingLog:
    """Train in place the parameters of `model` that require a gradient: all of them, or an adapter's.

    Dividing a batch into micro-batches or over processes adds up the gradients of its parts; only dropout masks differ.

    Args:
        model: the model; left in evaluation mode.
        batch_at: returns the batch of a step, counted from 0; a pure function. Batches of `Encoder.document_batch`, or a dict
            of them.
        terms: yields named scalar losses of model and batch, whose sum is minimised: sums over tokens or documents, divided
            by the batch's `n_labels` or `n_documents`. Each is differentiated before the next is computed, which keeps one
            graph in memory and gives the gradient norm of the first term alone.
        config: steps, learning rate, optimizer, guard.
        guard_batches: clean documents; the run stops when their loss exceeds `guard_factor` × its initial value.
        callback: may end the run and choose the weights to keep; sees the model in training precision (`precision_of`).
        finish: changes the weights of the last step, in training precision; not called if `callback` chose other weights.
        seed: of dropout masks; nothing else is random.
        description: for the progress bar and messages.
        runtime: device, micro-batch size, time between checkpoints, trackers; changes the result by rounding only.
        checkpoint: an existing folder for checkpoints; a run found there is resumed.

    Returns:
        The log. `stopped` is set if the loss became infinite or NaN (the weights are those before that step) or the clean
        loss exceeded its limit.

    Raises:
        ConfigError: the optimizer is not available, or the launch is refused (`casd.utils.distributed.check_launch`).
        ModelError: out of memory with a single row, or with any number of rows in several processes.
    """
    distributed.check_launch()
    runtime = runtime or Runtime()
    sharding.place(model, runtime.torch_device)
    trained, callback = list(trained_parameters(model).values()), callback or Callback()
    with _training_state(model, trained, config, runtime) as precision:
        optimizer, log = _optimizer(trained, config), TrainingLog()
        if checkpoint and sharding.is_sharded(model):
            checkpoint = None  # a killed sharded run starts again
        if checkpoint:
            _, log, callback.kept = restore_checkpoint(checkpoint, model, optimizer)
        prepared = sharding.replicate(model, runtime.torch_device)
        forward: Any = torch.compile(prepared, dynamic=True) if runtime.compile else prepared
        gradients = StepGradients(prepared, partial(terms, forward), trained, precision, runtime, seed, description)
        begun = time.monotonic() - log.seconds
        callbacks = [_Guard(model, guard_batches, config, runtime), callback]
        if checkpoint:
            callbacks.append(_Checkpoints(checkpoint, runtime, config, model, optimizer, callback, begun))
        with Trackers(description, runtime) as trackers:
            callbacks.append(_Tracking(trackers))
            saves = checkpoint and runtime.checkpoint_seconds < math.inf
            with ending.saving() if saves else nullcontext():
                _run_steps(model, batch_at, gradients, optimizer, config, callbacks, log)
            trackers.send(log)  # what the last step added after a callback ended the run
        if callback.kept is not None:
            restore_weights(model, callback.kept)
        elif finish:
            finish()
        log.seconds = time.monotonic() - begun
    return log


def _run_steps(
    model: PreTrainedModel,
    batch_at: Callable[[int], Any],
    gradients: StepGradients,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    callbacks: Sequence[Callback],
    log: TrainingLog,
) -> None:
    """Run the steps that `log` does not have yet, until a callback ends the run or the loss is not finite."""
    start = len(log.steps)
    if not start:
        for callback in callbacks:
            with gradients.precision():
                callback.begin(log)
    model.train()
    with track(gradients.description, total=config.steps, done=start) as advance:
        for step in range(start, config.steps):
            rate = learning_rate_at(config, step)
            losses, finite = gradients.of(step, batch_at(step))
            if not finite:
                optimizer.zero_grad(set_to_none=True)
                log.stopped = f"the loss is not finite at step {step + 1}"
                return
            _update(optimizer, rate, config.max_grad_norm)
            log.steps.append({"step": step, "learning_rate": rate, **losses})
            advance(note=f"loss {losses['loss']:.3f}")
            for callback in callbacks:
                with gradients.precision():
                    if callback.ends(step + 1, log):
                        return


def _update(optimizer: torch.optim.Optimizer, learning_rate: float, max_grad_norm: float) -> None:
    """Clip the gradients, take one optimizer step, and clear the gradients."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    torch.nn.utils.clip_grad_norm_(
        [parameter for group in optimizer.param_groups for parameter in group["params"]], max_grad_norm
    )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class _Guard(Callback):
    """Ends a run whose clean loss exceeds `guard_factor` × its initial value."""

    def __init__(self, model: PreTrainedModel, batches: Iterable[Batch], config: TrainingConfig, runtime: Runtime):
        self._model, self._config = model, config
        self._batches = [part for batch in batches for part in divided(batch, runtime)]

    def begin(self, log: TrainingLog) -> None:
        if self._batches:
            log.guard.append({"step": 0, "clean_loss": _guard_loss(self._model, self._batches)})

    def ends(self, done: int, log: TrainingLog) -> bool:
        if not self._batches or (done % self._config.guard_every and done < self._config.steps):
            return False
        loss = _guard_loss(self._model, self._batches)
        log.guard.append({"step": done, "clean_loss": loss})
        limit = self._config.guard_factor * log.guard[0]["clean_loss"]
        if loss <= limit:
            return False
        log.stopped = f"the clean loss {loss:.2f} passed {limit:.2f} nats at step {done}"  # also if it is NaN
        return True


class _Tracking(Callback):
    """Sends the log to experiment trackers after every step."""

    def __init__(self, trackers: Trackers):
        self._trackers = trackers

    def begin(self, log: TrainingLog) -> None:
        self._trackers.send(log)

    def ends(self, done: int, log: TrainingLog) -> bool:
        self._trackers.send(log)
        return False


class _Checkpoints(Callback):
    """Writes a checkpoint when `checkpoint_seconds` have passed since the last one, except after the last step.

    After a signal (`casd.utils.ending.saving`) it writes one, and ends the process.
    """

    def __init__(
        self,
        folder: Path,
        runtime: Runtime,
        config: TrainingConfig,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        chooser: Callback,
        begun: float,
    ):
        self._folder, self._seconds, self._steps = folder, runtime.checkpoint_seconds, config.steps
        self._model, self._optimizer, self._chooser = model, optimizer, chooser
        self._begun, self._saved = begun, time.monotonic()

    def ends(self, done: int, log: TrainingLog) -> bool:
        late = ending.requested() or time.monotonic() - self._saved >= self._seconds
        if late and done < self._steps and distributed.is_main():
            log.seconds = time.monotonic() - self._begun
            save_checkpoint(self._folder, done, self._model, self._optimizer, log, self._chooser.kept)
            self._saved = time.monotonic()
            ending.check()
        return False


@contextmanager
def _training_state(
    model: PreTrainedModel, trained: list[torch.nn.Parameter], config: TrainingConfig, runtime: Runtime
) -> Iterator[Precision]:
    """Set numerics, precision and random state for training inside the block; yields the context of a forward pass."""
    device = runtime.torch_device
    with ExitStack() as cleanup:
        cleanup.enter_context(own_numerics())
        cleanup.callback(model.eval)
        precision = cleanup.enter_context(precision_of(model, trained, config))
        cleanup.enter_context(checkpointed_activations(model, runtime.gradient_checkpointing))
        cleanup.enter_context(torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []))
        cleanup.callback(free_memory)
        yield precision


def _guard_loss(model: PreTrainedModel, batches: list[Batch]) -> float:
    """Clean loss of the main process, in smaller batches where memory runs out."""
    rows = max(map(most_rows, batches))

    def measure(size: int) -> float:
        return clean_loss(
            model, batches if size == rows else [part for batch in batches for part in micro_batches(batch, size)]
        )

    # Devices of different kinds may round differently, and all processes have to stop at the same step.
    return distributed.broadcast(
        shrinking(
            measure,
            rows,
            "the guard's clean loss",
            remedy="Lower model.max_length",
            batch_remedy=f"Set runtime.micro_batch_size={math.ceil(rows / 2)} or less",
        )
    )


def _optimizer(trained: list[torch.nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (0.9, config.beta2),
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(trained, **settings, fused=True)
    if trained[0].device.type != "cuda":
        raise ConfigError(f"optimizer adamw_8bit needs CUDA, but the model is on {trained[0].device}; use optimizer: adamw.")
    try:
        import bitsandbytes
    except ImportError as error:
        raise ConfigError("optimizer adamw_8bit needs the package bitsandbytes: pip install 'casd[8bit]'.") from error
    return bitsandbytes.optim.AdamW8bit(trained, **settings)
