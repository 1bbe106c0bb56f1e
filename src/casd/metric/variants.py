"""Variants of CASD: their definition, the two headline variants, and the grid of all distinct ones."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from casd.activations.hooks import SITES
from casd.activations.statistics import POSITIONS
from casd.utils.errors import ConfigError
from casd.utils.registry import unknown

TextChoice = Literal["triggered", "triggered_pair", "triggered_own", "clean", "fake"]
Moment = Literal["signed", "absolute"]
Distance = Literal["l1", "l2", "cosine"]
Normalization = Literal["raw", "activations", "shifts"]
Pooling = Literal["mean", "concatenate"]


@dataclass(frozen=True)
class CasdVariant:
    """One way to compute CASD. The defaults are the nearest reading of the paper, and our choice.

    Attributes:
        name: name in tables.
        site: "resid_post", "attn_out" or "mlp_out" (see `casd.activations.hooks`).
        position: "last", "prompt", "trigger" or "generated": the tokens whose activations are averaged.
        text: the text sets on which the shifts are measured.
            "triggered": the triggered texts of all backdoors pooled with equal weights, identical for every pair, so that
            CASD with L1 or L2, raw or by "activations", is a pseudo-metric (symmetric, triangle inequality).
            "triggered_pair": the pool of the triggered texts of A and B, which differs from pair to pair.
            "triggered_own": the shift of A on A's triggered text, compared with that of B on B's.
            With the last two, a removal that is not among the backdoors (a control) uses the pool "triggered" as its own
            text, and a pair that includes it is measured on that pool.
            "clean" and "fake": text without a trigger, and with fake triggers.
        moment: "signed" for the shift of E[h], "absolute" for the shift of E[|h|].
        distance: "l1": Σ|a−b| / d_model. "l2": ‖a−b‖₂ / √d_model. Both are per feature, in the unit of the activations,
            and thus comparable between widths. "cosine": 1 − cos(a, b), in [0, 2]; 0 between two zero vectors, 1 if only one is
            zero.
        normalization: "raw": none. "activations": each layer's shifts divided by the RMS, over tokens and features, of
            that layer's activations before the removals, on the same text. "shifts": the distance divided by the mean
            size of the two shifts in the same norm, in [0, 2]; 0 between two zero shifts; not allowed with
            "cosine", which does not depend on size.
        layers: indices of the layers to use, 0 for the first block; None for all.
        pooling: "mean" over the layers' distances, or "concatenate" for one distance between the concatenated shifts
            of the layers. Both are equal with raw L1.
        net_of_control: subtract the shift of the clean-only control, on the same text, from both shifts first. If both
            shifts are measured on one text, this changes "cosine" and "shifts", but not L1 or L2 (raw or by "activations").
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
            raise ConfigError("A CASD variant needs a name, which is its key in tables.")
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
                    f"CASD variant {self.name!r}: layers is {self.layers}; expected one or more distinct indices "
                    "from 0, or null for all."
                )


HEADLINES = (CasdVariant("casd"), CasdVariant("casd_cos", position="last", distance="cosine"))
"""The variants in every run and table: the nearest reading of the paper, and the one that exploratory runs had favored."""


def variant_of(variant: str | CasdVariant, layers: Sequence[int] | None = None) -> CasdVariant:
    """Return the variant for the distance between models on given texts.

    Args:
        variant: a variant, the name of a headline variant, or choices of its fields joined by slashes ("last/l2").
        layers: indices of the layers; None for the variant's own.

    Raises:
        ConfigError: an unknown name or choice, two choices of one field, or a variant that needs triggers or a control.
    """
    if isinstance(variant, str):
        headlines = {each.name: each for each in HEADLINES}
        variant = headlines[variant] if variant in headlines else _from_choices(variant, tuple(headlines))
    if layers is not None:
        variant = replace(variant, layers=tuple(layers))
    needs_more = variant.position not in ("last", "prompt") or variant.net_of_control or variant.moment != "signed"
    if needs_more:
        raise ConfigError(
            f"The CASD variant {variant.name!r} cannot be computed between models on plain texts: expected position last or"
            " prompt, gross of the control, and moment signed (both readings are computed in any case)."
        )
    return variant


def _from_choices(text: str, names: Sequence[str]) -> CasdVariant:
    """Build the variant with the fields' choices in `text`, and the defaults of `casd` for the others."""
    fields = {
        "site": SITES,
        "position": ("last", "prompt"),
        "distance": typing.get_args(Distance),
        "normalization": typing.get_args(Normalization),
        "pooling": typing.get_args(Pooling),
    }
    field_of = {choice: field for field, choices in fields.items() for choice in choices}
    chosen: dict[str, typing.Any] = {}
    for word in text.split("/"):
        if word not in field_of:
            raise unknown("variant or choice of a variant", word, [*names, *field_of])
        if field_of[word] in chosen:
            raise ConfigError(f"The variant {text!r} has two choices of {field_of[word]}; give one.")
        chosen[field_of[word]] = word
    return CasdVariant(text, **chosen)


def variant_grid(sites: Sequence[str], positions: Sequence[str]) -> list[CasdVariant]:
    """List the distinct variants over all layers that can be computed from the captured activations.

    The grid is site × position × text × moment × distance × normalization × (net of the control or gross), pooled by the mean
    over the layers. Names list these values, for example "resid_post/last/triggered/signed/cosine/raw/net".

    Variants that equal another one by construction are omitted:

    - the cosine distance by "activations": in each layer both shifts are divided by positive numbers, which keeps angles;
    - L1 and L2, raw or by "activations", net of the control if both shifts are measured on one text (all but
      "triggered_own"): the control's shift cancels in the difference.

    Undefined variants are omitted: the position "trigger" on clean text, and the cosine distance by "shifts".

    Args:
        sites: captured sites.
        positions: captured positions.
    """
    return [
        CasdVariant(
            "/".join((site, position, text, moment, distance, normalization, "net" if net else "gross")),
            site,
            position,
            text,
            moment,
            distance,
            normalization,
            net_of_control=net,
        )
        # Variants that share shifts are consecutive, because `casd.metric.shifts.ShiftTable` caches the latest shifts.
        for site, position, moment, text in itertools.product(
            sites, positions, typing.get_args(Moment), typing.get_args(TextChoice)
        )
        if (position, text) != ("trigger", "clean")
        for distance, normalization, net in itertools.product(
            typing.get_args(Distance), typing.get_args(Normalization), (False, True)
        )
        if not (distance == "cosine" and normalization != "raw")
        if not (net and text != "triggered_own" and distance != "cosine" and normalization != "shifts")
    ]
