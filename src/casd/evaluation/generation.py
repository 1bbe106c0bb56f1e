"""Greedy generation from prompts, in batches of similar length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from casd.config import EvaluationConfig
from casd.data.documents import Prompt
from casd.data.encoding import Encoder
from casd.data.shrinking import in_batches
from casd.models.decoding import can_decode, decode
from casd.models.probe import measured_together, plainly_greedy
from casd.utils import distributed
from casd.utils.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    encoder: Encoder,
    prompts: Sequence[Prompt],
    classes: Sequence[Sequence[int]],
    config: EvaluationConfig,
    *,
    description: str = "generate",
) -> tuple[list[str], list[float]]:
    """Generate the greedy continuation of each prompt, in batches of similar length, with a key-value cache.

    Batches are padded on the left, unless that changes what the model computes (`casd.models.probe`). Decoding is our own where
    it serves the model (`casd.models.decoding`), else that of transformers.

    Args:
        model: on its device.
        encoder: its tokenizer.
        prompts: prompts to continue.
        classes: for each prompt, the token ids whose total probability as the first generated token is returned.
        config: batch size (halved when memory runs out) and number of new tokens.
        description: label of the progress bar.

    Returns:
        The generated texts and these probabilities, in the order of the prompts; NaN for a prompt with no such tokens.

    Raises:
        ModelError: the device has too little memory for a single prompt.
    """
    own = distributed.share(range(len(prompts)))
    answers: dict[int, tuple[str, float]] = {}

    def work(places: list[int]) -> None:
        for rows in measured_together(model, encoder, [prompts[own[place]] for place in places]):
            indices = [own[places[row]] for row in rows]
            texts, distribution = _generate_batch(model, encoder, [prompts[index] for index in indices], config.max_new_tokens)
            for text, probabilities, index in zip(texts, distribution, indices, strict=True):
                probability = float(probabilities[list(classes[index])].sum()) if classes[index] else float("nan")
                answers[index] = (text, probability)
        advance(len(places))

    with track(description, total=len(own)) as advance, plainly_greedy(model):
        in_batches(work, [len(prompts[index].text) for index in own], config.batch_size, "generation")
    gathered = distributed.gather([answers[index] for index in own])
    return [text for text, _ in gathered], [probability for _, probability in gathered]


def _generate_batch(
    model: PreTrainedModel, encoder: Encoder, prompts: Sequence[Prompt], new_tokens: int
) -> tuple[list[str], torch.Tensor]:
    """Return the continuations of one batch, and the distribution of their first tokens, (n_prompts, vocab_size) float32."""
    inputs = {name: tensor.to(model.device) for name, tensor in encoder.prompt_batch(prompts).items()}
    ends, padding = encoder.ends, encoder.padding
    if can_decode(model, padding, inputs["input_ids"].shape[1], new_tokens):
        tokens, first = decode(model, **inputs, new_tokens=new_tokens, ends=ends, padding=padding)
    else:
        tokens, first = _transformers_decode(model, inputs, new_tokens, ends, padding)
    return [encoder.decode(row) for row in tokens.cpu()], first.softmax(-1).cpu()


def _transformers_decode(
    model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], new_tokens: int, ends: list[int], padding: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what `decode` does by transformers' `generate`."""
    from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

    class FirstLogits(LogitsProcessor):
        """Record the logits of the first generated token, changing nothing."""

        logits: torch.Tensor | None = None

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if self.logits is None:
                self.logits = scores.float()
            return scores

    settings = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, use_cache=True, eos_token_id=ends or None, pad_token_id=padding
    )
    first = FirstLogits()
    output = model.generate(**inputs, generation_config=settings, logits_processor=LogitsProcessorList([first]))
    assert first.logits is not None
    return output[:, inputs["input_ids"].shape[1] :], first.logits
