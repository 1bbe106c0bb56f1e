"""Communication between the processes that a launcher starts for one run (`accelerate launch -m casd …`, torchrun).

Every process executes the whole program on its own part of each batch. The main process (rank 0) writes the stages and the
messages. Without a launcher there is one process and no communication. `join` connects the processes; it refuses a launch in
which the connected processes are not those that were started, because a stage's key does not contain their number.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from casd.utils.errors import CasdError, ConfigError, first_line

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

# Removed from the environment, because `casd.models.sharding` shards the model and not accelerate.
_SHARDING_REQUESTED = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")

_TIMEOUT = timedelta(days=7)
"""Of one collective. Processes wait while the main one downloads a corpus, or waits for a stage that another run makes."""

_UNSUPPORTED = {
    "ACCELERATE_MIXED_PRECISION": "Launch with --mixed_precision no: casd computes in model.dtype.",
    "ACCELERATE_DYNAMO_BACKEND": "Launch with --dynamo_backend no: casd compiles with runtime.compile=true.",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "Unset it: casd divides a batch by runtime.micro_batch_size.",
    "ACCELERATE_USE_DEEPSPEED": "Launch with --use_fsdp to shard a model over devices.",
    "ACCELERATE_USE_MEGATRON_LM": "Launch with --use_fsdp to shard a model over devices.",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "Launch with --use_fsdp to shard a model over devices.",
    # Read by libraries below torch, which this process cannot override.
    "NVIDIA_TF32_OVERRIDE": "Unset it: casd multiplies float32 matrices in full precision.",
    "DNNL_DEFAULT_FPMATH_MODE": "Unset it: casd multiplies float32 matrices in full precision.",
    "ONEDNN_DEFAULT_FPMATH_MODE": "Unset it: casd multiplies float32 matrices in full precision.",
}
"""Environment variables that would change results without being in any stage's key, and what to do instead."""
_NEUTRAL = ("no", "false", "strict")
"""Values that change nothing."""
_MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_SEVERAL = "torchrun --nproc_per_node N -m casd …, or accelerate launch --multi_gpu --num_processes N -m casd …"
"""Commands that start N processes, on the CPU or on GPUs."""


def processes() -> int:
    """Return the number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0")) if processes() > 1 else 0


def is_main() -> bool:
    """Return True in the main process, which writes stages and messages."""
    return rank() == 0


def sharding_asked_for() -> bool:
    """Return True if the launcher requested a sharded model (`accelerate launch --use_fsdp`)."""
    return _SHARDING_REQUESTED


def sharded() -> bool:
    """Return True if the model is sharded over the processes."""
    return sharding_asked_for() and processes() > 1


def check_launch() -> None:
    """Check that the processes make one run together, and train as the configuration says.

    Raises:
        ConfigError: they do not; the message gives a command that works.
    """
    for name, instead in _UNSUPPORTED.items():
        value = os.environ.get(name, "no")
        if value.lower() not in _NEUTRAL and (name, value) != ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"):
            raise ConfigError(f"{name} is {value!r}, which would change results against the configuration. {instead}")
    if processes() > 1:
        if absent := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            raise ConfigError(
                f"WORLD_SIZE is {processes()}, but {', '.join(absent)} is not set, so the processes cannot find each other."
                f" Start them with {_SEVERAL}; or unset WORLD_SIZE for a run in one process."
            )
        return
    # Without several GPUs `accelerate launch --num_processes 2` prepares this address, and then starts one process.
    if "WORLD_SIZE" not in os.environ and "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ:
        raise ConfigError(
            "accelerate launch was to start several processes and started one, as it does without several GPUs."
            f" Use {_SEVERAL}; or python -m casd for a run in one process."
        )
    for name in _MPI_SIZES:
        if int(os.environ.get(name, "1")) > 1:
            raise ConfigError(
                f"{name} is {os.environ[name]} and WORLD_SIZE is not set: each of these processes would make the whole run."
                f" Start one process, or several with {_SEVERAL}."
            )


def join(device: str) -> torch.device:
    """Connect to the other processes of the run, unless already done, and return this process's device.

    Args:
        device: `runtime.device`: "auto" (CUDA if there is one, else the CPU), "cuda" or "cpu".

    Raises:
        ConfigError: a launch that `check_launch` refuses, or one device named for several processes.
        CasdError: the other processes cannot be reached.
    """
    import torch
    from accelerate import PartialState

    check_launch()
    if device not in ("auto", "cuda", "cpu"):
        raise ConfigError(
            f"runtime.device is {device!r}, and there are {processes()} processes: use auto, cuda or cpu: each gets its own."
        )
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    try:
        # accelerate chooses the backend once, at its first use: without `cpu` it would choose none on a machine without GPUs.
        state = PartialState(cpu=on_cpu, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = first_line(error)
        raise CasdError(
            f"Process {rank()} cannot join the other {processes() - 1} of its run: {reason}. Start all of them with {_SEVERAL}."
        ) from error
    if state.num_processes != processes() or state.device.type != ("cpu" if on_cpu else "cuda"):
        raise ConfigError(
            f"{processes()} processes were started for {'the CPU' if on_cpu else 'CUDA'}, but accelerate was set up before"
            f" for {state.num_processes} on {state.device}. Call casd.utils.distributed.join before anything that uses"
            " accelerate."
        )
    return state.device


@contextmanager
def explaining_lost_processes() -> Iterator[None]:
    """Report a failed collective, for example because another process has ended, in one line.

    Raises:
        CasdError: a collective failed. Other errors pass.
    """
    try:
        yield
    except RuntimeError as error:
        if processes() == 1:
            raise
        from torch.distributed import DistError

        if not isinstance(error, DistError) and "gloo" not in str(error):
            raise
        reason = first_line(error)
        raise CasdError(
            f"Process {rank()} of {processes()} cannot communicate with the others: {reason}. If one of"
            " them has ended, its own message says why. Finished stages are kept, and the same command resumes from there."
        ) from error


def broadcast(value: T) -> T:
    """Return the main process's value in every process. All processes have to call this."""
    if processes() == 1:
        return value
    _check_joined()
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def share(items: Sequence[T]) -> Sequence[T]:
    """Return this process's share of `items`: every `processes()`-th, so that shares are similar if neighbours are.

    With a sharded model it is all items: every process takes part in every forward pass.
    """
    return items if sharded() else items[rank() :: processes()]


def gather(part: Sequence[Any]) -> list[Any]:
    """Put the results for the shares of `share` back into order, in every process. All processes have to call this."""
    if processes() == 1 or sharded():
        return list(part)
    parts = gather_each(list(part))
    results: list[Any] = [None] * sum(map(len, parts))
    for index, share_results in enumerate(parts):
        results[index :: len(parts)] = share_results
    return results


def total(value: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over the processes, in place and in every process. All processes have to call this."""
    if processes() > 1:
        from torch import distributed

        distributed.all_reduce(value)
    return value


def gather_each(value: T) -> list[T]:
    """Return the values of all processes, by rank, in every process. All processes have to call this."""
    if processes() == 1 or sharded():
        return [value]
    _check_joined()
    from accelerate.utils import gather_object

    return gather_object([value])


def make_alone(make: Callable[[], Any]) -> None:
    """Call `make`, which writes to the disk, in the main process only; the others wait for it."""
    _check_joined()
    if is_main():
        make()
    broadcast(None)


def make_together(make: Callable[[Callable[[Path], None]], Any], produce: Callable[[Path], None]) -> None:
    """Call `make` in the main process, and `produce` in all processes if `make` calls it.

    `make` (of the store) calls `produce` with a folder if the stage does not exist yet, perhaps after waiting for another
    run that makes it. The other processes then call `produce` with a temporary folder, whose contents are discarded.
    """
    _check_joined()
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
        with TemporaryDirectory() as discarded, _printing_own_errors():
            produce(Path(discarded))
    broadcast(None)  # a barrier: the others read the stage next


@contextmanager
def _printing_own_errors() -> Iterator[None]:
    """Print errors for the user in this process: the command line prints only those of the main process."""
    try:
        yield
    except CasdError as error:
        print(f"casd: process {rank()}: {error}", file=sys.stderr)
        raise


def _check_joined() -> None:
    """Raise CasdError unless all launched processes have joined."""
    if processes() == 1:
        return
    from torch import distributed

    if not distributed.is_initialized() or distributed.get_world_size() != processes():
        raise CasdError(
            f"The {processes()} processes of this run have not joined: call casd.utils.distributed.join(device) first."
        )
