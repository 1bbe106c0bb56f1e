"""How much memory and disk there is here, or on the machine that is planned for."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil  # type: ignore[import-untyped]
import torch

from casd.config import RuntimeConfig

CUDA_CONTEXT = 2**30
"""Bytes of a CUDA device that are set aside for its context, the libraries' workspaces and the allocator's rounding. A round
allowance: what they take differs between devices and versions."""
CPU_ALLOCATOR = 160 * 2**20
"""Bytes that the CPU's allocator holds beside what it is asked for, and the libraries' workspaces: about what was left over in
trainings of two models of 31M and 117M parameters (`scripts/check_memory.py`)."""


@dataclass(frozen=True)
class Machine:
    """One device of those that a run uses, and the memory of the CPU beside it.

    Attributes:
        device: its kind. On the CPU and on MPS, device and host have one memory.
        memory: bytes of the device that a process can have in all; None if that is not known.
        taken: bytes of it that go to something else than the model: on the CPU what this process has now, its libraries above
            all, and the allowance CPU_ALLOCATOR; on CUDA the allowance CUDA_CONTEXT.
        host: bytes of the CPU's memory that this process can have in all.
        process: bytes of the CPU's memory that it has now.
        given: whether `memory` is runtime.memory_gib, and not what was found.
    """

    device: Literal["cpu", "cuda", "mps"]
    memory: int | None
    taken: int
    host: int
    process: int
    given: bool = False

    @property
    def shared(self) -> bool:
        """Whether the device's memory is the CPU's."""
        return self.device != "cuda"


def machine(runtime: RuntimeConfig) -> Machine:
    """The machine that a run's settings mean; a CUDA device need not be here."""
    process = psutil.Process().memory_info().rss
    host = process + min(psutil.virtual_memory().available, _left_in_cgroup())
    given = None if runtime.memory_gib is None else int(runtime.memory_gib * 2**30)
    kind = runtime.device.partition(":")[0]
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda":
        return Machine("cuda", given or _free_on_cuda(runtime.device), CUDA_CONTEXT, host, process, given is not None)
    device: Literal["cpu", "mps"] = "mps" if kind == "mps" else "cpu"
    return Machine(device, given or host, process + CPU_ALLOCATOR, host, process, given is not None)


def free_disk(folder: Path) -> int:
    """Free bytes on the disk that `folder` is or will be on."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _free_on_cuda(device: str) -> int | None:
    """Free bytes of a CUDA device, with what torch has set aside; None where there is none."""
    if not torch.cuda.is_available():
        return None
    chosen = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device in ("auto", "cuda") else torch.device(device)
    )
    return torch.cuda.mem_get_info(chosen)[0] + torch.cuda.memory_reserved(chosen)


def _left_in_cgroup() -> int:
    """Bytes that the control group of this process (a container's, a cluster job's) leaves it; a lot if it sets no limit.

    Files that the kernel keeps in memory count as left: it gives them up first.
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
