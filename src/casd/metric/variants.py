"""The ways to compute CASD: one by its fields, the two headline ones, and the grid of all that differ from one another."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Sequence
from dataclasses import dataclass
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
        name: what tables call it.
        site: "resid_post", "attn_out" or "mlp_out" (see `casd.activations.hooks`).
        position: "last", "prompt", "trigger" or "generated": the tokens whose activations are averaged.
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


def variant_grid(sites: Sequence[str], positions: Sequence[str]) -> list[CasdVariant]:
    """Every variant over all layers that can be computed of these activations, each once.

    Site × position × moment × text × distance × normalization × net of the control or gross, pooled by the mean over the
    layers. A name lists them, for example "resid_post/last/triggered/signed/cosine/raw/net".

    Left out, because it equals another variant by construction:

    - the cosine distance by "activations": in each layer it divides either shift by a positive number, and angles stay;
    - L1 and L2, raw or by "activations", net of the control where both shifts are measured on one text (everywhere but
      "triggered_own"): the control's shift is subtracted from both, and drops out of their difference.

    Left out, because it cannot be: the position "trigger" on clean text, and the cosine distance by "shifts".

    Args:
        sites: those that are captured.
        positions: likewise.
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
        # Variants of the same shifts come one after another: `casd.metric.shifts.ShiftTable` keeps those it computed last.
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
