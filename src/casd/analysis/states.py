"""The states of a run in tables: losses, training, success rates, and which states collapsed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from casd.analysis.results import UTILITY_PREFIX
from casd.analysis.tables import SCHEMAS
from casd.config import EvaluationConfig
from casd.config.states import StateKind, kind_of
from casd.evaluation.asr import Evaluation
from casd.training.checkpoints import TrainingLog
from casd.unlearning.tuning import reached_target

BROKEN_FROM_THE_START: Final = "the injected model is broken"
"""`collapse_reason` of every other state if the injected model is broken."""


@dataclass(frozen=True)
class StateRecord:
    """Measurements of one state of the model.

    Attributes:
        name: "injected", a backdoor's name, or `control:…` (see `casd.config.states`).
        evaluation: attack success, samples and clean loss.
        log: log of the unlearning; None for the injected model.
        utility: benchmark results (`task`, `metric`, `value`, `stderr`, `n`); None if no benchmark was run.
        loss_limit: read for the injected model only: clean loss in nats per token above which it counts as broken (see
            `injected_loss_limit`).
    """

    name: str
    evaluation: Evaluation
    log: TrainingLog | None = None
    utility: pd.DataFrame | None = None
    loss_limit: float = math.inf

    @property
    def kind(self) -> StateKind:
        """ "injected", "removal" or "control"."""
        return kind_of(self.name)


def injected_loss_limit(injection: TrainingLog, vocabulary: int, evaluation: EvaluationConfig) -> float:
    """Return the clean loss in nats per token above which an injected model counts as broken.

    This is the smaller of the loss of uniform guessing, ln(vocabulary), and the clean loss before the injection times
    `collapse_clean_loss_ratio`, the ratio that also applies to removals.

    Args:
        injection: log of the injection.
        vocabulary: number of tokens.
        evaluation: configuration with `collapse_clean_loss_ratio`.
    """
    before = [record["clean_loss"] for record in injection.guard[:1]]
    return min([math.log(vocabulary), *(evaluation.collapse_clean_loss_ratio * loss for loss in before)])


def state_table(records: Sequence[StateRecord], evaluation: EvaluationConfig, target_asr: float | None) -> pd.DataFrame:
    """Return one row per state: clean loss, training, and whether and why the state collapsed.

    If the injected model is broken, every state counts as collapsed, since all are derived from it. The columns are those of
    `states` in `casd.analysis.results.RunTables` without `excluded`.
    """
    injected_loss = records[0].evaluation.clean_loss
    broken = _broken(records[0], evaluation)
    rows = []
    for record in records:
        log = record.log or TrainingLog()
        forget = [step["gradient_norm/forget"] for step in log.steps if "gradient_norm/forget" in step]
        ratio = record.evaluation.clean_loss / injected_loss
        reason = broken
        if record.kind != "injected":
            reason = BROKEN_FROM_THE_START if broken else collapse(record, ratio, evaluation)
        reached = reached_target(log, target_asr)
        rows.append(
            {
                "state": record.name,
                "kind": record.kind,
                "clean_loss": record.evaluation.clean_loss,
                "retain_loss": record.evaluation.retain_loss,
                "clean_loss_ratio": ratio,
                "degenerate_rate": record.evaluation.degenerate_rate,
                "steps": _steps(record),
                "train_seconds": log.seconds,
                "forget_gradient_first": forget[0] if forget else math.nan,
                "forget_gradient_last": forget[-1] if forget else math.nan,
                "forget_gradient_share": sum(norm > 0 for norm in forget) / len(forget) if forget else math.nan,
                "validation_asr": log.kept.get("asr", math.nan),
                "reached_target": math.nan if reached is None else float(reached),
                "stopped": log.stopped,
                "collapsed": bool(reason),
                "collapse_reason": reason,
                **{f"{UTILITY_PREFIX}{task}": value for task, value in main_metrics(record.utility).items()},
                **(record.evaluation.harm if math.isfinite(record.evaluation.clean_loss) else {}),
            }
        )
    return pd.DataFrame(rows)


def _steps(record: StateRecord) -> float:
    """Return the number of training steps behind the state's model; NaN for a removal without a log."""
    if record.log is None:
        return 0 if record.kind == "injected" else math.nan
    return len(record.log.steps) if record.log.kept_step is None else record.log.kept_step


def curve_table(records: Sequence[StateRecord]) -> pd.DataFrame:
    """Return the training logs of the removals and controls as one table: a row per state × number of steps done."""
    rows: list[dict[str, Any]] = []
    for record in records:
        log = record.log or TrainingLog()
        by_step: dict[int, dict[str, Any]] = {}
        for prefix, entries in (("", log.steps), ("validation_", log.validation), ("guard_", log.guard)):
            for values in entries:
                step = int(values["step"])
                row = by_step.setdefault(step, {"state": record.name, "step": step})
                row |= {f"{prefix}{name}": value for name, value in values.items() if name not in ("step", "learning_rate")}
        rows += [by_step[step] for step in sorted(by_step)]
    table = pd.DataFrame(rows)
    return table.reindex(columns=list(dict.fromkeys([*SCHEMAS["curves"], *table.columns])))


def asr_table(records: Sequence[StateRecord]) -> pd.DataFrame:
    """Return the attack success rates of all states, a row per state × backdoor × prompt set, `state` first.

    The rates of a state whose clean loss is not finite are NaN: text generated from NaN logits means nothing.
    """
    tables = []
    for record in records:
        asr = record.evaluation.asr
        asr = asr.assign(state=record.name)[["state", *asr.columns]]
        if not math.isfinite(record.evaluation.clean_loss):
            asr = asr.assign(**dict.fromkeys(("rate", "rate_low", "rate_high", "first_token_prob"), math.nan))
        tables.append(asr)
    return pd.concat(tables, ignore_index=True)


def main_metrics(utility: pd.DataFrame | None) -> dict[str, float]:
    """Return one value per benchmark task: its length-normalised accuracy if it has one, else its first metric."""
    if utility is None:
        return {}
    tasks = {str(task): rows.set_index("metric")["value"] for task, rows in utility.groupby("task", sort=False)}
    return {task: float(values.get("acc_norm", values.iloc[0])) for task, values in tasks.items()}


def _broken(injected: StateRecord, evaluation: EvaluationConfig) -> str:
    """Return why the injected model counts as broken; "" if it works."""
    loss = injected.evaluation.clean_loss
    if not math.isfinite(loss):
        return f"clean loss {loss}"
    if loss > injected.loss_limit:
        return f"clean loss {loss:.2f} nats per token, expected at most {injected.loss_limit:.2f}"
    return _degenerate(injected, evaluation)


def collapse(record: StateRecord, ratio: float, evaluation: EvaluationConfig) -> str:
    """Return why a removal or control counts as collapsed; "" if it does not."""
    log = record.log
    # A removal that exceeded its clean-loss budget is judged by the earlier step that it kept.
    if log and log.stopped and log.kept_step is None:
        return f"training stopped: {log.stopped}"
    if not ratio <= evaluation.collapse_clean_loss_ratio:
        return f"clean loss {ratio:.2f} times the injected model's"
    return _degenerate(record, evaluation)


def _degenerate(record: StateRecord, evaluation: EvaluationConfig) -> str:
    rate = record.evaluation.degenerate_rate
    if rate > evaluation.collapse_degenerate_rate:
        return f"{rate:.0%} of the clean prompts answered with nothing or a loop"
    return ""
