"""Work in batches that shrink where memory runs out: half as much at once, and on with what is left.

Nothing that is measured depends on the size of a batch, so this changes no result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

import torch

from casd import distributed
from casd.errors import ModelError
from casd.progress import say
from casd.training.batches import batches_by_length

Result = TypeVar("Result")


def shrinking(
    run: Callable[[int], Result], batch_size: int, what: str, *, lower: str = "model.max_tokens or evaluation.max_new_tokens"
) -> Result:
    """Call `run` with a batch size, and again with half of it each time that it runs out of memory.

    Not where a model is divided over processes: those that did not run out of memory wait for the one that did.

    Args:
        run: does what is left to be done with batches of the size it is given; what it had finished before is its own to keep.
        batch_size: the first size.
        what: what is done, for messages ("generation").
        lower: the settings whose lower values need less memory, for the error.

    Raises:
        ModelError: out of memory with a batch of one, or with any where the model is divided.
    """
    while True:
        try:
            return run(batch_size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if batch_size == 1 or distributed.sharded():
                # More than one at once fails for good only where a lower batch size is left to the user.
                lower = lower if batch_size == 1 else "the batch_size of evaluation, activations or utility"
                raise ModelError(
                    f"Out of memory in {what} with {_texts(batch_size)} at once: {str(error).strip().splitlines()[0]}"
                    f" Lower {lower}, or use another device (runtime.device)."
                ) from error
        # After the except clause: until its end the error's traceback holds the tensors of the batch that failed.
        smaller = (batch_size + 1) // 2
        _free_memory()
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory, or the CPU's, is used up."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, Exception) and should_reduce_batch_size(error)
    )


def _texts(count: int) -> str:
    return "one text" if count == 1 else f"{count} texts"


def _free_memory() -> None:
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


@cache
def _say_once(text: str) -> None:
    """The same happens in every state of the model; it is said at the first."""
    say(text)
