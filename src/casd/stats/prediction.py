"""Leave-one-out prediction of the response for the pairs of a held-out backdoor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from casd.stats.matrices import Array, places_of_pairs, ranks_of
from casd.stats.strata import first_note, pairs_of_strata


@dataclass(frozen=True)
class PredictionResult:
    """Outcome of `leave_one_out_prediction`; NaN where undefined.

    Attributes:
        r_squared: 1 − Σ(y − ŷ)²/Σ(y − ȳ_train)² over all held-out cells: 1 is perfect, 0 is as good as the mean of the
            training pairs, negative is worse than that.
        mae: mean of |y − ŷ| over all held-out cells, in the unit of the response.
        mae_of_mean: mean of |y − ȳ_train| over all held-out cells, the error of predicting the mean of the training pairs.
        rank_error: mean of `rank_error` over stratum × backdoor: 0 is the right order, 1 is chance.
        n_cells: number of held-out cells; each pair is held out twice, once for each of its backdoors.
        note: "" or why there is no result.
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

    A predictor that is unrelated to the response scores slightly worse than the mean: R² below 0, since its slope is noise, and
    a rank error slightly above 1, since holding out a pair moves the mean of the others in the opposite direction.

    Args:
        strata: one (x, y) per run: predictor and response, symmetric, shape (n, n); the diagonals are not read.

    Returns:
        The result. Undefined values are NaN, and `note` says why: with fewer than four backdoors in a stratum (a line needs at
        least two training pairs, and four backdoors leave three), a cell that is not finite, or a response equal to its
        training means everywhere. Such a run is not dropped silently: leaving it out is up to the caller.

    Raises:
        ValueError: there is no stratum, or matrices are not square, symmetric and of one size.
    """
    for s, (x, y) in enumerate(strata):
        if np.shape(x) != np.shape(y):
            raise ValueError(f"Expected two matrices of one shape; stratum {s} has {np.shape(x)} and {np.shape(y)}.")
    [result] = leave_one_out_predictions([(np.asarray(x, dtype=float)[None], y) for x, y in strata])
    return result


def leave_one_out_predictions(strata: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]) -> list[PredictionResult]:
    """Run `leave_one_out_prediction` of one response for each of several predictors separately.

    Args:
        strata: one (xs, y) per run: xs the predictors, symmetric matrices of shape (v, n, n), in the same order in every
            stratum; y the response, symmetric, shape (n, n). Diagonals are not read. Alternatively both as upper triangles,
            row by row: (v, n_pairs) and (n_pairs,).

    Returns:
        One result per predictor.

    Raises:
        ValueError: there is no stratum, matrices are not square, symmetric and of one size, or numbers of predictors differ.
    """
    sizes, predictors, responses = pairs_of_strata(strata)
    reasons = [[_why_undefined(n, x, y) for x in xs] for n, xs, y in zip(sizes, predictors, responses, strict=True)]
    notes = [first_note(of_predictor) for of_predictor in zip(*reasons, strict=True)]
    n_cells = sum(n * (n - 1) for n in sizes)
    defined = [index for index, note in enumerate(notes) if not note]
    parts: list[list[Array]] = [[np.empty((len(defined), 0))] for _ in range(4)]
    for n in dict.fromkeys(sizes) if defined else ():  # strata of one size at once
        same_size = [s for s, size in enumerate(sizes) if size == n]
        x, y = np.stack([predictors[s][defined] for s in same_size], axis=1), np.stack([responses[s] for s in same_size])
        observed, predicted, mean = _hold_out(x, np.broadcast_to(y, x.shape), n)
        for part, values in zip(parts, (observed, predicted, mean, rank_error(predicted, observed)), strict=True):
            part.append(values.reshape(len(defined), -1))
    cells = [np.concatenate(part, axis=1) for part in parts]
    results = {index: _result(*(values[row] for values in cells), n_cells=n_cells) for row, index in enumerate(defined)}
    undefined = (math.nan, math.nan, math.nan, math.nan, n_cells)
    return [results[index] if index in results else PredictionResult(*undefined, note) for index, note in enumerate(notes)]


def _why_undefined(n: int, x_pairs: Array, y_pairs: Array) -> str:
    """Return why no backdoor of this stratum can be held out; "" if one can."""
    if n < 4:
        return f"to hold one backdoor out needs at least 4 of them, here {n}"
    return "" if np.isfinite(x_pairs).all() and np.isfinite(y_pairs).all() else "a pair has no finite value"


def _result(observed: Array, predicted: Array, mean: Array, rank_errors: Array, *, n_cells: int) -> PredictionResult:
    """Compute the result of one predictor from all held-out cells: observed, predicted, and mean of the training pairs."""
    errors, errors_of_mean = observed - predicted, observed - mean
    total = float(np.sum(errors_of_mean**2))
    # The mean of equal numbers may differ from them by rounding, which is not variance to explain.
    varies = math.sqrt(total / len(observed)) > 1e-12 * float(np.abs(observed).max(initial=0.0))
    return PredictionResult(
        r_squared=1 - float(np.sum(errors**2)) / total if varies else math.nan,
        mae=float(np.abs(errors).mean()),
        mae_of_mean=float(np.abs(errors_of_mean).mean()),
        rank_error=float(rank_errors.mean()),
        n_cells=n_cells,
        note="" if varies else "the response is the same for all pairs: R² has nothing to explain",
    )


def rank_error(predicted: npt.ArrayLike, observed: npt.ArrayLike) -> Array:
    """Compute the mean absolute difference between predicted and observed ranks, relative to that of a random order.

    Over m items without ties a random order has the mean (1/m²)·Σ_r Σ_s |r − s| = (m² − 1)/(3m), since each predicted
    rank r is equally likely for each observed rank s; so 0 is the right order and 1 is chance.

    Ties: tied predictions leave the order among them open, so the difference is averaged over all orders among them. A constant
    predictor thus scores exactly 1; with mean ranks it would score about 3/4, better than chance. Tied observations get their
    mean rank s, and chance is (1/m²)·Σ_r Σ_s |r − s| over these. With tied observations 0 cannot be reached, since any order
    among them differs from their mean rank; if all observations are tied, every prediction scores 1.

    Args:
        predicted: shape (…, m), m ≥ 2.
        observed: shape (…, m).

    Returns:
        Shape (…).

    Raises:
        ValueError: the shapes differ, or m < 2.
    """
    guesses, values = np.asarray(predicted, dtype=float), np.asarray(observed, dtype=float)
    if guesses.shape != values.shape or guesses.ndim < 1 or guesses.shape[-1] < 2:
        raise ValueError(f"Expected two arrays of one shape (…, m), m >= 2; got {guesses.shape} and {values.shape}.")
    lowest, highest = ranks_of(guesses, "min", axis=-1)[..., None], ranks_of(guesses, "max", axis=-1)[..., None]
    ranks = np.arange(1, guesses.shape[-1] + 1)
    # distances[…, i, r]: from the observed rank of item i to rank r; item i takes each rank of its tie equally often.
    distances = np.abs(ranks_of(values, axis=-1)[..., None] - ranks)
    in_tie = (ranks >= lowest) & (ranks <= highest)
    error = (distances * in_tie).sum(axis=-1) / in_tie.sum(axis=-1)
    return error.mean(axis=-1) / distances.mean(axis=(-1, -2))


def _hold_out(x_pairs: Array, y_pairs: Array, n: int) -> tuple[Array, Array, Array]:
    """Predict the n − 1 pairs of each backdoor from the pairs without it.

    Args:
        x_pairs: a predictor in a stratum, shape (…, n_pairs).
        y_pairs: the response, shape (…, n_pairs).
        n: number of backdoors.

    Returns:
        Observed response, predicted response, and mean response of the training pairs, each of shape (…, n, n − 1).
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
    # Compares the cells, since rounding keeps their variance from being exactly 0.
    constant = np.where(training, x, np.inf).min(axis=-1) == np.where(training, x, -np.inf).max(axis=-1)
    slopes = np.where(constant, 0.0, products / np.where(constant, 1.0, squares))[..., None]
    predicted = y_mean + slopes * (x - x_mean)
    shape = (*x_pairs.shape[:-1], n, n - 1)
    observed = np.broadcast_to(y, predicted.shape)
    return observed[..., held].reshape(shape), predicted[..., held].reshape(shape), np.broadcast_to(y_mean, shape)
