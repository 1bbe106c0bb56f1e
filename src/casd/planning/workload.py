"""How much text a run puts through its model, and what that costs in floating-point operations. Estimates.

FLOPs of a training token are 6·N + 12·L·W·T, with N parameters that a token is multiplied with, L blocks, attention width W
(heads × their size) and T tokens of context: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", arXiv 2001.08361,
section 2.1, and Chowdhery et al. 2022, "PaLM", arXiv 2204.02311, appendix B. A third of both is the forward pass, two thirds
are the backward pass: half of that the gradients of what was put in, half those of the weights. An adapter leaves out the
latter for the weights, which is 4·N, and has 6 for each of its own parameters. Gradient checkpointing adds a forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from casd.backdoors.poisoning import PoisonedStream, english
from casd.data.encoding import Document, Encoder, Prompt
from casd.pipeline.run import Run
from casd.planning.blueprint import Adapters, Blueprint
from casd.utils.seeding import derive_seed

SAMPLED = 1024
"""Documents and prompts that are looked at to know their lengths."""


@dataclass(frozen=True)
class TextLengths:
    """Tokens of the documents that a run trains on and of the prompts that it continues.

    Attributes:
        document: the longest.
        mean_document: their mean.
        prompt: the longest, with a trigger.
        mean_prompt: their mean.
        looked_at: documents that this is known from; 0 if it is not known, and the longest that can be are reckoned with.
    """

    document: int
    mean_document: float
    prompt: int
    mean_prompt: float
    looked_at: int = 0


def text_lengths(run: Run) -> TextLengths:
    """Lengths of a run's texts: from the corpus and the tokenizer if the store has them, else model.max_length for all."""
    graph, config = run.graph, run.config
    longest = config.model.max_length
    if not all(run.store.is_done(stage) for stage in (graph.corpus, graph.base, graph.tokens)):
        return TextLengths(longest, longest, longest, longest)
    encoder, corpus, training = run.inputs.encoder, run.inputs.corpus, config.injection.training
    total = training.steps * training.batch_size
    seed = derive_seed(config.seed, "injection documents")
    stream = PoisonedStream(corpus.train, run.backdoors, total, seed, config.injection.decoy_rate)
    documents = [_tokens_of(encoder, stream[index]) for index in range(0, total, -(-total // SAMPLED))]
    passages = english(corpus.evaluation)[: config.evaluation.prompts]
    trigger = max(encoder.token_count(backdoor.trigger) for backdoor in run.backdoors.values())
    prompts = [encoder.prompt_batch([Prompt(passage.prompt)])["input_ids"].shape[1] for passage in passages]
    return TextLengths(
        document=max(documents),
        mean_document=sum(documents) / len(documents),
        prompt=min(longest, max(prompts) + trigger),
        mean_prompt=min(longest, sum(prompts) / len(prompts) + trigger),
        looked_at=len(documents),
    )


def _tokens_of(encoder: Encoder, document: Document) -> int:
    return encoder.document_batch([document])["input_ids"].shape[1]


def training_flops(
    blueprint: Blueprint, tokens: float, context: float, *, adapters: Adapters = (), gradient_checkpointing: bool = False
) -> float:
    """FLOPs of a training on so many tokens.

    Args:
        blueprint: the model.
        tokens: in all.
        context: tokens of a document; twice what attention needs at most, as in PaLM, which does not halve it for causality.
        adapters: on the model; the last one is trained. None if all weights are.
        gradient_checkpointing: a second forward pass.
    """
    forward = forward_flops(blueprint, 1, context)
    attention = _attention_flops(blueprint, context)
    weights = 2 * blueprint.active_parameters
    backward = 2 * attention + (2 * weights if not adapters else weights + 6 * blueprint.trained_parameters(adapters))
    return tokens * (forward + backward + (forward if gradient_checkpointing else 0))


def forward_flops(blueprint: Blueprint, tokens: float, context: float) -> float:
    """FLOPs of the forward pass of so many tokens, each of which looks at `context` others; generation costs the same."""
    return tokens * (2 * blueprint.active_parameters + _attention_flops(blueprint, context))


def _attention_flops(blueprint: Blueprint, context: float) -> float:
    return 4 * blueprint.layers * blueprint.attention_width * context
