"""Finished runs: found on the disk, and read together; as one tidy table, or each with its tables.

Only modules that make frames need pandas, and none needs torch or a GPU: what is read here was measured before.
"""

from casd.analysis.runs.finding import FinishedRun, find_runs

__all__ = ["FinishedRun", "find_runs"]
