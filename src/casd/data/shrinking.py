"""Work in batches that are halved where memory runs out.

No result depends on how many rows are computed at once, but for rounding.
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
    """Call `run` with a batch size, and again with half of it each time that it runs out of memory.

    Args:
        run: does what is left to be done with batches of the size it is given; what it had finished before is its own to keep.
        batch_size: the first size.
        what: what is done, for messages ("generation").
        remedy: for the error with a batch of one, what needs less memory.
        batch_remedy: for the error with a larger batch that is not tried again, how to have smaller ones.
        alone: whether no other process takes part in `run`: those that did not run out of memory would wait for the one that
            did. None for whether the model is not divided over processes.

    Raises:
        ModelError: out of memory with a batch of one, or with any that others take part in.
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
        # After the except clause: until its end the error's traceback holds the tensors of the batch that failed.
        smaller = (batch_size + 1) // 2
        free_memory()
        _say_once(f"Out of memory in {what} with {_texts(batch_size)} at once; going on with {smaller}.")
        batch_size = smaller


def in_batches(work: Callable[[list[int]], None], lengths: Sequence[int], batch_size: int, what: str) -> None:
    """Do `work` on the indices of items, in batches of similar length, longest first; `shrinking` where memory runs out.

    Args:
        work: keeps what it made of a batch only once it has all of it: a batch that failed comes again, in halves.
        lengths: of every item.
        batch_size: items at once, at most.
        what: for messages.
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
    """Turn an error that memory is used up, where no smaller batch helps, into a line for the user.

    Raises:
        ModelError: out of memory. Other errors pass.
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
    """Whether an error says that a device's memory, or the CPU's, is used up."""
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # "can't allocate memory" on Linux and "not enough memory" elsewhere; cuBLAS has an error of its own.
    own = isinstance(error, RuntimeError) and any(
        each in str(error) for each in ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
    )
    return own or (isinstance(error, Exception) and should_reduce_batch_size(error))


def _sentence(error: BaseException) -> str:
    line = first_line(error)
    return line if line.endswith(".") else f"{line}."


def _texts(count: int) -> str:
    return "one text" if count == 1 else f"{count} texts"


def free_memory() -> None:
    """Collect unreachable objects, and give the memory that they held on a GPU back."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


@cache
def _say_once(text: str) -> None:
    """The same happens in every state of the model; it is said at the first."""
    say(text)
