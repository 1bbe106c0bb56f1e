"""Inputs of the stages of a run: corpus, tokenizer, prompts, removals, and the model in memory."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from casd.backdoors.poisoning import Backdoor, check_backdoors
from casd.backdoors.prompts import PromptSets, make_prompt_sets
from casd.backdoors.targets import TARGETS
from casd.backdoors.triggers import make_trigger
from casd.backdoors.triggers.base import TriggerPosition
from casd.config import BackdoorConfig, Config, UnlearningConfig
from casd.config.states import INJECTED
from casd.data.chat import chat_template
from casd.data.corpora.passages import Corpus, read_corpus
from casd.data.encoding import Encoder
from casd.data.token_table import TokenTable
from casd.models import load as models
from casd.models.one_model import OneModel
from casd.models.probe import ignores_left_padding
from casd.pipeline.graph import StageGraph, run_folder
from casd.pipeline.store import StageStore
from casd.unlearning import OBJECTIVES
from casd.unlearning.controls import Removal, removals
from casd.unlearning.objective import Objective
from casd.unlearning.tuning import with_setting
from casd.utils.errors import ConfigError
from casd.utils.registry import build
from casd.utils.runtime import Runtime
from casd.utils.sealed import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_backdoors(config: Config) -> dict[str, Backdoor]:
    """Build the backdoors of a configuration, and check them together.

    Raises:
        ConfigError: an unknown target, kind of trigger or parameter, or backdoors that cannot be distinguished or combined.
    """

    def one(name: str, section: BackdoorConfig) -> Backdoor:
        position: TriggerPosition = section.position  # type: ignore[assignment]  # checked by BackdoorConfig
        try:
            target = build(TARGETS, "target", section.target.name, section.target.params)
            trigger, loss_on = make_trigger(section.trigger), section.loss_on
            return Backdoor(name, trigger, target, position, section.poison_rate, loss_on)  # type: ignore[arg-type]
        except ConfigError as error:
            named = f"Backdoor {name!r}: "
            raise ConfigError(f"{named}{str(error).removeprefix(named)}") from error

    backdoors = {name: one(name, section) for name, section in config.backdoor.items()}
    check_backdoors(backdoors)
    return backdoors


def build_objective(config: UnlearningConfig) -> Objective:
    """Build the unlearning objective of a configuration.

    Raises:
        ConfigError: an unknown objective or parameter.
    """
    return build(OBJECTIVES, "objective", config.objective.name, config.objective.params)


class Inputs:
    """Inputs of the stages of one run. Each attribute is read from the store, or built, when it is first used.

    Args:
        config: configuration of the run.
        backdoors: the result of `build_backdoors`.
        graph: the run's stages.
        store: the finished stages.
    """

    def __init__(self, config: Config, backdoors: dict[str, Backdoor], graph: StageGraph, store: StageStore):
        self.config = config
        self.backdoors = backdoors
        self.removed = {name: backdoors[name] for name in config.removed}
        self.graph = graph
        self.store = store
        runtime = config.runtime
        self.runtime = Runtime(
            device=runtime.device,
            checkpoint_seconds=runtime.checkpoint_seconds,
            micro_batch_size=runtime.micro_batch_size,
            gradient_checkpointing=runtime.gradient_checkpointing,
            compile=runtime.compile,
            trackers=tuple(runtime.trackers),
            tracking_folder=str(run_folder(config, graph) / "tracking"),
        )

    def take_over(self, other: Inputs) -> None:
        """Take over the store of another run, and what it has in memory, if it shares the injected model and the prompts."""

        def shared(each: Inputs) -> tuple[object, ...]:
            config = each.config
            settings = (config.model, config.backdoor, config.evaluation, config.runtime, config.unlearning.training.lora)
            return (each.graph.tokens.key, each.graph.inject.key, *settings)

        if shared(self) != shared(other):
            return
        self.store = other.store
        for name in ("corpus", "base_folder", "encoder", "prompts", "one_model"):
            if name in vars(other):
                vars(self)[name] = vars(other)[name]
        if "one_model" in vars(self) and self.one_model.state != INJECTED:
            self.one_model.state = None  # a removal of the other run

    @cached_property
    def corpus(self) -> Corpus:
        """The training, forget and retain splits, and the evaluation passages."""
        return read_corpus(self.store.folder(self.graph.corpus, verify=True))

    @cached_property
    def base_folder(self) -> Path:
        """The folder of the base model."""
        if models.origin(self.config.model) in ("folder", "hub"):
            return models.fetch(self.config.model)
        return self.store.folder(self.graph.base, verify=True) / "model"

    @cached_property
    def injected_folder(self) -> Path:
        """The folder of the injected model, or of the adapter that the injection trained."""
        if self.config.injection.mode == "none":
            return self.base_folder
        return self.store.folder(self.graph.inject, verify=True) / ("adapter" if self.config.injection.lora else "model")

    @cached_property
    def encoder(self) -> Encoder:
        """The model's tokenizer, with the tokens of the corpus."""
        table = TokenTable.open(self.store.folder(self.graph.tokens, verify=True))
        tokenizer, model = models.load_tokenizer(self.base_folder), self.config.model
        return Encoder(tokenizer, model.max_length, table, chat_template(tokenizer, model))

    @cached_property
    def prompts(self) -> PromptSets:
        """The prompts of all measurements."""
        return make_prompt_sets(self.corpus, self.backdoors, self.encoder, self.config.evaluation, seed=self.config.seed)

    @cached_property
    def removals(self) -> dict[str, Removal]:
        """The removals and controls, by the name of the resulting state."""
        controls = self.config.unlearning.controls
        kept = [backdoor for name, backdoor in self.backdoors.items() if name not in self.removed]
        return {each.name: each for each in removals(self.removed, self.encoder, controls, kept=kept, seed=self.config.seed)}

    @cached_property
    def unlearning(self) -> UnlearningConfig:
        """The configuration of the removals, with the settings that the tuning chose."""
        config, tune = self.config.unlearning, self.graph.tune
        return with_setting(config, read_json(self.store.file(tune, "chosen.json"))) if tune else config

    @cached_property
    def one_model(self) -> OneModel:
        """The only model in memory, with the weights of the state that was made last."""
        one = OneModel(self.config, self.base_folder, self.injected_folder, self.runtime.torch_device)
        # Measured here, once, on the injected model: a removal may break the model.
        ignores_left_padding(one.model, self.encoder.padding)
        return one

    def kept_model(self, state: str) -> PreTrainedModel | None:
        """Return the model in a state if it is in memory or its weights are saved, or None if it has to be trained again."""
        if state == INJECTED:
            return self.one_model.restore()
        if self.one_model.state != state:
            saved = self.graph.weights[state]
            if not self.store.is_done(saved):
                return None
            self.one_model.read_removal(self.store.folder(saved, verify=True), state)
        return self.one_model.model
