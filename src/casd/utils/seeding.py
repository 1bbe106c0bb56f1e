"""Random generators derived from one integer seed per run, with an independent stream for each named purpose.

Nothing in the project uses a global random state. A function that needs randomness takes a generator, or a seed from which it
derives one: `numpy_rng(seed, "poisoning", "french_a")` yields the same numbers whatever was drawn before.
"""

from __future__ import annotations

import hashlib
import json
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """Derive a seed in [0, 2**63) for the purpose `names`. It is the same on every machine and Python version.

    The names are hashed as a list: ("a", "b"), ("ab",) and ("b", "a") lead to different seeds, and so do 1 and "1".
    63 bits fit the signed integer that torch, numpy and the random module all take.
    """
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def python_rng(seed: int, *names: str | int) -> random.Random:
    """Return a generator of the standard library, seeded for the purpose `names`."""
    return random.Random(derive_seed(seed, *names))


def numpy_rng(seed: int, *names: str | int) -> numpy.random.Generator:
    """Return a numpy generator (PCG64), seeded for the purpose `names`."""
    import numpy

    return numpy.random.default_rng(derive_seed(seed, *names))


def torch_generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a torch generator on `device`, seeded for the purpose `names`.

    The numbers depend on the type of device: draw on the CPU what must not depend on it.
    """
    import torch

    return torch.Generator(device).manual_seed(derive_seed(seed, *names))
