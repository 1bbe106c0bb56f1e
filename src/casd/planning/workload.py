"""Estimate the lengths of a run's texts, and the floating-point operations of training and forward passes.

FLOPs of a training token are 6·N + 12·L·W·T, with N parameters that a token is multiplied with, L blocks, attention width W
(heads × their size) and T tokens of context: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", arXiv 2001.08361,
section 2.1, and Chowdhery et al. 2022, "PaLM", arXiv 2204.02311, appendix B. A third of both is the forward pass, two thirds
are the backward pass, half of which are gradients of inputs and half gradients of weights. With an adapter, gradients of the
weights are not computed, which leaves 4·N, and each of its own parameters adds 6. Gradient checkpointing adds a forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from casd.backdoors.poisoning import PoisonedStream, english
from casd.data.encoding import Document, Encoder, Prompt
from casd.pipeline.run import Run
from casd.planning.blueprint import Adapters, Blueprint
from casd.utils.seeding import derive_seed

SAMPLED = 1024
"""Maximum number of documents whose lengths are sampled."""


@dataclass(frozen=True)
class TextLengths:
    """Lengths in tokens of the training documents and evaluation prompts of a run.

    Attributes:
        document: maximum length of a document.
        mean_document: mean length of a document.
        prompt: maximum length of a prompt with a trigger.
        mean_prompt: mean length of a prompt with a trigger.
        looked_at: number of sampled documents; 0 if lengths are unknown and `model.max_length` is assumed.
    """

    document: int
    mean_document: float
    prompt: int
    mean_prompt: float
    looked_at: int = 0


def text_lengths(run: Run) -> TextLengths:
    """Return the lengths of a run's texts, from corpus and tokenizer if the store has them, else model.max_length for all."""
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
    """Return the FLOPs of a training.

    Args:
        blueprint: the model.
        tokens: total number of tokens.
        context: tokens of a document. As in PaLM, attention is not halved for causality.
        adapters: adapters on the model; the last one is trained. If empty, all weights are.
        gradient_checkpointing: add a second forward pass.
    """
    forward = forward_flops(blueprint, 1, context)
    attention = _attention_flops(blueprint, context)
    weights = 2 * blueprint.active_parameters
    backward = 2 * attention + (2 * weights if not adapters else weights + 6 * blueprint.trained_parameters(adapters))
    return tokens * (forward + backward + (forward if gradient_checkpointing else 0))


def forward_flops(blueprint: Blueprint, tokens: float, context: float) -> float:
    """Return the FLOPs of a forward pass of `tokens` tokens that attend to `context` tokens each; also for generation."""
    return tokens * (2 * blueprint.active_parameters + _attention_flops(blueprint, context))


def _attention_flops(blueprint: Blueprint, context: float) -> float:
    return 4 * blueprint.layers * blueprint.attention_width * context
