"""The last stages of a run: its scores and its report."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from casd.analysis.relation import relation_points
from casd.analysis.results import RunTables
from casd.analysis.scoring import score
from casd.analysis.states import StateRecord, injected_loss_limit
from casd.config.compose import to_yaml
from casd.config.states import INJECTED
from casd.evaluation.asr import Evaluation
from casd.metric.baselines.evidence import Evidence, baseline_table
from casd.metric.measurement import read_statistics
from casd.pipeline.inputs import Inputs
from casd.pipeline.provenance import identity, origin
from casd.training.checkpoints import TrainingLog


def make_scores(run: Inputs, folder: Path) -> None:
    """Compute the tables of transfer, CASD and their relation from the measurements."""
    config, graph, store = run.config, run.graph, run.store
    statistics = {
        state: read_statistics(store.file(stage, "statistics.safetensors")) for state, stage in graph.activations.items()
    }
    captured = graph.activations if config.activations.baselines else {}
    evidence = {state: Evidence.read(store.folder(stage, verify=True)) for state, stage in captured.items()}
    tables = score(
        [_record(run, state) for state in graph.states],
        statistics,
        config.metric,
        config.evaluation,
        seed=config.seed,
        # The report adds `origin`, which may differ between runs that share these scores.
        info={**identity(config), "config": to_yaml(config)},
        target_asr=config.unlearning.stopping.target_asr,
        baselines=baseline_table(run.removed, run.encoder, statistics, evidence),
        tuning=pd.read_parquet(store.file(graph.tune, "trials.parquet")) if graph.tune else None,
    )
    measured = [pd.read_parquet(store.file(stage, "persistence.parquet")) for stage in graph.persistence.values()]
    tables.persistence = pd.concat(measured, ignore_index=True) if measured else tables.persistence
    tables.write(folder)


def _record(run: Inputs, state: str) -> StateRecord:
    """Read the measurements of one state."""
    graph, store = run.graph, run.store
    evaluation = Evaluation.read(store.folder(graph.evaluate[state], verify=True))
    log, benchmarks, limit = None, None, math.inf
    if state == INJECTED:
        # A given model has no log, and so no clean loss before its injection.
        injection = TrainingLog.read(store.file(graph.inject, "log.json")) if run.config.injection.training else TrainingLog()
        limit = injected_loss_limit(injection, len(run.encoder.tokenizer), run.config.evaluation)
    else:
        log = TrainingLog.read(store.file(graph.unlearn[state], "log.json"))
    if graph.utility:
        benchmarks = pd.read_parquet(store.file(graph.utility[state], "utility.parquet"))
    return StateRecord(state, evaluation, log, benchmarks, limit)


def make_report(run: Inputs, name: str, folder: Path) -> None:
    """Write the tables, figures and page of the run `name`."""
    from casd.report import write_report_files

    tables = RunTables.read(run.store.folder(run.graph.score))
    # `model.name` is no part of what the scores are made from, and may differ from that of the run that made them.
    tables.info |= identity(run.config) | origin(run.config, run.graph, run.store, name)
    variants = tables.casd[~tables.casd["grid"].astype(bool)]
    write_report_files(tables, folder, relation_points(variants, tables.transfer))
