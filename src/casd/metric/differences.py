"""Run models on the same texts one after another, and sum the differences of their activations to those of the first.

The activations of the first model at the selected tokens are kept in a temporary file (`KeptActivations`).
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from casd.activations.hooks import capture
from casd.data.documents import Prompt
from casd.data.encoding import Encoder
from casd.data.shrinking import in_batches
from casd.metric.variants import CasdVariant
from casd.models.probe import evaluation_mode, forward_without_cache, measured_together
from casd.utils.disk import explaining_disk_errors, readable_size
from casd.utils.errors import ConfigError, ModelError, StoreError

BATCH: Final = 16
"""Texts in a forward pass; halved when memory runs out."""


class MeasuredTexts:
    """The texts on which the models are run, and the rows of their selected tokens, in the order of the batches."""

    def __init__(self, encoder: Encoder, prompts: Sequence[Prompt], variant: CasdVariant, layers: Sequence[int]):
        self.encoder, self.prompts, self.variant, self.layers = encoder, prompts, variant, layers
        self._lengths = encoder.token_counts(prompts)
        self._start: dict[int, int] = {}
        self.n_tokens = 0
        for index in sorted(range(len(prompts)), key=lambda index: (-self._lengths[index], index)):  # as `in_batches`
            self._start[index] = self.n_tokens
            self.n_tokens += int(self._batch([prompts[index]])["position_masks"][variant.position].sum())
        if not self.n_tokens:
            raise ConfigError(f"No text has a token at the position {variant.position!r}.")

    def _batch(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        return self.encoder.capture_batch(prompts, [self.variant.position])

    def means(self, name: str, model: torch.nn.Module, sums: Callable[[int, int, Tensor], Tensor]) -> Tensor:
        """Run a model on all texts, and return the mean over the tokens of what `sums` adds up.

        Args:
            name: name of the model, for errors.
            model: the model.
            sums: maps the place of a layer in `layers`, the first row and the activations (tokens, d_model) to sums over
                these tokens, (k, d_model).

        Returns:
            (n_selected_layers, k, d_model), float64.

        Raises:
            ModelError: activations that are not finite.
        """
        total: dict[int, Tensor] = {}
        place = {layer: row for row, layer in enumerate(self.layers)}

        def work(indices: list[int]) -> None:
            added: dict[int, Tensor] = {}
            # Rows of a group follow each other in the file, because the texts are sorted by their numbers of tokens.
            for group in measured_together(model, self.encoder, [self.prompts[index] for index in indices]):
                batch = self._batch([self.prompts[indices[row]] for row in group])
                chosen = batch["position_masks"][self.variant.position].flatten().nonzero().squeeze(-1)
                start = self._start[indices[group[0]]]

                def add(site: str, layer: int, values: Tensor, chosen: Tensor = chosen, start: int = start) -> None:
                    selected = values.flatten(0, 1).index_select(0, chosen.to(values.device)).float().cpu()
                    part = sums(place[layer], start, selected)
                    added[layer] = added[layer] + part if layer in added else part

                device = next(model.parameters()).device
                with capture(model, [self.variant.site], self.layers, on_activation=add):
                    forward_without_cache(model, batch["input_ids"].to(device), batch["attention_mask"].to(device))
            for layer, part in added.items():  # at the end: a batch that runs out of memory is repeated
                total[layer] = total[layer] + part if layer in total else part

        with evaluation_mode(model), torch.no_grad():
            in_batches(work, self._lengths, BATCH, "the capture of activations")
        for layer in self.layers:
            if not total[layer].isfinite().all():
                raise ModelError(
                    f"The activations of {name} are not finite (NaN or infinite) in layer {layer}: the model is damaged"
                    " or diverged, or its precision is too low (use dtype float32)."
                )
        return torch.stack([total[layer] for layer in self.layers]) / self.n_tokens


class KeptActivations:
    """The activations of the model before, (n_layers, n_tokens, d_model), float32, in a temporary file.

    The file is read and written by pieces and not mapped, so that it takes no memory of the process.

    Raises:
        StoreError: the disk has too little space.
    """

    def __init__(self, n_layers: int, n_tokens: int, width: int):
        self._shape = (n_layers, n_tokens, width)
        self._folder = Path(tempfile.gettempdir())
        needed, free = 4 * math.prod(self._shape), shutil.disk_usage(self._folder).free
        if needed > free:
            raise StoreError(
                f"The activations of {n_tokens} tokens in {n_layers} layers take {readable_size(needed)} in {self._folder},"
                f" which has {readable_size(free)}: use position last, fewer texts or layers, or set TMPDIR to another disk."
            )

    def __enter__(self) -> KeptActivations:
        with explaining_disk_errors("the activations", self._folder):
            self._file = tempfile.TemporaryFile(dir=self._folder)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, layer: int, start: int, values: Tensor) -> Tensor:
        """Keep the activations of the rows from `start` on, and return the sum of their squares, (1, d_model)."""
        with explaining_disk_errors("the activations", self._folder):
            self._seek(layer, start)
            self._file.write(values.contiguous().numpy().data)
        return values.double().square().sum(0, keepdim=True)

    def differences(self, layer: int, start: int, values: Tensor) -> Tensor:
        """Return the sums of the differences of `values` to the kept activations, signed and absolute: (2, d_model)."""
        self._seek(layer, start)
        kept = np.frombuffer(self._file.read(values.nbytes), dtype=np.float32).reshape(values.shape)
        difference = values.double() - torch.from_numpy(kept.astype(np.float64))
        return torch.stack([difference.sum(0), difference.abs().sum(0)])

    def _seek(self, layer: int, start: int) -> None:
        self._file.seek(4 * self._shape[2] * (layer * self._shape[1] + start))
