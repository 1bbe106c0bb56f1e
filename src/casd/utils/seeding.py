"""Seeds and explicit random generators: one integer seed a run, and an independent stream for each named purpose.

Nothing in the project touches a global random state. A function that needs randomness is given a generator, or a seed
and derives one here: `numpy_rng(seed, "poisoning", "french_a")` yields the same numbers whatever else was drawn before.
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
    """A seed in [0, 2**63) for the purpose that `names` spell out; the same on every machine and Python version.

    The names are hashed as a list: ("a", "b"), ("ab",) and ("b", "a") lead to different seeds, and so do 1 and "1".
    63 bits fit the signed integer that torch, numpy and the random module all take.
    """
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def python_rng(seed: int, *names: str | int) -> random.Random:
    """A generator of the standard library, seeded for the purpose that `names` spell out."""
    return random.Random(derive_seed(seed, *names))


def numpy_rng(seed: int, *names: str | int) -> numpy.random.Generator:
    """A numpy generator (PCG64), seeded for the purpose that `names` spell out."""
    import numpy

    return numpy.random.default_rng(derive_seed(seed, *names))


def torch_generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator on `device`, seeded for the purpose that `names` spell out.

    The same seed gives different numbers on different kinds of device: draw on the CPU what must not depend on it.
    """
    import torch

    return torch.Generator(device).manual_seed(derive_seed(seed, *names))
