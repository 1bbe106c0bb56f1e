"""The identity of a run and the provenance of its numbers, as they are saved with its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from casd.config import BackdoorConfig, Config
from casd.config.compose import to_yaml
from casd.pipeline.graph import StageGraph
from casd.pipeline.store import StageStore


def identity(config: Config) -> dict[str, Any]:
    """Return the model, the objective, the seed, and a label of each backdoor's target."""
    return {
        "model": config.model.name,
        "objective": config.unlearning.objective.name,
        "seed": config.seed,
        "targets": {name: _target_label(section) for name, section in config.backdoor.items()},
    }


def origin(config: Config, graph: StageGraph, store: StageStore, run: str) -> dict[str, Any]:
    """Return the configuration, the versions, the commits, the stages, and the time of each kind of stage in seconds.

    Raises:
        StoreError: a stage that is not finished.
    """
    tuned = [graph.tune] if graph.tune else []
    stages = (graph.corpus, graph.base, graph.inject, *tuned, *graph.unlearn.values())
    tuned += [graph.clean_model] if graph.clean_model else []
    measured = (*graph.evaluate.values(), *graph.activations.values(), *graph.utility.values(), *graph.persistence.values())
    made = origin_of_stages([store.manifest(stage) for stage in (*stages, *measured)])
    made["provenance"]["stages"] = {"inject": graph.inject.key, "score": graph.score.key}
    return {"run": run, "config": to_yaml(config), **made}


def origin_of_stages(manifests: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the time of each kind of stage in seconds, as `timings`, and versions and commits, as `provenance`.

    Args:
        manifests: of `StageStore.manifest`; the versions are those of the last.
    """
    commits = sorted({manifest["made_with"]["casd_commit"] for manifest in manifests if "casd_commit" in manifest["made_with"]})
    timings: dict[str, float] = {}
    for manifest in manifests:
        timings[manifest["stage"]] = round(timings.get(manifest["stage"], 0.0) + manifest["seconds"], 3)
    commit = ", ".join(commits) or "unknown (casd was installed without its repository)"
    return {"timings": timings, "provenance": {**manifests[-1]["made_with"], "casd_commit": commit}}


def _target_label(section: BackdoorConfig) -> str:
    return " ".join([section.target.name, *map(str, section.target.params.values())])
