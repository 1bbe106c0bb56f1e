"""A run in which one of two processes runs out of memory in the injection (test_distributed).

Usage, in two processes: python -m tests.two_processes_memory OVERRIDE…
"""

from __future__ import annotations

import sys
from typing import Any

import torch

import casd.training.gradients
from casd.cli.main import main
from casd.utils import distributed


def full(*_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


if __name__ == "__main__":
    if distributed.rank() == 1:
        casd.training.gradients._parts = full
    main(["inject", *sys.argv[1:]])
