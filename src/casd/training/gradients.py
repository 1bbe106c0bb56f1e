"""Gradients of a training step whose batch is divided over processes and into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from casd.config import TrainingConfig
from casd.data.batches import micro_batches, most_rows, on_device, share_of_rows
from casd.data.shrinking import shrinking
from casd.models import sharding
from casd.utils import distributed
from casd.utils.runtime import Runtime
from casd.utils.seeding import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Terms = Iterator[tuple[str, Tensor]]
Precision = Callable[[], AbstractContextManager[Any]]
_LOW_PRECISION = (torch.bfloat16, torch.float16)


class StepGradients:
    """Compute the gradients of each training step.

    Args:
        model: the model as returned by `casd.models.sharding.replicate`.
        terms: yields the named losses of the model on a part of a batch.
        trained: the parameters that get gradients.
        precision: returns the context of a forward pass.
        runtime: device and micro-batch size.
        seed: of dropout masks, which differ between steps and processes.
        description: of the training, for messages.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        terms: Callable[[Any], Terms],
        trained: list[torch.nn.Parameter],
        precision: Precision,
        runtime: Runtime,
        seed: int,
        description: str,
    ):
        self._model, self._terms = model, terms
        self._trained, self._runtime, self._seed = trained, runtime, seed
        self.precision, self.description = precision, description

    def of(self, step: int, batch: Any) -> tuple[dict[str, float], bool]:
        """Compute the gradients of a step's batch; the parameters must have none before.

        If memory runs out, this step and the later ones use half as many rows at once; not in several processes, which would
        wait for each other.

        Returns:
            Losses and gradient norms by name, and True if the total loss and gradient norm are finite.

        Raises:
            ModelError: out of memory with a single row, or with any number of rows in several processes.
        """
        most = math.ceil(most_rows(batch) / distributed.processes())
        rows = min(most, self._runtime.rows_at_once or most)

        def attempt(size: int) -> tuple[dict[str, float], bool]:
            if size < rows:  # after an attempt that ran out of memory
                self._runtime = replace(self._runtime, micro_batch_size=size)
                for parameter in self._trained:
                    parameter.grad = None
            torch.manual_seed(derive_seed(self._seed, step, distributed.rank()))
            return self._backward([self._terms(part) for part in _parts(batch, self._runtime)])

        return shrinking(
            attempt,
            rows,
            self.description,
            remedy="Lower model.max_length, set runtime.gradient_checkpointing=true or weights=lora",
            batch_remedy=f"Set runtime.micro_batch_size={math.ceil(rows / 2)} or less",
            alone=distributed.processes() == 1,
        )

    def _backward(self, parts: list[Terms]) -> tuple[dict[str, float], bool]:
        """Differentiate one term after another, each over all parts; returns what `of` does."""
        values: dict[str, Tensor] = {}  # read together at the end, since each reading waits for a GPU to be done
        while True:
            name, total = "", torch.zeros((), device=self._trained[0].device)
            for index, part in enumerate(parts):
                # Processes synchronize gradients once per term. DDP averages over processes; scale the loss to get the sum.
                with self._synchronize(index == len(parts) - 1):
                    with self.precision():
                        term = next(part, None)
                    if term is None:
                        break
                    name, loss = term
                    (loss * distributed.processes()).backward()
                    total += loss.detach()
            if not name:
                break
            values[f"loss/{name}"] = distributed.total(total)
            if len(values) == 1:
                values[f"gradient_norm/{name}"] = _gradient_norm(self._trained)
        values["gradient_norm"] = _gradient_norm(self._trained)
        record = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
        record["loss"] = sum(value for name, value in record.items() if name.startswith("loss/"))
        return record, math.isfinite(record["loss"]) and math.isfinite(record["gradient_norm"])

    @contextmanager
    def _synchronize(self, now: bool) -> Iterator[None]:
        """If `now`, add up the gradients of all processes in the backward pass inside the block."""
        model: Any = self._model
        if sharding.is_sharded(model):
            model.set_requires_gradient_sync(now)
            yield
            return
        with nullcontext() if now or not isinstance(model, DistributedDataParallel) else model.no_sync():
            yield


@contextmanager
def precision_of(model: PreTrainedModel, trained: list[torch.nn.Parameter], config: TrainingConfig) -> Iterator[Precision]:
    """Train low-precision parameters in float32 with `optimizer="adamw"`; yields the context of a forward pass.

    Inside the block gradients and optimizer state are float32 too, and the forward pass runs in the low precision (autocast);
    at the end the parameters are rounded back.
    """
    low = next((parameter.dtype for parameter in model.parameters() if parameter.dtype in _LOW_PRECISION), None)
    raised = [parameter for parameter in trained if parameter.dtype == low] if config.optimizer == "adamw" else []
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
    """If `wanted`, recompute activations in the backward pass inside the block."""
    if not wanted:
        yield
        return
    named = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # transformers renames it
    # Reentrant checkpointing gives no gradient to an adapter below frozen weights.
    getattr(model, f"{named}_checkpointing_enable")(**{f"{named}_checkpointing_kwargs": {"use_reentrant": False}})
    try:
        yield
    finally:
        getattr(model, f"{named}_checkpointing_disable")()


def divided(batch: Any, runtime: Runtime, parts: int = 1) -> list[Any]:
    """Split a batch into at least `parts` parts of about `runtime.rows_at_once` rows; if that is 0, do not split."""
    return micro_batches(batch, runtime.rows_at_once, parts) if runtime.rows_at_once else [batch]


def _parts(batch: Any, runtime: Runtime) -> list[Any]:
    """Micro-batches of this process's rows of a batch, on the device."""
    processes, size = distributed.processes(), runtime.rows_at_once
    # Equally many in every process, though shares differ by a row: each forward pass of a sharded model waits for all.
    parts = math.ceil(math.ceil(most_rows(batch) / processes) / size) if size else 1
    share = share_of_rows(batch, distributed.rank(), processes)
    return [on_device(part, runtime.torch_device) for part in divided(share, runtime, parts)]


def _gradient_norm(parameters: list[torch.nn.Parameter]) -> Tensor:
    """L2 norm of the gradient over all parameters, a float32 scalar on the device of the first one."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = sharding.whole(torch.nn.utils.get_total_norm(gradients)) if gradients else torch.zeros(())
    return norm.to(parameters[0].device, torch.float32)
