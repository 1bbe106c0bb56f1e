"""A whole run: every section, and where it runs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields, replace

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
from casd.config.training import InjectionConfig, LanguageModelTraining
from casd.config.unlearning import UnlearningConfig
from casd.utils.errors import ConfigError
from casd.utils.registry import shown


@dataclass
class RuntimeConfig(Section):
    """Where things run and are kept. Nothing here enters a stage's key."""

    output: Text = "outputs"
    """Folder of the reports."""
    store: Text = "outputs/store"
    """Folder of the finished stages, shared by all runs."""
    device: Text = "auto"
    """ "auto", "cpu", "cuda", "cuda:1", …"""
    threads: int = field(default=0, metadata={"most": 1024})
    """CPU threads of torch; 0 leaves its own choice."""
    jobs: int = field(default=1, metadata={"most": 1024})
    """Runs of a sweep at once, each in a process of its own with its share of the threads."""
    progress: Text = "auto"
    """ "auto", "plain" or "off"."""
    checkpoint_seconds: float = field(default=60.0, metadata={"most": math.inf})
    """Time between two checkpoints of a training; inf for none."""
    save_models: list[Text] = field(default_factory=lambda: ["injected"])
    """Weights that stay on disk: "injected", "removed", or both."""
    save_as: Text = "weights"
    """What stays of a removal without an adapter: its "weights", or the "delta" to the injected model's (a task vector; what
    did not change is left out). With an adapter it is the adapter."""
    micro_batch_size: int = 0
    """Most documents in one forward pass of a training, on each device; 0 for the whole batch. The loss stays the same. Halved
    where memory runs out, in a run of one process."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""
    compile: bool = False
    """Train through torch.compile."""
    memory_gib: float | None = None
    """Memory of one device, for `casd plan` and the check before a run; null for what is found here."""
    tflops: float | None = None
    """Sustained TFLOP/s of one device, from which `casd plan` estimates times; null for no estimate."""
    devices: int = 1
    """Devices that `casd plan` reckons with. (A run uses those that `accelerate launch` gives it.)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("runtime.progress", self.progress, ("auto", "plain", "off"))
        for kept in self.save_models:
            require_one_of("runtime.save_models:", kept, ("injected", "removed"))
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", self.device):
            raise ConfigError(f"runtime.device is {shown(self.device)}; expected auto, cpu, mps, cuda or cuda:N.")
        require_different(self, "save_models")
        require_path("runtime.output", self.output)
        require_path("runtime.store", self.store)
        require_one_of("runtime.save_as", self.save_as, ("weights", "delta"))
        require(self, "0 or more", lambda value: value >= 0, "threads", "micro_batch_size")
        require(self, "greater than 0", lambda value: value > 0, "checkpoint_seconds", "devices", "jobs")
        require(self, "greater than 0, or null", lambda value: value is None or value > 0, "memory_gib", "tflops")


@dataclass
class Config(Section):
    """One run: one model, several backdoors, one objective, one seed."""

    name: Text = "run"
    """Folder of the reports below runtime.output."""
    seed: int = field(default=0, metadata={"most": 2**63 - 1})
    """Of everything that is drawn; from 0 to 2**63 - 1."""
    model: ModelConfig = MISSING
    """Which model."""
    corpus: Choice = MISSING
    """Which text."""
    backdoor: dict[str, BackdoorConfig] = field(default_factory=dict)
    """Which backdoors, by name."""
    every_backdoor: EveryBackdoorConfig = field(default_factory=EveryBackdoorConfig)
    """What all of them get."""
    injection: InjectionConfig = MISSING
    """How they come in."""
    unlearning: UnlearningConfig = MISSING
    """How they are removed."""
    activations: ActivationsConfig = MISSING
    """What is captured."""
    metric: MetricConfig = MISSING
    """What CASD is computed of it."""
    evaluation: EvaluationConfig = MISSING
    """How success is measured."""
    utility: UtilityConfig = MISSING
    """Which benchmarks."""
    runtime: RuntimeConfig = MISSING
    """Where it runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_name("name", self.name)
        for name in self.backdoor:
            require_name("a backdoor's name", name)
        require(self, "0 or more", lambda value: value >= 0, "seed")
        given = {each.name: getattr(self.every_backdoor, each.name) for each in fields(self.every_backdoor)}
        given = {name: value for name, value in given.items() if value is not None}
        if given:
            self.backdoor = {name: replace(section, **given) for name, section in self.backdoor.items()}
        if self.injection.mode == "pretraining" and self.model.source != "scratch":
            raise ConfigError(
                f"injection.mode is pretraining, but model {self.model.name!r} comes with weights; use injection=continual."
            )
        if self.injection.mode == "continual" and self.model.source == "scratch" and self.injection.pretraining is None:
            raise ConfigError("injection.pretraining is not set; a model from scratch needs it before continual injection.")

    @property
    def base_pretraining(self) -> LanguageModelTraining | None:
        """The clean pretraining of the base model: of a model from scratch, before continual injection; else none."""
        continual_from_scratch = self.injection.mode == "continual" and self.model.source == "scratch"
        return self.injection.pretraining if continual_from_scratch else None
