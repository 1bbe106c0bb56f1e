"""One defence, step by step: attack, seal, defend, open.

The attacker's backdoors are read by `attack` and `open` alone; what lies between is `casd.defence.defender`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from casd.analysis.conditions import leaves
from casd.backdoors.prompts import make_prompt_sets
from casd.config import Config, DefendConfig, ModelConfig
from casd.config.advice import rate_warning
from casd.config.compose import to_yaml
from casd.defence.budget import budget_of
from casd.defence.defender import Defender, cleanings, forget_model, unused
from casd.defence.dummies import dummies
from casd.defence.opening import note_opening, openings
from casd.defence.page import sentences, write_page
from casd.defence.results import DefenceTables, attack_table
from casd.defence.sealing import seal
from casd.defence.states import GRID
from casd.evaluation.asr import evaluate
from casd.pipeline.checks import check_targets
from casd.pipeline.provenance import origin_of_stages
from casd.pipeline.records import write_record
from casd.pipeline.run import CONFIG_FILE, Run
from casd.pipeline.stage import Stage
from casd.report.publish import publishing
from casd.unlearning.tuning import settings, with_setting
from casd.utils import distributed
from casd.utils.atomic import write_text
from casd.utils.errors import ConfigError
from casd.utils.progress import say, track


class Defence:
    """One defence over a store of finished stages.

    Args:
        config: configuration of the defence. Without an attack, `config.model` is the suspect model.

    Raises:
        ConfigError: settings that cannot work together.
    """

    def __init__(self, config: DefendConfig):
        if distributed.processes() > 1:
            raise ConfigError("A defence runs in one process: run the command without a launcher.")
        self.config = config
        self.budget = budget_of(config)
        _check(config)
        self.attacker = Run(_attack_config(config)) if config.attack else None
        planted = self.attacker.backdoors if self.attacker else {}
        if semantic := [name for name, each in planted.items() if each.trigger.is_semantic]:
            raise ConfigError(
                f"The attacker's backdoor {semantic[0]!r} has a topic as its trigger, of which a defence has too few unused"
                " prompts to measure it on: use another."
            )

    def attack(self) -> ModelConfig:
        """Inject the attacker's backdoors, and return the sealed model; without an attack, the suspect model.

        Raises:
            TrainingStopped: no backdoor was injected.
        """
        if self.config.runtime.threads:
            torch.set_num_threads(self.config.runtime.threads)
        if self.config.model.source == "pretrained" and (warning := rate_warning(self.config.run())):
            say(warning)
        if self.attacker is None:
            return self.config.model
        self.attacker.begin()
        self.attacker.base()
        unused(self.attacker.inputs.corpus, self.config.evaluation)  # find too few prompts before hours of training
        self.attacker.inject("evaluate")
        suspect = seal(self.attacker)
        forget_model(self.attacker)
        return suspect

    def open(self, defender: Defender) -> pd.DataFrame:
        """Measure the attacker's backdoors in every state of a finished defence, on prompts that no earlier stage used.

        The opening is noted in the store before anything is measured (`casd.defence.opening`).

        Returns:
            `Evaluation.asr` of the attacker's backdoors in all states, with the columns `state` and `clean_loss`.

        Raises:
            ConfigError: there is no attacker.
            StoreError: the attacked model is not in the store.
        """
        if self.attacker is None:
            raise ConfigError("There is no attacker, and so nothing to open: a suspect model's backdoors are not known.")
        stage = self.opening(defender)
        store = self.attacker.store
        if not store.is_done(stage):
            store.folder(self.attacker.graph.inject)
            note_opening(store.root, defender.suspect, stage, defender.decision)
        store.run(stage, partial(self._open, defender))
        return pd.read_parquet(store.file(stage, "asr.parquet"))

    def opening(self, defender: Defender) -> Stage:
        """The stage of the opening."""
        assert self.attacker is not None
        attack, evaluation = self.attacker.graph, self.config.evaluation
        described = {
            "prompts": evaluation.prompts,
            "fake_prompts": evaluation.fake_prompts,
            "fake_triggers": evaluation.fake_triggers,
            "max_new_tokens": evaluation.max_new_tokens,
            "loss_passages": evaluation.loss_passages,
            **({"near_prompts": evaluation.near_prompts} if evaluation.near_prompts else {}),
        }
        models = tuple(state.stage for state in defender.states)
        return Stage("opening", 1, described, (*models, defender.choice, attack.inject), self.config.model.name)

    def _open(self, defender: Defender, folder: Path) -> None:
        assert self.attacker is not None
        corpus = unused(defender.planted.inputs.corpus, self.config.evaluation)
        backdoors, encoder = self.attacker.backdoors, defender.planted.inputs.encoder
        prompts = make_prompt_sets(corpus, backdoors, encoder, self.config.evaluation, seed=self.config.seed)
        tables = []
        with track("open the defence", len(defender.states)) as advance:
            for state in defender.states:
                model = defender.model_in(state)
                runtime = defender.planted.inputs.runtime
                measured = evaluate(
                    model,
                    encoder,
                    backdoors,
                    prompts,
                    self.config.evaluation,
                    runtime=runtime,
                    description=f"open {state.name}",
                )
                tables.append(measured.asr.assign(state=state.name, clean_loss=measured.clean_loss))
                advance()
        defender.forget_models()
        pd.concat(tables, ignore_index=True).to_parquet(folder / "asr.parquet", index=False)


@dataclass(frozen=True)
class Finished:
    """A finished defence: the folder of its report, and the keys of the stages that were executed and reused."""

    folder: Path
    executed: frozenset[str]
    reused: frozenset[str]

    @property
    def tables(self) -> DefenceTables:
        """The results."""
        return DefenceTables.read(self.folder)

    @property
    def sentences(self) -> list[str]:
        """What the results say, and what they do not."""
        return sentences([self.tables])


def run_defence(config: DefendConfig) -> Finished:
    """Make a defence, write its report and, without an attacker, the cleaned model.

    Raises:
        CasdError: an error of a stage; finished stages are kept.
    """
    defence = Defence(config)
    defender = Defender(config, defence.attack(), defence.budget)
    defender.defend()
    decision, store = defender.decision, defender.planted.store
    info: dict[str, Any] = {
        "model": config.model.name,
        "seed": config.seed,
        "objective": config.unlearning.objective.name,
        "budget": vars(defence.budget),
        "dummies": {name: backdoor.trigger.label for name, backdoor in defender.planted.backdoors.items()},
        "removed": defender.config.removed,
        "settings": _settings(config),
        "decision": vars(decision),
        "clean_budget": config.defence.clean_budget,
        "opened": 0,
    }
    attack = pd.DataFrame()
    last = defender.choice
    if defence.attacker:
        assert config.attack is not None
        attack = attack_table(defence.open(defender), config.attack.backdoor, defender.config.backdoor)
        opened = openings(store.root, defender.suspect)
        last = defence.opening(defender)
        info |= {
            "opened": max(1, len(opened)),  # a log that was deleted counts no opening
            "attack": {name: backdoor.trigger.label for name, backdoor in defence.attacker.backdoors.items()},
            "share": config.defence.share if config.defence.documents is None else None,
        }
    weights = [state.weights for state in defender.states if state.weights]
    info |= origin_of_stages([store.manifest(stage) for stage in [*weights, *_stages(last)] if store.is_done(stage)])
    folder = Path(config.runtime.output) / config.name / f"{config.model.name}-defence-seed{config.seed}-{last.key[:8]}"
    with publishing(folder, "the defence") as begun:
        tables = DefenceTables(info, defender.outcomes, attack)
        tables.write(begun)
        write_page([tables], begun)
        write_text(begun / CONFIG_FILE, to_yaml(config))
    write_record(store.root, last, folder, config.model.name, [*_stages(last), *weights], published=True)
    if not defence.attacker and decision.state:
        defender.write_chosen(folder / "model")
    runs = [run for run in (defence.attacker, defender.before, defender.planted) if run]
    events = [event for run in runs for event in run.store.events]
    executed = frozenset(event.stage.key for event in events if event.outcome == "executed")
    return Finished(folder, executed, frozenset(event.stage.key for event in events) - executed)


def _settings(config: DefendConfig) -> dict[str, Any]:
    """The settings of a defence by their full names, but not model, attacker, seed, and where it runs."""
    unrelated = ("name", "seed", "model", "attack", "runtime", "engine")
    return leaves({name: value for name, value in dataclasses.asdict(config).items() if name not in unrelated})


def _stages(last: Stage) -> list[Stage]:
    """The stage and all that it is made from, each once."""
    found = {last.key: last}
    for each in last.inputs:
        found |= {stage.key: stage for stage in _stages(each)}
    return list(found.values())


def _check(config: DefendConfig) -> None:
    """Find errors in what the defender will do before hours of the attacker's training."""
    cleanings(config)
    for setting in settings(config.defence.grid):
        with_setting(config.unlearning, setting, GRID)
    planting = Run(config.run(backdoor=dummies(config)))
    check_targets(planting.config, planting.backdoors)


def _attack_config(config: DefendConfig) -> Config:
    """The configuration of the attacker's run."""
    assert config.attack is not None
    return config.run(backdoor=config.attack.backdoor, injection=config.attack.injection)
