"""Estimate the memory of a training, a generation and a capture on one device.

Weights, gradients and the optimizer's state follow from the number of parameters. Activations are simulated
(`casd.planning.simulation`): the forward pass, loss and backward pass of `casd.training.loop` on fake tensors.

The simulated attention kernels are the CPU's. CUDA's kernels store the same for the backward pass: no tokens × tokens matrix
except the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from casd.activations.hooks import capture
from casd.activations.statistics import StatisticsAccumulator
from casd.config import ActivationsConfig, TrainingConfig
from casd.data.batches import Batch
from casd.models.structure import decoder_layers, decoder_of
from casd.models.weights import trained_parameters
from casd.planning.blueprint import Adapters, Blueprint
from casd.planning.simulation import LiveBytes, simulated_peak
from casd.training.gradients import checkpointed_activations, precision_of
from casd.training.losses import batch_nll

Terms = Callable[[Any, Any], Iterator[tuple[str, Tensor]]]

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

    def sharded(self, devices: int, gathered: int) -> Need:
        """Return the need of each device if weights, gradients and optimizer state are sharded evenly (FSDP).

        Args:
            devices: number of devices.
            gathered: bytes of the weights that each device gathers while they are used.
        """
        weights, gradients, optimizer = (-(-size // devices) for size in (self.weights, self.gradients, self.optimizer))
        return Need(weights, gradients, optimizer, self.activations + gathered)

    def replicated(self) -> Need:
        """Return the need of each device with a replica of the model (DDP): communication buffers double the gradients."""
        return replace(self, gradients=2 * self.gradients)


@dataclass(frozen=True)
class Rows:
    """The shape of a batch of token rows.

    Attributes:
        rows: number of rows.
        tokens: number of tokens per row.
        isolated: True if a row holds several documents that do not attend to each other.
    """

    rows: int
    tokens: int
    isolated: bool = False

    def batch(self) -> Batch:
        """Return a batch of this shape in the format of `Encoder.document_batch`."""
        ids = torch.zeros(self.rows, self.tokens, dtype=torch.long)
        where = {"position_ids" if self.isolated else "attention_mask": torch.ones_like(ids)}
        counts = {"n_labels": torch.tensor(self.rows * self.tokens), "n_documents": torch.tensor(self.rows)}
        return {"input_ids": ids, "labels": ids.clone(), **where, **counts}


def training_need(
    blueprint: Blueprint,
    config: TrainingConfig,
    batch: Callable[[], Any],
    terms: Terms,
    *,
    parts: int = 1,
    guard: Rows | None = None,
    adapters: Adapters = (),
    gradient_checkpointing: bool = False,
) -> Need:
    """Estimate the memory of `casd.training.loop.train`.

    With `optimizer="adamw"` trained parameters, gradients and both moments are float32: 16 bytes per parameter. With
    gradient accumulation or several terms, gradients already exist when the activations reach their peak.

    Args:
        blueprint: the model.
        config: the training; its adapter is the last of `adapters`.
        batch: returns a micro-batch.
        terms: yields the losses of a micro-batch.
        parts: number of micro-batches per step.
        guard: shape of the batch on which the clean loss is measured.
        adapters: adapters on the model; the last one is trained. If empty, the weights are.
        gradient_checkpointing: recompute activations in the backward pass.
    """
    trained = blueprint.trained_parameters(adapters)
    size = 4 if config.optimizer == "adamw" or adapters else blueprint.element_size
    weights = blueprint.weight_bytes(adapters) + (0 if adapters else (size - blueprint.element_size) * trained)
    gradients = size * trained
    optimizer = round((8 if config.optimizer == "adamw" else EIGHT_BIT_STATE) * trained)

    def work(model: Any, live: LiveBytes) -> None:
        parameters = list(trained_parameters(model).values())
        with precision_of(model, parameters, config) as precision, checkpointed_activations(model, gradient_checkpointing):
            if guard:
                with precision(), torch.inference_mode():
                    batch_nll(model, guard.batch())
            model.train()
            generators = [terms(model, micro_batch) for micro_batch in [batch() for _ in range(min(parts, 2))]]
            while True:
                for generator in generators:
                    with precision():
                        term = next(generator, None)
                    if term is None:
                        return
                    term[1].backward()

    activations = simulated_peak(blueprint, work, adapters) - weights - gradients
    return Need(weights, gradients, optimizer, max(0, activations))


def generation_need(blueprint: Blueprint, prompts: Rows, new_tokens: int, adapters: Adapters = ()) -> Need:
    """Estimate the memory of greedy generation with a key-value cache (`casd.evaluation.asr.generate`).

    Args:
        blueprint: the model.
        prompts: shape of a batch of prompts.
        new_tokens: number of tokens generated for each prompt.
        adapters: adapters on the model.
    """
    before_last = Rows(prompts.rows, prompts.tokens + max(0, new_tokens - 2))

    def work(model: Any, live: LiveBytes) -> None:
        with torch.inference_mode():
            output = model(**_inputs(prompts.batch()), use_cache=True, logits_to_keep=1)
            first = output.logits[:, -1].to(copy=True, dtype=torch.float32)
            del output
            with live.uncounted():  # creates the cache as it is before the last step
                output = model(**_inputs(before_last.batch()), use_cache=True, logits_to_keep=1)
                cache = getattr(output, "past_key_values", None)
                del output
            last = Rows(prompts.rows, before_last.tokens + 1).batch()
            if cache is None:  # the model keeps no cache or a recurrent state; a pass over the whole row needs more than either
                model(**_inputs(last), use_cache=False, logits_to_keep=1)
                return
            output = model(
                input_ids=last["input_ids"][:, :1],
                attention_mask=last["attention_mask"],
                past_key_values=cache,
                use_cache=True,
            )
            output.logits[:, -1].to(copy=True, dtype=torch.float32)
            first.softmax(-1)

    return _inference_need(blueprint, work, adapters)


def loss_need(blueprint: Blueprint, rows: Rows, adapters: Adapters = ()) -> Need:
    """Estimate the memory of the loss of clean passages, without gradients."""

    def work(model: Any, live: LiveBytes) -> None:
        with torch.inference_mode():
            batch_nll(model, rows.batch())

    return _inference_need(blueprint, work, adapters)


def capture_need(blueprint: Blueprint, prompts: Rows, config: ActivationsConfig, adapters: Adapters = ()) -> Need:
    """Estimate the memory of streaming activation statistics (`casd.activations.statistics.collect_statistics`).

    Args:
        blueprint: the model.
        prompts: shape of a batch of prompts.
        config: sites and positions.
        adapters: adapters on the model.
    """

    def work(model: Any, live: LiveBytes) -> None:
        batch = prompts.batch()
        statistics = _OfAllTokens(len(decoder_layers(model)), config.sites, config.positions)
        statistics.start_batch(dict.fromkeys(config.positions, batch["attention_mask"]))
        with torch.inference_mode(), capture(model, config.sites, on_activation=statistics.update):
            decoder_of(model)(**_inputs(batch), use_cache=False)

    return _inference_need(blueprint, work, adapters)


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


def _inference_need(blueprint: Blueprint, work: Callable[[Any, LiveBytes], None], adapters: Adapters) -> Need:
    weights = blueprint.weight_bytes(adapters)
    return Need(weights, activations=max(0, simulated_peak(blueprint, work, adapters) - weights))
