"""How fast a device computes and reads its memory: from a table, from `runtime.tflops`, or measured on a CPU."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from casd.config import RuntimeConfig
from casd.models.load import DTYPES
from casd.planning.machine import Machine

UTILISATION = 0.35
"""Assumed share of the peak that trainings and forward passes sustain; our choice, within the 17 to 38 % that
`scripts/bench_gpu.py` measured on an H200."""
DATASHEETS = {
    "B200": (2250, 75, 8000),
    "GH200": (989, 67, 4000),
    "H200": (989, 67, 4800),
    "H100 PCIe": (756, 51, 2000),
    "H100 NVL": (835, 60, 3900),
    "H100": (989, 67, 3350),
    "A100 80GB": (312, 19.5, 1935),
    "A100": (312, 19.5, 1555),
    "L40S": (362, 91.6, 864),
    "L4": (121, 30.3, 300),
    "A10": (125, 31.2, 600),
    "A10G": (70, 35, 600),
    "RTX A6000": (155, 38.7, 768),
    "RTX 6000 Ada": (364, 91.1, 960),
    "RTX 5090": (209, 104.8, 1792),
    "RTX 4090": (165, 82.6, 1008),
    "RTX 3090": (71, 35.6, 936),
    "MI300X": (1307, 163, 5300),
}
"""Datasheets' peaks by the words of a device's name; the first entry with all of its words in the name counts. Dense bfloat16
TFLOP/s, float32 TFLOP/s, and GB/s of memory bandwidth."""
FLOPS_PER_BYTE = 989e12 / 3350e9
"""Peak FLOPs per byte of memory bandwidth that are assumed of an unknown device: an H100's."""
BLOCK_SECONDS = 0.8e-3
"""Seconds that Python needs on CUDA to start one block's kernels of a decoding step, during which the device waits; 0.73 to
0.91 ms were measured on an H200 with models of different widths."""


@dataclass(frozen=True)
class Speed:
    """The speed of one device.

    Attributes:
        flops: sustained floating-point operations per second.
        bandwidth: bytes of memory read per second.
        block_seconds: least seconds of one block in a decoding step.
        source: where the numbers come from, in words.
    """

    flops: float
    bandwidth: float
    block_seconds: float
    source: str

    def __str__(self) -> str:
        return f"{self.flops / 1e12:.3g} TFLOP/s sustained, {self.bandwidth / 1e9:,.0f} GB/s ({self.source})"


def speed(runtime: RuntimeConfig, machine: Machine, dtype: str) -> Speed | None:
    """Return the speed of the devices of a run; None if it is unknown. On a CPU it is measured, in half a second.

    Args:
        runtime: `tflops` overrides the table and the measurement.
        machine: the machine that the run is planned for.
        dtype: precision of the model.
    """
    block_seconds = BLOCK_SECONDS if machine.device == "cuda" else 0.0
    given = runtime.tflops * 1e12 if runtime.tflops else None
    if machine.device == "cpu":
        flops, bandwidth = given or UTILISATION * _matmul_flops(dtype), _copy_bandwidth()
        return Speed(
            flops, bandwidth, block_seconds, "runtime.tflops" if given else f"{UTILISATION:.0%} of a matmul measured here"
        )
    name = torch.cuda.get_device_name() if machine.device == "cuda" and torch.cuda.is_available() else ""
    words = re.split(r"[\s-]+", name)
    known = next((device for device in DATASHEETS if set(device.split()) <= set(words)), None)
    if known is None:
        bandwidth = given / UTILISATION / FLOPS_PER_BYTE if given else 0.0
        return Speed(given, bandwidth, block_seconds, "runtime.tflops; bandwidth as for an H100") if given else None
    low, full, gigabytes = DATASHEETS[known]
    peak = 1e12 * (full if dtype == "float32" else low)
    source = "runtime.tflops" if given else f"{UTILISATION:.0%} of the datasheet's peak, {known}"
    return Speed(given or UTILISATION * peak, 1e9 * gigabytes, block_seconds, source)


@functools.cache
def _matmul_flops(dtype: str, size: int = 512) -> float:
    matrix = torch.ones(size, size, dtype=DTYPES[dtype])
    return 2 * size**3 * _times_a_second(lambda: matrix @ matrix)


@functools.cache
def _copy_bandwidth(n_bytes: int = 2**26) -> float:
    source = torch.ones(n_bytes, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * n_bytes * _times_a_second(lambda: target.copy_(source))  # read and written


def _times_a_second(work: Callable[[], object], seconds: float = 0.15) -> float:
    work()
    begun, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - begun) < seconds:
        work()
        count += 1
    return count / elapsed
