"""The processes that one run is spread over (`accelerate launch -m casd …`, torchrun), and what they tell each other.

Every process has the whole program and its own part of each batch. One of them, the main one, writes the stages and speaks to
the user. Without a launcher there is one process, and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

T = TypeVar("T")

# Taken from the launcher's environment, so that accelerate leaves the model to `casd.training.sharding`.
_SHARDING_ASKED_FOR = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")


def processes() -> int:
    """How many processes the run is spread over."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def sharding_asked_for() -> bool:
    """Whether the launcher asked for a model that is divided over the processes (`accelerate launch --use_fsdp`)."""
    return _SHARDING_ASKED_FOR


def sharded() -> bool:
    """Whether the model itself is divided over the processes."""
    return sharding_asked_for() and processes() > 1


def broadcast(value: T) -> T:
    """The main process's value, in every process; all of them have to call this."""
    if processes() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of `items` to measure: every so many-th, so that parts are alike where neighbours are.

    With a sharded model it is all of them: every process takes part in every forward pass.
    """
    return items if sharded() else items[rank() :: processes()]


def gather(part: Sequence[Any]) -> list[Any]:
    """What `share` divided, whole and in order again, in every process; all of them have to call this."""
    if processes() == 1 or sharded():
        return list(part)
    parts = gather_each(list(part))
    whole: list[Any] = [None] * sum(map(len, parts))
    for index, each in enumerate(parts):
        whole[index :: len(parts)] = each
    return whole


def gather_each(value: T) -> list[T]:
    """What each process found for its share, in every process; all of them have to call this."""
    if processes() == 1 or sharded():
        return [value]
    from accelerate.utils import gather_object

    return gather_object([value])


def make_alone(make: Callable[[], Any]) -> None:
    """Let the main process alone `make` something on the disk; the others wait for it."""
    if is_main():
        make()
    broadcast(None)


def make_together(make: Callable[[Callable[[Path], None]], Any], produce: Callable[[Path], None]) -> None:
    """Let the main process `make` something on the disk by `produce`, in which all processes take part.

    `make` (the store's) calls `produce` with a folder if the thing is not there yet, perhaps after waiting for another run
    that makes it. The other processes take part if it does, with a folder whose contents are dropped, and wait if not.
    """
    if processes() == 1:
        make(produce)
        return
    if is_main():
        started = False

        def begin(folder: Path) -> None:
            nonlocal started
            started = broadcast(True)
            produce(folder)

        make(begin)
        if not started:
            broadcast(False)
    elif broadcast(False):
        with TemporaryDirectory() as dropped:
            produce(Path(dropped))
    broadcast(None)  # nobody goes on before the thing is there
