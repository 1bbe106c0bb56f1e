"""The paper's tables and figures from configurations, each with the claims it bears on.

- `catalogue`: the exhibits by name
- `scales`: the sweeps that make the runs, small or large
- `claims` and `verdicts`: what is claimed, and what decides whether it holds in these runs
- `exhibits`: the tables and figures of each exhibit
- `page`: their files, and one page with all of them

The paper's numbers are not known, and none is used here: all numbers are measured.
"""
