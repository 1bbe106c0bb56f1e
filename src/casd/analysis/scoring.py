"""Score a run: compute its tables from the measurements of every state."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from casd.activations.hooks import SITES
from casd.activations.statistics import POSITIONS
from casd.analysis.inclusion import exclusions
from casd.analysis.relation import relate
from casd.analysis.results import RunTables
from casd.analysis.states import StateRecord, asr_table, curve_table, state_table
from casd.analysis.tables import SCHEMAS
from casd.analysis.transfer import specificity, transfer_table
from casd.config import ActivationsConfig, EvaluationConfig, MetricConfig
from casd.config.states import CLEAN_CONTROL, INJECTED
from casd.metric.baselines import BASELINES
from casd.metric.casd import HEADLINES, CasdMatrix, CasdVariant, ShiftTable, compute_casd, variant_grid
from casd.metric.measurement import TextStatistics
from casd.utils.errors import ConfigError
from casd.utils.registry import build


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
    """Compute the tables of a run from its measurements. Needs no model.

    Args:
        records: measurements of every state, the injected model first.
        statistics: activation statistics by state name.
        metric: additional CASD variants, and the number of permutations of the Mantel tests.
        evaluation: thresholds for collapsed states.
        seed: seed of permutations.
        info: `RunTables.info`; the names of the headline variants are added.
        target_asr: validation ASR that a removal had to reach; None if no target was set.
        baselines: distances of the baselines (`casd.metric.baselines.evidence.baseline_table`).
        tuning: trials of the tuning of the objective (`casd.unlearning.tuning`).
    """
    asr = asr_table(records)
    states = state_table(records, evaluation, target_asr)
    states["excluded"] = states["state"].map(exclusions(asr, states))
    transfer = transfer_table(asr, states)

    trained = [record.name for record in records if record.kind != "injected"]
    removals = [record.name for record in records if record.kind == "removal"]
    shifts = ShiftTable(statistics, statistics[INJECTED], removals, control=CLEAN_CONTROL)
    matrices = [compute_casd(shifts, variant, trained) for variant in casd_variants(metric)]
    both_orders = list(itertools.product(range(len(trained)), range(len(trained))))
    distances = _pairs(matrices, both_orders).assign(grid=False)
    grid = []
    if metric.grid:
        computed = [compute_casd(shifts, variant, trained) for variant in _grid(statistics[INJECTED], removals[0])]
        grid = [_pairs(computed, [(a, b) for a, b in both_orders if a < b]).assign(grid=True)]

    samples = [record.evaluation.samples.assign(state=record.name) for record in records]
    utility = [record.utility.assign(state=record.name) for record in records if record.utility is not None]
    return RunTables(
        asr=asr,
        states=states,
        transfer=transfer,
        casd=pd.concat([distances, *grid], ignore_index=True),
        casd_layers=pd.concat([_layer_pairs(matrix) for matrix in matrices], ignore_index=True),
        relation=relate(distances, transfer, baselines, permutations=metric.permutations, seed=seed),
        specificity=specificity(transfer),
        samples=_state_first(samples),
        utility=_state_first(utility) if utility else _empty("utility"),
        baselines=_empty("baselines") if baselines is None else baselines,
        tuning=_empty("tuning") if tuning is None else tuning,
        curves=curve_table(records),
        info={**info, "headline": [variant.name for variant in HEADLINES]},
    )


def casd_variants(metric: MetricConfig) -> list[CasdVariant]:
    """Return the headline variants and those of `metric.variants`, without the grid.

    Raises:
        ConfigError: an unknown field, an invalid value, or a name that is already used or given twice.
    """
    used = {variant.name for variant in (*HEADLINES, *variant_grid(SITES, POSITIONS))} | set(BASELINES)
    for name, fields in metric.variants.items():
        if name in used:
            raise ConfigError(
                f"metric.variants.{name}: that is the name of a headline variant, of one of the grid or of a baseline. Choose"
                " another."
            )
        if "name" in fields:
            raise ConfigError(f"metric.variants.{name}.name: a variant is called by its key, {name}; leave out `name`.")
    configured = [
        build({name: "casd.metric.casd:CasdVariant"}, "CASD variant", name, {"name": name, **fields})
        for name, fields in metric.variants.items()
    ]
    return [*HEADLINES, *configured]


def check_captured(metric: MetricConfig, activations: ActivationsConfig) -> None:
    """Check that the activations of every CASD variant will be captured.

    Raises:
        ConfigError: a variant needs a site or position that is not captured, or is invalid (see `casd_variants`).
    """
    for variant in casd_variants(metric):
        if variant.site not in activations.sites or variant.position not in activations.positions:
            raise ConfigError(
                f"The CASD variant {variant.name!r} needs the site {variant.site!r} at the position {variant.position!r};"
                f" add them to activations.sites ({', '.join(activations.sites)}) and activations.positions"
                f" ({', '.join(activations.positions)})."
            )
        if variant.text == "clean" and variant.position == "trigger":
            raise ConfigError(f"The CASD variant {variant.name!r}: clean text has no trigger. Choose another text or position.")


def _grid(injected: TextStatistics, removal: str) -> list[CasdVariant]:
    """Return the variants of the grid that can be computed from the captured activations."""
    captured = injected[f"triggered:{removal}"]
    variants = variant_grid(captured.sites, captured.positions)
    return [variant for variant in variants if variant.text != "fake" or "fake" in injected]


def _empty(table: str) -> pd.DataFrame:
    return pd.DataFrame(columns=SCHEMAS[table])


def _state_first(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate tables and move their column `state` to the front."""
    table = pd.concat(tables, ignore_index=True)
    return table[["state", *(name for name in table.columns if name != "state")]]


def _pairs(matrices: Sequence[CasdMatrix], pairs: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """Return one row per matrix × pair of row and column indices."""
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
    """Return one row per unordered pair × layer."""
    rows = [
        (matrix.variant.name, a, b, layer_idx, float(matrix.per_layer[i, j, k]))
        for (i, a), (j, b) in itertools.combinations(enumerate(matrix.names), 2)
        for k, layer_idx in enumerate(matrix.layers)
    ]
    return pd.DataFrame(rows, columns=["variant", "a", "b", "layer_idx", "distance"])
