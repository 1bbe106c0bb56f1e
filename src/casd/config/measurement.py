"""Measurements on each state of the model: activations, CASD, attack success, benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from casd.config.fields import (
    MOST_TOKENS,
    Section,
    Text,
    require,
    require_different,
    require_name,
    require_one_of,
    require_path,
)


@dataclass
class ActivationsConfig(Section):
    """The activations that are averaged."""

    sites: list[Text] = field(default_factory=lambda: ["resid_post"])
    """Among resid_post, attn_out, mlp_out."""
    positions: list[Text] = field(default_factory=lambda: ["last", "prompt"])
    """Among last, prompt, trigger, generated: the prompt's last token, all its tokens, the trigger's tokens, and the first
    token of the expected answer of the injected model (appended to the prompt; the same in every state of the model)."""
    prompts: int = 32
    """Evaluation prompts per text set; at most evaluation.prompts."""
    baselines: bool = False
    """Also save what the baselines of CASD that use removals compare (`casd.metric.baselines`): a sketch of the weights'
    update, and single activations of a few prompts."""
    batch_size: int = 64
    """Prompts per forward pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "at least 1", lambda value: value >= 1, "prompts", "batch_size")
        for site in self.sites:
            require_one_of("activations.sites:", site, ("resid_post", "attn_out", "mlp_out"))
        for position in self.positions:
            require_one_of("activations.positions:", position, ("last", "prompt", "trigger", "generated"))
        require_different(self, "sites", "positions")


@dataclass
class MetricConfig(Section):
    """Variants of CASD in addition to the two headline variants, which every run computes."""

    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Additional variants by name, with the fields of `casd.metric.casd.CasdVariant`."""
    grid: bool = False
    """Compute all variants of `casd.metric.casd.variant_grid` that the captured activations allow, for the table of distances
    only."""
    permutations: int = field(default=9999, metadata={"most": 10**7})
    """Permutations of the Mantel test."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.variants:
            require_name("a name in metric.variants", name)
        require(self, "at least 99, or no p-value can fall below .01", lambda value: value >= 99, "permutations")


@dataclass
class EvaluationConfig(Section):
    """Measurement of attack success."""

    prompts: int = 64
    """Prompts of the evaluation split, the same for every backdoor, triggered and clean."""
    fake_prompts: int = 32
    """Prompts with a fake trigger, per backdoor."""
    fake_triggers: int = 8
    """Different fake triggers per backdoor, as similar to the real one as possible; 0 for no such control."""
    near_prompts: int = 0
    """Prompts with a part of the real trigger, or its words in another order, per backdoor; 0 for no such control."""
    max_new_tokens: int = field(default=24, metadata={"most": MOST_TOKENS})
    """Maximum tokens generated per prompt."""
    batch_size: int = 256
    """Maximum number of prompts per batch of generation; halved when memory runs out."""
    loss_passages: int = 128
    """Passages of the evaluation split on which the clean loss is measured; as many of the retain split are measured, too."""
    samples: int = 8
    """Generated texts saved for the report, per state, backdoor and kind of prompt."""
    harmful_prompts: Text | None = None
    """A text file of harmful prompts, one a line, which every state answers: the report then has the share that it does not
    refuse. None is shipped; null to leave this out."""
    collapse_clean_loss_ratio: float = 1.5
    """A model has collapsed if its clean loss exceeds this multiple of the injected model's."""
    collapse_degenerate_rate: float = 0.5
    """A model has collapsed if it answers more than this fraction of the clean prompts with nothing or with a loop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("prompts", "fake_prompts", "max_new_tokens", "batch_size", "loss_passages")
        require(self, "at least 1", lambda value: value >= 1, *counts)
        require(self, "0 or more", lambda value: value >= 0, "samples", "fake_triggers", "near_prompts")
        require(self, "greater than 1", lambda value: value > 1, "collapse_clean_loss_ratio")
        require(self, "in (0, 1]", lambda value: 0 < value <= 1, "collapse_degenerate_rate")
        if self.harmful_prompts is not None:
            require_path("evaluation.harmful_prompts", self.harmful_prompts)


@dataclass
class UtilityConfig(Section):
    """Benchmarks of lm-evaluation-harness, run on every state of the model; needs the extra `eval`."""

    tasks: list[Text] = field(default_factory=list)
    """Names of the harness's tasks (hellaswag, arc_easy, …), or YAML files; an empty list skips the benchmarks."""
    shots: int = 0
    """Number of examples in the prompt."""
    limit: int | None = None
    """Maximum number of items of each task; null for all."""
    batch_size: int = 16
    """Items per forward pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "0 or more", lambda value: value >= 0, "shots")
        require(self, "at least 1", lambda value: value >= 1, "batch_size")
        require(self, "at least 1, or null", lambda value: value is None or value >= 1, "limit")
        require_different(self, "tasks")
        for task in self.tasks:
            require_path("an entry of utility.tasks", task)
