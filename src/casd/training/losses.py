"""Negative log-likelihoods, used by objectives and the clean loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from casd.data.batches import IGNORED_LABEL, Batch, on_device, predicting
from casd.models.structure import unwrap

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_PARTS: Final = 16
"""Maximum number of parts in which the NLL of the tokens of a batch is computed."""
LEAST_LOGITS: Final = 2**20
"""Minimum number of logits of a part, which the CPU keeps in its cache."""


class _TokenNLL(torch.autograd.Function):
    """NLL = log Σ_v exp(z_v) − z_label of each row of logits z, with the gradient softmax(z) − 1[v = label].

    Keeps the logits for the backward pass instead of their softmax in float32, and computes a few rows at a time. With a large
    vocabulary this takes less memory than `torch.nn.functional.cross_entropy`, and less time on the CPU.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        parts = [_log_normalizer_and_nll(*part) for part in _row_parts(logits, labels)]
        normalizer, nll = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.save_for_backward(logits, labels, normalizer)
        return nll

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, labels, normalizer = ctx.saved_tensors
        parts = []
        for part, label, log_sum, gradient in _row_parts(logits, labels[:, None], normalizer[:, None], gradients[0][:, None]):
            softmax = (part.float() - log_sum).exp_()
            parts.append(softmax.scatter_add_(1, label, torch.full_like(log_sum, -1)).mul_(gradient).to(logits.dtype))
        return torch.cat(parts), None


def _log_normalizer_and_nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.float()
    normalizer = logits.logsumexp(-1)
    return normalizer, normalizer - logits.gather(1, labels[:, None]).squeeze(1)


def _row_parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors with equally many rows, the first of which has the logits (rows, vocabulary), into parts."""
    number, vocabulary = tensors[0].shape
    rows = max(1, LEAST_LOGITS // vocabulary, -(-number // MOST_PARTS))
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each label, in nats, computed in float32: (tokens,).

    Args:
        logits: (tokens, vocabulary).
        labels: token ids, (tokens,).
    """
    return _TokenNLL.apply(logits, labels)


def label_logits(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Logits at the positions that predict a labelled token, in the order of `predicting(batch)`: (n_labels, vocabulary).

    The LM head is computed at these positions only. The model is given no attention mask: padding is on the right, where
    causal attention hides it from the text, and attention without a mask is faster.
    """
    places = predicting(batch)
    inputs = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
    head, selected = getattr(unwrap(model), "get_output_embeddings", lambda: None)(), False

    def select(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal selected
        selected = True
        return args[0].flatten(0, 1).index_select(0, places)[None], *args[1:]

    if head is None or hasattr(model, "_orig_mod"):  # compiled code does not call hooks that are added later
        return model(**inputs, use_cache=False).logits.flatten(0, 1).index_select(0, places)
    with head.register_forward_pre_hook(select):
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)
    return logits if selected else logits.index_select(0, places)


def batch_nll(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each token of a document batch given the previous ones.

    Returns:
        The NLL in nats, 0 without a label, and the mask of labels, both (batch, tokens − 1).
    """
    following = batch["labels"][:, 1:]
    mask, nll = following != IGNORED_LABEL, label_nll(model, batch)
    places = predicting(batch)
    places = places - places // batch["labels"].shape[1]  # in rows of tokens − 1
    return nll.new_zeros(following.numel()).index_copy(0, places, nll).view(following.shape), mask


def label_nll(model: torch.nn.Module, batch: Batch) -> Tensor:
    """NLL of the labelled tokens of a document batch, in nats and in the order of `predicting(batch)`: (n_labels,)."""
    labels = batch["labels"].flatten().index_select(0, predicting(batch) + 1)
    return token_nll(label_logits(model, batch), labels)


def document_nll(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed NLL in nats of each document's labelled tokens, and their number, both (batch,).

    One document per row; rows without labels (padding of a process's share) give 0 and 0.
    """
    nll, mask = batch_nll(model, batch)
    return nll.sum(-1), mask.sum(-1)


def mean_nll(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Mean NLL over the labelled tokens of a batch, in nats; a scalar. For a micro-batch, its contribution to that mean."""
    return label_nll(model, batch).sum() / batch["n_labels"]


def mean_over_documents(values: Tensor, labels: Tensor, batch: Batch) -> Tensor:
    """Mean of per-row values over a batch's documents with labels; a scalar, 0 if there are none.

    Args:
        values: (batch,).
        labels: (batch,), number of labels per row, as returned by `document_nll`.
        batch: the document batch; for a micro-batch the result is its contribution to the mean.
    """
    return values.where(labels > 0, 0.0).sum() / batch["n_documents"].clamp(min=1)


def mean_reference_kl(logits: Tensor, before: Tensor, batch: Batch) -> Tensor:
    """KL(before ‖ now) of the next-token distributions, in nats, averaged over a batch's labelled tokens; a scalar.

    Σ_v p_before(v) · (log p_before(v) − log p_now(v)) at positions that predict a labelled token.

    Args:
        logits: `label_logits` of the current model; differentiated.
        before: `label_logits` of the model before; not differentiated.
        batch: the document batch; for a micro-batch the result is its contribution to the mean.
    """
    now, then = logits.float().log_softmax(-1), before.detach().float().log_softmax(-1)
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
            nll = label_nll(model, on_device(batch, model.device))
            total += float(nll.cpu().double().sum())  # Apple's GPUs have no float64
            count += len(nll)
    finally:
        model.train(training)
    return total / count
