"""Statistics of activations, streamed: means over the tokens of a text set, summed up batch by batch.

`collect_statistics` keeps three sums per (site, position, layer), so memory is O(layers × width) however many texts there
are. On a GPU the tokens of a batch that count are held until there are HELD_BYTES of them, and then summed together: it is done
with a small layer before its sums could even be asked for one by one.

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
"""Activations that are held before they are summed, at most; or one layer's, where that is more."""
SUMMED_TOKENS = 256
"""Tokens that are summed in float32 on a GPU, before their sums are added up in float64."""


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """Means of activations over the tokens at a position, for every site and layer of one model on one set of texts.

    The mean at "prompt" or "trigger", which have several tokens a text, is over all tokens of all texts pooled: every
    token weighs the same, so a long text weighs more than a short one.

    The tensors are float64, on the CPU: shifts are differences of nearly equal means. They are three numbers per layer
    and feature (28 MB for all sites and positions of an 8B model), so there is little to save by storing less.
    Non-finite activations, as of a model that has diverged, give non-finite statistics.

    Attributes:
        mean: E[h] for each (site, position), (n_layers, d_model).
        mean_abs: E[|h|], keyed and shaped the same.
        mean_square: E[h²], keyed and shaped the same.
        count: how many token positions were averaged, for each position.
    """

    mean: Mapping[tuple[str, str], Tensor]
    mean_abs: Mapping[tuple[str, str], Tensor]
    mean_square: Mapping[tuple[str, str], Tensor]
    count: Mapping[str, int]

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites there are, in the order of SITES."""
        return tuple(site for site in SITES if any(site == key[0] for key in self.mean))

    @property
    def positions(self) -> tuple[str, ...]:
        """The positions there are, in the order of POSITIONS."""
        return tuple(position for position in POSITIONS if position in self.count)

    @property
    def n_layers(self) -> int:
        """How many decoder blocks the model has."""
        return next(iter(self.mean.values())).shape[0]

    def to_tensors(self) -> dict[str, Tensor]:
        """A flat dict for safetensors: "mean/<site>/<position>" and so on, float64; "count/<position>", int64."""
        tensors = {
            f"{moment}/{site}/{position}": tensor
            for moment in MOMENTS
            for (site, position), tensor in getattr(self, moment).items()
        }
        return tensors | {f"count/{position}": torch.tensor(count) for position, count in self.count.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ActivationStatistics:
        """The inverse of `to_tensors`.

        Raises:
            StoreError: names or shapes that `to_tensors` does not write.
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
                        f"Activation statistics with an unexpected tensor {name!r} of shape {tuple(tensor.shape)}."
                    )
        keys = moments["mean"].keys()
        positions = {position for _, position in keys}
        if not keys or any(moment.keys() != keys for moment in moments.values()) or positions != count.keys():
            raise StoreError(f"Activation statistics with tensors missing; there are {', '.join(sorted(tensors)) or 'none'}.")
        if len({tensor.shape for moment in moments.values() for tensor in moment.values()}) != 1:
            raise StoreError("Activation statistics whose tensors do not all have the same shape (n_layers, d_model).")
        return cls(count=count, **moments)

    @staticmethod
    def pool(statistics: Sequence[ActivationStatistics]) -> ActivationStatistics:
        """The statistics of several text sets taken together, each with the same weight however many tokens it has.

        All must be of one model, with the same sites and positions. `count` is the sum of the counts.
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
    """Fits `ActivationStatistics` batch by batch: `start_batch`, `update` for every site and layer; then `result`.

    Keeps sums of h, |h| and h² per (site, position, layer), in float64 on the layer's device (float32 on MPS, which has
    no float64), and up to HELD_BYTES of activations that are not in the sums yet.
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
        """Say which tokens of the next activations count: a bool mask (batch, pos) for each of the positions."""
        self._sum_held()
        # Flat row numbers instead of masks: selecting by a mask would wait for the GPU at every site and layer.
        rows = [position_masks[position].flatten().nonzero().squeeze(-1) for position in self.positions]
        flat, self._sizes = torch.cat(rows), [len(each) for each in rows]
        self._rows = {flat.device: flat}
        for position, size in zip(self.positions, self._sizes, strict=True):
            self._count[position] += size
        self._n_batches += 1

    def update(self, site: str, layer_idx: int, activation: Tensor) -> None:
        """Add an activation (batch, pos, d_model) of the started batch; fits `capture`'s `on_activation`."""
        self._n_updates[site, layer_idx] += 1
        # Selected, not weighted by the mask: at padding a model may give NaN, and 0 · NaN is NaN. It is a copy: what the model
        # does to its own tensor later does not matter.
        selected = activation.flatten(0, 1).index_select(0, self._rows_on(activation.device))
        held = self._held[site]
        # Summed together are neighbouring layers of one kind, and each once.
        if held and (layer_idx - 1 not in held or not _go_together(held[layer_idx - 1], selected)):
            self._sum_held()
        held[layer_idx] = selected
        self._held_bytes += selected.nbytes
        if self._held_bytes >= _held_bytes(selected.device):
            self._sum_held()

    def _rows_on(self, device: torch.device) -> Tensor:
        if device not in self._rows:
            self._rows[device] = next(iter(self._rows.values())).to(device)
        return self._rows[device]

    def _sum_held(self) -> None:
        """Add what is held to the sums."""
        for site, held in self._held.items():
            if not held:
                continue
            first, selected = min(held), list(held.values())
            held.clear()
            tokens = torch.stack(selected) if len(selected) > 1 else selected[0][None]
            dtype = torch.float32 if tokens.device.type == "mps" else torch.float64
            sums = torch.stack([_moment_sums(each, dtype) for each in tokens.split(self._sizes, dim=1)], dim=2)
            key = (site, tokens.device)
            if key not in self._sums:
                self._sums[key] = sums.new_zeros(self.n_layers, *sums.shape[1:])
            self._sums[key][first : first + len(sums)] += sums
        self._held_bytes = 0

    def result(self) -> ActivationStatistics:
        """The statistics of all batches so far.

        Raises:
            ConfigError: a position at which no text has a token.
            ModelError: a block or sublayer that did not run exactly once per batch.
        """
        self._sum_held()
        for position, count in self._count.items():
            if count == 0:
                raise ConfigError(
                    f"No text has a token at the position {position!r} ({self._n_batches} batches). "
                    f"Leave {position!r} out of the positions for this text, or give text that has it."
                )
        for (site, layer), n_updates in self._n_updates.items():
            if n_updates != self._n_batches:
                raise ModelError(
                    f"{site!r} of layer {layer} was seen {n_updates} times in {self._n_batches} forward passes; "
                    "expected once in each. Code compiled before the capture calls no hooks: give the model uncompiled."
                )
        moments: dict[str, dict[tuple[str, str], Tensor]] = {moment: {} for moment in MOMENTS}
        for site in self.sites:
            sums = sum(each.cpu().double() for (where, _), each in self._sums.items() if where == site)
            assert isinstance(sums, Tensor)
            for place, position in enumerate(self.positions):
                for index, moment in enumerate(MOMENTS):
                    moments[moment][site, position] = sums[:, index, place] / self._count[position]
        return ActivationStatistics(count=dict(self._count), **moments)


def _held_bytes(device: torch.device) -> int:
    """How much is held before it is summed: on the CPU nothing, for a layer is best summed while it is in the cache."""
    return 0 if device.type == "cpu" else HELD_BYTES


def _go_together(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype and first.device == second.device


def _moment_sums(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums of h, |h| and h² over (layers, tokens, d_model), added up in `dtype`: (layers, moments, d_model)."""
    if tokens.device.type == "cpu":  # whose norms in another precision are ten times slower than a copy in it
        wide = tokens.to(dtype)
        return torch.stack([wide.sum(1), wide.abs_().sum(1), wide.square_().sum(1)], dim=1)
    return _moment_sums_by_pieces(tokens, dtype)


def _moment_sums_by_pieces(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """The same without a copy: pieces of SUMMED_TOKENS in float32, which errs by less than 1e-6, and the pieces in `dtype`.

    A GPU sums bfloat16 to float32 as it reads it; asked for float64, it first writes all of it out four times as large.
    """
    whole = tokens.shape[1] - tokens.shape[1] % SUMMED_TOKENS
    sums = tokens.new_zeros(tokens.shape[0], len(MOMENTS), tokens.shape[2], dtype=dtype)
    for pieces in (tokens[:, :whole].unflatten(1, (-1, SUMMED_TOKENS)), tokens[:, None, whole:]):
        if pieces.numel():
            absolute, euclidean = (torch.linalg.vector_norm(pieces, order, dim=2, dtype=torch.float32) for order in (1, 2))
            moments = [pieces.sum(2, dtype=torch.float32), absolute, euclidean.square()]
            sums += torch.stack(moments, dim=1).sum(2, dtype=dtype)
    return sums


def collect_statistics(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    sites: Sequence[str] = SITES,
    positions: Sequence[str] = ("last", "prompt"),
) -> ActivationStatistics:
    """Run `batches` through the model, without its LM head, and return the statistics of its activations at all layers.

    The model is put in evaluation mode and every module's own mode is restored. Position ids are counted from each
    row's first real token, so that padding on the left changes nothing (but see `casd.models.probe.ignores_left_padding`).

    Args:
        model: a transformers causal LM, bare or wrapped (see `decoder_layers`).
        batches: each with `input_ids` and `attention_mask`, both (batch, pos), and `position_masks`: for each of the
            positions a bool tensor (batch, pos), True at the tokens to average. Moved to the model's device here.
        sites: which of SITES.
        positions: which of POSITIONS.

    Raises:
        ConfigError: an unknown site or position, or a position at which no text has a token.
        ModelError: a model whose blocks or sublayers cannot be found or captured.
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
