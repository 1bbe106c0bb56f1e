"""What the transfer depends on: one setting, compared with others that each differ from it in one thing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import pandas as pd

from casd.analysis.comparison import paired_difference
from casd.analysis.conditions import label_changes
from casd.analysis.grouping import POOLED, by_condition, headline_variants, mean_of_runs, over_runs
from casd.analysis.results import RunTables
from casd.analysis.runs import by_size
from casd.report.comparisons import MEASURED
from casd.report.markup import Table, excluding_zero, table_of
from casd.report.wording import fraction, intervals_over, mean_with_interval, model_label, percent
from casd.reproduction.verdicts import REMOVED_ASR, Evidence

UNCHANGED: Final = "nothing"
"""Label of the setting that the others are compared with."""
_NET: Final = "suppression_net_phantom"
_RHO: Final = "rho:"


def one_at_a_time(evidence: Evidence) -> pd.DataFrame:
    """Compare settings with the one that differs least from all others of the model, which stands first, the others by name.

    Returns:
        The rows of `compare_objectives` that are not pooled over models, with more columns:

        - changed: what the setting changes of the first (`label_changes`), or the whole setting if two would be named alike
        - injected_asr: mean ASR of all backdoors before the removals
        - difference: how much more the others are suppressed, net of the phantom, than at the first, with `_low` and `_high`
          (`paired_difference`); NaN for the first itself, and without a cell that both have
        - rho:NAME, with `_low` and `_high`: of each headline variant of CASD as a predictor (`predictor_table`); NaN with too
          few backdoors
    """
    frame = evidence.objectives[evidence.objectives["model"] != POOLED].reset_index(drop=True)
    groups = by_condition(evidence.runs)
    of_models: dict[str, list[list[RunTables]]] = {}
    for (model, _), runs in groups.items():
        of_models.setdefault(model, []).append(runs)
    unchanged = {model: _center(conditions) for model, conditions in of_models.items()}
    changed, columns = [], []
    for model, objective in zip(frame["model"], frame["objective"], strict=True):
        runs, first = groups[model, objective], unchanged[model]
        before = over_runs(runs, "transfer").drop_duplicates(["run", "target"])
        changed.append(label_changes(runs[0].info, first[0].info) or UNCHANGED)
        injected = mean_of_runs(before["asr_before"], before["run"])
        columns.append(
            {"injected_asr": injected, **paired_difference(runs, [] if runs is first else first, _NET).columns("difference")}
        )
    frame = frame.assign(changed=changed, **pd.DataFrame(columns))
    for name in headline_variants(evidence.runs):
        found = evidence.predictors.query("role == 'headline' and predictor == @name").set_index(["model", "objective"])
        rows = pd.MultiIndex.from_frame(frame[["model", "objective"]])
        for end in ("", "_low", "_high"):
            frame[f"{_RHO}{name}{end}"] = found[f"rho{end}"].reindex(rows).to_numpy()
    models = list(of_models)
    order = sorted(
        frame.index, key=lambda row: (models.index(frame["model"][row]), changed[row] != UNCHANGED, by_size(changed[row]))
    )
    frame = frame.loc[order].reset_index(drop=True)
    return frame.assign(changed=frame["objective"]) if frame.duplicated(["model", "changed"]).any() else frame


def _center(conditions: Sequence[Sequence[RunTables]]) -> Sequence[RunTables]:
    """Return the runs of the condition that differs in the fewest settings from the others."""

    def distance(runs: Sequence[RunTables]) -> int:
        return sum(len(label_changes(other[0].info, runs[0].info).split(", ")) for other in conditions if other is not runs)

    return min(conditions, key=distance)


def factors_table(frame: pd.DataFrame) -> Table:
    """A row for each setting of `one_at_a_time`."""
    means = MEASURED | {"more than first": "difference"}
    limits = [column for column in map(str, frame.columns) if column.startswith(_RHO) and column.endswith("_low")]
    rho = {f"ρ {column.removeprefix(_RHO).removesuffix('_low')}": column.removesuffix("_low") for column in limits}
    rows = [
        {
            "changed": record["changed"],
            "injected ASR": fraction(record["injected_asr"]),
            "included": f"{record['included']} of {record['removals']}",
            "own ASR": fraction(record["own_asr"]),
            **{heading: mean_with_interval(record, name) for heading, name in means.items()},
            "clean": fraction(record["clean_control"]),
            "phantom": fraction(record["phantom_control"]),
            "clean loss": percent(record["clean_loss_change"]),
            **{heading: mean_with_interval(record, name) for heading, name in rho.items()},
        }
        for record in frame.to_dict("records")
    ]
    return table_of(
        rows,
        groups=list(map(model_label, frame["model"])),
        bold=excluding_zero(frame, means | rho),
        name="factors",
        title="One thing changed at a time",
        caption="Injected ASR: mean of all backdoors before the removals. Included: removals that enter the means. Others:"
        " suppression of the other backdoors' ASR, raw and net of the controls, with 95 % intervals over"
        f" {intervals_over(frame['runs'])} (bold: excludes zero). More than first: that net of the phantom minus the"
        " same of the first row, within seed, removed and measured backdoor (of those that both have), not corrected for the"
        " number of rows. Clean, phantom: the suppression under these controls. ρ: rank correlation of CASD and the suppression"
        " of each pair.",
    )


def factors_statements(frame: pd.DataFrame) -> list[str]:
    """Say for each model which settings of `one_at_a_time` weaken the others more, or less, than its first one does."""
    said = []
    for model, rows in frame.groupby("model", sort=False):
        first, *others = rows.to_dict("records")
        removed = [record for record in others if record["own_asr"] <= REMOVED_ASR and not math.isnan(record[_NET])]
        compared = [record for record in removed if not math.isnan(record["difference_low"])]
        more = [record for record in compared if record["difference_low"] > 0]
        less = [record for record in compared if record["difference_high"] < 0]
        said.append(
            f"{model_label(str(model))}, with nothing changed: a removal weakens the others by"
            f" {mean_with_interval(first, _NET)}, net of the phantom."
        )
        if compared:
            rest = len(compared) - len(more) - len(less)
            said.append(
                f"Of {len(compared)} changes, those after which it weakens them more: {_named(more)}; less: {_named(less)}; not"
                f" distinguishable: {rest}."
            )
        if left_out := "; ".join(record["changed"] for record in others if record not in removed):
            said.append(f"Left out, since too few backdoors were injected or removed: {left_out}.")
        if unpaired := "; ".join(record["changed"] for record in removed if record not in compared):
            said.append(f"Not compared, since too few backdoors and seeds are in both: {unpaired}.")
    return said


def _named(settings: list[dict[Any, Any]]) -> str:
    return "; ".join(f"{each['changed']} ({mean_with_interval(each, 'difference')})" for each in settings) or "none"
