"""Load all finished runs as one tidy table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pandas as pd

from casd.analysis.conditions import condition_key
from casd.analysis.runs import find_runs
from casd.analysis.tables import read_table

_RUN_COLUMNS: Final = ("run", "model", "objective", "setting", "condition", "seed")
_STATE_COLUMNS: Final = (
    *("steps", "train_seconds", "clean_loss", "clean_loss_ratio", "degenerate_rate"),
    *("validation_asr", "reached_target", "collapse_reason"),
)
"""Columns of `states` that `load_results` adds to those of `transfer`."""


def load_results(paths: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Load the finished runs at or below the paths as one tidy table: a row per run × removal or control × backdoor.

    Args:
        paths: one or more of: the folder of a run; a folder with runs below it ("outputs"); a store, whose scored runs are all
            read ("outputs/store"). Duplicates are dropped.

    Returns:
        Columns, fractions unless stated otherwise:

        - run (a name), model, objective, setting (the settings in which the run's condition differs from those of the other
          runs, for display; "" if none), condition (its identity: group by it to average over seeds), seed
        - source (removed backdoor, or control), target (measured backdoor), source_kind ("removal" or "control"), same (bool:
          source and target are the same backdoor)
        - asr_before, asr_after, suppression, suppression_net_clean, suppression_net_phantom; prob_before, …,
          prob_suppression_net_phantom: the five quantities for the first-token probability; see
          `casd.analysis.transfer.transfer_table`
        - collapsed (bool): the source's model is broken, so low rates do not mean a successful removal
        - excluded: why reports exclude the cell from means and correlations (`casd.analysis.inclusion`); "" if it is included
        - for the source's model: steps (count), train_seconds, clean_loss (nats per token), clean_loss_ratio (to the injected
          model's), degenerate_rate, validation_asr, reached_target (1, 0, or NaN without a target), collapse_reason
        - one column per CASD variant outside the grid ("casd", "casd_cos", …): distance between the shifts of the source and of
          the target's removal; 0 if they are the same, NaN if it was not computed

        Rows are ordered by model, objective, setting and seed. Excluded cells are contained: filter by excluded == "" before
        averaging.

    Raises:
        StoreError: there is no finished run, or a run is unfinished, damaged, or was made by an older version.
    """
    frames = []
    for run in find_runs(paths):
        rows = read_table(run.folder, "transfer")
        states = read_table(run.folder, "states").set_index("state")
        rows = rows.merge(states[list(_STATE_COLUMNS)], left_on="source", right_index=True, how="left")
        # A pair may be listed once or in both orders; add the missing order.
        pairs = read_table(run.folder, "casd", grid=False)[["variant", "a", "b", "distance"]]
        pairs = pd.concat([pairs, pairs.rename(columns={"a": "b", "b": "a"})]).drop_duplicates(["variant", "a", "b"])
        wide = pairs.pivot(index=["a", "b"], columns="variant", values="distance").reindex(columns=pairs["variant"].unique())
        rows = rows.merge(wide, left_on=["source", "target"], right_index=True, how="left")
        rows.loc[rows["same"].astype(bool), list(wide.columns)] = 0.0
        info = run.info | {"condition": condition_key(run.info)}
        identity = pd.DataFrame({name: info[name] for name in _RUN_COLUMNS}, index=rows.index)
        frames.append(pd.concat([identity, rows], axis=1))
    return pd.concat(frames, ignore_index=True)
