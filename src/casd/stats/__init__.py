"""Intervals, permutation tests and prediction on plain arrays, independent of the experiment.

A matrix over N backdoors has N(N − 1)/2 pairs, but only N independent units: two pairs that share a backdoor are correlated.
Tests therefore permute, and intervals and predictions leave out, whole backdoors, never single pairs.

- `intervals`: intervals of a proportion, and of means over runs and backdoors
- `correlations`: intervals of correlations over pairs, and of their differences
- `means`: mean over runs with its interval
- `matrices`: centring, symmetrising, removing the effects of single backdoors
- `permutations`: scores, relabellings and p-values shared by the tests
- `mantel`: Mantel tests of two matrices, also partial
- `family`: Mantel tests of many predictors of one response over several runs, corrected for their number
- `strata`: validation of the matrices of several runs
- `prediction`: leave-one-backdoor-out prediction
"""

from casd.stats.correlations import CorrelationIntervals, correlation_intervals
from casd.stats.family import FamilyResult, benjamini_hochberg, mantel_family
from casd.stats.intervals import jackknife_interval, wilson_interval
from casd.stats.mantel import MantelResult, mantel_test, partial_mantel_test, rank_residuals
from casd.stats.matrices import (
    numbers_of_pairs,
    offdiagonal_center_columns,
    offdiagonal_center_two_way,
    remove_backdoor_effects,
    remove_effects_from_pairs,
    symmetrize,
)
from casd.stats.means import MeanOverRuns, mean_over_runs
from casd.stats.permutations import Alternative, Statistic
from casd.stats.prediction import PredictionResult, leave_one_out_prediction, leave_one_out_predictions, rank_error

__all__ = [
    "Alternative",
    "CorrelationIntervals",
    "FamilyResult",
    "MantelResult",
    "MeanOverRuns",
    "PredictionResult",
    "Statistic",
    "benjamini_hochberg",
    "correlation_intervals",
    "jackknife_interval",
    "leave_one_out_prediction",
    "leave_one_out_predictions",
    "mantel_family",
    "mantel_test",
    "mean_over_runs",
    "numbers_of_pairs",
    "offdiagonal_center_columns",
    "offdiagonal_center_two_way",
    "partial_mantel_test",
    "rank_error",
    "rank_residuals",
    "remove_backdoor_effects",
    "remove_effects_from_pairs",
    "symmetrize",
    "wilson_interval",
]
