"""Distances between backdoors that need no removal, from their triggers, their targets and the shifts in the injected model.

Also the ceiling: how far a removal moves the activations on another backdoor's triggered text. Rows and columns of all
matrices are in the given order of the backdoors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from casd.activations.statistics import ActivationStatistics
from casd.metric.baselines.pairs import cosine_distances, distance_matrix
from casd.metric.casd import CasdVariant, activation_shift
from casd.utils.errors import ConfigError
from casd.utils.registry import unknown

Statistics = Mapping[str, ActivationStatistics]
"""Statistics of one state by text set: "clean" and "triggered:<backdoor>" (`casd.metric.measurement.TextStatistics`)."""


def trigger_shift_distances(
    injected_statistics: Statistics, backdoors: Sequence[str], *, site: str = "resid_post", position: str = "last"
) -> Tensor:
    """Compute 1 − cos between the shifts that two triggers induce in the injected model, averaged over the layers.

    shift_A = E[h | triggered by A] − E[h | clean] at one layer: the direction that encodes "A fires". It is a difference of
    means, the direction of Marks and Tegmark (arXiv 2310.06824) and of Arditi et al. (arXiv 2406.11717), here one for each
    backdoor. The effect of any unusual phrase is part of all of them, and makes all distances smaller.

    Args:
        injected_statistics: statistics of the injected model.
        backdoors: names of rows and columns.
        site: site in the block; see `casd.activations.hooks`.
        position: token position; see `casd.data.encoding`. Not "trigger", which clean text does not have.

    Returns:
        (n, n), float64, in [0, 2]; symmetric, zero diagonal. A layer counts 0 if neither trigger shifts it, and 1 if only one
        does.

    Raises:
        ConfigError: a text set, site or position was not captured.

    Needs the injected model, and no removal. Cost: none beyond its statistics.
    """
    variant = CasdVariant("trigger_shift", site=site, position=position)
    clean = _text_set(injected_statistics, "clean", variant)
    shifts = [
        activation_shift(_text_set(injected_statistics, f"triggered:{name}", variant), clean, variant) for name in backdoors
    ]
    return cosine_distances(torch.stack(shifts))


def trigger_overlap_distances(trigger_tokens: Mapping[str, Sequence[int]]) -> Tensor:
    """Compute 1 − the Jaccard index, |A ∩ B| / |A ∪ B| (Jaccard 1912), of two triggers' sets of tokens.

    Args:
        trigger_tokens: by backdoor, the tokens of its trigger inside a sentence: `encoder.tokens_inside(trigger)`. Order and
            repetitions do not matter.

    Returns:
        (n, n), float64, in [0, 1]; symmetric, zero diagonal; 0 between two triggers without tokens.

    Needs no model. Cost: negligible.
    """
    sets = [set(tokens) for tokens in trigger_tokens.values()]

    def distance(i: int, j: int) -> float:
        union = sets[i] | sets[j]
        return len(sets[i] ^ sets[j]) / len(union) if union else 0.0

    return distance_matrix(len(sets), distance)


def same_target_distances(targets: Mapping[str, str]) -> Tensor:
    """Return 0 for backdoors with equal targets and 1 otherwise: the explanation to beat (arXiv 2606.11648).

    Args:
        targets: by backdoor, its target with all parameters, `repr(backdoor.target)`: French and German are two targets.

    Returns:
        (n, n), float64, of 0 and 1; symmetric, zero diagonal.

    Needs no model. Cost: negligible.
    """
    descriptions = list(targets.values())
    return distance_matrix(len(descriptions), lambda i, j: float(descriptions[i] != descriptions[j]))


def directed_shift(
    statistics: Mapping[str, Statistics],
    injected_statistics: Statistics,
    removals: Sequence[str],
    backdoors: Sequence[str],
    *,
    site: str = "resid_post",
    position: str = "last",
) -> Tensor:
    """Measure how far each removal moves the activations on each backdoor's triggered text. NOT symmetric, and the ceiling.

        directed_shift[A, B] = √ mean over layers and features of (E[h(M_A)] − E[h(M₀)])², on text triggered by B

    This is the L2 norm per feature, as root mean square over the layers, in the unit of the activations.

    It is nearly a tautology that this is associated with transfer: removal A suppresses backdoor B only if the model answers
    B's triggered text differently, which, unless the LM head changes, requires different activations on that text. It is not a
    prediction, because it needs B's trigger, which a defender does not have. It indicates how well any distance of shifts
    could do.

    Args:
        statistics: statistics by removal.
        injected_statistics: statistics of the injected model.
        removals: names of the rows, which may include controls.
        backdoors: names of the columns.
        site: site in the block; see `casd.activations.hooks`.
        position: token position; see `casd.data.encoding`.

    Returns:
        (n_removals, n_backdoors), float64; 0 if nothing moved.

    Raises:
        ConfigError: a removal, text set, site or position was not captured.

    Needs the removals. Cost: none beyond their statistics.
    """
    variant = CasdVariant("directed_shift", site=site, position=position)
    for removal in removals:
        if removal not in statistics:
            raise unknown("removal in the captured activations:", removal, statistics)

    def size(removal: str, backdoor: str) -> float:
        after = _text_set(statistics[removal], f"triggered:{backdoor}", variant)
        before = _text_set(injected_statistics, f"triggered:{backdoor}", variant)
        return activation_shift(after, before, variant).square().mean().sqrt().item()

    sizes = [[size(removal, backdoor) for backdoor in backdoors] for removal in removals]
    return torch.tensor(sizes, dtype=torch.float64).reshape(len(removals), len(backdoors))


def directed_shift_distances(shifts: Tensor) -> Tensor:
    """Convert the ceiling to a distance for the table of baselines: −(D[A, B] + D[B, A]) / 2, with D the directed shift.

    It is never positive; only its order is meaningful, smaller being more similar. The diagonal is zero by convention, against
    that order.

    Args:
        shifts: (n, n), from `directed_shift` with removals and backdoors of equal names in equal order.

    Returns:
        (n, n), float64; symmetric, zero diagonal.

    Raises:
        ValueError: `shifts` is not a square matrix.
    """
    if shifts.ndim != 2 or shifts.shape[0] != shifts.shape[1]:
        raise ValueError(f"expected directed shifts (n, n), got {tuple(shifts.shape)}")
    return distance_matrix(len(shifts), lambda i, j: -(shifts[i, j] + shifts[j, i]).item() / 2)


def _text_set(statistics: Statistics, name: str, variant: CasdVariant) -> ActivationStatistics:
    if name not in statistics:
        raise ConfigError(
            f"{variant.name} needs the text set {name!r}, which was not captured. "
            f"Captured: {', '.join(sorted(statistics)) or 'none'}."
        )
    return statistics[name]
