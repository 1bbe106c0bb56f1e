"""Device, checkpoints, micro-batches and numerics of a computation."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

import torch

from casd.utils import distributed
from casd.utils.errors import ConfigError

_M_MMAP_THRESHOLD = -3  # of malloc.h
CPU_ROWS: Final = 8
"""Default number of rows in one forward pass of a training on the CPU."""
LARGE_MODEL = 2**28
"""Bytes of weights above which `give_freed_memory_back` is worth its time."""
_NUMERICS: Final = (
    ("cuda.matmul", "fp32_precision", "ieee"),
    ("mkldnn.matmul", "fp32_precision", "ieee"),
    ("mkldnn.conv", "fp32_precision", "ieee"),
    ("mkldnn.rnn", "fp32_precision", "ieee"),
    ("cudnn.conv", "fp32_precision", "tf32"),
    ("cudnn.rnn", "fp32_precision", "tf32"),
    ("cuda.matmul", "allow_bf16_reduced_precision_reduction", True),
    ("cuda.matmul", "allow_fp16_reduced_precision_reduction", True),
    ("cuda.matmul", "allow_fp16_accumulation", False),
)
"""Settings of torch.backends that change matrix products and convolutions, with torch's defaults."""


@dataclass(frozen=True)
class Runtime:
    """Where and how a computation runs; nothing here may change its result beyond floating-point order.

    Attributes:
        device: "auto" (CUDA if there is one, else the CPU), or a torch device.
        checkpoint_seconds: time between two checkpoints of a training stage; infinite for none.
        micro_batch_size: rows of a training batch in one forward pass, more if they are short; 0 for the device's default
            (`rows_at_once`).
        gradient_checkpointing: recompute activations in the backward pass instead of storing them.
        compile: train through torch.compile.
        trackers: experiment trackers that receive the losses of a training: "tensorboard", "wandb".
        tracking_folder: folder of the trackers' files, with a folder for each training.
    """

    device: str = "auto"
    checkpoint_seconds: float = 60.0
    micro_batch_size: int = 0
    gradient_checkpointing: bool = False
    compile: bool = False
    trackers: tuple[str, ...] = ()
    tracking_folder: str = "tracking"

    def __post_init__(self) -> None:
        if self.device == "auto":
            return
        device = torch.device(self.device)
        available = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(device.type, 1)
        if (device.index or 0) >= available:
            raise ConfigError(
                f"runtime.device is {self.device!r}, and torch {torch.__version__} finds {available} {device.type} devices on"
                " this machine. Use runtime.device=auto or cpu."
            )

    @property
    def rows_at_once(self) -> int:
        """Rows of a training batch in one forward pass (`casd.data.batches.micro_batches`); 0 for the whole batch."""
        return self.micro_batch_size or default_rows(self.torch_device.type)

    @property
    def torch_device(self) -> torch.device:
        """The device of this process, which joins the others first if there are several (`casd.utils.distributed.join`)."""
        if distributed.processes() > 1:
            return distributed.join(self.device)
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)


def default_rows(device: str) -> int:
    """Return the default number of rows in one forward pass of a training on a type of device; 0 for the whole batch.

    The rows of a part are of similar length. On the CPU, parts of `CPU_ROWS` are therefore faster than a batch that is padded
    to its longest document (`scripts/bench_training.py`); fewer gain nothing more, as each pass has its own overhead.
    Other devices are given the whole batch.
    """
    return CPU_ROWS if device == "cpu" else 0


@contextmanager
def own_numerics() -> Iterator[None]:
    """Use torch's default numerics in the block, whatever was set before, and restore the settings afterwards.

    The default dtype is float32, new tensors are on the CPU, products of float32 matrices have full precision, gradients are
    enabled, autocast is off, and reductions in low precision are torch's default. No stage's key contains these settings.
    """
    dtype, matmul = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    numerics = [(attrgetter(section)(torch.backends), name, value) for section, name, value in _NUMERICS]
    flags = [(section, name, getattr(section, name)) for section, name, _ in numerics]
    with ExitStack() as undo:
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                undo.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            undo.enter_context(torch.device("cpu"))
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        try:
            torch.set_default_dtype(torch.float32)
            torch.set_float32_matmul_precision("highest")
            for section, name, value in numerics:
                setattr(section, name, value)
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_float32_matmul_precision(matmul)
            for section, name, value in flags:
                setattr(section, name, value)


def give_freed_memory_back(model: torch.nn.Module, device: torch.device) -> None:
    """Return freed blocks of 1 MiB and more to the system at once, for a large model on the CPU (Linux with glibc only).

    By default glibc keeps freed blocks of up to 32 MiB, which fragment: training a 117M model with an adapter took 1.56 GiB
    with that default and 1.24 GiB without, for 5 to 10 % more time (`scripts/check_memory.py`). Tiny models, whose memory
    hardly matters, would take 40 % more time.
    """
    if device.type != "cpu" or sys.platform != "linux" or sum(each.nbytes for each in model.parameters()) < LARGE_MODEL:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**20)
