"""What is measured on each state of the model: activations, CASD, attack success, benchmarks."""

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
    """Which activations are averaged."""

    sites: list[Text] = field(default_factory=lambda: ["resid_post"])
    """Of resid_post, attn_out, mlp_out."""
    positions: list[Text] = field(default_factory=lambda: ["last", "prompt"])
    """Of last, prompt, trigger, generated: the prompt's last token, all its tokens, the trigger's, and the first token of what
    the injected model is to answer (put after the prompt; the same in every state of the model)."""
    prompts: int = 32
    """Evaluation prompts a text set; at most evaluation.prompts."""
    baselines: bool = False
    """Whether to keep what the baselines of CASD compare that need removals (`casd.metric.baselines`): a sketch of the weights'
    update, and single activations of a few prompts."""
    batch_size: int = 64
    """Prompts a forward pass."""

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
    """CASD beyond the two headline variants, which every run computes."""

    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """More variants by name, with the fields of `casd.metric.casd.CasdVariant`."""
    grid: bool = False
    """Compute all variants of `casd.metric.casd.variant_grid` that the captured activations allow; they go into the table of
    distances alone."""
    permutations: int = field(default=9999, metadata={"most": 10**7})
    """Permutations of the Mantel test."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.variants:
            require_name("a name in metric.variants", name)
        require(self, "at least 99, or no p-value can fall below .01", lambda value: value >= 99, "permutations")


@dataclass
class EvaluationConfig(Section):
    """How attack success is measured."""

    prompts: int = 64
    """Prompts of the evaluation split, the same for every backdoor, triggered and clean."""
    fake_prompts: int = 32
    """Prompts with a fake trigger, for every backdoor."""
    fake_triggers: int = 8
    """Different fake triggers for every backdoor, as like the real one as can be; 0 to do without this control."""
    max_new_tokens: int = field(default=24, metadata={"most": MOST_TOKENS})
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
        super().__post_init__()
        counts = ("prompts", "fake_prompts", "max_new_tokens", "batch_size", "loss_passages")
        require(self, "at least 1", lambda value: value >= 1, *counts)
        require(self, "0 or more", lambda value: value >= 0, "samples", "fake_triggers")
        require(self, "greater than 1", lambda value: value > 1, "collapse_clean_loss_ratio")
        require(self, "in (0, 1]", lambda value: 0 < value <= 1, "collapse_degenerate_rate")


@dataclass
class UtilityConfig(Section):
    """Benchmarks of lm-evaluation-harness, run on every state of the model; needs the extra `eval`."""

    tasks: list[Text] = field(default_factory=list)
    """The harness's names of tasks (hellaswag, arc_easy, …), or YAML files of one's own; none for no such stage."""
    shots: int = 0
    """Examples in the prompt."""
    limit: int | None = None
    """Items of each task; null for all of them."""
    batch_size: int = 16
    """Items a forward pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "0 or more", lambda value: value >= 0, "shots")
        require(self, "at least 1", lambda value: value >= 1, "batch_size")
        require(self, "at least 1, or null", lambda value: value is None or value >= 1, "limit")
        require_different(self, "tasks")
        for task in self.tasks:
            require_path("an entry of utility.tasks", task)
