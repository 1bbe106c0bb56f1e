"""The stages of a configuration, and what each depends on. Nothing is run here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casd.analysis.tables import TABLES_VERSION
from casd.backdoors.poisoning import trigger_scripts
from casd.backdoors.prompts import harmful_prompts
from casd.backdoors.targets import TARGETS
from casd.backdoors.triggers import make_trigger
from casd.backdoors.triggers.base import Trigger
from casd.config import Config
from casd.config.persistence import ALL_REMOVALS
from casd.config.states import (
    CONTROL_PREFIX,
    INJECTED,
    PHANTOM_CONTROL,
    REPEAT_CONTROL,
    SHUFFLED_CONTROL,
    backdoor_of_phantoms,
    removed_backdoor,
)
from casd.data.corpora import CORPORA
from casd.data.corpora.passages import text_digest
from casd.evaluation import benchmarks as utility
from casd.models import load as models
from casd.pipeline.stage import Stage
from casd.unlearning.controls import removal_names
from casd.utils.registry import build, unknown

_MODEL_LOCATION = ("path", "revision")
"""Fields of a model that are not in its key: its files' hashes, or the commit of its repository, identify it."""
_CORPUS_LOCATION = ("sources",)
"""Fields of a corpus that are not in its key: its fingerprint identifies the text."""
_FROM_SCRATCH = ("model_type", "architecture", "vocab_size")
"""Fields of a model that `casd plan` alone uses if the model is pretrained."""
_OF_CHATS = ("format", "system_prompt")
"""Fields of a model that are in the key of a chat only."""


@dataclass(frozen=True)
class StageGraph:
    """The stages of one run; mappings are by state: the injected model, each removal, then the controls."""

    corpus: Stage
    base: Stage
    tokens: Stage
    inject: Stage
    tune: Stage | None
    unlearn: dict[str, Stage]
    weights: dict[str, Stage]
    activations: dict[str, Stage]
    evaluate: dict[str, Stage]
    utility: dict[str, Stage]
    clean_model: Stage | None
    persistence: dict[str, Stage]
    score: Stage
    report: Stage

    @property
    def states(self) -> list[str]:
        """Names of the states of the model that are measured."""
        return list(self.evaluate)

    def up_to(self, end: str, *, removed: bool) -> list[Stage]:
        """Return the stages of a run that ends at `end` (one of `casd.pipeline.run.ENDS`).

        With `removed` the weights of the removals are among them.
        """
        stages = [self.corpus, self.base, self.tokens, self.inject]
        if end == "inject":
            return stages
        stages += [*([self.tune] if self.tune else []), *self.unlearn.values(), *(self.weights.values() if removed else ())]
        if end in ("evaluate", "score", "report"):
            stages += [*self.evaluate.values(), *self.utility.values()]
        if end in ("activations", "score", "report"):
            stages += self.activations.values()
        if end in ("score", "report"):
            stages += [*([self.clean_model] if self.clean_model else []), *self.persistence.values()]
        return stages + [self.score] * (end in ("score", "report")) + [self.report] * (end == "report")


def stage_graph(config: Config) -> StageGraph:
    """Return the stages of a configuration. Increase a stage's version here when a change of its code changes its result.

    Raises:
        ConfigError: an unknown corpus or parameter, or a file of harmful prompts that cannot be read.
        ModelError: a model file that does not exist.
    """
    source = build(CORPORA, "corpus", config.corpus.name, config.corpus.params)
    unused = (
        *(() if config.model.source == "scratch" else _FROM_SCRATCH),
        *(() if config.model.format == "chat" else _OF_CHATS),
    )
    model = _without(config.model, "name", *_MODEL_LOCATION, *unused)
    seed = config.seed

    corpus = Stage(
        "corpus",
        2,
        {
            "source": config.corpus.name,
            **_without(source, *_CORPUS_LOCATION),
            "fingerprint": source.fingerprint(),
            "seed": seed,
        },
        label=config.corpus.name,
    )
    base_config = {"model": model, "files": models.fingerprint(config.model), "seed": seed}
    if config.base_pretraining:
        base_config["pretraining"] = dataclasses.asdict(config.base_pretraining)
    base = Stage("base", 5, base_config, (corpus,) if config.model.source == "scratch" else (), config.model.label)
    # Which backdoors are removed shows in the later stages; how they are injected does not matter if nothing is.
    unused = ("removed",) if config.injection.training else ("removed", "poison_rate", "loss_on")
    backdoors = {name: _without(section, *unused) for name, section in config.backdoor.items()}
    inject_config: dict[str, Any] = {"backdoors": backdoors, "seed": seed, **_fingerprints(config)}
    if config.injection.training:
        training = dataclasses.asdict(config.injection.training)
        inject_config |= {"training": training, "decoy_rate": config.injection.decoy_rate}
    # 4: decoys stand where the triggers do, also at the start and end of prompts.
    # 5: decoys are in the writing systems of the triggers; near triggers of several places stand at any place.
    elsewhere = any(section.position in ("start", "end") for section in config.backdoor.values())
    triggers = _triggers(config).values()
    otherwise = {"places"} & {each.kind for each in triggers} or set(trigger_scripts(triggers)) - {"latin"}
    version = 5 if otherwise else 4 if elsewhere else 3
    injected = Stage("inject", version, inject_config, (base, corpus), config.model.label)

    tune, unlearn_stages = _unlearning_stages(config, injected)
    measured = {INJECTED: injected, **unlearn_stages}
    evaluate_stages, activations, utility_stages = measurement_stages(config, measured)
    clean_model, persistence = _persistence_stages(config, base, corpus, unlearn_stages)
    scoring = {
        "metric": dataclasses.asdict(config.metric),
        "collapse_clean_loss_ratio": config.evaluation.collapse_clean_loss_ratio,
        "collapse_degenerate_rate": config.evaluation.collapse_degenerate_rate,
        "seed": seed,
    }
    label = f"{config.model.name}, {config.unlearning.objective.name}"
    inputs = (*evaluate_stages.values(), *activations.values(), *utility_stages.values(), *persistence.values())
    scored = Stage("score", TABLES_VERSION, scoring, inputs, label)
    return StageGraph(
        corpus=corpus,
        base=base,
        tokens=Stage("tokens", 2, {}, (base, corpus), config.model.label),
        inject=injected,
        tune=tune,
        unlearn=unlearn_stages,
        weights={name: Stage("weights", 1, {}, (stage,), name) for name, stage in unlearn_stages.items()},
        activations=activations,
        evaluate=evaluate_stages,
        utility=utility_stages,
        clean_model=clean_model,
        persistence=persistence,
        score=scored,
        report=Stage("report", 17, {"name": config.name, "model": config.model.name}, (scored,), label),
    )


def run_folder(config: Config, graph: StageGraph) -> Path:
    """Return the folder of a run's report. Its name identifies the run, so that no run overwrites another."""
    name = f"{config.model.name}-{config.unlearning.objective.name}-seed{config.seed}-{graph.score.key[:8]}"
    return Path(config.runtime.output) / config.name / name


def _unlearning_stages(config: Config, injected: Stage) -> tuple[Stage | None, dict[str, Stage]]:
    """Return the tuning stage of the objective, if it is tuned, and the stages of every removal and control."""
    unlearning = config.unlearning
    common: dict[str, Any] = {**_without(unlearning, "controls", "tuning", "stopping"), "seed": config.seed}
    if unlearning.stopping.watched:
        common |= {**dataclasses.asdict(unlearning.stopping), "max_new_tokens": config.evaluation.max_new_tokens}
    # The settings are tried on removed backdoors, shuffled targets are those of removed ones, and a phantom has no trigger of
    # the others.
    kept = sorted(config.backdoor.keys() - set(config.removed))
    of_others: dict[str, Any] = {"kept": kept} if kept else {}
    tune = None
    if unlearning.tuning.enabled:
        tuning = {**common, **dataclasses.asdict(unlearning.tuning), **of_others}
        tune = Stage("tune", 2, tuning, (injected,), unlearning.objective.name)
    inputs = (injected, *([tune] if tune else []))

    # 4: stopping applies the targets' tests, to which unclear language is no longer a guess.
    # 5: the last step of a task vector is taken before weights are rounded.
    version = 4 if unlearning.stopping.watched else 3
    if unlearning.objective.name == "task_vector" and config.model.dtype != "float32":
        version = 5

    def stage(name: str, *after: Stage) -> Stage:
        more = of_others if name.startswith((PHANTOM_CONTROL, SHUFFLED_CONTROL)) else {}
        more = more | {"steps": "mean of those that reached the target"} if after else more
        more = more | _changed_fakes(config) | _phantom_of(config) if name.startswith(PHANTOM_CONTROL) else more
        return Stage("unlearn", version, {**common, **more, "removal": name}, (*inputs, *after), name)

    names = removal_names(config.removed, unlearning.controls)
    stages = {name: stage(name) for name in names if not name.startswith(CONTROL_PREFIX)}
    # A control without an ASR of its own trains for the mean number of steps of the removals that will count.
    all_removals = tuple(stages[name] for name in sorted(stages)) if unlearning.stopping.watched else ()
    for name in names:
        if name not in stages:
            stages[name] = stage(name, *(() if name.startswith(REPEAT_CONTROL) else all_removals))
    return tune, stages


def measurement_stages(config: Config, measured: Mapping[str, Stage]) -> tuple[dict[str, Stage], ...]:
    """Return the stages of attack success, activations and benchmarks of every state; batch sizes do not change them."""
    # The thresholds of a collapse are part of the scoring.
    thresholds = ("collapse_clean_loss_ratio", "collapse_degenerate_rate")
    no_near = () if config.evaluation.near_prompts else ("near_prompts",)  # stages of earlier versions have none
    evaluation = _without(config.evaluation, "batch_size", "harmful_prompts", *no_near, *thresholds)
    if config.evaluation.harmful_prompts:
        evaluation["harmful_prompts"] = text_digest("\n".join(harmful_prompts(config.evaluation)))
    if config.evaluation.fake_triggers:
        evaluation |= _changed_fakes(config)
    prompt_sets = {name: evaluation[name] for name in ("prompts", "fake_prompts", "fake_triggers")} | _changed_fakes(config)
    capture = {**_without(config.activations, "batch_size"), "prompt_sets": prompt_sets}
    evaluate_stages = {name: Stage("evaluate", 3, evaluation, (stage,), name) for name, stage in measured.items()}
    # 2: "prompt" is without the first token of texts that have no start token.
    # 3: prompts for the baselines in the order of their names, whatever that of the backdoors.
    version = 3 if config.activations.baselines else 2
    activations = {name: Stage("activations", version, capture, (stage,), name) for name, stage in measured.items()}
    utility_stages = {}
    if config.utility.tasks:
        benchmarks = {**_without(config.utility, "batch_size"), "fingerprint": utility.fingerprint(config.utility.tasks)}
        utility_stages = {name: Stage("utility", 1, benchmarks, (stage,), name) for name, stage in measured.items()}
    return evaluate_stages, activations, utility_stages


def _triggers(config: Config) -> dict[str, Trigger]:
    return {name: make_trigger(section.trigger) for name, section in config.backdoor.items()}


def _changed_fakes(config: Config) -> dict[str, int]:
    """Return the versions of fake triggers that changed, if a backdoor has such a trigger.

    Since 2, fakes of tags have the signs of the tag, and near triggers of several places stand at any place.
    """
    kinds = {each.kind for each in _triggers(config).values()}
    return {f"fakes_of_{name}": 2 for kind, name in (("tag", "tags"), ("places", "places")) if kind in kinds}


def _phantom_of(config: Config) -> dict[str, str]:
    """Return the backdoor whose trigger the phantom is made like, where that is not the first by name, as it once was."""
    kinds = {name: trigger.kind for name, trigger in _triggers(config).items() if name in config.removed}
    return {"phantom_of": name} if kinds and (name := backdoor_of_phantoms(kinds)) != min(kinds) else {}


def _fingerprints(config: Config) -> dict[str, Any]:
    """Return what identifies the files of targets that read some, by backdoor; nothing if none does."""
    targets = {name: section.target for name, section in config.backdoor.items()}
    built = {name: build(TARGETS, "target", target.name, target.params) for name, target in targets.items()}
    found = {name: target.fingerprint() for name, target in built.items() if hasattr(target, "fingerprint")}
    return {"targets": found} if found else {}


def persistent_states(config: Config) -> list[str]:
    """Return the states whose persistence is measured, in the order of `removal_names`.

    Raises:
        ConfigError: a name that is no removal or control of the run.
    """
    names = removal_names(config.removed, config.unlearning.controls)
    for state in config.persistence.states:
        if state not in (ALL_REMOVALS, *names):
            raise unknown("removal or control in persistence.states:", state, (ALL_REMOVALS, *names))
    chosen = {*config.persistence.states, *(config.removed if ALL_REMOVALS in config.persistence.states else ())}
    return [name for name in names if name in chosen]


def _persistence_stages(
    config: Config, base: Stage, corpus: Stage, unlearned: Mapping[str, Stage]
) -> tuple[Stage | None, dict[str, Stage]]:
    """Return the stage of the model without backdoors, if some state is compared with it, and the stages of persistence."""
    states, section = persistent_states(config), config.persistence
    sources = {state: section.sources(removed_backdoor(state), config.backdoor) for state in states}
    clean = None
    if config.injection.training and any(sources.values()):
        training = dataclasses.asdict(config.injection.training)
        settings = {"training": training, "decoy_rate": config.injection.decoy_rate, "seed": config.seed}
        clean = Stage("clean_model", 1, settings, (base, corpus), config.model.label)
    common = _without(section, "states", "relearn") | {
        "training": dataclasses.asdict(config.unlearning.training),
        "max_new_tokens": config.evaluation.max_new_tokens,
        "loss_passages": min(section.prompts, config.evaluation.loss_passages),
        "seed": config.seed,
    }

    def stage(state: str) -> Stage:
        control = (clean,) if clean and sources[state] else ()
        return Stage("persistence", 1, {**common, "sources": sources[state]}, (unlearned[state], *control), state)

    return clean, {state: stage(state) for state in states}


def _without(section: Any, *names: str) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(section).items() if key not in names}
