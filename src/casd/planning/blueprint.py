"""Shape and parameter counts of a model from its configuration alone. No weights are allocated or downloaded."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from casd.config import LoraConfig, ModelConfig
from casd.models import adapters
from casd.models.files import find_gguf
from casd.models.load import DTYPES, fetch, origin, transformers_config
from casd.models.structure import decoder_layers
from casd.models.weights import AdapterName, attach_lora
from casd.utils.errors import ModelError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Adapters = Sequence[tuple[LoraConfig, AdapterName]]
"""Adapters on a model, the innermost first; the last one is trained."""


@dataclass(frozen=True, eq=False)
class Blueprint:
    """A causal LM described by its transformers configuration.

    Attributes:
        config: transformers' configuration.
        dtype: precision of the weights: "float32", "bfloat16" or "float16".
        counted: numbers of trained parameters, and peaks of `casd.planning.simulation` in bytes, that were found before.
    """

    config: PreTrainedConfig
    dtype: str
    counted: dict[str, int] = field(default_factory=dict)

    def build(self, layers: int | None = None, adapters: Adapters = ()) -> PreTrainedModel:
        """Build the model on torch's meta device, where tensors have shapes but no memory.

        Args:
            layers: number of decoder blocks to keep, from the first on; None for all.
            adapters: adapters to attach in this order; only the parameters of the last one then require a gradient.

        Raises:
            ModelError: the architecture cannot be built.
            ConfigError: an adapter names a matrix that the model does not have.
        """
        from transformers import AutoModelForCausalLM

        config = self.config if layers is None else _with_layers(self.config, layers)
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[self.dtype], trust_remote_code=False)
        except Exception as error:  # transformers raises many kinds here; all of them are about the architecture's fields
            raise ModelError(f"A {self.config.model_type} of this architecture is not possible: {first_line(error)}") from error
        with torch.device("meta"):
            for lora, name in adapters:
                attach_lora(model, lora, name, seed=0)
        return model

    @cached_property
    def _model(self) -> PreTrainedModel:
        return self.build()

    @cached_property
    def parameters(self) -> int:
        """Number of parameters; tied ones count once."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    @property
    def element_size(self) -> int:
        """Bytes per weight."""
        return DTYPES[self.dtype].itemsize

    def weight_bytes(self, adapters: Adapters = ()) -> int:
        """Return the bytes of the weights and buffers as loaded; adapters are float32."""
        buffers = sum(buffer.nbytes for buffer in self._model.buffers())
        return self.element_size * self.parameters + buffers + sum(4 * self.trained_parameters([each]) for each in adapters)

    @cached_property
    def layers(self) -> int:
        """Number of decoder blocks."""
        return len(decoder_layers(self._model))

    @cached_property
    def alike(self) -> bool:
        """True if all decoder blocks are identical, so that costs can be extrapolated from a few of them."""
        blocks = decoder_layers(self._model)
        shapes = {tuple((name, tuple(each.shape)) for name, each in block.named_parameters()) for block in blocks}
        kinds = {tuple(type(module) for module in block.modules()) for block in blocks}
        types = set(getattr(self._text, "layer_types", None) or ())
        return len(shapes) == len(kinds) == 1 and len(types) <= 1

    @cached_property
    def block_parameters(self) -> int:
        """Parameters of the largest decoder block."""
        return max(sum(parameter.numel() for parameter in block.parameters()) for block in decoder_layers(self._model))

    @cached_property
    def features(self) -> int:
        """Sum of the input and output sizes of all matrices, including embedding and head."""
        return sum(sum(each.shape) for each in self._model.parameters() if each.ndim == 2)

    @property
    def plain(self) -> bool:
        """True if the model has neither experts nor an attention that stores a tokens × tokens matrix."""
        return not self.mixture and bool(getattr(self._model, "_supports_sdpa", False))

    @property
    def width(self) -> int:
        """Size of the residual stream."""
        return int(self._text.hidden_size)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return int(self._text.vocab_size)

    @property
    def attention_width(self) -> int:
        """Number of attention heads × head size; 0 for a model without attention."""
        heads = int(self._field("num_attention_heads") or 0)
        if not heads:
            return 0
        return heads * int(getattr(self._text, "head_dim", None) or self.width // heads)

    @property
    def cache_bytes(self) -> int:
        """Bytes of a token in the key-value cache: a key and a value in each block."""
        heads = int(self._field("num_attention_heads") or 0)
        shared = int(self._field("num_key_value_heads") or heads)
        return 2 * self.layers * self.element_size * (self.attention_width * shared // heads if heads else 0)

    @cached_property
    def head_parameters(self) -> int:
        """Parameters of the matrix from the residual stream to the logits."""
        head = self._model.get_output_embeddings()
        return head.weight.numel() if head is not None else 0

    @cached_property
    def active_parameters(self) -> int:
        """Number of parameters that a token is multiplied with: without an untied input embedding, and only with the experts
        that process a token."""
        model = self._model
        active = 0.0
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
        for name, parameter in model.named_parameters():
            if parameter is embedding and (head is None or head.weight is not embedding):
                continue
            active += parameter.numel() * (self._expert_share if ".experts." in name else 1.0)
        return round(active)

    @property
    def mixture(self) -> bool:
        """True if the model is a mixture of experts."""
        return any(".experts." in name for name, _ in self._model.named_parameters())

    @property
    def _expert_share(self) -> float:
        experts = next((n for key in ("num_experts", "num_local_experts", "n_routed_experts") if (n := self._field(key))), 1)
        return (self._field("num_experts_per_tok") or experts) / experts

    def _field(self, name: str) -> Any:
        return getattr(self._text, name, None)

    @property
    def _text(self) -> PreTrainedConfig:
        return self.config.get_text_config(decoder=True)

    def trained_parameters(self, adapters: Adapters = ()) -> int:
        """Return the number of trained parameters: all, or those of the last adapter."""
        if not adapters:
            return self.parameters
        key = repr(("trained", adapters))
        if key not in self.counted:
            if not self.alike or self.layers <= 2:
                self.counted[key] = _trained(self.build(adapters=adapters))
            else:
                one, two = (_trained(self.build(layers, adapters)) for layers in (1, 2))
                self.counted[key] = one + (self.layers - 1) * (two - one)
        return self.counted[key]


def blueprint(config: ModelConfig, built: Path | None = None) -> Blueprint:
    """Return the blueprint of a model without downloading its weights.

    Args:
        config: a model from scratch, a folder, a GGUF file, or an id on the hub, described by `model_type` and `architecture`
            if these are set, else by its config.json.
        built: folder of the model, if it was built or downloaded before; everything else is then ignored.

    Raises:
        ConfigError: an unknown architecture or field.
        ModelError: no configuration was found; the message says what to set.
    """
    if built:
        return Blueprint(_read(str(built)), config.dtype)
    where = origin(config)
    if where == "scratch":
        special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        fields = {**config.architecture, "vocab_size": config.vocab_size, **special}
        return Blueprint(transformers_config(str(config.model_type), fields), config.dtype)
    if config.model_type:
        return Blueprint(transformers_config(config.model_type, config.architecture), config.dtype)
    if where == "adapter":
        return blueprint(adapters.parts(config)[0])
    if where == "gguf":
        file = find_gguf(str(config.path))
        return Blueprint(_read(str(file.parent), gguf_file=file.name), config.dtype)
    if where == "folder":
        return Blueprint(_read(str(fetch(config))), config.dtype)
    try:
        return Blueprint(_read(str(config.path), revision=config.revision), config.dtype)
    except ModelError as error:
        raise ModelError(
            f"The shape of {config.path} is unknown: it is not downloaded, and the hub was not reached. Set model.model_type"
            " and model.architecture, as configs/model/qwen3_8b.yaml does."
        ) from error


def _read(path: str, **options: Any) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **options)
    except Exception as error:  # transformers and the GGUF reader raise many kinds; all of them are about the files
        raise ModelError(f"The configuration of the model in {path} cannot be read: {first_line(error)}") from error
    if hasattr(config, "quantization_config"):  # of a GGUF file, whose weights are dequantized once
        del config.quantization_config
    return config


def _with_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """Return the configuration with `layers` decoder blocks; lists with one entry per block are truncated."""
    changed = copy.deepcopy(config)
    text = changed.get_text_config(decoder=True)
    before = text.num_hidden_layers
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == before:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return changed


def _trained(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
