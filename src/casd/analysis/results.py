"""The tables of one run: what scoring produces, what is written to a run's folder and read back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pandas as pd

from casd.analysis.conditions import condition_key, condition_label
from casd.analysis.tables import IDENTITY, SCHEMAS, read_info, read_table, write_frames
from casd.utils.disk import explaining_disk_errors

UTILITY_PREFIX: Final = "utility/"
"""How the columns of `states` begin that hold the main metric of a benchmark task."""


@dataclass
class RunTables:
    """All tables of one run, tidy: a row per observation. Rates and probabilities are fractions.

    Attributes:
        asr: a row per model state × backdoor × kind of prompt ("triggered", "clean", "fake").
        states: a row per model state: the injected model, each removal, each control. `clean_loss` and `retain_loss` are in
            nats per token, on passages of the evaluation and of the retain split. For each task of `utility` there may be a
            column `utility/TASK`, its main metric. `forget_gradient_first` and
            `forget_gradient_last` are the L2 norms, before clipping, of the gradient of the forget term alone at the first
            and the last training step; NaN for a state that took none.
            `forget_gradient_share` is the share of its steps at which that gradient was not zero. `validation_asr` is the
            removed backdoor's ASR on validation prompts at the step that was kept, and `reached_target` whether (1 or 0) it
            came down to the target within the clean budget; NaN where nothing was validated. `steps` are those that the kept
            model has done. `excluded` says why the state is excluded from means and correlations (`casd.analysis.inclusion`).
        transfer: a row per removal or control (`source`) × measured backdoor (`target`); `excluded` as in `states`, also for
            the cells of a target that is not established.
        casd: a row per CASD variant × pair of removals. `grid` tells the variants of the grid
            (`casd.metric.casd.variant_grid`), with each pair once, from the headline variants and those that the configuration
            names, with both orders.
        casd_layers: the same for each layer, without the grid.
        relation: a row per CASD variant × response; empty where there were too few backdoors.
        specificity: one row of named means with intervals.
        samples: some of the generated texts, as they were generated.
        utility: a row per model state × benchmark task × metric, with its standard error and the number of items; empty where
            no benchmark was run.
        baselines: a row per baseline of CASD (`casd.metric.baselines.BASELINES`) × pair of removals.
        tuning: the trials by which the objective's settings were chosen; empty if they were given.
        curves: a row per removal or control × number of training steps done: the training loss of the next batch, in `loss`
            and for each of the objective's terms in a column `loss/TERM`, and the L2 norm of its gradient before clipping;
            where they were measured, the removed backdoor's ASR and the clean loss (nats per token) on what is held out for
            validation, and the clean loss on the guard's passages; NaN elsewhere.
        info: "model", "objective", "seed" (all needed); "run" (a name), "config" (the resolved YAML), "provenance" and
            "timings" (nested dicts of names and values; seconds), "headline" (the names of the CASD variants to show)
            and "targets" (backdoor → name of its target behavior), each where known; "folder" and "setting" of runs that were
            read together (`casd.report.read_runs`).
        lacks_grid: whether the run was read without the rows of the CASD grid, which `every_variant` reads.
    """

    asr: pd.DataFrame
    states: pd.DataFrame
    transfer: pd.DataFrame
    casd: pd.DataFrame
    casd_layers: pd.DataFrame
    relation: pd.DataFrame
    specificity: pd.DataFrame
    samples: pd.DataFrame
    utility: pd.DataFrame
    baselines: pd.DataFrame
    tuning: pd.DataFrame
    curves: pd.DataFrame
    info: dict[str, Any]
    lacks_grid: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        for name, columns in SCHEMAS.items():
            missing = set(columns) - set(getattr(self, name).columns)
            if missing:
                raise ValueError(f"table {name!r} lacks the columns {sorted(missing)}")

    @property
    def condition(self) -> str:
        """The identity of what was done, apart from the seed: see `casd.analysis.conditions.condition_key`."""
        return condition_key(self.info)

    @property
    def condition_label(self) -> str:
        """For display: the objective and, where `info["setting"]` has it, what sets the condition apart from others."""
        return condition_label(self.info)

    @property
    def exclusions(self) -> dict[str, str]:
        """Why each state is excluded from means and correlations (`casd.analysis.inclusion`); "" where it is included."""
        return dict(self.rows("states", "state", "excluded"))

    @property
    def backdoors(self) -> list[str]:
        """The measured backdoors, in the order of the `asr` table."""
        return list(dict.fromkeys(backdoor for (backdoor,) in self.rows("asr", "backdoor")))

    @property
    def collapsed(self) -> set[str]:
        """The states whose model does not work on clean text; the injected model and all others, where that one does not."""
        return {state for state, collapsed in self.rows("states", "state", "collapsed") if collapsed}

    @property
    def headline(self) -> list[str]:
        """The CASD variants to show: those `info` names, else every one that was computed outside the grid."""
        named = self.info.get("headline")
        return list(named or dict.fromkeys(variant for variant, grid in self.rows("casd", "variant", "grid") if not grid))

    @property
    def tasks(self) -> list[str]:
        """The benchmark tasks whose main metric the `states` table has."""
        columns = map(str, self.states.columns)
        return [column.removeprefix(UTILITY_PREFIX) for column in columns if column.startswith(UTILITY_PREFIX)]

    def states_of(self, kind: str) -> list[str]:
        """The states of one kind: "injected", "removal" or "control"."""
        return [state for state, found in self.rows("states", "state", "kind") if found == kind]

    def rows(self, table: str, *names: str) -> Iterator[tuple[Any, ...]]:
        """The rows of some columns of a table, as plain values."""
        frame = getattr(self, table)
        return zip(*(frame[name].tolist() for name in names), strict=True)

    def every_variant(self) -> pd.DataFrame:
        """The `casd` table with the rows of the grid, even if the run was read without them.

        Raises:
            StoreError: they can no longer be read from `info["folder"]`.
        """
        return read_table(Path(self.info["folder"]), "casd") if self.lacks_grid else self.casd

    def with_info(self, **more: Any) -> RunTables:
        """The same tables with more, or other, entries of `info`."""
        made = copy.copy(self)
        made.info = self.info | more
        return made

    def write(self, folder: Path) -> None:
        """Write every table as Parquet and CSV, then `info`, under `folder/tables`.

        Raises:
            StoreError: a file cannot be written.
        """
        missing = IDENTITY - set(self.info)
        if missing:
            raise ValueError(f"info lacks {sorted(missing)}")
        with explaining_disk_errors("a set of tables", Path(folder)):
            write_frames({name: getattr(self, name) for name in SCHEMAS}, self.info, folder, "info.json")

    @classmethod
    def read(cls, folder: Path, *, grid: bool = True, info: dict[str, Any] | None = None) -> RunTables:
        """Read what `write` wrote.

        Args:
            folder: of the run.
            grid: read the rows of the CASD grid, too; they are nearly all of a run that has them. Without them `info` has the
                "folder", from which `every_variant` reads them later.
            info: what is to be its `info`, where that was read before (and "folder" added to it).

        Raises:
            StoreError: the folder holds no finished run, a table in it is damaged, or an older version wrote it.
        """
        info = info or read_info(folder)
        frames = {name: read_table(folder, name, grid=grid) for name in SCHEMAS}
        tables = cls(**frames, info=info if grid else {"folder": str(folder)} | info)
        tables.lacks_grid = not grid
        return tables
