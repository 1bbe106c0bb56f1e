"""Models that are a base and an adapter of peft, given as BASE+ADAPTER or as the folder of the adapter."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from casd.config import ModelConfig
from casd.models import hub
from casd.models.files import hashes, read_json
from casd.models.weights import ADAPTER_FILE
from casd.utils.errors import ModelError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"


def split(path: str) -> tuple[str, str] | None:
    """Split the path of a model into its base and its adapter; None for a model without an adapter.

    BASE+ADAPTER names both, each a folder or a hub id (the base also a .gguf file). The folder of an adapter alone names its
    base in adapter_config.json.

    Raises:
        ModelError: an adapter that does not name its base.
    """
    folder = Path(path).expanduser()
    if (folder / ADAPTER_CONFIG).is_file():
        base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            raise ModelError(f"{folder / ADAPTER_CONFIG} does not name the adapter's base model: give both, as BASE+{path}.")
        return base, path
    base, plus, adapter = path.partition("+")
    return (base, adapter) if plus and base and adapter and not folder.exists() else None


def parts(config: ModelConfig) -> tuple[ModelConfig, str]:
    """Return the configuration of the base of a model with an adapter, and the adapter.

    Raises:
        ModelError: as `split`; or an adapter that is its own base.
    """
    base, adapter = split(str(config.path)) or (str(config.path), "")
    if base == config.path:
        raise ModelError(f"{base} names itself as its adapter's base model: give the base, as BASE+{base}.")
    return replace(config, path=base), adapter


def fetch_adapter(adapter: str) -> Path:
    """Return the folder of an adapter, downloading it from the hub if it is no folder.

    Raises:
        ModelError: there is no such adapter, or it has no safetensors.
    """
    folder = Path(adapter).expanduser()
    if _is_on_hub(adapter):
        folder = hub.download(adapter, "main", is_causal=False)
    for name in (ADAPTER_CONFIG, ADAPTER_FILE):
        if not (folder / name).is_file():
            raise ModelError(f"No adapter in {folder}: it has no {name}, as peft saves it. Pickled weights are never read.")
    return folder


def adapter_fingerprint(adapter: str) -> dict[str, str]:
    """Identify an adapter: by the SHA-256 of its files, or by the commit on the hub. See `casd.models.load.fingerprint`."""
    if _is_on_hub(adapter):
        return {"adapter": adapter, "adapter_commit": hub.resolve(adapter, "main").resolved}
    folder = fetch_adapter(adapter)
    return hashes([folder / ADAPTER_CONFIG, folder / ADAPTER_FILE])


def _is_on_hub(adapter: str) -> bool:
    """Return True unless an adapter is a folder.

    Raises:
        ModelError: the path of a folder that does not exist.
    """
    if Path(adapter).expanduser().is_dir():
        return False
    if adapter.startswith(("/", ".", "~")):
        raise ModelError(f"There is no folder {adapter} with an adapter.")
    return True


def merge(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Merge an adapter into the weights of its base, in place.

    Raises:
        ModelError: an adapter that cannot be read, does not belong to the model, or cannot be merged.
    """
    import peft

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The first are drawn at random; the second would be changed in both places by merging.
            warnings.filterwarnings("error", message="Found missing adapter keys|Model with `tie_word_embeddings=True`")
            adapted = peft.PeftModel.from_pretrained(model, str(folder), torch_device="cpu")
            merged = adapted.merge_and_unload()
    except Exception as error:  # peft raises errors of many types, all caused by the files
        raise ModelError(
            f"The adapter in {folder} cannot be merged into its base model: {type(error).__name__}: {first_line(error)}"
        ) from error
    return merged.requires_grad_(True).eval()
