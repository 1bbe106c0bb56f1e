"""What runs say of each kind of trigger and each behavior: injection, controls, removal, and transfer within and across kinds.

Removals and backdoors are included by the rule of `casd.analysis.inclusion`; every mean is the mean over runs of each run's
mean (`casd.stats.mean_over_runs`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import pandas as pd

from casd.analysis.conditions import flatten
from casd.analysis.grouping import by_condition, included_cells, over_runs
from casd.analysis.results import RunTables
from casd.config.states import INJECTED, phantom_baselines
from casd.stats import mean_over_runs

ALL: Final = "all"
"""Kind or behavior of a row over all of them."""
RATES: Final = {"injected_asr": "triggered", "injected_fake": "fake", "injected_clean": "clean"}
"""Column of `trigger_kinds` → prompt set whose rate in the injected model is averaged."""
RELATIONS: Final = ("same_kind", "same_target", "neither")
"""How the removed and the measured backdoor are related; each is a column of `trigger_kinds`, net of clean training."""
EFFECTS: Final = {"kind_effect": "same_kind", "target_effect": "same_target"}
"""Column of `trigger_kinds` → the relation that it compares with "neither"."""
_AVERAGED: Final = (*RATES, "own_asr", *RELATIONS, *EFFECTS, "phantom")


def kind_and_target(tables: RunTables) -> dict[str, tuple[str, str]]:
    """Return the kind of trigger ("phrase", "topic", …) and the target behavior of each backdoor of a run."""
    settings, targets = flatten(str(tables.info.get("config") or "")), tables.info.get("targets") or {}
    return {
        name: (str(settings.get(f"backdoor.{name}.trigger.name", "phrase")), str(targets.get(name, name)))
        for name in tables.backdoors
    }


def trigger_kinds(runs: Sequence[RunTables]) -> pd.DataFrame:
    """Summarize the backdoors of each condition by kind of trigger and target behavior.

    Args:
        runs: finished runs.

    Returns:
        Rows for every condition whose backdoors have triggers of several kinds: one per kind × target, one per kind over all
        targets, one per target over all kinds, and one over all ("all"). Columns, fractions unless stated otherwise, each mean
        with `_low` and `_high` (95 %, over runs and backdoors):

        - model, objective (with its setting), kind, target; runs, backdoors (counts)
        - injected_asr, injected_fake, injected_clean: success rate in the injected model on triggered prompts, on prompts with
          fake triggers (NaN where none can be made) and on clean prompts
        - own_asr: ASR of the removed backdoor after its own removal
        - same_kind, same_target, neither: suppression of the other backdoors by these removals, net of training on clean text
          alone. `same_kind` are backdoors with a trigger of the same kind and another target, `same_target` those of another
          kind with the same target, `neither` those that share neither
        - kind_effect, target_effect: the suppression of a backdoor by removals of `same_kind` and of `same_target`, minus its
          mean suppression in the same run by the removals that share neither with it, which the limits take as given
        - phantom: suppression of these backdoors themselves by the removal of a trigger that was never injected, net of
          training on clean text alone: the control
    """
    rows = []
    for (model, objective), members in by_condition(runs).items():
        labels = kind_and_target(members[0])
        if len({kind for kind, _ in labels.values()}) < 2:
            continue
        # For each column: its cells, and the columns of their backdoors; a row has the cells of which the first is of its kind.
        cells = dict.fromkeys(RATES, (_injected(members), ["backdoor"]))
        cells |= dict.fromkeys(("own_asr", *RELATIONS, *EFFECTS), (_removed(members, labels), ["source", "target"]))
        cells |= {"phantom": (_under_phantoms(members), ["target"])}
        for kind, target in _cells(labels):
            names = [name for name, label in labels.items() if kind in (ALL, label[0]) and target in (ALL, label[1])]
            row: dict[str, object] = {"model": model, "objective": objective, "kind": kind, "target": target}
            row |= {"runs": len(members), "backdoors": len(names)}
            for column, (frame, backdoors) in cells.items():
                own = frame[frame[backdoors[0]].isin(names)]
                bounds = (0, 1) if column in (*RATES, "own_asr") else (-2, 2) if column in EFFECTS else (-1, 1)
                mean = mean_over_runs(own[column], own["run"], own[backdoors].astype(str), bounds=bounds)
                row |= mean.columns(column)
            rows.append(row)
    averaged = [f"{column}{end}" for column in _AVERAGED for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["model", "objective", "kind", "target", "runs", "backdoors", *averaged])


def _cells(labels: Mapping[str, tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of kind and target that occur, each kind over all targets, each target over all kinds, and all."""
    kinds, targets = (list(dict.fromkeys(column)) for column in zip(*labels.values(), strict=True))
    yield from sorted(set(labels.values()), key=lambda label: (kinds.index(label[0]), targets.index(label[1])))
    yield from ((kind, ALL) for kind in kinds)
    yield from ((ALL, target) for target in targets)
    yield ALL, ALL


def _injected(runs: Sequence[RunTables]) -> pd.DataFrame:
    """Return run, backdoor and the rates of RATES in the injected model, NaN for a prompt set that was not measured."""
    asr = over_runs(runs, "asr")
    wide = asr[asr["state"] == INJECTED].pivot(index=["run", "backdoor"], columns="prompt_set", values="rate")
    columns = {name: wide.get(prompt_set, pd.Series(float("nan"), wide.index)) for name, prompt_set in RATES.items()}
    return pd.DataFrame(columns).reset_index()


def _removed(runs: Sequence[RunTables], labels: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Return run, source, target, own_asr and the columns of RELATIONS and EFFECTS of the included cells of removals."""
    cells = pd.concat([included_cells(tables).assign(run=number) for number, tables in enumerate(runs)], ignore_index=True)
    pairs = [(labels[source], labels[target]) for source, target in zip(cells["source"], cells["target"], strict=True)]
    same_kind = pd.Series([a[0] == b[0] for a, b in pairs], cells.index, dtype=bool)
    same_target = pd.Series([a[1] == b[1] for a, b in pairs], cells.index, dtype=bool)
    own, net = cells["same"].astype(bool), cells["suppression_net_clean"].astype(float)
    removed = cells[["run", "source", "target"]].assign(
        own_asr=cells["asr_after"].astype(float).where(own),
        same_kind=net.where(same_kind & ~same_target & ~own),
        same_target=net.where(same_target & ~same_kind & ~own),
        neither=net.where(~same_target & ~same_kind & ~own),
    )
    unrelated = removed.groupby(["run", "target"])["neither"].transform("mean")
    return removed.assign(**{column: removed[relation] - unrelated for column, relation in EFFECTS.items()})


def _under_phantoms(runs: Sequence[RunTables]) -> pd.DataFrame:
    """Return run, target and suppression net of clean training, as `phantom`, of the included cells of the phantom."""
    cells = over_runs(runs, "transfer")
    cells = cells[cells["source"].isin(phantom_baselines(cells["source"].unique())) & (cells["excluded"] == "")]
    return cells[["run", "target"]].assign(phantom=cells["suppression_net_clean"].astype(float))
