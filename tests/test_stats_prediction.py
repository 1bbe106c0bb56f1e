"""Prediction with one backdoor held out, against loops and closed forms.

Run: pytest tests/test_stats_prediction.py
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from casd.stats import leave_one_out_prediction, leave_one_out_predictions, rank_error


def symmetric(rng: np.random.Generator, n: int) -> np.ndarray:
    """Normal pairs, the diagonal NaN."""
    cells = rng.normal(size=(n, n))
    cells = cells + cells.T
    np.fill_diagonal(cells, np.nan)
    return cells


def test_prediction_is_that_of_loops() -> None:
    rng = np.random.default_rng(0)
    strata = [(symmetric(rng, n), symmetric(rng, n)) for n in (4, 7, 6)]
    squares, squares_of_mean, absolute, absolute_of_mean, order = [], [], [], [], []
    for x, y in strata:
        for k in range(len(y)):
            others = [i for i in range(len(y)) if i != k]
            training = list(itertools.combinations(others, 2))
            line = scipy.stats.linregress([x[pair] for pair in training], [y[pair] for pair in training])
            mean = np.mean([y[pair] for pair in training])
            predicted, seen = line.intercept + line.slope * x[k, others], y[k, others]
            squares += list((seen - predicted) ** 2)
            squares_of_mean += list((seen - mean) ** 2)
            absolute += list(abs(seen - predicted))
            absolute_of_mean += list(abs(seen - mean))
            m = len(others)
            ranks = scipy.stats.rankdata(predicted) - scipy.stats.rankdata(seen)
            order.append(np.mean(np.abs(ranks)) / ((m**2 - 1) / (3 * m)))
    result = leave_one_out_prediction(strata)
    assert result.r_squared == pytest.approx(1 - sum(squares) / sum(squares_of_mean))
    assert result.mae == pytest.approx(np.mean(absolute))
    assert result.mae_of_mean == pytest.approx(np.mean(absolute_of_mean))
    assert result.rank_error == pytest.approx(np.mean(order))
    assert result.n_cells == len(squares) == 4 * 3 + 7 * 6 + 6 * 5
    assert result.note == ""


@pytest.mark.parametrize("slope", [2.0, -0.5])
def test_a_line_is_predicted_perfectly_in_each_run_by_its_own_line(slope: float) -> None:
    rng = np.random.default_rng(1)
    strata = [(x, level + slope * level * x) for level in (1, 100) for x in [symmetric(rng, 6)]]
    result = leave_one_out_prediction(strata)
    assert result.r_squared == pytest.approx(1)
    assert result.mae == pytest.approx(0, abs=1e-9)
    assert result.rank_error == 0


@pytest.mark.parametrize("constant", [0.0, 0.1])
def test_a_constant_predictor_predicts_the_mean_and_no_order(constant: float) -> None:
    y = symmetric(np.random.default_rng(2), 7)
    result = leave_one_out_prediction([(np.full((7, 7), constant), y)])
    assert result.r_squared == 0
    assert result.mae == result.mae_of_mean
    assert result.rank_error == pytest.approx(1)


def test_a_predictor_constant_among_the_others_predicts_their_mean() -> None:
    # Only the pairs of backdoor 0 differ: without it the predictor is constant, and with others held out it is not.
    rng = np.random.default_rng(3)
    x, y = np.full((4, 4), 0.1), symmetric(rng, 4)
    x[0, 1:] = x[1:, 0] = [1, 2, 3]
    result = leave_one_out_prediction([(x, y)])
    assert math.isfinite(result.r_squared) and math.isfinite(result.rank_error)


def test_nothing_of_the_held_out_backdoor_enters_its_prediction() -> None:
    """Outliers of one backdoor change the error of its own cells by themselves, not through the line for them."""
    rng = np.random.default_rng(4)
    x = symmetric(rng, 5)
    y = 1 + 2 * x
    y[0, 1:] += 1000
    y[1:, 0] += 1000
    result = leave_one_out_prediction([(x, y)])
    own = 4 * 1000  # the four cells in which backdoor 0 is held out miss by 1000 exactly
    rest = []
    for k in range(1, 5):
        others = [i for i in range(5) if i != k]
        training = list(itertools.combinations(others, 2))
        line = scipy.stats.linregress([x[pair] for pair in training], [y[pair] for pair in training])
        rest += list(abs(y[k, others] - line.intercept - line.slope * x[k, others]))
    assert result.mae == pytest.approx((own + sum(rest)) / 20)


def test_prediction_says_why_there_is_none() -> None:
    rng = np.random.default_rng(5)
    x, y = symmetric(rng, 5), symmetric(rng, 5)
    hole = x.copy()
    hole[0, 1] = hole[1, 0] = np.nan
    for strata, why in (
        ([(x[:3, :3], y[:3, :3])], "at least 4 of them, here 3"),
        ([(x, y), (x[:3, :3], y[:3, :3])], "stratum 1: to hold"),
        ([(hole, y)], "no finite value"),
        ([(x, y), (x, hole)], "stratum 1: a pair has no finite value"),
    ):
        result = leave_one_out_prediction(strata)
        assert why in result.note
        assert np.isnan([result.r_squared, result.mae, result.mae_of_mean, result.rank_error]).all()
    same = leave_one_out_prediction([(x, np.full((5, 5), 0.1))])
    assert math.isnan(same.r_squared) and "nothing to explain" in same.note
    assert same.mae == pytest.approx(0, abs=1e-12) and same.rank_error == pytest.approx(1)
    with pytest.raises(ValueError, match="at least one stratum"):
        leave_one_out_prediction([])
    with pytest.raises(ValueError, match="one shape"):
        leave_one_out_prediction([(x, y[:4, :4])])
    with pytest.raises(ValueError, match="symmetric"):
        leave_one_out_prediction([(np.arange(25.0).reshape(5, 5), y)])


def test_several_predictors_are_each_by_itself() -> None:
    """In strata of different sizes, one of them with a predictor that has a hole."""
    rng = np.random.default_rng(6)
    strata = [(np.stack([symmetric(rng, n) for _ in range(3)]), symmetric(rng, n)) for n in (5, 7, 5)]
    strata[1][0][1, 0, 2] = strata[1][0][1, 2, 0] = np.nan
    together = leave_one_out_predictions(strata)
    for place, result in enumerate(together):
        alone = leave_one_out_prediction([(xs[place], y) for xs, y in strata])
        np.testing.assert_equal(vars(result), vars(alone))
    assert [bool(result.note) for result in together] == [False, True, False]
    assert "stratum 1: a pair has no finite value" in together[1].note


# --- rank error -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6])
def test_a_random_order_has_the_rank_error_one(m: int) -> None:
    """Over all m! orders the mean absolute difference of ranks is (m² − 1)/(3m), by enumeration."""
    orders = np.array(list(itertools.permutations(range(m))))
    assert np.abs(orders - np.arange(m)).mean() == pytest.approx((m**2 - 1) / (3 * m))
    assert rank_error(orders, np.broadcast_to(np.arange(m), orders.shape)).mean() == pytest.approx(1)


def test_rank_error_by_hand() -> None:
    assert rank_error([0.1, 0.2, 5.0, 9.0], [1, 2, 3, 4]) == 0
    # Reversed: |3| + |1| + |1| + |3| = 8 over 4 items, 2; chance is 15/12.
    assert rank_error([4, 3, 2, 1], [1, 2, 3, 4]) == pytest.approx(2 / 1.25)


@pytest.mark.parametrize("observed", [[3.0, 1.0, 2.0, 4.0, 0.0], [1.0, 1.0, 2.0, 4.0, 4.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
@pytest.mark.parametrize("predicted", [[0.0, 0.0, 1.0, 1.0, 1.0], [7.0] * 5, [5.0, 1.0, 5.0, 0.0, 2.0]])
def test_tied_predictions_get_the_mean_over_the_orders_they_allow(predicted: list[float], observed: list[float]) -> None:
    def error(ranks: np.ndarray) -> float:
        return float(np.abs(ranks - scipy.stats.rankdata(observed)).mean())

    everything = [np.array(order) + 1 for order in itertools.permutations(range(5))]
    allowed = [
        ranks
        for ranks in everything
        if all(predicted[i] >= predicted[j] or ranks[i] < ranks[j] for i in range(5) for j in range(5))
    ]
    expected = np.mean([error(ranks) for ranks in allowed]) / np.mean([error(ranks) for ranks in everything])
    assert rank_error(predicted, observed) == pytest.approx(expected)


def test_mean_ranks_would_reward_a_predictor_that_says_nothing() -> None:
    for m in (7, 8):
        ranks = np.arange(1, m + 1)
        naive = np.abs(ranks - (m + 1) / 2).mean() / ((m**2 - 1) / (3 * m))
        assert naive < 0.77
        assert rank_error(np.zeros(m), ranks) == pytest.approx(1)


def test_rank_error_needs_two_items_of_one_shape() -> None:
    for arguments in (([1.0], [1.0]), ([1.0, 2.0], [1.0, 2.0, 3.0]), (1.0, 1.0)):
        with pytest.raises(ValueError, match="one shape"):
            rank_error(*arguments)
