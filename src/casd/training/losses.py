"""Negative log-likelihoods, of which objectives and the clean loss are made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from casd.training.batches import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def token_nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each token given those before it.

    Args:
        logits: (batch, tokens, vocabulary).
        labels: (batch, tokens); -100 where no loss is taken.

    Returns:
        The NLL in nats, 0 where there is no label, and the mask of labels, both (batch, tokens − 1).
    """
    following = labels[:, 1:]
    nll = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), following.flatten(), ignore_index=-100, reduction="none"
    )
    return nll.view(following.shape), following != -100


def batch_nll(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """`token_nll` of a model on a document batch."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    return token_nll(model(**inputs, use_cache=False).logits, batch["labels"])


def mean_nll(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Mean NLL over the labelled tokens of a batch, in nats; a scalar. Of a part of a batch: the part's share of that mean."""
    nll, _ = batch_nll(model, batch)
    return nll.sum() / batch["n_labels"]


@torch.no_grad()
def clean_loss(model: PreTrainedModel, batches: Iterable[Batch]) -> float:
    """Mean NLL in nats over all labelled tokens of all batches, each token counted once. `exp` of it is the perplexity."""
    total, count = 0.0, 0
    training = model.training
    model.eval()
    for batch in batches:
        nll, mask = batch_nll(model, {name: tensor.to(model.device) for name, tensor in batch.items()})
        total += float(nll.double().sum())
        count += int(mask.sum())
    model.train(training)
    return total / count
