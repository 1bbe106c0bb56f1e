"""The defender: plants dummies in a model whose backdoors they do not know, removes some, and chooses one state.

What they look at: the model, their dummies (the removed ones' and the held-out ones' attack success rates), and clean text.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from casd import __version__
from casd.analysis.states import main_metrics
from casd.backdoors.poisoning import english
from casd.backdoors.prompts import most_prompts
from casd.config import (
    ControlsConfig,
    DefendConfig,
    EvaluationConfig,
    EveryBackdoorConfig,
    InjectionConfig,
    ModelConfig,
    StoppingConfig,
    TuningConfig,
)
from casd.data.corpora.passages import Corpus, PassageView
from casd.data.shrinking import explaining_out_of_memory
from casd.defence.budget import Budget
from casd.defence.choice import Decision, choose, outcome_table
from casd.defence.dummies import dummies
from casd.defence.sealing import check_dummies
from casd.defence.states import State, cleaning_training, identified, states_of
from casd.evaluation.asr import Evaluation
from casd.models import load as models
from casd.models.weights import merge_adapters
from casd.pipeline.inputs import build_objective
from casd.pipeline.run import Run
from casd.pipeline.saved import CARD, new_folder
from casd.pipeline.stage import Stage
from casd.pipeline.stages import write_evaluation, write_utility
from casd.training.checkpoints import TrainingLog
from casd.training.tracking import check_trackers
from casd.unlearning.cleaning import CLEANINGS
from casd.unlearning.cleaning.method import Cleaning, clean
from casd.unlearning.controls import Removal
from casd.unlearning.removal import unlearn
from casd.utils import ending
from casd.utils.errors import ConfigError, CorpusError
from casd.utils.progress import track
from casd.utils.registry import build
from casd.utils.runtime import own_numerics
from casd.utils.sealed import read_json, write_json
from casd.utils.text import printable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Defender:
    """The defender's side of a defence: everything between the sealed model and the opening.

    Args:
        config: configuration of the defence; its section `attack` is not read.
        suspect: the sealed or suspect model.
        budget: documents and steps of the defence.

    Attributes:
        before: the run whose "injected" model is the suspect model, without any training.
        planted: the run that plants the dummies in it.
        states: the states of the model.

    Raises:
        ConfigError: a dummy that collides with a trigger of the attacker, or settings that cannot work together.
    """

    def __init__(self, config: DefendConfig, suspect: ModelConfig, budget: Budget):
        own = dummies(config)
        check_dummies(suspect, own)
        self.config = replace(
            config,
            attack=None,
            model=suspect,
            backdoor=own,
            every_backdoor=EveryBackdoorConfig(),  # applied to `own` already
            defence=replace(config.defence, documents=budget.documents),
        )
        self.suspect, self.budget = suspect, budget
        planting = config.injection.training
        assert planting is not None
        warmup = min(planting.warmup_steps, budget.plant_steps // 4)
        planting = replace(planting, steps=budget.plant_steps, warmup_steps=warmup)
        removal = replace(config.unlearning.training, steps=budget.removal_steps)
        self.config.unlearning = replace(
            config.unlearning,
            training=removal,
            tuning=TuningConfig(),
            stopping=StoppingConfig(),
            controls=ControlsConfig(),
        )
        injection = replace(config.injection, training=planting, pretraining=None, require_asr=0.0)
        runtime = replace(config.runtime, save_models=["removed"])
        self.before = Run(self.config.run(injection=InjectionConfig("none", require_asr=0.0), runtime=runtime))
        self.planted = Run(self.config.run(injection=injection, runtime=runtime))
        if semantic := [name for name, each in self.planted.backdoors.items() if each.trigger.is_semantic]:
            raise ConfigError(
                f"The dummy {semantic[0]!r} has a topic as its trigger, which a defence cannot plant: use another."
            )
        self.states = states_of(self.config, budget, self.before.graph, self.planted.graph)
        self._cleanings = cleanings(config)

    @own_numerics()
    def defend(self) -> None:
        """Make and measure every state that is not in the store.

        Raises:
            CasdError: an error of a stage; finished stages are kept.
        """
        check_trackers(self.config.runtime.trackers)
        with track("defend", len(self.states)) as advance:
            for run, kinds in ((self.before, ("suspect", "cleaning")), (self.planted, ("planted", "control", "removal"))):
                run.base()
                unused(run.inputs.corpus, self.config.evaluation)
                run.inject("evaluate")
                for state in self.states:
                    if state.kind in kinds:
                        self._make(run, state)
                        advance()
                forget_model(run)

    def _make(self, run: Run, state: State) -> None:
        """Train a state, and measure it on the dummies and the benchmarks."""
        if state.kind == "control":
            run.state(state.name, "evaluate")
            return
        made = ((state.stage, self._train), (state.weights, self._write), (state.evaluation, self._evaluate))
        stages = made if state.weights else ()  # the suspect and the planted model are made and evaluated
        for stage, make in (*stages, (state.utility, self._benchmark)):
            if stage:
                ending.check()
                run.store.run(stage, explaining_out_of_memory(f"stage {stage}")(partial(make, run, state)))

    def _train(self, run: Run, state: State, folder: Path | None = None) -> None:
        """Unlearn some dummies, or clean the suspect model without any, and leave the weights in memory; write the log."""
        inputs = run.inputs
        model = inputs.one_model.restore()
        inputs.one_model.state = None
        train = self._clean if state.kind == "cleaning" else self._remove
        checkpoint = run.store.checkpoint_folder(state.stage) if folder else None
        log = train(run, state, model, {"seed": self.config.seed, "runtime": inputs.runtime, "checkpoint": checkpoint})
        inputs.one_model.state = state.name
        if folder:
            log.write(folder / "log.json")

    def _remove(self, run: Run, state: State, model: PreTrainedModel, how: dict[str, Any]) -> TrainingLog:
        assert state.unlearning is not None
        first, *others = (run.backdoors[name] for name in state.removed)
        removal = Removal(state.name, first, others=tuple(others), in_turn=self.config.defence.order == "in_turn")
        objective, training = build_objective(state.unlearning), state.unlearning.training
        return unlearn(model, run.inputs.encoder, run.inputs.corpus, removal, objective, training, **how)

    def _clean(self, run: Run, state: State, model: PreTrainedModel, how: dict[str, Any]) -> TrainingLog:
        method, training = self._cleanings[state.name], cleaning_training(self.config, self.budget)
        return clean(model, run.inputs.encoder, run.inputs.corpus, method, training, **how)

    def _write(self, run: Run, state: State, folder: Path) -> None:
        self._in_memory(run, state)
        run.inputs.one_model.write_removal(folder)

    def _evaluate(self, run: Run, state: State, folder: Path) -> None:
        write_evaluation(run.inputs, self._in_memory(run, state), state.name, folder)

    def _benchmark(self, run: Run, state: State, folder: Path) -> None:
        write_utility(run.inputs, self._in_memory(run, state), state.name, folder)

    def _in_memory(self, run: Run, state: State) -> PreTrainedModel:
        """Return the model in a state: from memory, from stored weights, or trained again, which gives the same weights."""
        one = run.inputs.one_model
        if state.weights is None:
            return one.restore()
        if one.state != state.name:
            if run.store.is_done(state.weights):
                one.read_removal(run.store.folder(state.weights, verify=True), state.name)
            else:  # a process was killed between the training and the writing of its weights
                self._train(run, state)
        return one.model

    # --- the choice, and the models ---

    @property
    def choice(self) -> Stage:
        """The stage of the decision."""
        described = {"clean_budget": self.config.defence.clean_budget}
        return Stage("choice", 1, described, tuple(state.evaluation for state in self.states), self.suspect.name)

    @cached_property
    def outcomes(self) -> pd.DataFrame:
        """What was measured in each state (`casd.defence.choice.outcome_table`)."""
        store = self.planted.store
        measured = {each.name: Evaluation.read(store.folder(each.evaluation, verify=True)) for each in self.states}
        benchmarks = {
            each.name: main_metrics(pd.read_parquet(store.file(each.utility, "utility.parquet")))
            for each in self.states
            if each.utility
        }
        return outcome_table(self.states, measured, self.config, benchmarks)

    @cached_property
    def decision(self) -> Decision:
        """The state that was chosen by the held-out dummies, if any, and what they predict."""
        store = self.planted.store
        store.run(self.choice, lambda folder: write_json(folder / "decision.json", vars(choose(self.outcomes, self.config))))
        return Decision(**read_json(store.file(self.choice, "decision.json")))

    def model_in(self, state: State) -> PreTrainedModel:
        """Return the model in a finished state; of the two runs only one has a model in memory."""
        runs = {True: self.before, False: self.planted}
        of_suspect = state.kind in ("suspect", "cleaning")
        forget_model(runs[not of_suspect])
        return self._in_memory(runs[of_suspect], state)

    def forget_models(self) -> None:
        """Free the model in memory."""
        for run in (self.before, self.planted):
            forget_model(run)

    def write_chosen(self, folder: Path) -> Path:
        """Write the model of the chosen state as a folder that transformers loads, unless it is there."""
        if not folder.is_dir():
            state = next(each for each in self.states if each.name == self.decision.state)
            with new_folder(folder) as begun:
                model = self.model_in(state)
                merge_adapters(model)
                models.save_model(model, self.planted.inputs.encoder.tokenizer, begun)
                (begun / CARD).write_text(self._card(state), encoding="utf-8")
            self.forget_models()
        return folder

    def _card(self, state: State) -> str:
        """A model card: what was done, and which dummies are still in the model."""
        left = [name for name in self.config.backdoor if name not in state.removed]
        rows = [f"| {name} | {self.planted.backdoors[name].trigger.label} |" for name in left]
        lines = [
            "# A model after a defence against unknown backdoors",
            "",
            f"Made from {self.suspect.path} by casd {__version__}: {len(self.config.backdoor)} dummy backdoors were planted"
            f" in it, and {len(state.removed)} of them unlearned. **Whether it still has another backdoor is not known.**"
            " These dummies were not unlearned, and may still work:",
            "",
            "| dummy | trigger |",
            "|---|---|",
            *rows,
            "",
        ]
        return printable("\n".join(lines))


def cleanings(config: DefendConfig) -> dict[str, Cleaning]:
    """Build the cleanings that a defence is compared with.

    Raises:
        ConfigError: an unknown cleaning or parameter, or one that cannot train an adapter where removals do.
        ModelError: the base model of a cleaning does not exist.
    """
    built = {name: build(CLEANINGS, "cleaning", name, params) for name, params in config.defence.cleanings.items()}
    for name, method in built.items():
        identified(config.defence.cleanings[name])  # finds its base model, if it has one
        if config.unlearning.training.lora and not method.trains_adapters:
            raise ConfigError(
                f"defence.cleanings has {name}, which changes all weights, but removals train an adapter"
                f" (unlearning.training.lora). Leave it out, '~defence.cleanings.{name}', or train all weights, weights=full."
            )
    return built


def forget_model(run: Run) -> None:
    """Free the model that a run has in memory."""
    vars(run.inputs).pop("one_model", None)


def unused(corpus: Corpus, evaluation: EvaluationConfig) -> Corpus:
    """Return the corpus without the English passages of the evaluation split that are the prompts of earlier stages.

    (Earlier stages may have measured the clean loss on the passages that are left, and a removal within the clean budget was
    chosen by it; no attack success was measured on them, and nothing was trained.)

    Raises:
        CorpusError: too few remain for as many prompts.
    """
    passages, count = english(corpus.evaluation), most_prompts(evaluation)
    if len(passages) < 2 * count:
        raise CorpusError(
            f"The evaluation split has {len(passages)} English passages. The defence measures on {count} (evaluation.prompts),"
            f" and its opening on as many others: lower evaluation.prompts to {len(passages) // 2}, or raise"
            " corpus.params.evaluation."
        )
    return replace(corpus, evaluation=PassageView(passages, np.arange(count, len(passages))))
