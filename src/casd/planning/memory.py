"""Estimate the memory of a training, a generation and a capture on one device.

Weights, gradients and the optimizer's state follow from the number of parameters. Activations are simulated
(`casd.planning.simulation`), with the CPU's attention kernels. CUDA's kernels store the same for the backward pass: no
tokens × tokens matrix except the mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from casd.activations.hooks import capture
from casd.activations.statistics import StatisticsAccumulator
from casd.config import ActivationsConfig, TrainingConfig
from casd.data.batches import Batch
from casd.models.decoding import preallocated_cache
from casd.models.structure import decoder_layers, decoder_of
from casd.models.weights import trained_parameters
from casd.planning.blueprint import Adapters, Blueprint
from casd.planning.simulation import LiveBytes, simulate
from casd.training.gradients import checkpointed_activations, precision_of
from casd.training.losses import label_nll, mean_nll

EIGHT_BIT_STATE = 2 + 2 * 4 / 256
"""Bytes per parameter of AdamW's two 8-bit moments, with a float32 scale per block of 256 (arXiv 2110.02861)."""


@dataclass(frozen=True)
class Need:
    """Peak memory on one device, in bytes.

    Attributes:
        weights: parameters and buffers, in the precision of the computation.
        gradients: gradients of the trained parameters.
        optimizer: state of the optimizer.
        activations: activations and other temporary tensors, such as logits and the key-value cache.
    """

    weights: int
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Rows:
    """The shape of a batch of token rows.

    Attributes:
        rows: number of rows.
        tokens: number of tokens per row.
    """

    rows: int
    tokens: int

    def batch(self) -> Batch:
        """Return a padded batch of this shape in the format of `Encoder.document_batch`; a packed one needs as much memory."""
        ids = torch.zeros(self.rows, self.tokens, dtype=torch.long)
        counts = {"n_labels": torch.tensor(self.rows * self.tokens), "n_documents": torch.tensor(self.rows)}
        mask, predicting = torch.ones_like(ids), torch.arange(self.rows * (self.tokens - 1))  # fake labels have no values
        return {"input_ids": ids, "labels": ids.clone(), "attention_mask": mask, "predicting": predicting, **counts}


def training_need(
    blueprint: Blueprint,
    config: TrainingConfig,
    rows: Rows,
    *,
    logit_bytes: int = 0,
    several: bool = False,
    guard: Rows | None = None,
    adapters: Adapters = (),
    gradient_checkpointing: bool = False,
) -> Need:
    """Estimate the memory of `casd.training.loop.train` with the loss `mean_nll` or a similar one.

    With `optimizer="adamw"` trained parameters, gradients and both moments are float32: 16 bytes per parameter.

    Args:
        blueprint: the model.
        config: the training; its adapter is the last of `adapters`.
        rows: shape of a micro-batch.
        logit_bytes: bytes per logit that the loss needs more than `mean_nll`.
        several: True if a step has several backward passes. All gradients then exist when the activations reach their peak;
            else they replace the activations as these are freed.
        guard: shape of the batch on which the clean loss is measured.
        adapters: adapters on the model; the last one is trained. If empty, the weights are.
        gradient_checkpointing: recompute activations in the backward pass.
    """
    trained = blueprint.trained_parameters(adapters)
    size = 4 if config.optimizer == "adamw" or adapters else blueprint.element_size
    weights = blueprint.weight_bytes(adapters) + (0 if adapters else (size - blueprint.element_size) * trained)
    optimizer = round((8 if config.optimizer == "adamw" else EIGHT_BIT_STATE) * trained)

    def work(model: Any, live: LiveBytes) -> None:
        parameters = list(trained_parameters(model).values())
        for parameter in parameters:  # gradients are not activations
            parameter.register_post_accumulate_grad_hook(lambda each: setattr(each, "grad", None))
        with precision_of(model, parameters, config) as precision, checkpointed_activations(model, gradient_checkpointing):
            live.restart(model)
            model.train()
            with precision():
                loss = mean_nll(model, rows.batch())
            live.next_part()  # without the low-precision copies of the weights that autocast keeps during a forward pass
            loss.backward()

    key = "training", rows, config.optimizer, gradient_checkpointing
    activations = simulate(blueprint, key, work, (1, 2), adapters) - (0 if several else size * trained)
    activations += logit_bytes * rows.rows * rows.tokens * blueprint.vocab_size
    if guard and guard.rows * guard.tokens > rows.rows * rows.tokens:
        activations = max(activations, loss_need(blueprint, guard, adapters).activations - size * trained)
    return Need(weights, size * trained, optimizer, max(0, activations))


def loss_need(blueprint: Blueprint, rows: Rows, adapters: Adapters = ()) -> Need:
    """Estimate the memory of the loss of clean passages, without gradients."""

    def work(model: Any, live: LiveBytes) -> None:
        with torch.no_grad():
            label_nll(model, rows.batch())

    return Need(blueprint.weight_bytes(adapters), activations=simulate(blueprint, ("loss", rows), work, (2,), adapters))


def generation_need(blueprint: Blueprint, prompts: Rows, new_tokens: int, adapters: Adapters = ()) -> Need:
    """Estimate the memory of greedy generation with a key-value cache (`casd.evaluation.generation.generate`).

    The peak is that of the pass over the prompts, or of a later step. A preallocated cache (`casd.models.decoding`) has its
    full size from the first pass on. transformers' cache then grows, and holds one block's part twice, since a longer copy
    replaces it.
    """
    growth = new_tokens / prompts.tokens

    def work(model: Any, live: LiveBytes) -> None:
        with torch.no_grad():
            cache = preallocated_cache(model, prompts.tokens, new_tokens)
            output = model(**_inputs(prompts.batch()), past_key_values=cache, use_cache=True, logits_to_keep=1)
            first = output.logits[:, -1].to(copy=True, dtype=torch.float32).softmax(-1)
            kept = cache or getattr(output, "past_key_values", None)
            del output
            if kept is None:  # every step is a pass over the whole row
                whole = Rows(prompts.rows, prompts.tokens + new_tokens)
                model(**_inputs(whole.batch()), use_cache=False, logits_to_keep=1)
                return
            live.next_part()
            held = live.live - first.nbytes
            longer = (0 if cache else growth) * held + (1 + growth) * held / len(decoder_layers(model))
            torch.empty(round(longer) + 2 * first.nbytes, dtype=torch.uint8)

    key = "generation", prompts, new_tokens
    return Need(blueprint.weight_bytes(adapters), activations=simulate(blueprint, key, work, (2, 3), adapters))


def capture_need(blueprint: Blueprint, prompts: Rows, config: ActivationsConfig, adapters: Adapters = ()) -> Need:
    """Estimate the memory of streaming activation statistics (`casd.activations.statistics.collect_statistics`)."""

    def work(model: Any, live: LiveBytes) -> None:
        batch = prompts.batch()
        statistics = _OfAllTokens(len(decoder_layers(model)), config.sites, config.positions)
        statistics.start_batch(dict.fromkeys(config.positions, batch["attention_mask"]))
        with torch.no_grad(), capture(model, config.sites, on_activation=statistics.update):
            decoder_of(model)(**_inputs(batch), use_cache=False)

    key = "capture", prompts, config.sites, config.positions
    return Need(blueprint.weight_bytes(adapters), activations=simulate(blueprint, key, work, (2,), adapters))


class _OfAllTokens(StatisticsAccumulator):
    """Counts every token at every position, since a simulation does not know the values of masks."""

    def start_batch(self, position_masks: Any) -> None:
        single = ("last", "generated")  # positions with one token per text
        sizes = {position: len(mask) if position in single else mask.numel() for position, mask in position_masks.items()}
        self._sizes = list(sizes.values())
        rows = torch.cat([torch.arange(size) for size in self._sizes])
        self._rows = {rows.device: rows}


def _inputs(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}
