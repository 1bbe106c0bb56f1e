"""Batches of tokens, and how they are divided: over processes, into what fits on a device, by length.

A batch of documents is a dict of tensors (batch, tokens), with two scalars: `n_labels`, the number of its tokens that carry
loss, and `n_documents`. The scalars stay those of the whole batch in each of its parts, so that losses that are sums divided
by them add up to the whole's. An unlearning batch is a dict of such batches, divided alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

IGNORED_LABEL = -100
Batch = dict[str, Tensor]


def share_of_rows(batch: Any, part: int, parts: int) -> Any:
    """Every `parts`-th row of a batch, from the row number `part` on: one process's share.

    A share without a row has one that carries no loss, so that every process computes something.
    """
    if parts == 1:
        return batch
    if not _is_batch(batch):
        return {name: share_of_rows(each, part, parts) for name, each in batch.items()}
    return _rows(batch, torch.arange(len(batch["labels"]))[part::parts])


def micro_batches(batch: Any, size: int, at_least: int = 1) -> list[Any]:
    """The rows of a batch in parts of at most `size`, rows of like length together, so that padding is small.

    The batches in a dict give equally many parts, and at least so many as are asked for; one that has too few rows for that
    is filled up as in `share_of_rows`.
    """
    parts = max(at_least, -(-most_rows(batch) // size))
    if not _is_batch(batch):
        pieces = {name: _divided(each, parts) for name, each in batch.items()}
        return [{name: pieces[name][index] for name in batch} for index in range(parts)]
    return _divided(batch, parts)


def batches_by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of items in batches of similar length, longest first, so that padding is small and memory peaks at once."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _is_batch(batch: Any) -> bool:
    return "labels" in batch


def most_rows(batch: Any) -> int:
    """The number of rows of a batch, or of the largest batch in a dict of them."""
    return len(batch["labels"]) if _is_batch(batch) else max(map(most_rows, batch.values()))


def _divided(batch: Batch, parts: int) -> list[Batch]:
    lengths = batch["attention_mask"].sum(1) if "attention_mask" in batch else torch.zeros(len(batch["labels"]))
    order = lengths.argsort(descending=True, stable=True)
    return [_rows(batch, chosen) for chosen in order.tensor_split(parts)]


def _rows(batch: Batch, chosen: Tensor) -> Batch:
    """Some rows of a batch, without padding that all of them have; or one row without loss, if none is chosen."""
    silent = len(chosen) == 0
    part = {name: each if each.ndim == 0 else each[[0] if silent else chosen] for name, each in batch.items()}
    if silent:
        part["labels"] = torch.full_like(part["labels"], IGNORED_LABEL)
    if "attention_mask" in part:
        width = int(part["attention_mask"].sum(1).max())
        part = {name: each if each.ndim == 0 else each[:, :width] for name, each in part.items()}
    return part
