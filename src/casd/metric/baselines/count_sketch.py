"""CountSketch: a vector of billions of numbers as a few thousand, between which inner products are kept on average."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from casd.utils.seeding import torch_generator

PIECE = 2**17
"""Entries of a vector that are in work at once: 1 MB, which stays in a cache. What comes out does not depend on it."""

# Eight signs for each value of a byte, (256, 8). A sign is one random bit: a draw for each would take most of the time.
_SIGNS_OF_BYTE = 1.0 - 2.0 * ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).double()


def count_sketch(pieces: Iterable[Tensor], size: int, *, seed: int, name: str) -> Tensor:
    """The CountSketch of a vector x that comes in pieces (Charikar, Chen and Farach-Colton, "Finding frequent items in data
    streams", ICALP 2002).

        S(x)[b] = Σ over i with h(i) = b of s(i) · x[i],    s(i) a random sign, h(i) a random bucket in [0, size)

    S is linear, and E⟨S(x), S(y)⟩ = ⟨x, y⟩ over the hashes, with the variance

        Σ over i ≠ j of P(h(i) = h(j)) · (x[i]² y[j]² + x[i] y[i] x[j] y[j])  ≤  (‖x‖² ‖y‖² + ⟨x, y⟩²) / size

    Here h(i) = (i + o) mod `size`, with one random offset o for each stretch of `size` entries. Two entries meet with
    probability 1/size or, in one stretch, never, which is all that the variance depends on; and no entry needs a draw of its
    own or a scattered write, so that the sum is the same on every call and fast on any device. (With h(i) = i mod size alone,
    whole columns of a weight matrix would meet.)

    Args:
        pieces: x in order, as 1-D tensors of any lengths and float dtype, on one device with float64.
        size: the number of buckets.
        seed: of the hashes.
        name: of the vector; each has hashes of its own, drawn on the CPU from the seed and this name alone. So sketches of
            different vectors can be added, in any order, to the sketch of all of them put end to end.

    Returns:
        (size,), float64, on the device of the pieces.

    Cost: one pass over x; `PIECE` + `size` float64 numbers of memory and a few copies of them.
    """
    if size < 1:
        raise ValueError(f"a sketch of {size} numbers; at least 1 expected")
    offset_generator = torch_generator(seed, "count sketch, offsets", name)
    sign_generator = torch_generator(seed, "count sketch, signs", name)
    sketch = torch.zeros(size, dtype=torch.float64)
    for stretches in _stretches(pieces, size):
        sketch = sketch.to(stretches.device)
        signed = stretches * _signs(stretches.shape, sign_generator, stretches.device)
        offsets = torch.randint(size, (len(signed),), generator=offset_generator).tolist()
        for stretch, offset in zip(signed, offsets, strict=True):
            sketch[offset:] += stretch[: size - offset]
            sketch[:offset] += stretch[size - offset :]
    return sketch


def _stretches(pieces: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The vector in rows of `size` entries, (k, size), float64; the last row is filled up with zeros."""
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
    """Random signs, (k, size), float64. Drawn row by row on the CPU, however many rows are asked for at once."""
    k, size = shape
    words = torch.randint(-(2**31), 2**31, (k, -(-size // 32)), generator=generator, dtype=torch.int32)
    random_bytes = words.view(torch.uint8).to(device).long()
    return _SIGNS_OF_BYTE.to(device)[random_bytes].view(k, -1)[:, :size]
