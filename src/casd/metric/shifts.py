"""Activation shifts: the change of the model's mean activations by a removal, for the variants of CASD.

A variant's shifts depend on its site, position, text, moment, layers, normalization by activations, and net_of_control.
`ShiftTable` computes them for all removals at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from casd.activations.statistics import ActivationStatistics
from casd.metric.variants import CasdVariant
from casd.utils.errors import ConfigError
from casd.utils.registry import unknown

KEPT = 4
"""Number of tensors that a table caches: shifts on all text sets and pooled, gross and net of the control."""


def activation_shift(after: ActivationStatistics, before: ActivationStatistics, variant: CasdVariant) -> Tensor:
    """Compute the activation shift, after − before, at the variant's layers: (n_selected_layers, d_model), float64.

    Uses the variant's moment, site and position. With normalization "activations" it is divided by the RMS of the
    activations before. Both statistics must be of the same texts.

    Raises:
        ConfigError: a site, position or layer was not captured, or activations to normalize by are all zero.
    """
    layers = _layers(before, variant)
    shift = _difference(after, before, variant)[layers]
    return _normalized(shift, lambda: _mean_square(before, variant)[layers], layers, variant)


class ShiftTable:
    """The activation shifts of all removals on all text sets, from which the variants of CASD are computed.

    Consecutive variants share what they have in common. At most KEPT float64 tensors are cached, half of them of shape
    (removals, backdoors, n_layers, d_model): 273 MB each for 13 removals and controls, 8 backdoors, 64 layers and a width of
    5120.

    Args:
        statistics: for each removal (and the control) its statistics by text set. Text sets are named "clean", "fake" and
            "triggered:<backdoor>".
        before: statistics by text set of the model before the removals.
        backdoors: the injected backdoors; their triggered texts form the pool "triggered".
        control: the clean-only control; required by variants with `net_of_control`.
    """

    def __init__(
        self,
        statistics: Mapping[str, Mapping[str, ActivationStatistics]],
        before: Mapping[str, ActivationStatistics],
        backdoors: Sequence[str],
        control: str | None = None,
    ) -> None:
        self.statistics = statistics
        self.before = before
        self.backdoors = tuple(backdoors)
        self.control = control
        self._kept: dict[tuple[object, ...], Tensor] = {}

    def layers(self, variant: CasdVariant) -> list[int]:
        """Return the variant's layer indices, in ascending order.

        Raises:
            ConfigError: the model does not have such a layer.
        """
        return _layers(next(iter(self.before.values())), variant)

    def shifts(self, removals: Sequence[str], variant: CasdVariant) -> Tensor:
        """Compute the shift of each removal: (n, n_selected_layers, d_model), float64.

        With text "triggered_own" the shift of a backdoor's removal is measured on that backdoor's triggered text, and that of
        a control on the pool of all triggered texts. With "triggered_pair" all are measured on the pool (see `pair_shifts`).

        Raises:
            ConfigError: a removal, text set, site, position or layer is missing, the variant needs a control and there is
                none, or activations to normalize by are all zero.
        """
        own = [row for row, name in enumerate(removals) if name in self.backdoors and variant.text == "triggered_own"]
        sets = [self.backdoors.index(removals[row]) for row in own]

        def pooled(stack: Tensor) -> Tensor:
            mean = stack.mean(1)
            mean[own] = stack[own, sets]
            return mean

        key = ("pooled", tuple(own), *self._key(removals, variant))
        return self._at_layers(self._keep(key, lambda: pooled(self._stack(removals, variant))), pooled, removals, variant)

    def pair_shifts(self, removals: Sequence[str], pairs: Tensor, variant: CasdVariant) -> Tensor:
        """Compute the shifts of both removals of each pair on the pool of their two triggered texts.

        Args:
            removals: names of removals.
            pairs: (n_pairs, 2), indices into `removals`, of backdoors only.
            variant: the variant whose shifts to compute.

        Returns:
            (n_pairs, 2, n_selected_layers, d_model), float64.

        Raises:
            ConfigError: see `shifts`.
        """
        sets = torch.tensor([self.backdoors.index(removals[row]) for row in pairs.flatten().tolist()]).view_as(pairs)

        def pooled(stack: Tensor) -> Tensor:
            return stack[pairs[:, :, None], sets[:, None, :]].mean(2)

        return self._at_layers(pooled(self._stack(removals, variant)), pooled, removals, variant)

    def _at_layers(
        self, shifts: Tensor, pooled: Callable[[Tensor], Tensor], removals: Sequence[str], variant: CasdVariant
    ) -> Tensor:
        """Select the variant's layers and, if it normalizes by activations, divide by their RMS, pooled as the shifts are."""
        layers = self.layers(variant)

        def mean_squares() -> Tensor:
            names = self._text_sets(variant)
            by_set = torch.stack([_mean_square(self._before(name, variant), variant) for name in names])
            return pooled(by_set.expand(len(removals), -1, -1))[..., layers]

        return _normalized(shifts[..., layers, :], mean_squares, layers, variant)

    def _text_sets(self, variant: CasdVariant) -> tuple[str, ...]:
        if variant.text in ("clean", "fake"):
            return (variant.text,)
        return tuple(f"triggered:{backdoor}" for backdoor in self.backdoors)

    def _key(self, removals: Sequence[str], variant: CasdVariant) -> tuple[object, ...]:
        """Return a key for everything that the shifts on all text sets depend on."""
        fields = (variant.site, variant.position, variant.moment, variant.net_of_control)
        return (tuple(removals), self._text_sets(variant), *fields)

    def _keep(self, key: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
        if key not in self._kept:
            tensor = make()
            while len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = tensor
        return self._kept[key]

    def _stack(self, removals: Sequence[str], variant: CasdVariant) -> Tensor:
        """Compute the shifts on every text set, net of the control if the variant is: (n, n_sets, n_layers, d_model)."""
        names = self._text_sets(variant)

        def make() -> Tensor:
            stack = torch.stack([torch.stack([self._shift(state, name, variant) for name in names]) for state in removals])
            if variant.net_of_control:
                # Subtracted for each set before pooling, so that the control's own net shift is exactly zero.
                stack -= torch.stack([self._shift(self._named_control(variant), name, variant) for name in names])
            return stack

        return self._keep(self._key(removals, variant), make)

    def _named_control(self, variant: CasdVariant) -> str:
        if self.control is None:
            raise ConfigError(
                f"CASD variant {variant.name!r} is net of the clean-only control, but there is no control. "
                "Name one, or set net_of_control to false."
            )
        return self.control

    def _shift(self, state: str, name: str, variant: CasdVariant) -> Tensor:
        """Compute a state's shift on one text set, at all layers."""
        if state not in self.statistics:
            raise unknown("removal in the captured activations:", state, self.statistics)
        after = _text_set(self.statistics[state], name, variant, repr(state))
        return _difference(after, self._before(name, variant), variant)

    def _before(self, name: str, variant: CasdVariant) -> ActivationStatistics:
        return _text_set(self.before, name, variant, "the model before the removals")


def _text_set(
    captured: Mapping[str, ActivationStatistics], name: str, variant: CasdVariant, state: str
) -> ActivationStatistics:
    if name not in captured:
        raise ConfigError(
            f"CASD variant {variant.name!r} needs the text set {name!r}, which was not captured for {state}. "
            f"Captured: {', '.join(sorted(captured)) or 'none'}."
        )
    return captured[name]


def _difference(after: ActivationStatistics, before: ActivationStatistics, variant: CasdVariant) -> Tensor:
    """Return the variant's moment after − before, at all layers: (n_layers, d_model), float64."""
    moment = "mean" if variant.moment == "signed" else "mean_abs"
    return _captured(after, moment, variant) - _captured(before, moment, variant)


def _mean_square(statistics: ActivationStatistics, variant: CasdVariant) -> Tensor:
    """Return the mean of h² over tokens and features at every layer: (n_layers,), float64."""
    return _captured(statistics, "mean_square", variant).mean(-1)


def _normalized(shifts: Tensor, mean_squares: Callable[[], Tensor], layers: Sequence[int], variant: CasdVariant) -> Tensor:
    """Divide shifts (…, n_selected_layers, d_model) by the RMS of the activations before, with normalization "activations".

    Args:
        shifts: shifts at the variant's layers.
        mean_squares: computes the mean squares of the activations before, (…, n_selected_layers).
        layers: indices of the layers, for the error message.
        variant: determines the normalization.
    """
    if variant.normalization != "activations":
        return shifts
    squares = mean_squares()
    if (squares == 0).any():
        raise ConfigError(
            f"CASD variant {variant.name!r}: the activations at {variant.site!r} are all zero in layer "
            f"{layers[int((squares == 0).nonzero()[0, -1])]}, so shifts cannot be divided by their size. "
            "Exclude this layer, or choose another normalization."
        )
    return shifts / squares.sqrt().unsqueeze(-1)


def _captured(statistics: ActivationStatistics, moment: str, variant: CasdVariant) -> Tensor:
    """Return a moment at the variant's site and position, (n_layers, d_model), float64."""
    means = getattr(statistics, moment)
    if (variant.site, variant.position) not in means:
        raise ConfigError(
            f"CASD variant {variant.name!r} needs {variant.site!r} at {variant.position!r}, which was not captured. "
            f"Captured: sites {', '.join(statistics.sites)}; positions {', '.join(statistics.positions)}."
        )
    return means[variant.site, variant.position].double()


def _layers(statistics: ActivationStatistics, variant: CasdVariant) -> list[int]:
    """Return the variant's layer indices, in ascending order."""
    layers = range(statistics.n_layers) if variant.layers is None else sorted(variant.layers)
    if layers[-1] >= statistics.n_layers:
        raise ConfigError(
            f"CASD variant {variant.name!r}: layer {layers[-1]} is out of range; the model has layers 0 to "
            f"{statistics.n_layers - 1}."
        )
    return list(layers)
