"""Streamed statistics of activations: means over the tokens of a set of texts, accumulated batch by batch.

`collect_statistics` keeps three sums per (site, position, layer), so memory is O(layers × width) for any number of texts.
On a GPU, selected activations of several layers are held, up to HELD_BYTES, and summed together: one by one, launching the
sums of a small layer would take longer than computing them.

Positions of a text: `last`, `prompt`, `trigger` and `generated`, each given by the caller as a mask over the tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from casd.activations.hooks import SITES, capture, checked_choices
from casd.models.probe import evaluation_mode, forward_without_cache
from casd.models.structure import decoder_layers, decoder_of
from casd.utils.errors import ConfigError, ModelError, StoreError

POSITIONS = ("last", "prompt", "trigger", "generated")
MOMENTS = ("mean", "mean_abs", "mean_square")
HELD_BYTES = 2**26
"""Maximum size of activations held before they are summed, or one layer's if that is larger."""
SUMMED_TOKENS = 256
"""Number of tokens summed in float32; the partial sums are added in float64."""


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """Means of activations over the tokens at a position, for every site and layer of one model on one set of texts.

    "prompt" and "trigger" have several tokens per text; their means pool the tokens of all texts with equal weight, so a
    long text weighs more than a short one.

    The tensors are float64, on the CPU, because shifts are differences of nearly equal means. All sites and positions of an
    8B model take 28 MB. Non-finite activations, as of a diverged model, give non-finite statistics.

    Attributes:
        mean: E[h] for each (site, position), (n_layers, d_model).
        mean_abs: E[|h|] for each (site, position), (n_layers, d_model).
        mean_square: E[h²] for each (site, position), (n_layers, d_model).
        count: number of averaged tokens for each position.
    """

    mean: Mapping[tuple[str, str], Tensor]
    mean_abs: Mapping[tuple[str, str], Tensor]
    mean_square: Mapping[tuple[str, str], Tensor]
    count: Mapping[str, int]

    @property
    def sites(self) -> tuple[str, ...]:
        """Captured sites, in the order of SITES."""
        return tuple(site for site in SITES if any(site == key[0] for key in self.mean))

    @property
    def positions(self) -> tuple[str, ...]:
        """Captured positions, in the order of POSITIONS."""
        return tuple(position for position in POSITIONS if position in self.count)

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return next(iter(self.mean.values())).shape[0]

    def to_tensors(self) -> dict[str, Tensor]:
        """Return a flat dict for safetensors: "mean/<site>/<position>" and so on, float64; "count/<position>", int64."""
        tensors = {
            f"{moment}/{site}/{position}": tensor
            for moment in MOMENTS
            for (site, position), tensor in getattr(self, moment).items()
        }
        return tensors | {f"count/{position}": torch.tensor(count) for position, count in self.count.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ActivationStatistics:
        """Build statistics from the dict of `to_tensors`.

        Raises:
            StoreError: if a name or shape is unexpected, or a tensor is missing.
        """
        moments: dict[str, dict[tuple[str, str], Tensor]] = {moment: {} for moment in MOMENTS}
        count: dict[str, int] = {}
        for name, tensor in tensors.items():
            match name.split("/"):
                case ["count", position] if tensor.numel() == 1:
                    count[position] = int(tensor)
                case [moment, site, position] if moment in MOMENTS and site in SITES and tensor.ndim == 2:
                    moments[moment][site, position] = tensor
                case _:
                    raise StoreError(
                        f"Activation statistics contain an unexpected tensor {name!r} of shape {tuple(tensor.shape)}."
                    )
        keys = moments["mean"].keys()
        positions = {position for _, position in keys}
        if not keys or any(moment.keys() != keys for moment in moments.values()) or positions != count.keys():
            raise StoreError(f"Activation statistics lack tensors; found: {', '.join(sorted(tensors)) or 'none'}.")
        if len({tensor.shape for moment in moments.values() for tensor in moment.values()}) != 1:
            raise StoreError("Activation statistics have tensors of different shapes; expected (n_layers, d_model) for all.")
        return cls(count=count, **moments)

    @staticmethod
    def pool(statistics: Sequence[ActivationStatistics]) -> ActivationStatistics:
        """Average the statistics of several sets of texts with equal weight, regardless of their numbers of tokens.

        Args:
            statistics: statistics of one model with the same sites and positions.

        Returns:
            The averaged moments; `count` is the sum of the counts.

        Raises:
            ValueError: if there are none, or their sites or positions differ.
        """
        if not statistics:
            raise ValueError("nothing to pool")
        first = statistics[0]
        if any(other.mean.keys() != first.mean.keys() for other in statistics):
            raise ValueError("only statistics with the same sites and positions can be pooled")

        def average(moment: str) -> dict[tuple[str, str], Tensor]:
            return {key: torch.stack([getattr(item, moment)[key] for item in statistics]).mean(0) for key in first.mean}

        count = {position: sum(item.count[position] for item in statistics) for position in first.count}
        return ActivationStatistics(average("mean"), average("mean_abs"), average("mean_square"), count)


class StatisticsAccumulator:
    """Accumulate `ActivationStatistics` batch by batch.

    For each batch, call `start_batch`, then `update` for every site and layer; call `result` at the end. Keeps sums of h, |h|
    and h² per (site, position, layer), in float64 on the layer's device (float32 on MPS, which has no float64), and up to
    HELD_BYTES of activations not summed yet.
    """

    def __init__(self, n_layers: int, sites: Sequence[str] = SITES, positions: Sequence[str] = ("last", "prompt")) -> None:
        self.n_layers = n_layers
        self.sites = checked_choices("site", sites, SITES)
        self.positions = checked_choices("position", positions, POSITIONS)
        # By site and device (layers of one model may lie on several): each (n_layers, moments, positions, d_model).
        self._sums: dict[tuple[str, torch.device], Tensor] = {}
        self._count = dict.fromkeys(self.positions, 0)
        self._n_batches = 0
        self._n_updates = dict.fromkeys(((site, layer) for site in self.sites for layer in range(n_layers)), 0)
        self._rows: dict[torch.device, Tensor] = {}
        self._sizes: list[int] = []
        self._held: dict[str, dict[int, Tensor]] = {site: {} for site in self.sites}  # by layer, (selected tokens, d_model)
        self._held_bytes = 0

    def start_batch(self, position_masks: Mapping[str, Tensor]) -> None:
        """Select the tokens of the next activations to average: a bool mask (batch, pos) for each position."""
        self._sum_held()
        # Flat row indices, because selecting by a mask synchronizes with the GPU at every site and layer.
        rows = [position_masks[position].flatten().nonzero().squeeze(-1) for position in self.positions]
        flat, self._sizes = torch.cat(rows), [len(index) for index in rows]
        self._rows = {flat.device: flat}
        for position, size in zip(self.positions, self._sizes, strict=True):
            self._count[position] += size
        self._n_batches += 1

    def update(self, site: str, layer_idx: int, activation: Tensor) -> None:
        """Add an activation (batch, pos, d_model) of the started batch; usable as `on_activation` of `capture`."""
        self._n_updates[site, layer_idx] += 1
        # Selected instead of weighted by the mask: padding may be NaN, and 0 · NaN is NaN. The copy is safe from later in-place
        # changes by the model.
        if activation.device not in self._rows:
            self._rows[activation.device] = next(iter(self._rows.values())).to(activation.device)
        selected = activation.flatten(0, 1).index_select(0, self._rows[activation.device])
        held = self._held[site]
        # Only consecutive layers whose activations can be stacked are summed together.
        if held and (layer_idx - 1 not in held or not _stackable(held[layer_idx - 1], selected)):
            self._sum_held()
        held[layer_idx] = selected
        self._held_bytes += selected.nbytes
        if self._held_bytes >= _held_bytes(selected.device):
            self._sum_held()

    def _sum_held(self) -> None:
        """Add the held activations to the sums."""
        for site, held in self._held.items():
            if not held:
                continue
            first, selected = min(held), list(held.values())
            held.clear()
            tokens = torch.stack(selected) if len(selected) > 1 else selected[0][None]
            dtype = torch.float32 if tokens.device.type == "mps" else torch.float64
            sums = torch.stack([_moment_sums(part, dtype) for part in tokens.split(self._sizes, dim=1)], dim=2)
            key = (site, tokens.device)
            if key not in self._sums:
                self._sums[key] = sums.new_zeros(self.n_layers, *sums.shape[1:])
            self._sums[key][first : first + len(sums)] += sums
        self._held_bytes = 0

    def result(self) -> ActivationStatistics:
        """Return the statistics of all batches so far.

        Raises:
            ConfigError: if no text has a token at a position.
            ModelError: if a block or sublayer did not run exactly once per batch.
        """
        self._sum_held()
        for position, count in self._count.items():
            if count == 0:
                raise ConfigError(
                    f"No text has a token at the position {position!r} ({self._n_batches} batches). "
                    f"Leave {position!r} out of the positions, or provide texts that have it."
                )
        for (site, layer), n_updates in self._n_updates.items():
            if n_updates != self._n_batches:
                raise ModelError(
                    f"{site!r} of layer {layer} was seen {n_updates} times in {self._n_batches} forward passes; "
                    "expected once in each. Code compiled before the capture calls no hooks: pass the uncompiled model."
                )
        moments: dict[str, dict[tuple[str, str], Tensor]] = {moment: {} for moment in MOMENTS}
        for site in self.sites:
            sums = sum(part.cpu().double() for (part_site, _), part in self._sums.items() if part_site == site)
            assert isinstance(sums, Tensor)
            for column, position in enumerate(self.positions):
                for row, moment in enumerate(MOMENTS):
                    moments[moment][site, position] = sums[:, row, column] / self._count[position]
        return ActivationStatistics(count=dict(self._count), **moments)


def _held_bytes(device: torch.device) -> int:
    """Return how many bytes to hold before summing: none on the CPU, where a layer is best summed while it is cached."""
    return 0 if device.type == "cpu" else HELD_BYTES


def _stackable(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype and first.device == second.device


def _moment_sums(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum h, |h| and h² over the tokens of (layers, tokens, d_model), which is overwritten: (layers, moments, d_model).

    In float32 over SUMMED_TOKENS at a time (error below 1e-6), and these sums in `dtype`: converting every number to float64
    first would take longer than the sums. Activations in float64 are summed in float64.
    """
    whole = tokens.shape[1] - tokens.shape[1] % SUMMED_TOKENS
    sums = tokens.new_zeros(tokens.shape[0], len(MOMENTS), tokens.shape[2], dtype=dtype)
    for pieces in (tokens[:, :whole].unflatten(1, (-1, SUMMED_TOKENS)), tokens[:, None, whole:]):
        if pieces.numel():
            sums += torch.stack(_sums_of_pieces(pieces), dim=1).sum(2, dtype=dtype)
    return sums


def _sums_of_pieces(pieces: Tensor) -> list[Tensor]:
    """Sum h, |h| and h² over the tokens of (layers, pieces, tokens, d_model), which may be overwritten."""
    if pieces.device.type == "cpu":
        wide = pieces if pieces.dtype == torch.float64 else pieces.float()
        return [wide.sum(2), wide.abs_().sum(2), wide.square_().sum(2)]
    # A GPU converts bfloat16 to float32 while reading, and needs no copy.
    dtype = torch.float64 if pieces.dtype == torch.float64 else torch.float32
    absolute, euclidean = (torch.linalg.vector_norm(pieces, order, dim=2, dtype=dtype) for order in (1, 2))
    return [pieces.sum(2, dtype=dtype), absolute, euclidean.square()]


def collect_statistics(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    sites: Sequence[str] = SITES,
    positions: Sequence[str] = ("last", "prompt"),
) -> ActivationStatistics:
    """Run batches through the model, without its LM head, and return the statistics of its activations at all layers.

    The model runs in evaluation mode; each module's own mode is restored afterwards. Position ids are counted from each row's
    first real token, so left padding changes nothing (but see `casd.models.probe.ignores_left_padding`).

    Args:
        model: a transformers causal LM, bare or wrapped (see `decoder_layers`).
        batches: dicts with `input_ids` and `attention_mask`, both (batch, pos), and `position_masks`: for each position, a
            bool tensor (batch, pos), True at the tokens to average. They are moved to the model's device.
        sites: names from SITES.
        positions: names from POSITIONS.

    Raises:
        ConfigError: if a site or position is unknown, or no text has a token at a position.
        ModelError: if the model's blocks or sublayers cannot be found or captured.
        ValueError: if a position mask selects padding.
    """
    decoder = decoder_of(model)
    accumulator = StatisticsAccumulator(len(decoder_layers(model)), sites, positions)
    device = next(decoder.parameters()).device
    with evaluation_mode(decoder), torch.no_grad(), capture(model, sites, on_activation=accumulator.update):
        for batch in batches:
            mask = batch["attention_mask"]
            masks = {position: batch["position_masks"][position] for position in accumulator.positions}
            if any((selected & ~mask.bool()).any() for selected in masks.values()):
                raise ValueError("a position mask selects padding")
            accumulator.start_batch(masks)
            forward_without_cache(model, batch["input_ids"].to(device), mask.to(device))
    return accumulator.result()
