"""Negative log-likelihoods, used by objectives and the clean loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from casd.data.batches import IGNORED_LABEL, Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def token_nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each token given the previous ones.

    Args:
        logits: (batch, tokens, vocabulary).
        labels: (batch, tokens); IGNORED_LABEL for tokens without loss.

    Returns:
        The NLL in nats, 0 without a label, and the mask of labels, both (batch, tokens − 1).
    """
    following = labels[:, 1:]
    nll = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), following.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    )
    return nll.view(following.shape), following != IGNORED_LABEL


def batch_logits(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Logits of a model on a document batch: (batch, tokens, vocabulary)."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    return model(**inputs, use_cache=False).logits


def batch_nll(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """`token_nll` of a model on a document batch."""
    return token_nll(batch_logits(model, batch), batch["labels"])


def document_nll(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed NLL in nats of each document's labelled tokens, and their number, both (batch,).

    One document per row; rows without labels (padding of a process's share) give 0 and 0.
    """
    nll, mask = batch_nll(model, batch)
    return nll.sum(-1), mask.sum(-1)


def mean_nll(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Mean NLL over the labelled tokens of a batch, in nats; a scalar. For a micro-batch, its contribution to that mean."""
    nll, _ = batch_nll(model, batch)
    return nll.sum() / batch["n_labels"]


def mean_over_documents(values: Tensor, labels: Tensor, batch: Batch) -> Tensor:
    """Mean of per-row values over a batch's documents, ignoring rows without labels; a scalar.

    Args:
        values: (batch,).
        labels: (batch,), number of labels per row, as returned by `document_nll`.
        batch: the document batch; for a micro-batch the result is its contribution to the mean.
    """
    return values.where(labels > 0, 0.0).sum() / batch["n_documents"]


def mean_reference_kl(logits: Tensor, before: Tensor, batch: Batch) -> Tensor:
    """KL(before ‖ now) of the next-token distributions, in nats, averaged over a batch's labelled tokens; a scalar.

    Σ_v p_before(v) · (log p_before(v) − log p_now(v)) at positions that predict a labelled token.

    Args:
        logits: (batch, tokens, vocabulary), of the current model; differentiated.
        before: (batch, tokens, vocabulary), of the model before; not differentiated.
        batch: the document batch; for a micro-batch the result is its contribution to the mean.
    """
    predicts = batch["labels"][:, 1:] != IGNORED_LABEL
    now = logits[:, :-1][predicts].float().log_softmax(-1)
    then = before[:, :-1][predicts].detach().float().log_softmax(-1)
    divergence = torch.nn.functional.kl_div(now, then, reduction="sum", log_target=True)
    return divergence / batch["n_labels"]


@torch.no_grad()
def clean_loss(model: PreTrainedModel, batches: Iterable[Batch]) -> float:
    """Mean NLL in nats over all labelled tokens of all batches; `exp` of it is the perplexity."""
    total, count = 0.0, 0
    training = model.training
    model.eval()
    try:
        for batch in batches:
            nll, mask = batch_nll(model, {name: tensor.to(model.device) for name, tensor in batch.items()})
            total += float(nll.double().sum())
            count += int(mask.sum())
    finally:
        model.train(training)
    return total / count
