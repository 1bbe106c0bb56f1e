"""CASD between any models of one shape and tokenizer: how differently two of them changed from a third, on given texts.

Both readings of the paper are computed, of the difference d = h(A) − h(before) of the activations at the same token:

    signed:    shift = E[d], which equals E[h(A)] − E[h(before)]
    absolute:  shift = E[|d|], with the absolute value before the mean over the tokens

One model is in memory at a time. The activations of `before` at the selected tokens are kept in a temporary file, and the other
models are streamed against it (`casd.metric.differences`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
import torch
from torch import Tensor

from casd.activations.statistics import ActivationStatistics
from casd.data.documents import Prompt
from casd.data.encoding import Encoder
from casd.data.shrinking import free_memory
from casd.metric.casd import CasdMatrix, compute_casd
from casd.metric.compared import Reference, named_models, read_texts
from casd.metric.differences import KeptActivations, MeasuredTexts
from casd.metric.shifts import ShiftTable
from casd.metric.variants import CasdVariant, variant_of
from casd.models.probe import longest_row
from casd.models.structure import decoder_layers, decoder_of
from casd.utils.distributed import processes
from casd.utils.errors import ConfigError
from casd.utils.progress import say, track
from casd.utils.runtime import Runtime, own_numerics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

READINGS: Final = ("signed", "absolute")
LONGEST_TEXT: Final = 1024
"""Maximum tokens of a text; a longer one loses its beginning."""


@dataclass(frozen=True, eq=False)
class Distances:
    """CASD between models, by both readings.

    Attributes:
        before: name of the model from which the shifts are measured.
        variant: the variant; its `text` and `moment` are not used.
        n_texts: number of texts.
        n_tokens: number of tokens at the variant's position, over which shifts are means.
        signed: CASD between the models with signed shifts: rows and columns are the models.
        absolute: the same with the mean of the absolute differences.
        norms: size of each model's shift by both readings (columns "signed" and "absolute"), which is its distance from a
            model that did not change. In L1 or L2 per feature; in L2 if the variant's distance is the cosine.
        per_layer: columns `reading`, `a`, `b`, `layer` and `distance`, each pair of models once.
    """

    before: str
    variant: CasdVariant
    n_texts: int
    n_tokens: int
    signed: pd.DataFrame
    absolute: pd.DataFrame
    norms: pd.DataFrame
    per_layer: pd.DataFrame


def distance(
    before: Any,
    models: Mapping[str, Any] | Sequence[Any],
    texts: str | Path | Sequence[str],
    *,
    variant: str | CasdVariant = "casd",
    layers: Sequence[int] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str = "float32",
    device: str = "auto",
) -> Distances:
    """Compute CASD between models, as changes of the model `before`, with one of them in memory at a time.

    A model is a folder, a hub id, a .gguf file, BASE+ADAPTER, the folder of a peft adapter (which names its base), or a
    transformers model in memory, which stays where it is. The activations of `before` take n_tokens × n_layers × d_model × 4
    bytes of disk, in the folder for temporary files (the environment variable TMPDIR): with position "last", 1000 texts
    of a model with 36 layers and a width of 4096 take 590 MB.

    Args:
        before: the model from which the changes are measured.
        models: two or more models; a mapping gives them names.
        texts: the texts, a file (.txt, .jsonl or .parquet), or the name of a corpus, whose evaluation prompts are used.
            A .txt file has paragraphs between blank lines or, if it has no blank line, a text in each line.
        variant: a `CasdVariant`, "casd", "casd_cos", or choices of its fields joined by slashes, such as "last/l2".
        layers: indices of the layers to use; None for all.
        tokenizer: needed if `before` is in memory; otherwise that of `before` is used.
        dtype: precision of models that are loaded: "float32", "bfloat16" or "float16".
        device: device of models that are loaded: "auto", "cpu", "cuda", ….

    Returns:
        The distances.

    Raises:
        ConfigError: fewer than two models, an unknown variant, a layer that the models do not have, or no tokenizer.
        CorpusError: no text.
        ModelError: a model that cannot be read, has another tokenizer, architecture or shape, or activations that are not
            finite.
        StoreError: too little disk space for the activations of `before`.
    """
    if processes() > 1:
        raise ConfigError("Distances are computed in one process: run the command without a launcher.")
    chosen = variant_of(variant, layers)
    first, *others = named_models(before, models, dtype)
    prompts = [Prompt(text) for text in read_texts(texts)]
    where = Runtime(device=device).torch_device
    with own_numerics(), track("distance", 1 + len(others)) as advance:
        model, own_tokenizer = first.load(where)
        tokens = tokenizer or own_tokenizer
        if tokens is None:
            raise ConfigError("The model `before` is in memory: give its tokenizer, too.")
        reference = Reference(first.name, model.config, tokens, [prompt.text for prompt in prompts])
        for other in others:  # before hours of work, where that is possible without loading them
            reference.check(other.name, other.read_config(), other.read_tokenizer())
        encoder = _encoder(model, tokens, prompts)
        n_layers, width = len(decoder_layers(model)), decoder_of(model).config.get_text_config(decoder=True).hidden_size
        used = sorted(chosen.layers) if chosen.layers is not None else list(range(n_layers))
        texts_of = MeasuredTexts(encoder, prompts, chosen, used)
        with KeptActivations(len(used), texts_of.n_tokens, width) as kept:
            squares = texts_of.means(first.name, model, kept.write)[:, 0]
            shifts = {}
            for other in others:
                del model
                free_memory()
                advance()
                model, own_tokenizer = other.load(where)
                reference.check(other.name, model.config, own_tokenizer)
                shifts[other.name] = _all_layers(texts_of.means(other.name, model, kept.differences), used, n_layers)
            advance()
    return _result(first.name, texts_of, _all_layers(squares, used, n_layers), shifts)


def _all_layers(values: Tensor, layers: Sequence[int], n_layers: int) -> Tensor:
    """Return values (n_selected_layers, …) with zeros at the unused layers: (n_layers, …)."""
    whole = values.new_zeros(n_layers, *values.shape[1:])
    whole[list(layers)] = values
    return whole


def _encoder(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> Encoder:
    """Return an encoder that cuts texts to the model's positions and to LONGEST_TEXT."""
    longest = max(Encoder(tokenizer, 2**30).token_counts(prompts))
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", LONGEST_TEXT)
    used = longest_row(model, min(longest, LONGEST_TEXT, positions))
    if longest > used:
        say(f"The longest text has {longest} tokens; the last {used} of each text are used.")
    return Encoder(tokenizer, used)


def _result(before: str, texts: MeasuredTexts, squares: Tensor, shifts: Mapping[str, Tensor]) -> Distances:
    """Compute both readings from the models' mean differences.

    Args:
        before: name of the model before.
        texts: the texts, which were measured.
        squares: mean squares of the activations before, (n_layers, d_model).
        shifts: for each model its mean differences, signed and absolute, (n_layers, 2, d_model).
    """
    variant, names = texts.variant, list(shifts)
    key = (variant.site, variant.position)
    zero = next(name for name in ("before", "before_", "before__") if name not in names)

    def matrix(reading: int, variant: CasdVariant, states: Sequence[str]) -> CasdMatrix:
        def statistics(mean: Tensor) -> dict[str, ActivationStatistics]:
            count = {variant.position: texts.n_tokens}
            return {"clean": ActivationStatistics({key: mean}, {key: mean.abs()}, {key: squares}, count)}

        none = statistics(torch.zeros_like(squares))
        table = ShiftTable({zero: none} | {name: statistics(shifts[name][:, reading]) for name in names}, none, [])
        return compute_casd(table, replace(variant, text="clean", moment="signed"), states)

    size = replace(variant, distance="l2") if variant.distance == "cosine" else variant
    size = replace(size, normalization="raw") if size.normalization == "shifts" else size
    matrices = {reading: matrix(place, variant, names) for place, reading in enumerate(READINGS)}
    norms = {reading: matrix(place, size, [zero, *names]).to_frame().loc[zero, names] for place, reading in enumerate(READINGS)}
    rows = [
        (reading, names[a], names[b], layer, float(found.per_layer[a, b, column]))
        for reading, found in matrices.items()
        for a in range(len(names))
        for b in range(a + 1, len(names))
        for column, layer in enumerate(found.layers)
    ]
    return Distances(
        before=before,
        variant=variant,
        n_texts=len(texts.prompts),
        n_tokens=texts.n_tokens,
        **{reading: found.to_frame() for reading, found in matrices.items()},
        norms=pd.DataFrame(norms),
        per_layer=pd.DataFrame(rows, columns=["reading", "a", "b", "layer", "distance"]),
    )
