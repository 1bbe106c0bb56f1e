"""CASD, the Cross Activation Shift Distance: how differently two removals moved the activations of one model.

For a removal A of the model M₀, at layer l, site s and position p, on the texts D:

    shift_A[l] = E[h(M_A)] − E[h(M₀)], the mean over the tokens of D at p: a vector of d_model numbers
    CASD(A, B) = mean over l of the distance between shift_A[l] and shift_B[l]

The idea is of Bouger et al., "Backdoor Unlearning Generalization" (arXiv:2606.03785): the L1 distance between the
shifts that two unlearning runs induce. Which site, positions, texts, moment, normalization and pooling over layers are
meant is not established; they are the fields of `CasdVariant`, and the defaults are our choice.

Tensors in, numbers out: no files, no models. All arithmetic is float64. Non-finite statistics, as of a model that has
diverged, give non-finite distances.
"""

from __future__ import annotations

import functools
import itertools
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from casd.activation_statistics import POSITIONS, ActivationStatistics
from casd.activations import SITES
from casd.errors import ConfigError
from casd.registry import unknown

TextChoice = Literal["triggered", "triggered_pair", "triggered_own", "clean", "fake"]
Moment = Literal["signed", "absolute"]
Distance = Literal["l1", "l2", "cosine"]
Normalization = Literal["raw", "activations", "shifts"]
Pooling = Literal["mean", "concatenate"]


@dataclass(frozen=True)
class CasdVariant:
    """One way to compute CASD. The defaults are the nearest reading of the paper, and our choice.

    Attributes:
        name: what tables call it.
        site: "resid_post", "attn_out" or "mlp_out" (see `casd.activations`).
        position: "last", "prompt" or "trigger": the tokens whose activations are averaged.
        text: the text sets on which the shifts are measured.
            "triggered": the triggered texts of all backdoors pooled with equal weights, the same for every pair, so
            that CASD with L1 or L2, raw or by "activations", is a pseudo-metric (symmetric, triangle inequality).
            "triggered_pair": the pool of A's and B's own triggered texts; it differs from pair to pair.
            "triggered_own": the shift of A on A's triggered text against that of B on B's.
            In these two, a removal that is not among the backdoors (a control) has the pool "triggered" for its own
            text, and a pair with it is measured on that pool.
            "clean" and "fake": text without a trigger, and with fake triggers.
        moment: the shift is that of E[h] ("signed") or of E[|h|] ("absolute").
        distance: "l1": Σ|a−b| / d_model. "l2": ‖a−b‖₂ / √d_model. Both are per feature, in the activations' unit, and
            so comparable over widths. "cosine": 1 − cos(a, b), in [0, 2]; 0 between two zero vectors, 1 if only one is
            zero.
        normalization: "raw": none. "activations": each layer's shifts divided by the RMS, over tokens and features, of
            that layer's activations before the removals, on the same text. "shifts": the distance divided by the mean
            size of the two shifts in the same norm, in [0, 2]; 0 between two zero shifts; not for "cosine", which has
            no size to divide by.
        layers: indices of the layers to use, 0 for the first block; None for all.
        pooling: "mean" over the layers' distances, or "concatenate": one distance between the layers' shifts put end to
            end. With raw L1 both give the same.
        net_of_control: subtract the shift of the clean-only control, on the same text, from both shifts first. Where
            both are measured on the same text this moves both alike: it changes "cosine" and "shifts", but not L1 or L2
            (raw or by "activations").
    """

    name: str
    site: str = "resid_post"
    position: str = "prompt"
    text: TextChoice = "triggered"
    moment: Moment = "signed"
    distance: Distance = "l1"
    normalization: Normalization = "raw"
    layers: tuple[int, ...] | None = None
    pooling: Pooling = "mean"
    net_of_control: bool = False

    def __post_init__(self) -> None:
        choices = {
            "site": SITES,
            "position": POSITIONS,
            "text": typing.get_args(TextChoice),
            "moment": typing.get_args(Moment),
            "distance": typing.get_args(Distance),
            "normalization": typing.get_args(Normalization),
            "pooling": typing.get_args(Pooling),
        }
        if not self.name:
            raise ConfigError("A CASD variant needs a name: tables are keyed by it.")
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise unknown(f"{field} of the CASD variant {self.name!r}:", str(getattr(self, field)), allowed)
        if self.distance == "cosine" and self.normalization == "shifts":
            raise ConfigError(
                f"CASD variant {self.name!r}: the cosine distance does not depend on the size of the shifts, so it "
                "cannot be normalized by it. Choose normalization 'raw' or 'activations'."
            )
        if self.layers is not None:
            repeated = len(set(self.layers)) != len(self.layers)
            if not self.layers or repeated or min(self.layers) < 0:
                raise ConfigError(
                    f"CASD variant {self.name!r}: the layers {self.layers} must be different indices from 0 up, at "
                    "least one; or null for all."
                )


HEADLINES = (CasdVariant("casd"), CasdVariant("casd_cos", position="last", distance="cosine"))
"""In every run and table: the nearest reading of the paper, and the variant that exploratory runs had favored."""


@dataclass(frozen=True, eq=False)
class CasdDistance:
    """The distance between two shifts.

    Attributes:
        value: CASD, pooled over the layers.
        per_layer: the distance at each of the variant's layers, (n_selected_layers,), float64. With pooling "mean" its
            mean is `value`; with "concatenate" it is each layer's distance by itself.
    """

    value: float
    per_layer: Tensor


@dataclass(frozen=True, eq=False)
class CasdMatrix:
    """CASD between all pairs of removals: symmetric, zero on the diagonal.

    Attributes:
        variant: how it was computed.
        names: the removals, in the order of rows and columns.
        layers: the layer indices of `per_layer`.
        values: (n, n), float64.
        per_layer: (n, n, len(layers)), float64; see `CasdDistance.per_layer`.
    """

    variant: CasdVariant
    names: tuple[str, ...]
    layers: tuple[int, ...]
    values: Tensor
    per_layer: Tensor


def activation_shift(after: ActivationStatistics, before: ActivationStatistics, variant: CasdVariant) -> Tensor:
    """The activation shift, after − before, at the variant's layers: (n_selected_layers, d_model), float64.

    Of the variant's moment, site and position; divided by the RMS of the activations before where it says so. Both must
    be statistics of the same texts.

    Raises:
        ConfigError: a site, position or layer that was not captured, or normalization by activations that are all zero.
    """
    layers = _layers(before, variant)
    moment = "mean" if variant.moment == "signed" else "mean_abs"
    shift = _captured(after, moment, variant)[layers] - _captured(before, moment, variant)[layers]
    if variant.normalization == "activations":
        rms = _captured(before, "mean_square", variant)[layers].mean(dim=-1, keepdim=True).sqrt()
        if (rms == 0).any():
            raise ConfigError(
                f"CASD variant {variant.name!r}: the activations at {variant.site!r} are all zero in layer "
                f"{layers[int((rms == 0).flatten().nonzero()[0])]}, so nothing can be divided by their size. "
                "Leave this layer out, or choose another normalization."
            )
        shift = shift / rms
    return shift


def casd(shift_a: Tensor, shift_b: Tensor, variant: CasdVariant) -> CasdDistance:
    """CASD between two shifts of `activation_shift`, each (n_selected_layers, d_model) in any float dtype.

    Uses the variant's distance, pooling and, if "shifts", its normalization; the other fields are about the shifts and
    have been heeded before. Symmetric in its arguments, and exactly zero for equal ones.
    """
    if shift_a.shape != shift_b.shape or shift_a.ndim != 2:
        raise ValueError(f"two shifts (n_layers, d_model) expected, not {shift_a.shape} and {shift_b.shape}")
    a, b = shift_a.double(), shift_b.double()
    per_layer = _distance(a, b, variant)
    pooled = per_layer.mean() if variant.pooling == "mean" else _distance(a.flatten(), b.flatten(), variant)
    return CasdDistance(pooled.item(), per_layer)


def casd_matrix(
    statistics: Mapping[str, Mapping[str, ActivationStatistics]],
    before: Mapping[str, ActivationStatistics],
    variant: CasdVariant,
    removals: Sequence[str],
    backdoors: Sequence[str],
    control: str | None = None,
) -> CasdMatrix:
    """CASD between all pairs of `removals`.

    Args:
        statistics: for each removal (and the control) its statistics on each text set. Text sets are named "clean",
            "fake" and "triggered:<backdoor>".
        before: the same of the model before the removals.
        variant: how to compute it.
        removals: rows and columns. Controls may be among them; net of the control, the control's own shift is zero.
        backdoors: those that were injected; their triggered texts make the pool "triggered".
        control: the clean-only control; needed if the variant is net of it.

    Raises:
        ConfigError: a removal, text set, site, position or layer that is not there, or no control where it is needed.
    """
    if variant.net_of_control and control is None:
        raise ConfigError(
            f"CASD variant {variant.name!r} is net of the clean-only control, but no control is named. "
            "Give one, or set net_of_control to false."
        )
    for name in (*removals, control) if variant.net_of_control else removals:
        if name not in statistics:
            raise unknown("removal in the captured activations:", str(name), statistics)

    @functools.cache
    def gross_shift(state: str, text_sets: tuple[str, ...]) -> Tensor:
        after = _pooled(statistics[state], text_sets, variant, repr(state))
        return activation_shift(after, _pooled(before, text_sets, variant, "the model before the removals"), variant)

    def shift(removal: str, other: str) -> Tensor:
        text_sets = _text_sets(removal, other, variant, backdoors)
        if variant.net_of_control and control is not None:
            return gross_shift(removal, text_sets) - gross_shift(control, text_sets)
        return gross_shift(removal, text_sets)

    n = len(removals)
    distances = [casd(shift(a, b), shift(b, a), variant) for a, b in itertools.product(removals, repeat=2)]
    return CasdMatrix(
        variant=variant,
        names=tuple(removals),
        layers=tuple(_layers(next(iter(before.values())), variant)),
        values=torch.tensor([distance.value for distance in distances], dtype=torch.float64).view(n, n),
        per_layer=torch.stack([distance.per_layer for distance in distances]).view(n, n, -1),
    )


def _text_sets(removal: str, other: str, variant: CasdVariant, backdoors: Sequence[str]) -> tuple[str, ...]:
    """The text sets on which the shift of `removal` is measured when it is compared with `other`."""
    if variant.text in ("clean", "fake"):
        return (variant.text,)
    everything = set(backdoors)
    concerned = {"triggered": everything, "triggered_pair": {removal, other}, "triggered_own": {removal}}[variant.text]
    if not concerned <= everything:  # a control has no trigger among the backdoors
        concerned = everything
    return tuple(f"triggered:{backdoor}" for backdoor in backdoors if backdoor in concerned)


def _pooled(
    captured: Mapping[str, ActivationStatistics], text_sets: Sequence[str], variant: CasdVariant, state: str
) -> ActivationStatistics:
    """The statistics of a model state on several text sets, pooled with equal weights."""
    for text_set in text_sets:
        if text_set not in captured:
            raise ConfigError(
                f"CASD variant {variant.name!r} needs the text set {text_set!r}, which was not captured for {state}. "
                f"There are: {', '.join(sorted(captured)) or 'none'}."
            )
    return ActivationStatistics.pool([captured[text_set] for text_set in text_sets])


def _captured(statistics: ActivationStatistics, moment: str, variant: CasdVariant) -> Tensor:
    """A moment at the variant's site and position, (n_layers, d_model), float64."""
    means = getattr(statistics, moment)
    if (variant.site, variant.position) not in means:
        raise ConfigError(
            f"CASD variant {variant.name!r} needs {variant.site!r} at {variant.position!r}, which was not captured. "
            f"There are the sites {', '.join(statistics.sites)} and the positions {', '.join(statistics.positions)}."
        )
    return means[variant.site, variant.position].double()


def _layers(statistics: ActivationStatistics, variant: CasdVariant) -> list[int]:
    """The variant's layer indices, in ascending order."""
    layers = range(statistics.n_layers) if variant.layers is None else sorted(variant.layers)
    if layers[-1] >= statistics.n_layers:
        raise ConfigError(
            f"CASD variant {variant.name!r}: layer {layers[-1]} is out of range; the model has layers 0 to "
            f"{statistics.n_layers - 1}."
        )
    return list(layers)


def _distance(a: Tensor, b: Tensor, variant: CasdVariant) -> Tensor:
    """The variant's distance along the last dimension, before any pooling over layers."""
    if variant.distance == "cosine":
        return _cosine_distance(a, b)
    distance = _size(a - b, variant)
    if variant.normalization == "shifts":
        size = (_size(a, variant) + _size(b, variant)) / 2
        distance = torch.where(size == 0, 0.0, distance / size)
    return distance


def _size(x: Tensor, variant: CasdVariant) -> Tensor:
    """The L1 or L2 norm along the last dimension, per feature: the mean of |x|, or the root of the mean of x²."""
    return x.abs().mean(dim=-1) if variant.distance == "l1" else x.square().mean(dim=-1).sqrt()


def _cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 − cos(a, b) along the last dimension; 0 between two zero vectors, 1 if only one is zero."""
    norm_a, norm_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    # 1 − cos = ½‖â − b̂‖² for unit vectors: exact at zero, and without the cancellation of 1 − cos near it.
    half_square = (a / norm_a - b / norm_b).square().sum(dim=-1) / 2
    zero_a, zero_b = (norm_a == 0).squeeze(-1), (norm_b == 0).squeeze(-1)
    distance = torch.where(zero_a | zero_b, 1.0, half_square.clamp(max=2.0))  # rounding may pass 2 by a last digit
    return torch.where(zero_a & zero_b, 0.0, distance)
