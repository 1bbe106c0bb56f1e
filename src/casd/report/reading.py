"""The section "How to read this": what the words, numbers and colors of a report mean, in one place."""

from __future__ import annotations

from typing import Final

from casd.analysis.inclusion import ESTABLISHED_ASR
from casd.metric.baselines import BASELINES
from casd.report.page import Block, Section
from casd.report.wording import NEGLIGIBLE, SIGNIFICANT

_RUN: Final = (
    "Attack success rate (ASR): the share of prompts after which a backdoor's behavior shows in the generated text, by "
    "that behavior's own test. Every prompt counts, empty and unclear generations as failures. Rates are fractions.",
    "The answer: “yes” if the 95 % interval of the others' suppression net of the phantom (without one, of the clean "
    f"control) is above zero, “weakly” if its mean is then below {NEGLIGIBLE}, “no” if the interval ends below "
    f"{NEGLIGIBLE}, else “not distinguishable from the control”. CASD “predicted which” if ρ is negative with p ≤ "
    f"{SIGNIFICANT} and a 95 % interval below zero. These thresholds are our choice.",
    "Matrices: rows are what was removed, columns what was measured, and the removed backdoor itself has a frame. "
    "“injected” is the model with all backdoors. Dark always means the same: little is left, much was suppressed, two "
    "removals are alike.",
    "Intervals of rates are Wilson 95 % intervals over prompts, those of one run's means jackknife intervals over the "
    "backdoors, removed and measured. They say nothing about other training runs: for that, compare seeds.",
    "Controls: “clean” is the same number of training steps on clean text only; “phantom” the removal of a trigger that "
    "was never injected, made like a real one. Net suppression is the suppression minus that of the same column under "
    "that control. With early stopping, controls take the mean number of steps of the removals that reached their target.",
    "A collapsed model no longer works on clean text. Its ASR is low too, which is no success: its numbers stand in "
    "parentheses on hatched gray.",
    "Every mean and correlation is over the same removals and backdoors. Excluded are collapsed models, backdoors with an "
    f"ASR below {ESTABLISHED_ASR} in the injected model, and removals that kept no training step or missed their target ASR.",
    "CASD, the Cross Activation Shift Distance, compares the changes that two removals made to the activations; small: "
    "they changed the model alike. It comes from Bouger et al., “Backdoor Unlearning Generalization” (arXiv:2606.03785). "
    "The hook site, token position, averaging, normalization and evaluation text are this project's choices where the "
    "paper's text was not available. So are the models, triggers, targets and training settings.",
    "Relation: Spearman's ρ between distance and suppression over pairs, the suppression symmetrized and centered by "
    "column, because some backdoors are fragile under any removal. p: two-sided Mantel test, which permutes whole "
    "removals, since pairs share them; not corrected for several variants and responses. τ: Kendall's. Pairs only: after "
    "the effects of single backdoors are taken out of both. Given same target: with the indicator of the same target held "
    "constant. A correlation does not prove a cause, and its absence in few pairs does not prove that there is none.",
    "Model states: perplexity is exp of the mean loss per token, on the evaluation split and on the retain split, which is "
    "the clean text of the removals. Gradient: L2 norm before clipping of the gradient of the forget term alone. Stopped: "
    "why training ended before its last step. P(first token): mean probability of the target's first-token class.",
)
_COMPARED: Final = (
    "Means over runs are means of each run's mean; a number of runs in parentheses is given where some have none. Reached: "
    "removals that reached the target ASR of their own backdoor on validation prompts, “–” if none was set. Without one, "
    "objectives may differ in strength. Clean, phantom: suppression under these controls. (control): an objective that "
    "forgets nothing. Steps, seconds: of a removal.",
    "Predictors: ρ is pooled over runs; the Mantel test relabels a backdoor alike in all runs. Headline variants of CASD "
    "were named before; p corrected: by the maximum over all other variants, or over all baselines; q: Benjamini and "
    "Hochberg. R² and rank error: prediction of the suppression of a backdoor that was left out, where a mean achieves 0 "
    "and chance 1.",
    f"Baselines: {'; '.join(f'{name}, {each.description}' for name, each in BASELINES.items())}.",
    "Noise floor: nearest is the share of repeated removals that are nearer to their own removal than to any other. Pair "
    "share: what is left of the variance after each removal's and each backdoor's own level; net of noise is what a "
    "distance could predict.",
)


def reading_section(*, several: bool = False) -> Section:
    """The section; with `several`, also for comparisons of runs."""
    return Section("reading", "How to read this", [Block("list", [*_RUN, *(_COMPARED if several else ())])])
