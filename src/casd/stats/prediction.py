"""Can a predictor foretell the response for the pairs of a backdoor nobody has seen?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from casd.stats.matrices import Array, places_of_pairs
from casd.stats.strata import first_note, pairs_of_strata


@dataclass(frozen=True)
class PredictionResult:
    """Outcome of `leave_one_out_prediction`; NaN where undefined.

    Attributes:
        r_squared: 1 − Σ(y − ŷ)²/Σ(y − ȳ_train)² over all held-out cells: 1 is perfect, 0 what the mean of the training
            pairs achieves, negative what is worse than that.
        mae: mean of |y − ŷ| over all held-out cells, in the unit of the response.
        mae_of_mean: mean of |y − ȳ_train| over them, what the mean of the training pairs achieves.
        rank_error: mean over stratum × backdoor of `rank_error`: 0 is the right order, 1 is chance.
        n_cells: number of held-out cells; each pair is held out twice, once for each of its backdoors.
        note: "" or, in a sentence, why there is no result.
    """

    r_squared: float
    mae: float
    mae_of_mean: float
    rank_error: float
    n_cells: int
    note: str = ""


def leave_one_out_prediction(strata: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]) -> PredictionResult:
    """Predict the response for all pairs of one backdoor from the pairs of the others, each backdoor in turn.

    For each stratum (run) and each backdoor k: ordinary least squares y = a + b·x over the stratum's (n − 1)(n − 2)/2
    pairs without k, then ŷ = a + b·x for the n − 1 pairs with k. Nothing of k enters the fit. A predictor that is
    constant over the training pairs has b = 0: ŷ is their mean.

    A predictor that is unrelated to the response comes out slightly worse than nothing, since its slope is noise: R²
    below 0, and a rank error slightly above 1, since a pair held out pulls the mean of the others the other way.

    Args:
        strata: one (x, y) per run: predictor and response, symmetric, shape (n, n); the diagonals are not read (NaN is
            fine there).

    Returns:
        The result. With fewer than four backdoors in a stratum (two training pairs at least are needed for a line, and
        four backdoors leave three), a cell that is not finite, or a response equal to its training means everywhere,
        what is undefined is NaN and `note` says why: to leave a run out is the caller's decision, to be told.

    Raises:
        ValueError: no stratum, or matrices that are not square, symmetric and of one size.
    """
    for s, (x, y) in enumerate(strata):
        if np.shape(x) != np.shape(y):
            raise ValueError(f"Expected two matrices of one shape; stratum {s} has {np.shape(x)} and {np.shape(y)}.")
    [result] = leave_one_out_predictions([(np.asarray(x, dtype=float)[None], y) for x, y in strata])
    return result


def leave_one_out_predictions(strata: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]) -> list[PredictionResult]:
    """`leave_one_out_prediction` of one response from each of several predictors, each by itself.

    Args:
        strata: one (xs, y) per run: xs the predictors, symmetric matrices of shape (v, n, n), the same ones in the same order
            in every stratum; y the response, symmetric, shape (n, n). Diagonals are not read. Or both as upper triangles, row
            by row: (v, n_pairs) and (n_pairs,).

    Returns:
        Of each predictor what `leave_one_out_prediction` gives.

    Raises:
        ValueError: as there; or different numbers of predictors.
    """
    sizes, predictors, responses = pairs_of_strata(strata)
    reasons = [[_why_not(n, x, y) for x in xs] for n, xs, y in zip(sizes, predictors, responses, strict=True)]
    notes = [first_note(of_predictor) for of_predictor in zip(*reasons, strict=True)]
    n_cells = sum(n * (n - 1) for n in sizes)
    fine = [place for place, note in enumerate(notes) if not note]
    values, predicted, baseline, rank_errors = ([np.empty((len(fine), 0))] for _ in range(4))
    for n in dict.fromkeys(sizes) if fine else ():  # strata of one size at once
        alike = [s for s, size in enumerate(sizes) if size == n]
        x, y = np.stack([predictors[s][fine] for s in alike], axis=1), np.stack([responses[s] for s in alike])
        held, y_hat, y_mean = _hold_out(x, np.broadcast_to(y, x.shape), n)
        found = (held, y_hat, y_mean, rank_error(y_hat, held))
        for column, each in zip((values, predicted, baseline, rank_errors), found, strict=True):
            column.append(each.reshape(len(fine), -1))
    cells = [np.concatenate(column, axis=1) for column in (values, predicted, baseline, rank_errors)]
    results = {place: _result([column[row] for column in cells], n_cells) for row, place in enumerate(fine)}
    nothing = (math.nan, math.nan, math.nan, math.nan, n_cells)
    return [results[place] if place in results else PredictionResult(*nothing, note) for place, note in enumerate(notes)]


def _why_not(n: int, x_pairs: Array, y_pairs: Array) -> str:
    """Why no backdoor of this stratum can be held out, "" if it can."""
    if n < 4:
        return f"to hold one backdoor out needs at least 4 of them, here {n}"
    return "" if np.isfinite(x_pairs).all() and np.isfinite(y_pairs).all() else "a pair has no finite value"


def _result(cells: Sequence[Array], n_cells: int) -> PredictionResult:
    """Of one predictor: over all cells held out the observed, the predicted, the training means; and every rank error."""
    values, predicted, baseline, rank_errors = cells
    errors, errors_of_mean = values - predicted, values - baseline
    total = float(np.sum(errors_of_mean**2))
    # Means of equal numbers may miss them by rounding, which is no variance to explain.
    varies = math.sqrt(total / len(values)) > 1e-12 * float(np.abs(values).max(initial=0.0))
    return PredictionResult(
        r_squared=1 - float(np.sum(errors**2)) / total if varies else math.nan,
        mae=float(np.abs(errors).mean()),
        mae_of_mean=float(np.abs(errors_of_mean).mean()),
        rank_error=float(rank_errors.mean()),
        n_cells=n_cells,
        note="" if varies else "the response is the same for all pairs: R² has nothing to explain",
    )


def rank_error(predicted: npt.ArrayLike, observed: npt.ArrayLike) -> Array:
    """Mean absolute difference between the ranks predicted and observed, as a share of what a random order gets.

    Over m items without ties a random order has the mean (1/m²)·Σ_r Σ_s |r − s| = (m² − 1)/(3m), since each predicted
    rank r is equally likely for each observed rank s; so 0 is the right order and 1 is chance.

    Ties: tied predictions say nothing on the order within, so they get the mean over all orders within, not mean ranks:
    with those, a predictor that says nothing would score about 3/4, better than chance. So a constant predictor scores
    exactly 1. Tied observations get their mean rank s, and chance is (1/m²)·Σ_r Σ_s |r − s| over these; then 0 is out of
    reach by what an order within ties must cost, and if all observations are tied every prediction scores 1.

    Args:
        predicted: shape (…, m), m ≥ 2.
        observed: the same shape.

    Returns:
        Shape (…).

    Raises:
        ValueError: the shapes differ, or m < 2.
    """
    guesses, values = np.asarray(predicted, dtype=float), np.asarray(observed, dtype=float)
    if guesses.shape != values.shape or guesses.ndim < 1 or guesses.shape[-1] < 2:
        raise ValueError(f"Expected two arrays of one shape (…, m), m >= 2; got {guesses.shape} and {values.shape}.")
    lowest, highest = rankdata(guesses, "min", axis=-1)[..., None], rankdata(guesses, "max", axis=-1)[..., None]
    ranks = np.arange(1, guesses.shape[-1] + 1)
    # distances[…, i, r]: from the observed rank of item i to rank r; item i takes each rank of its tie equally often.
    distances = np.abs(rankdata(values, axis=-1)[..., None] - ranks)
    taken = (ranks >= lowest) & (ranks <= highest)
    error = (distances * taken).sum(axis=-1) / taken.sum(axis=-1)
    return error.mean(axis=-1) / distances.mean(axis=(-1, -2))


def _hold_out(x_pairs: Array, y_pairs: Array, n: int) -> tuple[Array, Array, Array]:
    """Observed, predicted and mean of the training pairs, for the n − 1 pairs of each backdoor in turn.

    Args:
        x_pairs: of a predictor in a stratum, shape (…, n_pairs).
        y_pairs: the response, of the same shape.
        n: the number of backdoors.

    Returns:
        Three arrays of shape (…, n, n − 1).
    """
    rows, columns = places_of_pairs(n)
    backdoors = np.arange(n)[:, None]
    held = (rows == backdoors) | (columns == backdoors)
    training = ~held
    n_training = (n - 1) * (n - 2) // 2
    x_mean = (x_pairs @ training.T / n_training)[..., None]
    y_mean = (y_pairs @ training.T / n_training)[..., None]
    x, y = x_pairs[..., None, :], y_pairs[..., None, :]
    x_centred = np.where(training, x - x_mean, 0.0)
    products = np.sum(x_centred * (y - y_mean), axis=-1)
    squares = np.sum(x_centred**2, axis=-1)
    # By the cells and not by their variance, which rounding keeps from 0.
    constant = np.where(training, x, np.inf).min(axis=-1) == np.where(training, x, -np.inf).max(axis=-1)
    slopes = np.where(constant, 0.0, products / np.where(constant, 1.0, squares))[..., None]
    predicted = y_mean + slopes * (x - x_mean)
    shape = (*x_pairs.shape[:-1], n, n - 1)
    observed = np.broadcast_to(y, predicted.shape)
    return observed[..., held].reshape(shape), predicted[..., held].reshape(shape), np.broadcast_to(y_mean, shape)
