"""From what was measured on every state to the tables of a run: suppression, CASD, and how the two relate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from casd.activations.hooks import SITES
from casd.activations.statistics import POSITIONS
from casd.analysis.inclusion import exclusions
from casd.analysis.results import UTILITY_PREFIX, RunTables
from casd.analysis.tables import SCHEMAS
from casd.analysis.transfer import relate, specificity, transfer_table
from casd.config import ActivationsConfig, EvaluationConfig, MetricConfig
from casd.config.states import CLEAN_CONTROL, INJECTED, StateKind, kind_of
from casd.evaluation.asr import Evaluation
from casd.metric.casd import HEADLINES, CasdMatrix, CasdVariant, ShiftTable, compute_casd, variant_grid
from casd.metric.measurement import TextStatistics
from casd.training.checkpoints import TrainingLog
from casd.unlearning.tuning import reached_target
from casd.utils.errors import ConfigError
from casd.utils.registry import build

BROKEN_FROM_THE_START = "the injected model is broken"
"""Why every other state of such a model counts as collapsed."""


@dataclass(frozen=True)
class StateRecord:
    """What is known of one state of the model.

    Attributes:
        name: "injected", a backdoor's name, or `control:…` (see `casd.config.states`).
        evaluation: what was measured on it.
        log: its unlearning; None for the injected model.
        utility: its benchmarks (`task`, `metric`, `value`, `stderr`, `n`); None if there were none.
        loss_limit: of the injected model, the clean loss in nats per token above which it counts as broken (see
            `injected_loss_limit`).
    """

    name: str
    evaluation: Evaluation
    log: TrainingLog | None = None
    utility: pd.DataFrame | None = None
    loss_limit: float = math.inf

    @property
    def kind(self) -> StateKind:
        """Told by the name."""
        return kind_of(self.name)


def score(
    records: Sequence[StateRecord],
    statistics: Mapping[str, TextStatistics],
    metric: MetricConfig,
    evaluation: EvaluationConfig,
    *,
    seed: int,
    info: dict[str, Any],
    target_asr: float | None = None,
    baselines: pd.DataFrame | None = None,
    tuning: pd.DataFrame | None = None,
) -> RunTables:
    """Compute the tables of a run; no model is needed.

    Args:
        records: of every state, the injected model first.
        statistics: the activation statistics of every state.
        metric: more CASD variants, by name or the whole grid, and the permutations of the Mantel test.
        evaluation: when a state counts as collapsed.
        seed: of permutations and bootstrap.
        info: what the tables are to say of the run; the headline variants' names are added.
        target_asr: of the removed backdoor's validation, where the removals had one.
        baselines: the distances of the baselines (`casd.metric.baselines.evidence.baseline_table`); None for none.
        tuning: the trials by which the objective was tuned (`casd.unlearning.tuning`); None if it was not.
    """
    states = _states(records, evaluation, target_asr)
    asr = pd.concat([_rates(record) for record in records], ignore_index=True)
    states["excluded"] = states["state"].map(exclusions(asr, states))
    transfer = transfer_table(asr, states)
    names = [record.name for record in records if record.kind != "injected"]
    backdoors = [record.name for record in records if record.kind == "removal"]
    table = ShiftTable(statistics, statistics[INJECTED], backdoors, control=CLEAN_CONTROL)
    matrices = [compute_casd(table, variant, names) for variant in casd_variants(metric)]
    every_order = [(a, b) for a in range(len(names)) for b in range(len(names))]
    distances = _pairs(matrices, every_order).assign(grid=False)
    grid = []
    if metric.grid:
        captured = statistics[INJECTED][f"triggered:{backdoors[0]}"]
        variants = variant_grid(captured.sites, captured.positions)
        variants = [variant for variant in variants if variant.text != "fake" or "fake" in statistics[INJECTED]]
        computed = [compute_casd(table, variant, names) for variant in variants]
        grid = [_pairs(computed, [(a, b) for a, b in every_order if a < b]).assign(grid=True)]
    samples = [record.evaluation.samples.assign(state=record.name) for record in records]
    utility = [record.utility.assign(state=record.name) for record in records if record.utility is not None]
    return RunTables(
        asr=_first("state", asr),
        states=states,
        transfer=transfer,
        casd=pd.concat([distances, *grid], ignore_index=True),
        casd_layers=pd.concat([_layer_pairs(matrix) for matrix in matrices], ignore_index=True),
        relation=relate(distances, transfer, baselines, permutations=metric.permutations, seed=seed),
        specificity=specificity(transfer, seed=seed),
        samples=_first("state", pd.concat(samples, ignore_index=True)),
        utility=_first("state", pd.concat(utility, ignore_index=True)) if utility else pd.DataFrame(columns=SCHEMAS["utility"]),
        baselines=pd.DataFrame(columns=SCHEMAS["baselines"]) if baselines is None else baselines,
        tuning=pd.DataFrame(columns=SCHEMAS["tuning"]) if tuning is None else tuning,
        curves=_curves(records),
        info={**info, "headline": [variant.name for variant in HEADLINES]},
    )


def injected_loss_limit(injection: TrainingLog, vocabulary: int, evaluation: EvaluationConfig) -> float:
    """The clean loss in nats per token above which an injected model counts as broken.

    That is the loss of guessing, ln(vocabulary); or, of a model that was better than that before its injection, the clean loss
    that it then had times `collapse_clean_loss_ratio`, by which removals are judged, too.

    Args:
        injection: the log of the injection.
        vocabulary: the number of tokens.
        evaluation: has the ratio.
    """
    before = [record["clean_loss"] for record in injection.guard[:1]]
    return min([math.log(vocabulary), *(evaluation.collapse_clean_loss_ratio * loss for loss in before)])


def casd_variants(metric: MetricConfig) -> list[CasdVariant]:
    """The headline variants, which every run computes, and then those that the configuration names; not the grid's.

    Raises:
        ConfigError: a field that a variant does not have, a value that it cannot have, or a name that is taken.
    """
    taken = {variant.name for variant in (*HEADLINES, *variant_grid(SITES, POSITIONS))}
    for name in metric.variants:
        if name in taken:
            raise ConfigError(
                f"metric.variants.{name}: that is the name of a headline variant or of one of the grid. Choose another."
            )
    more = [
        build({name: "casd.metric.casd:CasdVariant"}, "CASD variant", name, {"name": name, **fields})
        for name, fields in metric.variants.items()
    ]
    return [*HEADLINES, *more]


def check_captured(metric: MetricConfig, activations: ActivationsConfig) -> None:
    """Refuse, before anything is trained, to leave out activations that a CASD variant needs.

    Raises:
        ConfigError: such a variant, or one that cannot be.
    """
    for variant in casd_variants(metric):
        if variant.site not in activations.sites or variant.position not in activations.positions:
            raise ConfigError(
                f"The CASD variant {variant.name!r} needs the site {variant.site!r} at the position {variant.position!r};"
                f" add them to activations.sites ({', '.join(activations.sites)}) and activations.positions"
                f" ({', '.join(activations.positions)})."
            )


def _states(records: Sequence[StateRecord], evaluation: EvaluationConfig, target_asr: float | None) -> pd.DataFrame:
    """One row per state: its clean loss beside the injected model's, its training, and whether it collapsed, and why.

    Of an injected model that is broken all other states are, too: they are what became of it.
    """
    injected_loss = records[0].evaluation.clean_loss
    broken = _broken(records[0], evaluation)
    rows = []
    for record in records:
        log = record.log or TrainingLog()
        forget = [step["gradient_norm/forget"] for step in log.steps if "gradient_norm/forget" in step]
        ratio = record.evaluation.clean_loss / injected_loss
        # A removal that went over its budget keeps an earlier step, which was within it.
        stopped = log.stopped if log.kept_step is None else ""
        reason = broken
        if record.kind != "injected":
            reason = BROKEN_FROM_THE_START if broken else _collapse(record, ratio, stopped, evaluation)
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
                "reached_target": _as_float(reached_target(log, target_asr)),
                "stopped": log.stopped,
                "collapsed": bool(reason),
                "collapse_reason": reason,
                **{f"{UTILITY_PREFIX}{task}": value for task, value in _main_metrics(record.utility).items()},
            }
        )
    return pd.DataFrame(rows)


def _steps(record: StateRecord) -> float:
    """Training steps that the state's model has done; NaN of a removal without a log."""
    if record.log is None:
        return 0 if record.kind == "injected" else math.nan
    return len(record.log.steps) if record.log.kept_step is None else record.log.kept_step


def _curves(records: Sequence[StateRecord]) -> pd.DataFrame:
    """The logs of the removals and controls in one table. A log's `step` is the number of steps done, in all its parts."""
    rows: list[dict[str, Any]] = []
    for record in records:
        log = record.log or TrainingLog()
        at: dict[int, dict[str, Any]] = {}
        for prefix, measured in (("", log.steps), ("validation_", log.validation), ("guard_", log.guard)):
            for values in measured:
                step = int(values["step"])
                row = at.setdefault(step, {"state": record.name, "step": step})
                row |= {f"{prefix}{name}": value for name, value in values.items() if name not in ("step", "learning_rate")}
        rows += [at[step] for step in sorted(at)]
    table = pd.DataFrame(rows)
    return table.reindex(columns=list(dict.fromkeys([*SCHEMAS["curves"], *table.columns])))


def _as_float(value: bool | None) -> float:
    """1 or 0, NaN for None: a column that may be missing."""
    return math.nan if value is None else float(value)


def _main_metrics(utility: pd.DataFrame | None) -> dict[str, float]:
    """One number for each benchmark task: the accuracy by length-normalised likelihood where it has one, else its first."""
    if utility is None:
        return {}
    tasks = {str(task): rows.set_index("metric")["value"] for task, rows in utility.groupby("task", sort=False)}
    return {task: float(values.get("acc_norm", values.iloc[0])) for task, values in tasks.items()}


def _broken(injected: StateRecord, evaluation: EvaluationConfig) -> str:
    """Why the injected model is of no use; empty if it is."""
    loss = injected.evaluation.clean_loss
    if not math.isfinite(loss):
        return f"clean loss {loss}"
    if loss > injected.loss_limit:
        return f"clean loss {loss:.2f} nats per token, expected at most {injected.loss_limit:.2f}"
    return _degenerate(injected, evaluation)


def _collapse(record: StateRecord, ratio: float, stopped: str, evaluation: EvaluationConfig) -> str:
    """Why a removal or control counts as collapsed; empty if it does not."""
    if stopped:
        return f"training stopped: {stopped}"
    if not ratio <= evaluation.collapse_clean_loss_ratio:
        return f"clean loss {ratio:.2f} times the injected model's"
    return _degenerate(record, evaluation)


def _degenerate(record: StateRecord, evaluation: EvaluationConfig) -> str:
    rate = record.evaluation.degenerate_rate
    if rate > evaluation.collapse_degenerate_rate:
        return f"{rate:.0%} of the clean prompts answered with nothing or a loop"
    return ""


def _rates(record: StateRecord) -> pd.DataFrame:
    """A state's rates. NaN where its clean loss is not finite: a model whose logits are NaN gives text that means nothing."""
    asr = record.evaluation.asr.assign(state=record.name)
    if math.isfinite(record.evaluation.clean_loss):
        return asr
    return asr.assign(**dict.fromkeys(("rate", "rate_low", "rate_high", "first_token_prob"), math.nan))


def _first(column: str, table: pd.DataFrame) -> pd.DataFrame:
    return table[[column, *(name for name in table.columns if name != column)]]


def _pairs(matrices: Sequence[CasdMatrix], pairs: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """A row per matrix × pair of indices of removals."""
    rows, columns = zip(*pairs, strict=True)
    names = np.array(matrices[0].names, dtype=object)
    return pd.DataFrame(
        {
            "variant": np.repeat(np.array([matrix.variant.name for matrix in matrices], dtype=object), len(rows)),
            "a": np.tile(names[list(rows)], len(matrices)),
            "b": np.tile(names[list(columns)], len(matrices)),
            "distance": torch.stack([matrix.values[rows, columns] for matrix in matrices]).flatten().numpy(),
        }
    )


def _layer_pairs(matrix: CasdMatrix) -> pd.DataFrame:
    rows = [
        (matrix.variant.name, a, b, layer_idx, float(matrix.per_layer[i, j, k]))
        for (i, a), (j, b) in itertools.combinations(enumerate(matrix.names), 2)
        for k, layer_idx in enumerate(matrix.layers)
    ]
    return pd.DataFrame(rows, columns=["variant", "a", "b", "layer_idx", "distance"])
