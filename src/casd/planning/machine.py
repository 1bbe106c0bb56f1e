"""Available memory and disk of this machine, or of the machine that a run is planned for."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil  # type: ignore[import-untyped]
import torch

from casd.config import RuntimeConfig

CUDA_CONTEXT = 2**30
"""Bytes reserved on a CUDA device for its context, the libraries' workspaces and the allocator's rounding. A round allowance:
the actual size differs between devices and versions."""
CPU_ALLOCATOR = 160 * 2**20
"""Bytes of overhead of the CPU's allocator and the libraries' workspaces: about the unexplained rest in trainings of two models
of 31M and 117M parameters (`scripts/check_memory.py`)."""


@dataclass(frozen=True)
class Machine:
    """The memory of one of the devices of a run, and of the CPU.

    Attributes:
        device: kind of the device. On the CPU and on MPS, device and host share their memory.
        memory: total bytes of the device that a process can use; None if unknown.
        taken: bytes of `memory` not available to the model: on the CPU what this process uses now (mostly libraries) and
            CPU_ALLOCATOR; on CUDA CUDA_CONTEXT.
        host: total bytes of the CPU's memory that this process can use.
        process: bytes of the CPU's memory that this process uses now.
        given: True if `memory` is runtime.memory_gib instead of a measurement.
    """

    device: Literal["cpu", "cuda", "mps"]
    memory: int | None
    taken: int
    host: int
    process: int
    given: bool = False

    @property
    def shared(self) -> bool:
        """True if the device uses the CPU's memory."""
        return self.device != "cuda"

    def among(self, workers: int, on_each_gpu: int = 1) -> Machine:
        """Return what each of several workers on this machine has: a share of the free CPU memory, and of a CUDA device."""
        host = self.process + (self.host - self.process) // workers
        if self.shared:
            return replace(self, host=host, memory=self.memory if self.given else host)
        return replace(self, host=host, memory=self.memory and self.memory // on_each_gpu)


def machine(runtime: RuntimeConfig) -> Machine:
    """Return the machine that a run's settings refer to; a CUDA device need not be present."""
    process = psutil.Process().memory_info().rss
    host = process + min(psutil.virtual_memory().available, _left_in_cgroup())
    given = None if runtime.memory_gib is None else int(runtime.memory_gib * 2**30)
    kind = device_type(runtime)
    if kind == "cuda":
        return Machine("cuda", given or _free_on_cuda(runtime.device), CUDA_CONTEXT, host, process, given is not None)
    device: Literal["cpu", "mps"] = "mps" if kind == "mps" else "cpu"
    return Machine(device, given or host, process + CPU_ALLOCATOR, host, process, given is not None)


def device_type(runtime: RuntimeConfig) -> str:
    """Return the type of device that a run's settings refer to: "cpu", "cuda" or "mps"."""
    kind = runtime.device.partition(":")[0]
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    return kind


def free_disk(folder: Path) -> int:
    """Return the free bytes on the disk of `folder`, which need not exist."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _free_on_cuda(device: str) -> int | None:
    """Return the free bytes of a CUDA device, including memory reserved by torch; None if there is no device."""
    if not torch.cuda.is_available():
        return None
    chosen = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device in ("auto", "cuda") else torch.device(device)
    )
    return torch.cuda.mem_get_info(chosen)[0] + torch.cuda.memory_reserved(chosen)


def _left_in_cgroup() -> int:
    """Return the bytes left by the control group of this process (a container, a cluster job); 2**63 if there is no limit.

    The kernel's file cache counts as free, since it is released first.
    """
    root = Path("/sys/fs/cgroup")
    try:
        own = Path("/proc/self/cgroup").read_text().strip().splitlines()[-1].rpartition(":")[2].strip("/")
    except OSError:
        return 2**63
    left = 2**63
    for folder in (root / own, *(root / own).parents):
        try:
            limit, used = (folder / "memory.max").read_text().strip(), int((folder / "memory.current").read_text())
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit != "max":
            left = min(left, max(0, int(limit) - used + int(statistics.get("file", 0))))
    return left
