"""All finished runs in one tidy table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pandas as pd

from casd.analysis.conditions import condition_key
from casd.analysis.runs import find_runs
from casd.analysis.tables import read_table

_OF_THE_RUN: Final = ("run", "model", "objective", "setting", "condition", "seed")
_OF_THE_SOURCE: Final = (
    *("steps", "train_seconds", "clean_loss", "clean_loss_ratio", "degenerate_rate"),
    *("validation_asr", "reached_target", "collapse_reason"),
)
"""Columns of `states` that `load_results` gives beside those of `transfer`."""


def load_results(paths: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """All finished runs at or below the paths in one tidy table: a row per run × removal or control × measured backdoor.

    Args:
        paths: one or more of: the folder of a run; a folder with runs below it ("outputs"); a store, of which every scored
            run is read ("outputs/store"). A run that is found several times counts once.

    Returns:
        Columns, fractions where not said otherwise:

        - run (a name), model, objective, setting (what sets the run's condition apart from those of the other runs, for
          display; "" if nothing does), condition (its identity: group by it to average over seeds), seed
        - source (what was removed: a backdoor, or a control), target (the backdoor measured), source_kind ("removal" or
          "control"), same (bool: the source is the target)
        - asr_before, asr_after, suppression, suppression_net_clean, suppression_net_phantom; prob_before, …,
          prob_suppression_net_phantom: the same five for the first-token probability; see
              `casd.analysis.transfer.transfer_table`
        - collapsed (bool): the source's model is broken, so its low rates are no removal
        - excluded: why reports leave the cell out of means and correlations (`casd.analysis.inclusion`); "" if it is included
        - of the source's model: steps (count), train_seconds, clean_loss (nats per token), clean_loss_ratio (to the injected
          model's), degenerate_rate, validation_asr, reached_target (1, 0, or NaN without a target), collapse_reason
        - a column for each CASD variant but those of the grid ("casd", "casd_cos", …): the distance between the source's
          shift and that of the target's removal; 0 where they are the same, NaN where it was not computed

        Ordered by model, objective, setting and seed. Excluded cells are there, too: keep those with excluded == "" for a mean.

    Raises:
        StoreError: nothing is there, or it is unfinished, damaged, or was made by an older version.
    """
    frames = []
    for run in find_runs(paths):
        rows = read_table(run.folder, "transfer")
        states = read_table(run.folder, "states").set_index("state")
        rows = rows.merge(states[list(_OF_THE_SOURCE)], left_on="source", right_index=True, how="left")
        # Each pair once or in both orders, as it may be: both are wanted.
        pairs = read_table(run.folder, "casd", grid=False)[["variant", "a", "b", "distance"]]
        pairs = pd.concat([pairs, pairs.rename(columns={"a": "b", "b": "a"})]).drop_duplicates(["variant", "a", "b"])
        wide = pairs.pivot(index=["a", "b"], columns="variant", values="distance").reindex(columns=pairs["variant"].unique())
        rows = rows.merge(wide, left_on=["source", "target"], right_index=True, how="left")
        rows.loc[rows["same"].astype(bool), list(wide.columns)] = 0.0
        named = {name: {**run.info, "condition": condition_key(run.info)}[name] for name in _OF_THE_RUN}
        frames.append(pd.concat([pd.DataFrame(named, index=rows.index), rows], axis=1))
    return pd.concat(frames, ignore_index=True)
