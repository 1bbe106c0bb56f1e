"""The gradients of a training step, of a batch that is divided over processes and into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from casd.data.batches import micro_batches, most_rows, share_of_rows
from casd.data.shrinking import shrinking
from casd.models import sharding
from casd.utils import distributed
from casd.utils.runtime import Runtime
from casd.utils.seeding import derive_seed

Terms = Iterator[tuple[str, Tensor]]
Precision = Callable[[], AbstractContextManager[Any]]


class StepGradients:
    """Computes the gradients of one step after another.

    Args:
        model: the model, of several processes as `casd.models.sharding.replicate` gives it.
        terms: from a part of a batch to the named losses of the model on it.
        trained: the parameters that get gradients.
        precision: the context of a forward pass.
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
        self._trained, self._precision = trained, precision
        self._runtime, self._seed, self._description = runtime, seed, description

    def of(self, step: int, batch: Any) -> tuple[dict[str, float], bool]:
        """Leave the gradients of a step's batch in the parameters, which have none before.

        Where memory runs out the step begins again with half as many rows at once, and so do the later steps. Not with several
        processes, which would wait for each other.

        Returns:
            The losses and gradient norms of the step, by name, and whether all of them are finite.

        Raises:
            ModelError: out of memory with a single row, or with any number in several processes.
        """
        most = math.ceil(most_rows(batch) / distributed.processes())
        rows = min(most, self._runtime.micro_batch_size or most)

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
            self._description,
            remedy="Lower model.max_length, set runtime.gradient_checkpointing=true or weights=lora",
            batch_remedy=f"Set runtime.micro_batch_size={math.ceil(rows / 2)} or less",
            alone=distributed.processes() == 1,
        )

    def _backward(self, parts: list[Terms]) -> tuple[dict[str, float], bool]:
        """Differentiate the terms one after another, each over all parts; the record, and whether all of it is finite."""
        record: dict[str, float] = {}
        while True:
            name, total = "", torch.zeros((), device=self._trained[0].device)
            for index, part in enumerate(parts):
                # Processes add up their gradients once a term. DDP takes the mean over them, and what is wanted is the sum.
                with self._gradients_added_up(index == len(parts) - 1):
                    with self._precision():
                        found = next(part, None)
                    if found is None:
                        break
                    name, loss = found
                    (loss * distributed.processes()).backward()
                    total += loss.detach()
            if not name:
                break
            record[f"loss/{name}"] = float(distributed.total(total))
            if len(record) == 1:
                record[f"gradient_norm/{name}"] = _gradient_norm(self._trained)
        record["gradient_norm"] = _gradient_norm(self._trained)
        record["loss"] = sum(value for name, value in record.items() if name.startswith("loss/"))
        return record, math.isfinite(record["loss"]) and math.isfinite(record["gradient_norm"])

    @contextmanager
    def _gradients_added_up(self, now: bool) -> Iterator[None]:
        """Whether the backward pass inside the block adds up the gradients of all processes, or leaves that to a later one."""
        model: Any = self._model
        if sharding.is_sharded(model):
            model.set_requires_gradient_sync(now)
            yield
            return
        with nullcontext() if now or not isinstance(model, DistributedDataParallel) else model.no_sync():
            yield


def divided(batch: Any, runtime: Runtime, parts: int = 1) -> list[Any]:
    """A batch in parts of at most `runtime.micro_batch_size` rows, and at least so many parts as are asked for."""
    return micro_batches(batch, runtime.micro_batch_size, parts) if runtime.micro_batch_size else [batch]


def _parts(batch: Any, runtime: Runtime) -> list[Any]:
    """This process's rows of a batch, in parts that go through the model at once, on the device."""
    processes, size = distributed.processes(), runtime.micro_batch_size
    # As many in every process, though shares differ by a row: a sharded model waits for all of them in each forward pass.
    parts = math.ceil(math.ceil(most_rows(batch) / processes) / size) if size else 1
    share = share_of_rows(batch, distributed.rank(), processes)
    return [_to(part, runtime.torch_device) for part in divided(share, runtime, parts)]


def _gradient_norm(parameters: list[torch.nn.Parameter]) -> float:
    """L2 norm of the gradient over all parameters."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return float(sharding.whole(torch.nn.utils.get_total_norm(gradients))) if gradients else 0.0


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return {name: _to(value, device) for name, value in batch.items()}
