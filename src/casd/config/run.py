"""The configuration of a run, and of where it runs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any

from casd.config.fields import (
    MISSING,
    Choice,
    Section,
    Text,
    require,
    require_different,
    require_name,
    require_one_of,
    require_path,
)
from casd.config.inputs import BackdoorConfig, EveryBackdoorConfig, ModelConfig
from casd.config.measurement import ActivationsConfig, EvaluationConfig, MetricConfig, UtilityConfig
from casd.config.persistence import PersistenceConfig
from casd.config.training import InjectionConfig, LanguageModelTraining
from casd.config.unlearning import UnlearningConfig
from casd.engines import make_engine
from casd.utils.errors import ConfigError
from casd.utils.registry import shown


@dataclass
class RuntimeConfig(Section):
    """Devices, folders and resources. Nothing here is part of a stage's key."""

    output: Text = "outputs"
    """Folder of the reports."""
    store: Text = "outputs/store"
    """Folder of the finished stages; runs share it."""
    device: Text = "auto"
    """ "auto", "cpu", "cuda", "cuda:1", …"""
    threads: int = field(default=0, metadata={"most": 1024})
    """CPU threads of torch; 0 for torch's default."""
    progress: Text = "auto"
    """ "auto", "plain" or "off"."""
    checkpoint_seconds: float = field(default=60.0, metadata={"most": math.inf})
    """Seconds between two checkpoints of a training; inf for none."""
    save_models: list[Text] = field(default_factory=list)
    """Models written as folders that transformers loads, in `models/` of the run's folder: "injected", "removed" (with the
    controls), or both. The store has the injected model in any case, and the others only if they are named here."""
    save_as: Text = "weights"
    """What is saved of a removal without an adapter: its "weights", or the "delta" to the injected model's (a task vector,
    without the unchanged weights). With an adapter, the adapter is saved."""
    trackers: list[Text] = field(default_factory=list)
    """Experiment trackers that receive the losses of the trainings: "tensorboard", "wandb", or both."""
    micro_batch_size: int = 0
    """Documents per forward pass of a training, on each device; short ones may be more, as long as they take no more tokens
    than so many of the longest. 0 means 8 on a CPU, where less padding saves time, and the whole batch elsewhere. It does not
    change the loss. A run of one process halves it when memory runs out."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, about a third more time."""
    compile: bool = False
    """Train with torch.compile."""
    memory_gib: float | None = None
    """Memory of one device in GiB, for `casd plan` and the check before a run; null to detect it."""
    tflops: float | None = None
    """Sustained TFLOP/s of one device, from which `casd plan` estimates times; null for a known GPU's, or this CPU's."""
    devices: int = 1
    """Number of devices that `casd plan` assumes. (A run uses those that `accelerate launch` gives it.)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("runtime.progress", self.progress, ("auto", "plain", "off"))
        for kept in self.save_models:
            require_one_of("runtime.save_models:", kept, ("injected", "removed"))
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", self.device):
            raise ConfigError(f"runtime.device is {shown(self.device)}; expected auto, cpu, mps, cuda or cuda:N.")
        for tracker in self.trackers:
            require_one_of("runtime.trackers:", tracker, ("tensorboard", "wandb"))
        require_different(self, "save_models", "trackers")
        require_path("runtime.output", self.output)
        require_path("runtime.store", self.store)
        require_one_of("runtime.save_as", self.save_as, ("weights", "delta"))
        require(self, "0 or more", lambda value: value >= 0, "threads", "micro_batch_size")
        require(self, "greater than 0", lambda value: value > 0, "checkpoint_seconds", "devices")
        require(self, "greater than 0, or null", lambda value: value is None or value > 0, "memory_gib", "tflops")


@dataclass
class Config(Section):
    """One run: one model, several backdoors, one objective, one seed."""

    name: Text = "run"
    """Folder of the reports below runtime.output."""
    seed: int = field(default=0, metadata={"most": 2**63 - 1})
    """Seed of all random numbers; from 0 to 2**63 - 1."""
    model: ModelConfig = MISSING
    """Model."""
    corpus: Choice = MISSING
    """Text."""
    backdoor: dict[str, BackdoorConfig] = field(default_factory=dict)
    """Backdoors by name."""
    every_backdoor: EveryBackdoorConfig = field(default_factory=EveryBackdoorConfig)
    """Settings that override those of all backdoors."""
    injection: InjectionConfig = MISSING
    """Injection of the backdoors."""
    unlearning: UnlearningConfig = MISSING
    """Removal of the backdoors."""
    activations: ActivationsConfig = MISSING
    """Captured activations."""
    metric: MetricConfig = MISSING
    """Variants of CASD."""
    evaluation: EvaluationConfig = MISSING
    """Measurement of attack success."""
    utility: UtilityConfig = MISSING
    """Benchmarks."""
    persistence: PersistenceConfig = field(default_factory=PersistenceConfig)
    """Whether removed backdoors stay removed."""
    runtime: RuntimeConfig = MISSING
    """Devices and folders."""
    engine: dict[str, Any] = field(default_factory=lambda: {"name": "local"})
    """Where the parts of runs are executed: the name of an engine and its options. Not part of any stage's key."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_name("name", self.name)
        for name in self.backdoor:
            require_name("a backdoor's name", name)
        require(self, "0 or more", lambda value: value >= 0, "seed")
        make_engine(self.engine)
        if common := self.every_backdoor.chosen:
            self.backdoor = {name: replace(section, **common) for name, section in self.backdoor.items()}
        if self.backdoor and not self.removed:
            raise ConfigError("Every backdoor has removed: false; at least one has to be removed.")
        in_system = [name for name, section in self.backdoor.items() if section.position == "system"]
        if in_system and self.model.format != "chat":
            raise ConfigError(
                f"backdoor.{in_system[0]}.position is system, but model.format is {self.model.format}: only a chat has a system"
                " prompt. Set model.format=chat, with an instruct model."
            )
        if self.injection.mode == "none" and self.model.source == "scratch":
            raise ConfigError(
                f"injection.mode is none, but model {self.model.label!r} is built from scratch and has no backdoors: give one"
                " that has them, model=hub model.path=FOLDER."
            )
        if self.injection.mode == "pretraining" and self.model.source != "scratch":
            raise ConfigError(
                f"injection.mode is pretraining, but model {self.model.label!r} has weights already; use injection=continual."
            )
        if self.injection.mode == "continual" and self.model.source == "scratch" and self.injection.pretraining is None:
            raise ConfigError("injection.pretraining is not set; a model from scratch needs it before continual injection.")

    @property
    def removed(self) -> list[str]:
        """Names of the backdoors that are removed; the others are only measured."""
        return [name for name, section in self.backdoor.items() if section.removed]

    @property
    def base_pretraining(self) -> LanguageModelTraining | None:
        """The clean pretraining of a model from scratch before continual injection; otherwise None."""
        continual_from_scratch = self.injection.mode == "continual" and self.model.source == "scratch"
        return self.injection.pretraining if continual_from_scratch else None
