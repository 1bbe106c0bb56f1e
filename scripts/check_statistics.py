"""How often the tests of `casd.stats` reject when they should not, and when they should: simulations with known truth.

    python scripts/check_statistics.py [--simulations 2000] [--seed 0]

Eight backdoors unless said otherwise, 199 permutations, level 5 %. Each row draws data in which a relation between pairs
of backdoors is absent (null) or present (alternative), and gives the share rejected with its 95 % Wilson interval.
"Expected" says what that share should be: `level` 5 %, `liberal` above 5 %, up to about 10 % (a limit of the test), `inflated`
more than 5 % (the test finds something that is not a relation between pairs; the row shows why another test is there),
`power` as much as possible. Three small tables follow:
the coverage of the intervals of means, that of correlations, and held-out prediction with and without a relation. The tests
run the same cases (`tests/test_stats_simulations.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import spearmanr

from casd.stats import (
    CorrelationIntervals,
    correlation_intervals,
    jackknife_interval,
    leave_one_out_prediction,
    mantel_family,
    mantel_test,
    offdiagonal_center_columns,
    partial_mantel_test,
    rank_residuals,
    remove_backdoor_effects,
    symmetrize,
    wilson_interval,
)
from casd.stats.matrices import Array, upper_pairs
from casd.stats.permutations import permuted_scores, relabellings

BACKDOORS, PERMUTATIONS, LEVEL = 8, 199, 0.05
PREDICTORS, STRATA = 20, (8, 8, 6)  # of a family: variants of one distance; backdoors of each run
Generator = np.random.Generator


# --- data with known truth --------------------------------------------------------------------------------------------


def noise(rng: Generator, n: int = BACKDOORS) -> Array:
    """Independent standard normal pairs."""
    cells = rng.normal(size=(n, n))
    return (cells + cells.T) / np.sqrt(2)


def effects(rng: Generator, n: int = BACKDOORS) -> Array:
    """The sum of what two backdoors have, each by itself."""
    own = rng.normal(size=n)
    return own[:, None] + own[None, :]


def independent_cells(rng: Generator) -> tuple[Array, Array]:
    return noise(rng), noise(rng)


def own_effects(rng: Generator) -> tuple[Array, Array]:
    """Strong effects of single backdoors in both matrices, unrelated to each other: the pairs are far from independent."""
    return effects(rng) + 0.3 * noise(rng), effects(rng) + 0.3 * noise(rng)


def shared_effects(rng: Generator) -> tuple[Array, Array]:
    """The same backdoors stand out in both matrices; no relation between pairs beyond that."""
    both = effects(rng)
    return both + noise(rng), both + noise(rng)


def transfer(rng: Generator) -> tuple[Array, Array]:
    """A directed matrix with strong and weak removals (rows) and fragile backdoors (columns), centred as `relate` does."""
    directed = rng.normal(size=(BACKDOORS, 1)) + rng.normal(size=(1, BACKDOORS)) + 0.3 * rng.normal(size=(BACKDOORS,) * 2)
    return effects(rng) + 0.3 * noise(rng), symmetrize(offdiagonal_center_columns(directed))


def related(rng: Generator, r: float = -0.6) -> tuple[Array, Array]:
    """Pairs with the correlation r."""
    x = noise(rng)
    return x, r * x + np.sqrt(1 - r**2) * noise(rng)


def related_under_effects(rng: Generator) -> tuple[Array, Array]:
    """The same, hidden by unrelated effects of single backdoors."""
    x, y = related(rng)
    return x + effects(rng), y + effects(rng)


def confounded(rng: Generator, zs: Sequence[Array], strength: float, r: float = 0.0) -> tuple[Array, Array, Sequence[Array]]:
    """x and y depend on each z, of standard deviation `strength` times that of their noise, and beside on each other (r)."""
    x, y = related(rng, r)
    common = sum((strength / upper_pairs(z, "z").std() * z for z in zs), np.zeros_like(x))
    return common + x, common + y, zs


def effects_beside(rng: Generator) -> tuple[Array, Array, Sequence[Array]]:
    """x and y depend on z, and beside it on effects of single backdoors of their own."""
    z, (x, y) = 3 * noise(rng), own_effects(rng)
    return z + x, z + y, [z]


def family(rng: Generator, r: float = 0.0) -> list[tuple[Array, Array]]:
    """Runs on scales of their own; of 20 predictors the first has the correlation r, the others are alike and have none.

    Without any relation the response is full of effects of single backdoors.
    """
    runs = []
    for n in STRATA:
        x, alike = noise(rng, n), noise(rng, n)
        others = [0.7 * alike + 0.7 * noise(rng, n) for _ in range(PREDICTORS - 1)]
        y = r * x + np.sqrt(1 - r**2) * noise(rng, n) + (0.0 if r else effects(rng, n))
        runs.append((np.stack([x, *others]), rng.exponential() * y + rng.normal()))
    return runs


def recurring(rng: Generator, runs: int = 6, share: float = 0.65) -> list[tuple[Array, Array]]:
    """Runs of the same backdoors: `share` of the variance of x and of y recurs in every run; x and y are unrelated."""
    x, y = noise(rng), noise(rng)
    own = np.sqrt(1 - share)
    return [((np.sqrt(share) * x + own * noise(rng))[None], np.sqrt(share) * y + own * noise(rng)) for _ in range(runs)]


def one_target(rng: Generator, r: float = 0.0) -> tuple[list[tuple[Array, Array]], Array]:
    """Three runs in which two backdoors have one target, and so lie close and fall together; and which pair that is."""
    same = np.zeros((BACKDOORS, BACKDOORS))
    same[0, 1] = same[1, 0] = 1
    runs = [related(rng, r) for _ in range(3)]
    return [((x - 3 * same)[None], y + 3 * same) for x, y in runs], same


# --- tests ------------------------------------------------------------------------------------------------------------


def naive(x: Array, y: Array) -> bool:
    """The usual Spearman test, which takes the pairs for independent."""
    return bool(spearmanr(upper_pairs(x, "x"), upper_pairs(y, "y")).pvalue <= LEVEL)


def mantel(rng: Generator, x: Array, y: Array) -> bool:
    return mantel_test(x, y, permutations=PERMUTATIONS, rng=rng).p_value <= LEVEL


def mantel_of_residuals(rng: Generator, x: Array, y: Array) -> bool:
    return mantel(rng, remove_backdoor_effects(x), remove_backdoor_effects(y))


def partial(rng: Generator, statistic: Literal["spearman", "pearson"], x: Array, y: Array, zs: Sequence[Array]) -> bool:
    return partial_mantel_test(x, y, zs, permutations=PERMUTATIONS, rng=rng, statistic=statistic).p_value <= LEVEL


def partial_otherwise(rng: Generator, method: Literal["raw", "correlate"], x: Array, y: Array, zs: Sequence[Array]) -> bool:
    """The partial test (Pearson) by the two permutations that `partial_mantel_test` does not use (Legendre 2000).

    "raw" relabels y itself and regresses it on z anew (his method 1); "correlate" relabels the residuals of y and does
    not regress them anew (method 3).
    """
    x_pairs, y_pairs, *z_pairs = (upper_pairs(matrix, "matrix") for matrix in (x, y, *zs))
    basis, _ = np.linalg.qr(np.stack([np.ones(len(x_pairs)), *z_pairs], axis=1))

    def left(values: Array) -> Array:
        return values - (values @ basis) @ basis.T

    [labels] = relabellings(len(x), PERMUTATIONS, PERMUTATIONS, rng)
    x_left, y_left = left(x_pairs), left(y_pairs)
    permuted = left(permuted_scores(y_pairs, labels).T) if method == "raw" else permuted_scores(y_left, labels).T
    observed = y_left @ x_left / np.linalg.norm(y_left)
    correlations = permuted @ x_left / np.linalg.norm(permuted, axis=1)
    extreme = int((np.abs(correlations) >= abs(observed) - 1e-12).sum())
    return (extreme + 1) / (PERMUTATIONS + 1) <= LEVEL


def family_p_values(rng: Generator, runs: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """(p-values, corrected p-values) of the 20 predictors."""
    result = mantel_family(runs, permutations=PERMUTATIONS, rng=rng)
    return result.p_value, result.p_corrected


def of_the_same_backdoors(rng: Generator, runs: list[tuple[Array, Array]], *, alike: bool) -> bool:
    """Relabelled alike in all runs, or in each by itself."""
    names = [range(BACKDOORS)] * len(runs) if alike else None
    return bool(mantel_family(runs, names, permutations=PERMUTATIONS, rng=rng).p_value[0] <= LEVEL)


def given_target(rng: Generator, runs: list[tuple[Array, Array]], same: Array) -> bool:
    """As `casd.analysis.predictors` tests what is left beside the same target."""
    held = upper_pairs(same, "same")
    left = [(rank_residuals(upper_pairs(x, "x"), held), rank_residuals(upper_pairs(y, "y"), held)) for x, y in runs]
    names = [range(BACKDOORS)] * len(left)
    return bool(mantel_family(left, names, permutations=PERMUTATIONS, rng=rng, statistic="pearson").p_value[0] <= LEVEL)


# --- cases ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One row: `rejects` draws data and says whether the test rejects."""

    test: str
    truth: str
    expected: Literal["level", "liberal", "inflated", "power"]
    rejects: Callable[[Generator], bool]


def _unpartialled(rng: Generator) -> bool:
    x, y, _ = confounded(rng, [noise(rng)], 1)
    return mantel(rng, x, y)


CASES = [
    Case("spearman, pairs as independent", "null: own backdoor effects", "inflated", lambda rng: naive(*own_effects(rng))),
    Case("mantel_test", "null: independent cells", "level", lambda rng: mantel(rng, *independent_cells(rng))),
    Case("mantel_test", "null: own backdoor effects", "level", lambda rng: mantel(rng, *own_effects(rng))),
    Case("mantel_test", "null: transfer, columns centred", "level", lambda rng: mantel(rng, *transfer(rng))),
    Case("mantel_test", "null for pairs: shared backdoor effects", "inflated", lambda rng: mantel(rng, *shared_effects(rng))),
    Case("mantel_test", "null for pairs: x and y on z, R² 1/2", "inflated", _unpartialled),
    Case("mantel_test", "alternative: r = -0.6", "power", lambda rng: mantel(rng, *related(rng))),
    Case("mantel_test", "alternative: r = -0.6 under effects", "power", lambda rng: mantel(rng, *related_under_effects(rng))),
    Case("mantel of residuals", "null: own backdoor effects", "level", lambda rng: mantel_of_residuals(rng, *own_effects(rng))),
    Case(
        "mantel of residuals",
        "null for pairs: shared backdoor effects",
        "level",
        lambda rng: mantel_of_residuals(rng, *shared_effects(rng)),
    ),
    Case("mantel of residuals", "alternative: r = -0.6", "power", lambda rng: mantel_of_residuals(rng, *related(rng))),
    Case(
        "mantel of residuals",
        "alternative: r = -0.6 under effects",
        "power",
        lambda rng: mantel_of_residuals(rng, *related_under_effects(rng)),
    ),
    Case(
        "partial, spearman",
        "null: x and y on z, R² 1/3",
        "level",
        lambda rng: partial(rng, "spearman", *confounded(rng, [noise(rng)], 0.7)),
    ),
    Case(
        "partial, spearman",
        "null: x and y on z of effects, R² 1/3",
        "level",
        lambda rng: partial(rng, "spearman", *confounded(rng, [effects(rng)], 0.7)),
    ),
    Case(
        "partial, spearman",
        "null: x and y on z, R² 1/2",
        "liberal",
        lambda rng: partial(rng, "spearman", *confounded(rng, [noise(rng)], 1)),
    ),
    Case(
        "partial, spearman",
        "null: x and y on z, R² 9/10",
        "liberal",
        lambda rng: partial(rng, "spearman", *confounded(rng, [noise(rng)], 3)),
    ),
    Case(
        "partial, pearson",
        "null: x and y on z, R² 9/10",
        "level",
        lambda rng: partial(rng, "pearson", *confounded(rng, [noise(rng)], 3)),
    ),
    Case(
        "partial, pearson",
        "null: x and y on z of effects, R² 99/100",
        "level",
        lambda rng: partial(rng, "pearson", *confounded(rng, [effects(rng)], 10)),
    ),
    Case(
        "  the same, raw y relabelled",
        "null: x and y on z of effects, R² 99/100",
        "inflated",
        lambda rng: partial_otherwise(rng, "raw", *confounded(rng, [effects(rng)], 10)),
    ),
    Case(
        "partial, pearson",
        "null: x and y on z, own backdoor effects beside it",
        "level",
        lambda rng: partial(rng, "pearson", *effects_beside(rng)),
    ),
    Case(
        "  the same, raw y relabelled",
        "null: x and y on z, own backdoor effects beside it",
        "inflated",
        lambda rng: partial_otherwise(rng, "raw", *effects_beside(rng)),
    ),
    Case(
        "  the same, residuals not regressed anew",
        "null: x and y on ten z, R² 10/11",
        "inflated",
        lambda rng: partial_otherwise(rng, "correlate", *confounded(rng, [noise(rng) for _ in range(10)], 1)),
    ),
    Case(
        "partial, pearson",
        "null: x and y on ten z, R² 10/11",
        "level",
        lambda rng: partial(rng, "pearson", *confounded(rng, [noise(rng) for _ in range(10)], 1)),
    ),
    Case(
        "partial, spearman",
        "alternative: r = -0.6 beside z",
        "power",
        lambda rng: partial(rng, "spearman", *confounded(rng, [noise(rng)], 1, -0.6)),
    ),
    Case(
        "mantel_family, p_value",
        "null: 3 runs, one predictor",
        "level",
        lambda rng: bool(family_p_values(rng, family(rng))[0][0] <= LEVEL),
    ),
    Case(
        "mantel_family, any p_value",
        "null: 3 runs, 20 predictors",
        "inflated",
        lambda rng: bool((family_p_values(rng, family(rng))[0] <= LEVEL).any()),
    ),
    Case(
        "mantel_family, any p_corrected",
        "null: 3 runs, 20 predictors",
        "level",
        lambda rng: bool((family_p_values(rng, family(rng))[1] <= LEVEL).any()),
    ),
    Case(
        "mantel_family, any p_corrected of 19",
        "null for these: the 20th has r = -0.6",
        "level",
        lambda rng: bool((family_p_values(rng, family(rng, -0.6))[1][1:] <= LEVEL).any()),
    ),
    Case(
        "mantel_family, p_corrected",
        "alternative: r = -0.6 in 3 runs, 1 of 20",
        "power",
        lambda rng: bool(family_p_values(rng, family(rng, -0.6))[1][0] <= LEVEL),
    ),
    Case(
        "mantel_family, p_corrected",
        "alternative: r = -0.6 in 1 run, 1 of 20",
        "power",
        lambda rng: bool(family_p_values(rng, family(rng, -0.6)[:1])[1][0] <= LEVEL),
    ),
    Case(
        "mantel_family, p_value",
        "null: 6 runs of the same backdoors, 65 % recurs",
        "level",
        lambda rng: of_the_same_backdoors(rng, recurring(rng), alike=True),
    ),
    Case(
        "mantel_family without names",
        "null: 6 runs of the same backdoors, 65 % recurs",
        "inflated",
        lambda rng: of_the_same_backdoors(rng, recurring(rng), alike=False),
    ),
    Case(
        "mantel_family, p_value",
        "null but for one pair with one target, 3 runs",
        "inflated",
        lambda rng: bool(family_p_values(rng, one_target(rng)[0])[0][0] <= LEVEL),
    ),
    Case(
        "mantel_family of rank_residuals",
        "null but for one pair with one target, 3 runs",
        "level",
        lambda rng: given_target(rng, *one_target(rng)),
    ),
    Case(
        "mantel_family of rank_residuals",
        "alternative: r = -0.6 beside one target, 3 runs",
        "power",
        lambda rng: given_target(rng, *one_target(rng, -0.6)),
    ),
]


def rejections(case: Case, simulations: int, seed: int) -> int:
    """In how many of the simulations the test rejects; every case draws from a stream of its own."""
    rng = np.random.default_rng([seed, CASES.index(case)])
    return sum(case.rejects(rng) for _ in range(simulations))


# --- intervals and prediction -----------------------------------------------------------------------------------------


Effects = tuple[float, float, float, float]
COVERAGE: dict[str, tuple[int, int, Effects]] = {
    # runs, backdoors, standard deviations: of runs, of removed and of measured backdoors in all runs, of single cells
    "one run, measured backdoors differ": (1, 8, (0, 0, 0.2, 0.1)),
    "one run, removed and measured differ": (1, 8, (0, 0.15, 0.15, 0.1)),
    "one run, removed differ more": (1, 8, (0, 0.2, 0.1, 0.1)),
    "one run, three backdoors": (1, 3, (0, 0.15, 0.15, 0.1)),
    "one run, single cells differ": (1, 8, (0, 0, 0, 0.2)),
    "three runs, which differ most": (3, 8, (0.2, 0.05, 0.05, 0.1)),
    "five runs, all differ": (5, 8, (0.1, 0.15, 0.1, 0.1)),
    "fifteen runs, backdoors differ": (15, 8, (0.05, 0.15, 0.15, 0.1)),
    "three runs, twenty backdoors": (3, 20, (0.05, 0.15, 0.15, 0.1)),
    "five runs, single cells differ": (5, 8, (0, 0, 0, 0.2)),
}
"""Cases of `covered`."""


def covered(rng: Generator, runs: int, backdoors: int, deviations: Effects) -> tuple[bool, bool]:
    """Whether 95 % intervals of the mean of runs × removed × other measured backdoors hold its true value, 0.

    The first is over runs and backdoors, the second over runs alone (of one run: over measured backdoors alone). What is
    peculiar to a backdoor as a removed and as a measured one is correlated, by 0.7.
    """
    of_runs, of_removed, of_measured, of_cells = deviations
    both, own = rng.normal(size=(2, backdoors))
    cells = (
        of_runs * rng.normal(size=(runs, 1, 1))
        + of_removed * both[:, None]
        + of_measured * (both + own)[None, :] / np.sqrt(2)
        + of_cells * rng.normal(size=(runs, backdoors, backdoors))
    )
    run, removed, measured = np.indices(cells.shape)
    off = removed != measured
    pairs = np.stack([removed[off], measured[off]], axis=1)
    crossed = jackknife_interval(cells[off], run[off], pairs)
    plain = jackknife_interval(cells[off], run[off], measured[off] if runs == 1 else None)
    return crossed[0] <= 0 <= crossed[1], plain[0] <= 0 <= plain[1]


CORRELATIONS: dict[str, tuple[int, int, float, float]] = {
    # runs, backdoors, strength of the relation, standard deviation of effects of single backdoors in x and in y
    "one run, effects of backdoors": (1, 8, -0.6, 1.0),
    "one run, four backdoors": (1, 4, -0.5, 1.0),
    "five runs, effects of backdoors": (5, 8, -0.5, 1.0),
    "five runs, single pairs differ": (5, 8, -0.5, 0.0),
    "five runs, strong effects": (5, 8, -0.5, 3.0),
    "fifteen runs, no relation": (15, 8, 0.0, 1.0),
    "three runs, twenty backdoors": (3, 20, -0.5, 1.0),
}
"""Cases of `intervals_of_correlations`."""


def intervals_of_correlations(
    rng: Generator, runs: int, backdoors: int, r: float, deviation: float
) -> tuple[CorrelationIntervals, tuple[float, float]]:
    """Intervals of two predictors over runs of the same backdoors, and naive limits of the first over runs.

    Half of the variance of all that varies recurs in every run. The second predictor is the first with more noise.
    """
    share = np.sqrt(0.5)
    of_x, of_y = (noise(rng, backdoors) + deviation * effects(rng, backdoors) / 2 for _ in range(2))
    strata = []
    for _ in range(runs):
        x, y = (share * (recurs + noise(rng, backdoors)) for recurs in (of_x, of_y))
        strata.append((np.stack([x, x + noise(rng, backdoors)]), r * x + np.sqrt(1 - r**2) * y))
    names = [range(backdoors)] * runs
    found = [spearmanr(upper_pairs(xs[0], "x"), upper_pairs(y, "y")).statistic for xs, y in strata]
    return correlation_intervals(strata, names), jackknife_interval(found, range(runs))


def coverage_of_correlations(rng: Generator, case: tuple[int, int, float, float], simulations: int) -> tuple[float, ...]:
    """Share of the intervals of ρ, of the difference of two, and of those over runs alone that hold the mean over all."""
    found = [intervals_of_correlations(rng, *case) for _ in range(simulations)]
    rho, difference = (np.mean([getattr(each, name)[at] for each, _ in found]) for name, at in (("rho", 0), ("difference", 1)))
    crossed = np.mean([each.low[0] <= rho <= each.high[0] for each, _ in found])
    differing = np.mean([each.difference_low[1] <= difference <= each.difference_high[1] for each, _ in found])
    return float(crossed), float(differing), float(np.mean([low <= rho <= high for _, (low, high) in found]))


def predictions(rng: Generator, r: float, simulations: int) -> Iterator[tuple[float, float]]:
    """R² and rank error of held-out predictions over three runs whose pairs have the correlation r."""
    for _ in range(simulations):
        result = leave_one_out_prediction([related(rng, r) for _ in range(3)])
        yield result.r_squared, result.rank_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    simulations = options.simulations
    print(f"{'test':<42}{'truth':<52}{'expected':<10}{'rejected':>9}  95 % interval")
    for case in CASES:
        count = rejections(case, simulations, options.seed)
        low, high = wilson_interval(count, simulations)
        print(
            f"{case.test:<42}{case.truth:<52}{case.expected:<10}{count / simulations:>9.3f}  {low:.3f}–{high:.3f}", flush=True
        )
    rng = np.random.default_rng(options.seed)
    print(f"\n{'intervals of 95 %':<40}{'coverage: runs and backdoors':>29}{'one of them':>13}")
    for name, (runs, backdoors, deviations) in COVERAGE.items():
        held = np.mean([covered(rng, runs, backdoors, deviations) for _ in range(simulations)], axis=0)
        print(f"{name:<40}{held[0]:>29.3f}{held[1]:>13.3f}", flush=True)
    print(f"\n{'intervals of ρ, 95 %':<40}{'coverage: runs and backdoors':>29}{'of differences':>16}{'runs alone':>12}")
    for name, case in CORRELATIONS.items():
        print(
            f"{name:<40}{'{:>29.3f}{:>16.3f}{:>12.3f}'.format(*coverage_of_correlations(rng, case, simulations))}", flush=True
        )
    print(f"\n{'held-out prediction, 3 runs':<29}{'mean R²':>9}{'rank error':>12}")
    for r in (0.0, -0.3, -0.6, -0.9):
        r_squared, rank_error = np.mean(list(predictions(rng, r, simulations)), axis=0)
        print(f"{f'r = {r}':<29}{r_squared:>9.3f}{rank_error:>12.3f}", flush=True)


if __name__ == "__main__":
    main()
