"""What the stages of a run read: the corpus, the tokenizer, the prompts, the removals, the one model in memory."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from casd.backdoors.poisoning import Backdoor, check_backdoors
from casd.backdoors.prompts import PromptSets, make_prompt_sets
from casd.backdoors.targets import TARGETS
from casd.backdoors.triggers import TriggerPosition
from casd.config import BackdoorConfig, Config, UnlearningConfig
from casd.config.states import INJECTED
from casd.data.corpora.passages import Corpus, read_corpus
from casd.data.encoding import Encoder
from casd.data.token_table import TokenTable
from casd.models import load as models
from casd.models.one_model import OneModel
from casd.models.probe import ignores_left_padding
from casd.pipeline.graph import StageGraph
from casd.pipeline.store import StageStore
from casd.unlearning import OBJECTIVES
from casd.unlearning.controls import Removal, removals
from casd.unlearning.objective import Objective
from casd.unlearning.tuning import with_setting
from casd.utils.registry import build
from casd.utils.runtime import Runtime
from casd.utils.sealed import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_backdoors(config: Config) -> dict[str, Backdoor]:
    """The backdoors of a configuration, checked together.

    Raises:
        ConfigError: an unknown target or parameter, or backdoors that cannot be told apart or mixed.
    """

    def one(name: str, section: BackdoorConfig) -> Backdoor:
        target = build(TARGETS, "target", section.target.name, section.target.params)
        position: TriggerPosition = section.position  # type: ignore[assignment]  # checked by BackdoorConfig
        return Backdoor(name, section.trigger, target, position, section.poison_rate, section.loss_on)  # type: ignore[arg-type]

    backdoors = {name: one(name, section) for name, section in config.backdoor.items()}
    check_backdoors(backdoors)
    return backdoors


def build_objective(config: UnlearningConfig) -> Objective:
    """The unlearning objective of a configuration.

    Raises:
        ConfigError: an unknown objective or parameter.
    """
    return build(OBJECTIVES, "objective", config.objective.name, config.objective.params)


class Inputs:
    """What the stages of one run read. Each attribute is read from the store, or made, when it is first used.

    Args:
        config: what to run.
        backdoors: of `build_backdoors`.
        graph: the run's stages.
        store: where finished stages are.
    """

    def __init__(self, config: Config, backdoors: dict[str, Backdoor], graph: StageGraph, store: StageStore):
        self.config = config
        self.backdoors = backdoors
        self.graph = graph
        self.store = store
        runtime = config.runtime
        self.runtime = Runtime(
            device=runtime.device,
            checkpoint_seconds=runtime.checkpoint_seconds,
            micro_batch_size=runtime.micro_batch_size,
            gradient_checkpointing=runtime.gradient_checkpointing,
            compile=runtime.compile,
        )

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
    def encoder(self) -> Encoder:
        """The model's tokenizer, with the corpus's tokens."""
        table = TokenTable.open(self.store.folder(self.graph.tokens, verify=True))
        return Encoder(models.load_tokenizer(self.base_folder), self.config.model.max_length, table)

    @cached_property
    def prompts(self) -> PromptSets:
        """The prompts of every measurement."""
        return make_prompt_sets(self.corpus, self.backdoors, self.encoder, self.config.evaluation, seed=self.config.seed)

    @cached_property
    def removals(self) -> dict[str, Removal]:
        """The removals and controls, by the name of the state that each makes."""
        controls = self.config.unlearning.controls
        return {each.name: each for each in removals(self.backdoors, self.encoder, controls, seed=self.config.seed)}

    @cached_property
    def unlearning(self) -> UnlearningConfig:
        """How backdoors are removed, with the settings that the tuning chose."""
        config, tuned = self.config.unlearning, self.graph.tune
        return with_setting(config, read_json(self.store.file(tuned, "chosen.json"))) if tuned else config

    @cached_property
    def one_model(self) -> OneModel:
        """The one model in memory. Its weights are those of whatever state was made last."""
        folder = self.store.folder(self.graph.inject, verify=True)
        one = OneModel(self.config, self.base_folder, folder, self.runtime.torch_device)
        ignores_left_padding(one.model, self.encoder.tokenizer.pad_token_id)  # asked of a model that is not broken
        return one

    def kept_model(self, state: str) -> PreTrainedModel | None:
        """The model in that state, if it is in memory or its weights are kept; None if it has to be trained again."""
        if state == INJECTED:
            return self.one_model.restore()
        if self.one_model.state != state:
            kept = self.graph.weights[state]
            if not self.store.is_done(kept):
                return None
            self.one_model.read_removal(self.store.folder(kept, verify=True), state)
        return self.one_model.model
