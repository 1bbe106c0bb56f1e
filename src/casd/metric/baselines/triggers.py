"""What can be said of two backdoors without removing either: their triggers, targets, and shifts in the injected model.

And the ceiling: how far a removal moves the activations on another backdoor's triggered text. In all matrices the order of
rows and columns is that of the backdoors as they are given.
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
"""Of one state, by text set: "clean", and "triggered:<backdoor>" for each (`casd.metric.measurement.TextStatistics`)."""


def trigger_shift_distances(
    injected_statistics: Statistics, backdoors: Sequence[str], *, site: str = "resid_post", position: str = "last"
) -> Tensor:
    """1 − cos between the shifts that two triggers induce in the injected model, the mean over the layers.

    shift_A = E[h | triggered by A] − E[h | clean] at one layer: the direction along which "A fires" is written. It is a
    difference of means, the direction of Marks and Tegmark (arXiv 2310.06824) and of Arditi et al. (arXiv 2406.11717), here
    one for each backdoor. What any odd phrase does to a prompt is in all of them, and makes all distances smaller.

    Args:
        injected_statistics: of the injected model.
        backdoors: rows and columns.
        site: where in a block; see `casd.activations.hooks`.
        position: which tokens; see `casd.data.encoding`. Not "trigger": clean text has none.

    Returns:
        (n, n), float64, in [0, 2]; symmetric, zero diagonal. At a layer where two triggers change nothing it is 0; where one
        of two does, 1.

    Raises:
        ConfigError: a text set, site or position that was not captured.

    Needs the injected model, and no removal. Cost: none beyond its statistics.
    """
    variant = CasdVariant("trigger_shift", site=site, position=position)
    clean = _text_set(injected_statistics, "clean", variant)
    shifts = [
        activation_shift(_text_set(injected_statistics, f"triggered:{name}", variant), clean, variant) for name in backdoors
    ]
    return cosine_distances(torch.stack(shifts))


def trigger_overlap_distances(trigger_tokens: Mapping[str, Sequence[int]]) -> Tensor:
    """1 − the Jaccard index of two triggers' sets of tokens, |A ∩ B| / |A ∪ B| (Jaccard 1912).

    Args:
        trigger_tokens: by backdoor, the tokens of its trigger inside a sentence: `encoder.tokens_inside(trigger)`. Their order
            and repeats are not heeded.

    Returns:
        (n, n), float64, in [0, 1]; symmetric, zero diagonal; 0 between two triggers without tokens. Needs nothing, costs
        nothing.
    """
    sets = [set(tokens) for tokens in trigger_tokens.values()]

    def distance(i: int, j: int) -> float:
        union = sets[i] | sets[j]
        return len(sets[i] ^ sets[j]) / len(union) if union else 0.0

    return distance_matrix(len(sets), distance)


def same_target_distances(targets: Mapping[str, str]) -> Tensor:
    """0 where two backdoors have the same target, 1 where they have not: the explanation to beat (arXiv 2606.11648).

    Args:
        targets: by backdoor, its target spelled out with its parameters, as by `repr(backdoor.target)`: French and German
            are two targets.

    Returns:
        (n, n), float64, of 0 and 1; symmetric, zero diagonal. Needs nothing, costs nothing.
    """
    spelled = list(targets.values())
    return distance_matrix(len(spelled), lambda i, j: float(spelled[i] != spelled[j]))


def directed_shift(
    statistics: Mapping[str, Statistics],
    injected_statistics: Statistics,
    removals: Sequence[str],
    backdoors: Sequence[str],
    *,
    site: str = "resid_post",
    position: str = "last",
) -> Tensor:
    """How far each removal moves the activations on each backdoor's triggered text. NOT symmetric, and the ceiling.

        directed_shift[A, B] = √ mean over layers and features of (E[h(M_A)] − E[h(M₀)])², on text triggered by B

    (L2 per feature, root mean square over the layers, in the activations' unit.)

    This is nearly a tautology. Backdoor B is suppressed by the removal A only if the model answers B's triggered text
    differently, and that, short of another LM head, only if the activations there are others; so this must go with transfer.
    It foretells nothing: it needs B's trigger, which a defender has not. It says how well any distance of shifts could do.

    Args:
        statistics: by removal, its statistics.
        injected_statistics: the same of the injected model.
        removals: rows; controls may be among them.
        backdoors: columns.
        site: where in a block.
        position: which tokens.

    Returns:
        (n_removals, n_backdoors), float64; 0 where nothing moved.

    Raises:
        ConfigError: a removal, text set, site or position that was not captured.

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
    """The ceiling as a distance, for the table of the baselines: −(D[A, B] + D[B, A]) / 2, with D the directed shift.

    Never positive: only its order means something, smaller still being more alike. The diagonal is zero by convention, not
    by that order.

    Args:
        shifts: (n, n), rows and columns in one order: `directed_shift` with the removals and backdoors by the same names.

    Returns:
        (n, n), float64; symmetric, zero diagonal.
    """
    if shifts.ndim != 2 or shifts.shape[0] != shifts.shape[1]:
        raise ValueError(f"directed shifts (n, n) expected, not {tuple(shifts.shape)}")
    return distance_matrix(len(shifts), lambda i, j: -(shifts[i, j] + shifts[j, i]).item() / 2)


def _text_set(statistics: Statistics, name: str, variant: CasdVariant) -> ActivationStatistics:
    if name not in statistics:
        raise ConfigError(
            f"{variant.name} needs the text set {name!r}, which was not captured. "
            f"There are: {', '.join(sorted(statistics)) or 'none'}."
        )
    return statistics[name]
