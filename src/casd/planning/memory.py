"""What a model's training, generation and capture need in bytes on one device, known before anything starts.

Weights, gradients and the optimizer's state follow from the number of parameters. Activations are simulated
(`casd.planning.simulation`): the forward pass, loss and backward pass of `casd.training.loop`, on tensors that hold nothing.

The attention kernels are the CPU's. Those of CUDA keep the same for the backward pass: no tokens × tokens matrix but the mask.
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
"""Bytes a parameter of AdamW's two moments in 8 bits: with a float32 scale for each block of 256 (arXiv 2110.02861)."""


@dataclass(frozen=True)
class Need:
    """Bytes on one device at the moment that needs most.

    Attributes:
        weights: parameters and buffers, as they are while the work is done.
        gradients: of the trained parameters.
        optimizer: its state.
        activations: the rest: activations and whatever else comes and goes, such as the logits and the key-value cache.
    """

    weights: int
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def sharded(self, devices: int, gathered: int) -> Need:
        """The need of each of several devices that share weights, gradients and state evenly (FSDP).

        Args:
            devices: how many.
            gathered: bytes of the weights that each device holds whole for the moment that they are used.
        """
        weights, gradients, optimizer = (-(-each // devices) for each in (self.weights, self.gradients, self.optimizer))
        return Need(weights, gradients, optimizer, self.activations + gathered)

    def replicated(self) -> Need:
        """The need of each of several devices that hold all (DDP): gradients lie once more in what is sent."""
        return replace(self, gradients=2 * self.gradients)


@dataclass(frozen=True)
class Rows:
    """The rows of tokens that go through a model at once.

    Attributes:
        rows: how many.
        tokens: of each.
        isolated: whether a row holds several documents, none of which sees another.
    """

    rows: int
    tokens: int
    isolated: bool = False

    def batch(self) -> Batch:
        """A batch of that shape, as `Encoder.document_batch` makes it."""
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
    """What `casd.training.loop.train` needs.

    With `optimizer="adamw"` trained parameters are float32, as are gradients and both moments: 16 bytes each. Under
    gradient accumulation, or with several terms, the gradients are there while activations are at their most.

    Args:
        blueprint: the model.
        config: the training; its adapter is the last of `adapters`.
        batch: makes what goes through the model at once.
        terms: the losses of such a batch.
        parts: how many such make up a step.
        guard: what the clean loss is measured on.
        adapters: on the model; the last one is trained. None if the weights are.
        gradient_checkpointing: activations are computed again in the backward pass.
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
            generators = [terms(model, each) for each in [batch() for _ in range(min(parts, 2))]]
            while True:
                for generator in generators:
                    with precision():
                        found = next(generator, None)
                    if found is None:
                        return
                    found[1].backward()

    activations = simulated_peak(blueprint, work, adapters) - weights - gradients
    return Need(weights, gradients, optimizer, max(0, activations))


def generation_need(blueprint: Blueprint, prompts: Rows, new_tokens: int, adapters: Adapters = ()) -> Need:
    """What greedy generation with a key-value cache needs (`casd.evaluation.asr.generate`).

    Args:
        blueprint: the model.
        prompts: of a batch.
        new_tokens: generated for each.
        adapters: on the model.
    """
    before_last = Rows(prompts.rows, prompts.tokens + max(0, new_tokens - 2))

    def work(model: Any, live: LiveBytes) -> None:
        with torch.inference_mode():
            output = model(**_inputs(prompts.batch()), use_cache=True, logits_to_keep=1)
            first = output.logits[:, -1].to(copy=True, dtype=torch.float32)
            del output
            with live.uncounted():  # the cache as it is before the last step, whatever made it
                output = model(**_inputs(before_last.batch()), use_cache=True, logits_to_keep=1)
                cache = getattr(output, "past_key_values", None)
                del output
            last = Rows(prompts.rows, before_last.tokens + 1).batch()
            if cache is None:  # a recurrent state, or nothing that is kept: the whole row again is more than either
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
    """What the loss of clean passages needs, without gradients."""

    def work(model: Any, live: LiveBytes) -> None:
        with torch.inference_mode():
            batch_nll(model, rows.batch())

    return _inference_need(blueprint, work, adapters)


def capture_need(blueprint: Blueprint, prompts: Rows, config: ActivationsConfig, adapters: Adapters = ()) -> Need:
    """What streaming the statistics of activations needs (`casd.activations.statistics.collect_statistics`).

    Args:
        blueprint: the model.
        prompts: of a batch.
        config: sites and positions.
        adapters: on the model.
    """

    def work(model: Any, live: LiveBytes) -> None:
        batch = prompts.batch()
        statistics = _OfAllTokens(len(decoder_layers(model)), config.sites, config.positions)
        statistics.start_batch(dict.fromkeys(config.positions, batch["attention_mask"]))
        with torch.inference_mode(), capture(model, config.sites, on_activation=statistics.update):
            decoder_of(model)(**_inputs(batch), use_cache=False)

    return _inference_need(blueprint, work, adapters)


class _OfAllTokens(StatisticsAccumulator):
    """Counts every token at every position: which a mask chooses is not known to a simulation."""

    def start_batch(self, position_masks: Any) -> None:
        single = ("last", "generated")  # of each text
        sizes = {position: len(mask) if position in single else mask.numel() for position, mask in position_masks.items()}
        self._sizes = list(sizes.values())
        rows = torch.cat([torch.arange(size) for size in self._sizes])
        self._rows = {rows.device: rows}


def _inputs(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def _inference_need(blueprint: Blueprint, work: Callable[[Any, LiveBytes], None], adapters: Adapters) -> Need:
    weights = blueprint.weight_bytes(adapters)
    return Need(weights, activations=max(0, simulated_peak(blueprint, work, adapters) - weights))
