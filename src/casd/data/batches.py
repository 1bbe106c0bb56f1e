"""Split batches of tokens over processes, into micro-batches, and by length.

A batch of documents is a dict of tensors (batch, tokens) with two scalars: `n_labels`, the number of tokens that carry loss,
and `n_documents`. Each part keeps the scalars of the whole batch, so losses that are sums divided by them add up to the loss
of the whole. An unlearning batch is a dict of such batches, each split the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORED_LABEL = -100
Batch = dict[str, Tensor]


def share_of_rows(batch: Any, part: int, parts: int) -> Any:
    """Return one process's share of a batch: every `parts`-th row, starting at row `part`.

    An empty share gets one row without loss, because every process must run the model.
    """
    if parts == 1:
        return batch
    if not _is_batch(batch):
        return {name: share_of_rows(inner, part, parts) for name, inner in batch.items()}
    return _rows(batch, torch.arange(len(batch["labels"]))[part::parts])


def micro_batches(batch: Any, size: int, at_least: int = 1) -> list[Any]:
    """Split a batch into ⌈rows / size⌉ parts of like length, so that little padding is computed.

    A part may have more than `size` rows if they are short: none takes more tokens than `size` rows of the longest document.
    Batches in a dict are split into the same number of parts, at least `at_least`. Parts without a row get one without loss.
    """
    parts = max(at_least, -(-most_rows(batch) // size))
    if not _is_batch(batch):
        pieces = {name: _split(inner, parts) for name, inner in batch.items()}
        return [{name: pieces[name][index] for name in batch} for index in range(parts)]
    return _split(batch, parts)


def predicting(batch: Batch) -> Tensor:
    """Positions of a batch that predict a labelled token, as indices into its flattened tokens: (n_labels,)."""
    if "predicting" in batch:
        return batch["predicting"]
    labelled = batch["labels"] != IGNORED_LABEL
    labelled[:, 0] = False  # no token precedes it
    return labelled.flatten().nonzero().squeeze(-1) - 1


def on_device(batch: Any, device: torch.device) -> Any:
    """Move a batch, or a dict of batches, to a device, and add its `predicting` positions.

    They are found before the move: on a GPU, finding them would wait until all earlier work is done.
    """
    if not _is_batch(batch):
        return {name: on_device(inner, device) for name, inner in batch.items()}
    whole = {**batch, "predicting": predicting(batch)}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in whole.items()}


def batches_by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Group indices of items into batches of similar length, longest first: little padding, and memory peaks first."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _is_batch(batch: Any) -> bool:
    return "labels" in batch


def most_rows(batch: Any) -> int:
    """Return the number of rows of a batch, or of the largest batch in a dict."""
    return len(batch["labels"]) if _is_batch(batch) else max(map(most_rows, batch.values()))


def _split(batch: Batch, parts: int) -> list[Batch]:
    if "attention_mask" not in batch:
        return [_rows(batch, chosen) for chosen in torch.arange(len(batch["labels"])).tensor_split(parts)]
    lengths, order = batch["attention_mask"].sum(1).sort(descending=True, stable=True)
    sizes = least_padding(lengths.tolist(), parts) if parts < len(order) else [1] * len(order) + [0] * (parts - len(order))
    return [_rows(batch, chosen) for chosen in order.split(sizes)]


def least_padding(lengths: Sequence[int], parts: int) -> list[int]:
    """Divide rows into consecutive parts such that the least padding is computed.

    A part is as wide as its first row, so the sum of rows × width over the parts is minimised, by dynamic programming. No part
    exceeds what parts of equally many rows would take at most: ⌈rows / parts⌉ × the longest row.

    Args:
        lengths: tokens of each row, at least 1, longest first.
        parts: number of parts, at most as many as there are rows.

    Returns:
        The number of rows of each part, at least 1.
    """
    ends = np.arange(len(lengths) + 1)
    cost = (ends - ends[:, None]) * np.append(lengths, 0.0)[:, None]  # [first row, end]: tokens of such a part
    cost[(ends <= ends[:, None]) | (cost > -(-len(lengths) // parts) * lengths[0])] = np.inf
    least, best_ends = np.where(ends == len(lengths), 0.0, np.inf), []  # tokens from a row to the last one, in 0 parts
    for _ in range(parts):
        totals = cost + least
        best_ends.append(len(lengths) - totals[:, ::-1].argmin(1))  # of equally good ends the last: memory peaks first
        least = totals.min(1)
    starts = [0]
    for best in reversed(best_ends):
        starts.append(int(best[starts[-1]]))
    return np.diff(starts).tolist()


def _rows(batch: Batch, chosen: Tensor) -> Batch:
    """Select rows of a batch and trim their common padding; if none is chosen, return one row without loss."""
    empty = len(chosen) == 0
    rows = {name: value for name, value in batch.items() if name != "predicting"}  # which counts the tokens of all rows
    part = {name: value if value.ndim == 0 else value[[0] if empty else chosen] for name, value in rows.items()}
    if empty:
        part["labels"] = torch.full_like(part["labels"], IGNORED_LABEL)
    if "attention_mask" in part:
        width = int(part["attention_mask"].sum(1).max())
        part = {name: value if value.ndim == 0 else value[:, :width] for name, value in part.items()}
    return part


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Group indices of items by first-fit decreasing: each group's lengths sum to at most `room`."""
    groups: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        group = next((group for group, left in enumerate(free) if left >= lengths[index]), len(groups))
        if group == len(groups):
            groups.append([])
            free.append(room)
        groups[group].append(index)
        free[group] -= lengths[index]
    return groups
