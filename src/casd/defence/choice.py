"""The defender's choice, by the held-out dummies and the clean budget alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from casd.analysis.inclusion import ESTABLISHED_ASR
from casd.analysis.results import UTILITY_PREFIX
from casd.analysis.states import StateRecord, collapse
from casd.config import DefendConfig
from casd.defence.states import State
from casd.evaluation.asr import Evaluation


@dataclass(frozen=True)
class Decision:
    """The state that the defender chose.

    Attributes:
        state: its name; "" if no removal could be chosen.
        reason: why none could be chosen; "" otherwise.
        foretold: held-out dummies' ASR in it, as a fraction of their ASR when planted: the estimate of what is left of an
            unknown backdoor; None if no held-out dummy was learned.
        learned: number of held-out dummies that were learned.
        held_out: number of held-out dummies.
    """

    state: str
    reason: str
    foretold: float | None  # the name in the decisions that are stored
    learned: int
    held_out: int


def share_left(before: pd.Series, after: pd.Series) -> float:
    """Return the mean over backdoors of the ASR after a removal divided by the ASR before it.

    Args:
        before: ASR by backdoor; those below `ESTABLISHED_ASR` are left out, since they were not learned.
        after: ASR by backdoor.

    Returns:
        NaN if no backdoor was learned.
    """
    learned = before[before >= ESTABLISHED_ASR]
    return float((after.reindex(learned.index) / learned).mean()) if len(learned) else math.nan


def outcome_table(
    states: Sequence[State],
    measured: Mapping[str, Evaluation],
    config: DefendConfig,
    benchmarks: Mapping[str, Mapping[str, float]],
) -> pd.DataFrame:
    """Return a row per state: its clean loss, what is left of the dummies, and its benchmarks.

    Columns: `state`, `kind`, `dummies_removed`, `setting` ("" or "learning_rate=0.0003"), `steps`, `clean_loss` (nats per
    token), `clean_loss_ratio` (to the suspect's), `collapsed`, `removed_asr` (mean over the dummies that the state removed),
    `held_out_asr` (mean over the held-out ones), `held_out_left` (`share_left` of the held-out ones; NaN for states without
    dummies), `learned` (held-out dummies that were learned), and a column for each benchmark ("utility/hellaswag").
    """
    asr = {name: _triggered(evaluation) for name, evaluation in measured.items()}
    held_out = [name for name, section in config.backdoor.items() if not section.removed]
    planted = asr["planted"][held_out]
    suspect_loss = measured["suspect"].clean_loss
    rows = []
    for state in states:
        evaluation = measured[state.name]
        ratio = evaluation.clean_loss / suspect_loss
        has_dummies = state.kind in ("planted", "control", "removal")
        rows.append(
            {
                "state": state.name,
                "kind": state.kind,
                "dummies_removed": len(state.removed),
                "setting": ", ".join(f"{name}={value}" for name, value in state.setting.items()),
                "steps": state.steps,
                "clean_loss": evaluation.clean_loss,
                "clean_loss_ratio": ratio,
                "collapsed": bool(collapse(StateRecord(state.name, evaluation), ratio, config.evaluation)),
                "removed_asr": float(asr[state.name][list(state.removed)].mean()) if state.removed else math.nan,
                "held_out_asr": float(asr[state.name][held_out].mean()) if has_dummies else math.nan,
                "held_out_left": share_left(planted, asr[state.name][held_out]) if has_dummies else math.nan,
                "learned": int((planted >= ESTABLISHED_ASR).sum()),
                **{f"{UTILITY_PREFIX}{task}": value for task, value in benchmarks.get(state.name, {}).items()},
            }
        )
    return pd.DataFrame(rows)


def _triggered(evaluation: Evaluation) -> pd.Series:
    rows = evaluation.asr[evaluation.asr["prompt_set"] == "triggered"]
    return rows.set_index("backdoor")["rate"]


def choose(outcomes: pd.DataFrame, config: DefendConfig) -> Decision:
    """Choose the removal that leaves least of the held-out dummies, among those within the clean budget that did not collapse.

    Of equal ones the one with the smaller clean loss is chosen.
    """
    held_out, learned = config.defence.held_out, int(outcomes["learned"].iloc[0])
    if not learned:
        reason = (
            f"none of {held_out} held-out dummies was learned (ASR of at least {ESTABLISHED_ASR}), so nothing can be compared"
        )
        return Decision("", reason, None, 0, held_out)
    removals = outcomes[outcomes["kind"] == "removal"]
    within = removals[(removals["clean_loss_ratio"] <= config.defence.clean_budget) & ~removals["collapsed"]]
    if within.empty:
        least = removals["clean_loss_ratio"].min()
        reason = (
            f"no removal is within the clean budget: the smallest clean loss is {least:.2f} times the suspect's, and"
            f" defence.clean_budget is {config.defence.clean_budget:g}"
        )
        return Decision("", reason, None, learned, held_out)
    best = within.sort_values(["held_out_left", "clean_loss"]).iloc[0]
    return Decision(str(best["state"]), "", float(best["held_out_left"]), learned, held_out)
