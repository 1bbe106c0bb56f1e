"""The tables of one run, as scoring computes them and as they are written to and read from the run's folder."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pandas as pd

from casd.analysis.conditions import condition_key, condition_label
from casd.analysis.tables import IDENTITY, PERSISTENCE, SCHEMAS, read_info, read_persistence, read_table, write_frames
from casd.utils.disk import explaining_disk_errors

UTILITY_PREFIX: Final = "utility/"
"""Prefix of the columns of `states` that hold the main metric of a benchmark task."""


@dataclass
class RunTables:
    """The tables of one run in tidy form: a row per observation. Rates and probabilities are fractions.

    Attributes:
        asr: a row per model state × backdoor × kind of prompt ("triggered", "clean", "fake").
        states: a row per model state: the injected model, each removal, each control. `clean_loss` and `retain_loss` are in
            nats per token, on passages of the evaluation and of the retain split. There may be a column `utility/TASK` for the
            main metric of each task of `utility`. `forget_gradient_first` and `forget_gradient_last` are the L2 norms, before
            clipping, of the gradient of the forget term alone at the first and the last training step; NaN without steps.
            `forget_gradient_share` is the share of steps at which that gradient was not zero. `validation_asr` is the removed
            backdoor's ASR on validation prompts at the kept step. `reached_target` is 1 if it reached the target within the
            clean budget, else 0; NaN if nothing was validated. `steps` is the number of training steps of the kept model.
            `excluded` is the reason for the exclusion from means and correlations (`casd.analysis.inclusion`), or "".
        transfer: a row per removal or control (`source`) × measured backdoor (`target`); `excluded` as in `states`, and also
            set for targets that are not established.
        casd: a row per CASD variant × pair of removals. `grid` is True for the variants of the grid
            (`casd.metric.casd.variant_grid`), which have each pair once; headline variants and those of the configuration have
            both orders.
        casd_layers: a row per CASD variant, without the grid, × pair of removals × layer.
        relation: a row per CASD variant × response; rho is NaN with too few backdoors.
        specificity: a row per response, with means and intervals.
        samples: a sample of the generated texts, unmodified.
        utility: a row per model state × benchmark task × metric, with standard error and number of items; empty without
            benchmarks.
        baselines: a row per baseline of CASD (`casd.metric.baselines.BASELINES`) × pair of removals.
        tuning: the trials of the tuning of the objective; empty without tuning.
        curves: a row per removal or control × number of training steps done: training loss of the next batch, total in `loss`
            and per term of the objective in `loss/TERM`, and the L2 norm of its gradient before clipping; where measured,
            ASR of the removed backdoor and clean loss (nats per token) on validation data, and clean loss on the guard's
            passages; NaN elsewhere.
        info: "model", "objective", "seed" (required); optional are "run" (a name), "config" (the resolved YAML), "provenance"
            and "timings" (nested dicts; seconds), "headline" (names of the CASD variants to show), "targets" (backdoor → name
            of its target behavior), and, for runs that were read together (`casd.read_runs`), "folder" and "setting".
        persistence: what came back after which treatment of a state (`casd.unlearning.persistence`): a row per state × model ×
            treatment × step × backdoor × kind of prompt ("triggered", "clean"). `model` is "state", or "clean" for the model
            without backdoors that is trained in the same way. Empty if it was not measured.
        lacks_grid: True if the run was read without the rows of the CASD grid (see `every_variant`).
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
    persistence: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(PERSISTENCE)))
    lacks_grid: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        for name, columns in SCHEMAS.items():
            missing = set(columns) - set(getattr(self, name).columns)
            if missing:
                raise ValueError(f"table {name!r} lacks the columns {sorted(missing)}")

    @property
    def frames(self) -> dict[str, pd.DataFrame]:
        """All tables by name; `persistence` only if it was measured."""
        return {name: getattr(self, name) for name in (*SCHEMAS, *(["persistence"] if len(self.persistence) else []))}

    @property
    def condition(self) -> str:
        """Identity of the configuration without the seed: see `casd.analysis.conditions.condition_key`."""
        return condition_key(self.info)

    @property
    def condition_label(self) -> str:
        """The objective and `info["setting"]`, if there is one, for display."""
        return condition_label(self.info)

    @property
    def exclusions(self) -> dict[str, str]:
        """State → reason for its exclusion from means and correlations (`casd.analysis.inclusion`); "" if included."""
        return dict(self.rows("states", "state", "excluded"))

    @property
    def backdoors(self) -> list[str]:
        """The measured backdoors, in the order of the `asr` table."""
        return list(dict.fromkeys(backdoor for (backdoor,) in self.rows("asr", "backdoor")))

    @property
    def collapsed(self) -> set[str]:
        """The states whose model does not work on clean text; all states if the injected model does not."""
        return {state for state, collapsed in self.rows("states", "state", "collapsed") if collapsed}

    @property
    def headline(self) -> list[str]:
        """The CASD variants to show: `info["headline"]`, else all variants outside the grid."""
        chosen = self.info.get("headline")
        return list(chosen or dict.fromkeys(variant for variant, grid in self.rows("casd", "variant", "grid") if not grid))

    @property
    def tasks(self) -> list[str]:
        """The benchmark tasks whose main metric is in the `states` table."""
        columns = map(str, self.states.columns)
        return [column.removeprefix(UTILITY_PREFIX) for column in columns if column.startswith(UTILITY_PREFIX)]

    def states_of(self, kind: str) -> list[str]:
        """The states of one kind: "injected", "removal" or "control"."""
        return [state for state, state_kind in self.rows("states", "state", "kind") if state_kind == kind]

    def rows(self, table: str, *names: str) -> Iterator[tuple[Any, ...]]:
        """Iterate over rows of the named columns of a table, as Python values."""
        frame = getattr(self, table)
        return zip(*(frame[name].tolist() for name in names), strict=True)

    def every_variant(self) -> pd.DataFrame:
        """Return the `casd` table with the rows of the grid; reads them from `info["folder"]` if they were not read before.

        Raises:
            StoreError: the table cannot be read.
        """
        return read_table(Path(self.info["folder"]), "casd") if self.lacks_grid else self.casd

    def with_info(self, **more: Any) -> RunTables:
        """Return a shallow copy with entries added to `info` or replaced."""
        changed = copy.copy(self)
        changed.info = self.info | more
        return changed

    def write(self, folder: str | Path) -> None:
        """Write every table as Parquet and CSV, then `info`, under `folder/tables`.

        Raises:
            StoreError: a file cannot be written.
        """
        folder = Path(folder)
        missing = IDENTITY - set(self.info)
        if missing:
            raise ValueError(f"info lacks {sorted(missing)}")
        with explaining_disk_errors("a set of tables", folder):
            write_frames(self.frames, self.info, folder, "info.json")

    @classmethod
    def read(cls, folder: str | Path, *, grid: bool = True, info: dict[str, Any] | None = None) -> RunTables:
        """Read what `write` wrote.

        Args:
            folder: of the run.
            grid: read the rows of the CASD grid, which are most of the data of a run. If False, `info["folder"]` is set, and
                `every_variant` reads them later.
            info: use this `info`, with "folder" in it, instead of reading it again.

        Raises:
            StoreError: the folder holds no finished run, a table is damaged, or an older version wrote it.
        """
        folder = Path(folder)
        info = info or read_info(folder)
        frames = {name: read_table(folder, name, grid=grid) for name in SCHEMAS}
        frames["persistence"] = read_persistence(folder)
        tables = cls(**frames, info=info if grid else {"folder": str(folder)} | info)
        tables.lacks_grid = not grid
        return tables
