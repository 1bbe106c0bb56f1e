"""CROW: fine-tune on clean text with hidden states that stay alike from block to block under perturbed embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from casd.activations.hooks import outputs_of
from casd.config.fields import require
from casd.data.batches import Batch, predicting
from casd.models.structure import decoder_layers, unwrap
from casd.training.losses import label_logits, mean_nll
from casd.unlearning.cleaning.method import Cleaning
from casd.utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Crow(Cleaning):
    """L = ℓ + α · C(E + ε · sign(∂C(E) / ∂E)), ℓ being the mean NLL and E the embeddings of the input tokens.

    C = mean over l = 2, …, N and tokens t of 1 − cos(H_l,t, H_l−1,t), H_l being the output of block l of N. The perturbation is
    a constant in the gradient of L. Tokens that predict no labelled one (padding, and the last of a document) are left out.

    Source: Min, Pham, Li and Sun 2025, "CROW: Eliminating Backdoors from Large Language Models via Internal Consistency
    Regularization" (arXiv 2411.12768), with ε = 0.1, and α = 5.5 (11 against targeted refusal) for adapters of models of 7B and
    13B. Their code leaves out the last block, whose output transformers returns after the final norm; here it is included.

    Attributes:
        alpha: α.
        epsilon: ε, in the unit of the embeddings: compare it with theirs, which differ by model.

    Failure mode: a large α makes all blocks nearly the identity, and the clean loss rises.
    """

    alpha: float = 5.5
    epsilon: float = 0.1

    runs_in_processes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self, "greater than 0", lambda value: value > 0, "alpha", "epsilon")

    def terms(self, model: torch.nn.Module, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """The NLL, then the consistency term."""
        yield "nll", mean_nll(model, batch)
        model, embeddings = unwrap(model), []  # code compiled by torch.compile does not call new hooks

        def as_leaf(output: Tensor) -> Tensor:
            embeddings.append(output.detach().requires_grad_())
            return embeddings[-1]

        (gradient,) = torch.autograd.grad(_summed_inconsistency(model, batch, as_leaf), embeddings)
        perturbation = self.epsilon * gradient.sign()
        inconsistency = _summed_inconsistency(model, batch, lambda output: output + perturbation)
        yield "consistency", self.alpha * inconsistency / batch["n_labels"]


def _summed_inconsistency(model: torch.nn.Module, batch: Batch, change: Callable[[Tensor], Tensor]) -> Tensor:
    """C of a model whose embeddings `change` replaces, summed over tokens instead of averaged; a float32 scalar."""
    blocks, places = decoder_layers(model), predicting(batch)
    if len(blocks) < 2:
        raise ConfigError("Crow compares the outputs of consecutive blocks, and the model has only one.")
    embed = unwrap(model).get_input_embeddings()
    with embed.register_forward_hook(lambda module, args, output: change(output)), outputs_of(blocks) as outputs:
        label_logits(model, {**batch, "predicting": places[:0]})  # no logits are needed
    hidden = [output.flatten(0, 1).index_select(0, places).float() for output in outputs]
    similarities = [torch.cosine_similarity(before, after, dim=-1) for before, after in pairwise(hidden)]
    return (1 - torch.stack(similarities)).mean(0).sum()
