"""The rule that decides which removals and backdoors are included in means, correlations and claims.

A removal is included if its model still works, at least one training step was kept, and, if a target attack success rate (ASR)
was set, its own backdoor reached it. A backdoor is included, as removed and as measured, if it was established, that is, if its
ASR in the injected model is at least `ESTABLISHED_ASR`. Everything else is excluded with a reason, given in the column
`excluded` of the tables `states` and `transfer`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import pandas as pd

from casd.config.states import INJECTED, removed_backdoor

ESTABLISHED_ASR: Final = 0.5
"""Minimum ASR of an established backdoor in the injected model. Below it there is nothing to suppress."""
MIN_REMOVALS: Final = 4
"""Minimum number of included removals of a run for pooled correlations and predictions: fewer leave nothing to hold out."""

INJECTED_COLLAPSED: Final = "injected model collapsed"
COLLAPSED: Final = "collapsed"
NOT_ESTABLISHED: Final = "backdoor not established"
NO_STEP_KEPT: Final = "no training step kept"
TARGET_NOT_REACHED: Final = "target ASR not reached"


def exclusions(asr: pd.DataFrame, states: pd.DataFrame) -> dict[str, str]:
    """Return the reason for the exclusion of each state, "" if it is included.

    Args:
        asr: a row per state × backdoor × prompt_set; reads backdoor and rate of the "triggered" rows of the injected model.
        states: a row per model state; reads state, collapsed and, if present, steps and reached_target.
    """
    established = _established(asr)
    broken = states.loc[states["state"] == INJECTED, "collapsed"].astype(bool).any()
    return {
        str(record["state"]): INJECTED_COLLAPSED if broken else _reason(record, established)
        for record in states.to_dict("records")
    }


def cell_exclusions(cells: pd.DataFrame, asr: pd.DataFrame, states: pd.DataFrame) -> list[str]:
    """Return the reason for the exclusion of each cell (source, target): that of its source, or an unestablished target."""
    reasons, established = exclusions(asr, states), _established(asr)
    return [
        reasons[source] or ("" if established.get(target, True) else NOT_ESTABLISHED)
        for source, target in zip(cells["source"], cells["target"], strict=True)
    ]


def count_exclusions(reasons: Iterable[str]) -> str:
    """Count exclusions by reason, as "2 collapsed, 1 target ASR not reached"; "" if there are none."""
    counts = Counter(reason for reason in reasons if reason)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


def _established(asr: pd.DataFrame) -> dict[str, bool]:
    before = asr[(asr["state"] == INJECTED) & (asr["prompt_set"] == "triggered")]
    return {str(name): not rate < ESTABLISHED_ASR for name, rate in zip(before["backdoor"], before["rate"], strict=True)}


def _reason(record: dict[Any, Any], established: dict[str, bool]) -> str:
    state = str(record["state"])
    if state == INJECTED:
        return ""
    if record["collapsed"]:
        return COLLAPSED
    if not established.get(removed_backdoor(state), True):
        return NOT_ESTABLISHED
    if record.get("steps") == 0:
        return NO_STEP_KEPT
    return TARGET_NOT_REACHED if record.get("reached_target") == 0 else ""
