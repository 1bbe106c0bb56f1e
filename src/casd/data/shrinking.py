"""Halve the batch size and retry when memory runs out.

Results do not depend on the batch size, except for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

from casd.data.batches import batches_by_length
from casd.utils import distributed
from casd.utils.errors import ModelError, first_line
from casd.utils.progress import say

Result = TypeVar("Result")


def shrinking(
    run: Callable[[int], Result],
    batch_size: int,
    what: str,
    *,
    remedy: str = "Lower model.max_length or evaluation.max_new_tokens",
    batch_remedy: str = "Lower the batch_size of evaluation, activations or utility",
    alone: bool | None = None,
) -> Result:
    """Call `run` with a batch size, and again with half of it each time memory runs out.

    Args:
        run: function that does the remaining work in batches of the given size; it must keep its own progress.
        batch_size: initial batch size.
        what: description of the work, for messages ("generation").
        remedy: advice in the error for a batch of one.
        batch_remedy: advice in the error for a larger batch that is not retried.
        alone: True if no other process takes part in `run`; otherwise a retry would leave the others waiting, so there is
            none. None means True unless the model is sharded.

    Returns:
        The result of `run`.

    Raises:
        ModelError: if memory runs out with a batch of one, or with any batch that other processes take part in.
    """
    alone = not distributed.sharded() if alone is None else alone
    while True:
        try:
            return run(batch_size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if batch_size == 1 or not alone:
                raise ModelError(
                    f"Out of memory in {what} with {_texts(batch_size)} at once: {_sentence(error)}"
                    f" {remedy if batch_size == 1 else batch_remedy}, or use another device (runtime.device)."
                ) from error
        # Outside the except clause, within which the traceback keeps the tensors of the failed batch alive.
        smaller = (batch_size + 1) // 2
        free_memory()
        _say_once(f"Out of memory in {what} with {_texts(batch_size)} at once; retrying with {smaller}.")
        batch_size = smaller


def in_batches(work: Callable[[list[int]], None], lengths: Sequence[int], batch_size: int, what: str) -> None:
    """Call `work` on batches of item indices of similar length, longest first, with smaller ones when memory runs out.

    Args:
        work: function that processes a batch; it must keep no partial results, since a failed batch is retried in halves.
        lengths: length of each item.
        batch_size: maximum number of items per batch.
        what: description of the work, for messages.

    Raises:
        ModelError: as `shrinking`.
    """
    left = [index for batch in batches_by_length(lengths, batch_size) for index in batch]

    def rest(size: int) -> None:
        while left:
            work(left[:size])
            del left[:size]

    if left:
        shrinking(rest, min(batch_size, len(left)), what)


@contextmanager
def explaining_out_of_memory(what: str) -> Iterator[None]:
    """Convert an out-of-memory error to a one-line ModelError where a smaller batch would not help.

    Raises:
        ModelError: if memory runs out; other errors are not changed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"Out of memory in {what}: {_sentence(error)} Use weights=lora, a smaller model, or another device"
            " (runtime.device). Finished stages are kept."
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error means that the memory of a device or of the CPU is exhausted."""
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # accelerate recognizes the CPU allocator's message on Linux only, and not that of cuBLAS.
    marked = isinstance(error, RuntimeError) and any(
        mark in str(error) for mark in ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
    )
    return marked or (isinstance(error, Exception) and should_reduce_batch_size(error))


def _sentence(error: BaseException) -> str:
    line = first_line(error)
    return line if line.endswith(".") else f"{line}."


def _texts(count: int) -> str:
    return "one text" if count == 1 else f"{count} texts"


def free_memory() -> None:
    """Collect unreachable objects and release cached GPU memory."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


@cache
def _say_once(text: str) -> None:
    """Print a message once per process: the same shortage recurs for every state of the model."""
    say(text)
