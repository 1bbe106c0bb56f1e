"""Estimate the lengths of a run's texts, and the floating-point operations of trainings, forward passes and generations.

FLOPs of a training token are 6·N + 12·L·W·T, with N parameters that a token is multiplied with, L blocks, attention width W
(heads × their size) and T tokens of context: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", arXiv 2001.08361,
section 2.1, and Chowdhery et al. 2022, "PaLM", arXiv 2204.02311, appendix B. A third of both is the forward pass, two thirds
are the backward pass, half of which are gradients of inputs and half gradients of weights. With an adapter, gradients of the
weights are not computed, which leaves 4·N, and each of its own parameters adds 6. Gradient checkpointing adds a forward pass.

A generation computes the prompts in one forward pass, and then one token of every prompt of the batch in each step. A step
reads all weights and the key-value cache, so that it is limited by the memory's bandwidth rather than by arithmetic: it takes
the longest of bytes / bandwidth, FLOPs / (FLOP/s), and the time to start its kernels. This is the roofline model (Williams et
al. 2009, doi:10.1145/1498765.1498785) as in Pope et al. 2022, "Efficiently Scaling Transformer Inference", arXiv 2211.05102.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from casd.backdoors.poisoning import Backdoor, PoisonedStream, english
from casd.backdoors.triggers.phrase import Phrase
from casd.data.corpora.passages import Passage
from casd.data.documents import Document, Prompt
from casd.data.encoding import Encoder
from casd.pipeline.run import Run
from casd.planning.blueprint import Adapters, Blueprint
from casd.planning.speed import Speed
from casd.utils.seeding import derive_seed, python_rng

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
    if training:
        total = training.steps * training.batch_size
        seed = derive_seed(config.seed, "injection documents")
        stream = PoisonedStream(corpus.train, run.backdoors, total, seed, config.injection.decoy_rate)
        documents = [_tokens_of(encoder, stream[index]) for index in range(0, total, -(-total // SAMPLED))]
    else:
        retained = corpus.retain[:SAMPLED]
        documents = [_tokens_of(encoder, Document(passage.prompt, passage.continuation)) for passage in retained]
    passages = english(corpus.evaluation)[: config.evaluation.prompts]
    trigger = max(_trigger_tokens(encoder, backdoor, passages) for backdoor in run.backdoors.values())
    prompts = [encoder.prompt_batch([Prompt(passage.prompt)])["input_ids"].shape[1] for passage in passages]
    return TextLengths(
        document=max(documents),
        mean_document=sum(documents) / len(documents),
        prompt=min(longest, max(prompts) + trigger),
        mean_prompt=min(longest, sum(prompts) / len(prompts) + trigger),
        looked_at=len(documents),
    )


def _trigger_tokens(encoder: Encoder, backdoor: Backdoor, passages: Sequence[Passage]) -> int:
    """Return by how many tokens a trigger lengthens a prompt at most."""
    if isinstance(backdoor.trigger, Phrase):
        return encoder.token_count(backdoor.trigger.label)
    rng = python_rng(0, "triggers are measured only")
    prompts = [(backdoor.prompt(passage, rng).text, passage.prompt) for passage in passages]
    return max(0, *(len(encoder.tokens(triggered)) - len(encoder.tokens(clean)) for triggered, clean in prompts))


def _tokens_of(encoder: Encoder, document: Document) -> int:
    return encoder.document_batch([document])["input_ids"].shape[1]


@dataclass(frozen=True)
class Work:
    """What goes through a model; can be added, and multiplied by a number.

    Attributes:
        tokens: number of tokens.
        flops: floating-point operations.
        seconds: time on all devices together; NaN if unknown.
    """

    tokens: float = 0
    flops: float = 0
    seconds: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.flops + other.flops, self.seconds + other.seconds)

    def __rmul__(self, times: int) -> Work:
        return Work(times * self.tokens, times * self.flops, times * self.seconds)


NOTHING = Work()


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


def generation_work(
    blueprint: Blueprint, prompts: int, batch: int, length: float, new_tokens: int, speed: Speed | None
) -> Work:
    """Return the work of a generation on one device; the time is NaN without a speed.

    Args:
        blueprint: the model.
        prompts: number of prompts.
        batch: most prompts in a batch.
        length: tokens of a prompt.
        new_tokens: number of tokens generated for each prompt.
        speed: the device's.
    """
    read, context = forward_flops(blueprint, prompts * length, length), length + new_tokens / 2
    written = forward_flops(blueprint, prompts * new_tokens, context)
    seconds = math.nan
    if speed:
        steps = -(-prompts // batch) * new_tokens
        n_bytes = steps * blueprint.weight_bytes() + prompts * new_tokens * context * blueprint.cache_bytes
        least = steps * blueprint.layers * speed.block_seconds
        seconds = read / speed.flops + max(n_bytes / speed.bandwidth, written / speed.flops, least)
    return Work(prompts * (length + new_tokens), read + written, seconds)


def _attention_flops(blueprint: Blueprint, context: float) -> float:
    return 4 * blueprint.layers * blueprint.attention_width * context
