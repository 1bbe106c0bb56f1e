"""CountSketch: compress a vector of billions of numbers to a few thousand, preserving inner products in expectation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from casd.utils.seeding import torch_generator

PIECE = 2**17
"""Number of entries processed at once: 1 MB, which fits in a cache. The result does not depend on it."""

# Eight signs for each value of a byte, (256, 8). A sign needs one random bit; drawing each separately would dominate the time.
_SIGNS_OF_BYTE = 1.0 - 2.0 * ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).double()


def count_sketch(pieces: Iterable[Tensor], size: int, *, seed: int, name: str) -> Tensor:
    """Compute the CountSketch of a vector x given in pieces (Charikar, Chen and Farach-Colton, "Finding frequent items in data
    streams", ICALP 2002).

        S(x)[b] = Σ over i with h(i) = b of s(i) · x[i],    s(i) a random sign, h(i) a random bucket in [0, size)

    S is linear, and E⟨S(x), S(y)⟩ = ⟨x, y⟩ over the hashes, with the variance

        Σ over i ≠ j of P(h(i) = h(j)) · (x[i]² y[j]² + x[i] y[i] x[j] y[j])  ≤  (‖x‖² ‖y‖² + ⟨x, y⟩²) / size

    Here h(i) = (i + o) mod `size`, with one random offset o for each block of `size` entries. Two entries collide with
    probability 1/size, or never if they are in one block; the variance depends on nothing else. No entry needs its own random
    draw or a scattered write, so the sum is deterministic and fast on any device. (With h(i) = i mod size, whole columns of a
    weight matrix would collide.)

    Args:
        pieces: x in order, as 1-D tensors of any length and float dtype, on one device that supports float64.
        size: number of buckets.
        seed: seed of the hashes.
        name: name of the vector. Its hashes are drawn on the CPU from the seed and this name only, so that the sketches of
            vectors of different names add up, in any order, to the sketch of their concatenation.

    Returns:
        (size,), float64, on the device of the pieces.

    Raises:
        ValueError: `size` is less than 1.

    Cost: one pass over x; `PIECE` + `size` float64 numbers of memory and a few copies of them.
    """
    if size < 1:
        raise ValueError(f"size is {size}; expected at least 1")
    offset_generator = torch_generator(seed, "count sketch, offsets", name)
    sign_generator = torch_generator(seed, "count sketch, signs", name)
    sketch = torch.zeros(size, dtype=torch.float64)
    for blocks in _blocks(pieces, size):
        sketch = sketch.to(blocks.device)
        signed = blocks * _signs(blocks.shape, sign_generator, blocks.device)
        offsets = torch.randint(size, (len(signed),), generator=offset_generator).tolist()
        for block, offset in zip(signed, offsets, strict=True):
            sketch[offset:] += block[: size - offset]
            sketch[:offset] += block[size - offset :]
    return sketch


def _blocks(pieces: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Yield the vector as rows of `size` entries, (k, size), float64; the last row is padded with zeros."""
    rest: Tensor | None = None
    for piece in pieces:
        rest = piece.double() if rest is None else torch.cat([rest, piece.double()])
        k = len(rest) // size
        if k:
            yield rest[: k * size].view(k, size)
            rest = rest[k * size :]
    if rest is not None and len(rest):
        yield torch.nn.functional.pad(rest, (0, size - len(rest))).view(1, size)


def _signs(shape: torch.Size, generator: torch.Generator, device: torch.device) -> Tensor:
    """Return random signs, (k, size), float64. Drawn by row on the CPU, so that they do not depend on k."""
    k, size = shape
    words = torch.randint(-(2**31), 2**31, (k, -(-size // 32)), generator=generator, dtype=torch.int32)
    random_bytes = words.view(torch.uint8).to(device).long()
    return _SIGNS_OF_BYTE.to(device)[random_bytes].view(k, -1)[:, :size]
