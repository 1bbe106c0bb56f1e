"""Copy, restore, save and load the trainable parameters of a model: all weights, or a low-rank adapter (LoRA).

Only one model is in memory. Each removal starts from a copy of the trainable parameters, restored in place: all weights, or
only the adapter's, a few thousandths of them. Adapters are peft's; they are added to the model itself, whose class does not
change, so generation and hooks work as before.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save_file

from casd.config import LoraConfig
from casd.models.sharding import local, local_part, whole
from casd.utils.errors import ConfigError

if TYPE_CHECKING:
    import peft
    from transformers import PreTrainedModel

Weights = dict[str, torch.Tensor]

AdapterName = Literal["injection", "removal"]
ADAPTER_FILE = "adapter_model.safetensors"
"""File name of an adapter's weights in peft's format."""


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the trainable parameters by name, tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def copy_weights(model: torch.nn.Module) -> Weights:
    """Copy the trainable parameters to CPU memory, by name; training needs the GPU's memory."""
    return {name: local(parameter.detach()).to("cpu", copy=True) for name, parameter in trained_parameters(model).items()}


def restore_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy weights such as those of `copy_weights` into the model, in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            local(parameters[name]).copy_(value)


def save_removal(model: torch.nn.Module, file: Path, *, injected: Weights | None = None) -> None:
    """Save the trainable parameters as safetensors, or their difference to `injected` if it is given.

    A difference (a task vector in Ilharco et al., "Editing models with task arithmetic", arXiv 2212.04089) is rounded to the
    weights' precision, so weights loaded from it may differ from the trained ones in the last bit. Unchanged tensors are left
    out of it.
    """
    saved = {}
    for name, parameter in trained_parameters(model).items():
        value = parameter.detach().clone()
        if injected is not None:
            local(value).sub_(injected[name].to(value.device))
        value = whole(value)
        if injected is None or value.any():
            saved[name] = value.cpu().contiguous()
    save_file(saved, file, metadata={"format": "pt", "holds": "weights" if injected is None else "delta"})


def load_removal(model: torch.nn.Module, file: Path, *, injected: Weights) -> None:
    """Load a file of `save_removal` into the model, in place; a difference is added to `injected`."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        is_delta = (opened.metadata() or {}).get("holds") == "delta"
    parameters = dict(model.named_parameters())
    loaded = {name: local_part(value, parameters[name]) for name, value in load_file(file).items()}
    if is_delta:
        loaded = {**injected, **{name: injected[name] + value.cpu() for name, value in loaded.items()}}
    restore_weights(model, loaded)


def attach_lora(model: PreTrainedModel, lora: LoraConfig, name: AdapterName, *, seed: int) -> None:
    """Add a new adapter to the model and make it the only trainable part. The model's output does not change.

    Existing adapters stay active; they and the weights are frozen. The new adapter is float32 whatever the model's precision,
    so small updates are not rounded away.

    Args:
        model: model to change in place.
        lora: rank, scale and target modules.
        name: name of the adapter.
        seed: seed of the adapter's first factor (the second is zero); the global random state is unchanged.

    Raises:
        ConfigError: if the model lacks a target module, or peft cannot adapt it.
    """
    import peft

    modules = "all-linear" if lora.modules == ["all-linear"] else list(lora.modules)
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=modules
    )
    try:
        with torch.random.fork_rng(devices=[]):  # on every GPU it would warn and wait; a training seeds its device at each step
            torch.manual_seed(seed)
            _add(model, settings, name)
    except ValueError as error:
        raise ConfigError(f"lora.modules is {lora.modules}: {_reason(error)} {_choices(model)}") from error
    adapted = {parameter.partition(".lora_")[0] for parameter in trained_parameters(model)}
    for target in set(modules) & set(model.peft_config[name].target_modules):  # peft replaces some names
        if not any(f".{module}".endswith(f".{target}") for module in adapted):  # peft ignores it if others match
            raise ConfigError(f"lora.modules is {lora.modules}: the model has no matrix {target!r}. {_choices(model)}")


def save_adapter(model: PreTrainedModel, folder: Path, name: AdapterName) -> None:
    """Save one adapter of the model in peft's format: adapter_config.json and adapter_model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = {
        _peft_name(key, name): whole(value.detach()).cpu().contiguous()
        for key, value in model.named_parameters()
        if _belongs(key, name)
    }
    save_file(saved, folder / ADAPTER_FILE)
    model.peft_config[name].save_pretrained(folder)


def load_adapter(model: PreTrainedModel, folder: Path, name: AdapterName) -> None:
    """Add an adapter saved by `save_adapter` to the model, in place, and make it the only trainable part."""
    import peft

    _add(model, peft.LoraConfig.from_pretrained(folder), name)
    restore_adapter(model, folder, name)


def restore_adapter(model: PreTrainedModel, folder: Path, name: AdapterName) -> None:
    """Load saved values into an existing adapter of the model, unrounded unlike transformers' own loading."""
    saved = load_file(folder / ADAPTER_FILE)
    adapter = {key: parameter for key, parameter in model.named_parameters() if _belongs(key, name)}
    restore_weights(model, {key: local_part(saved[_peft_name(key, name)], value) for key, value in adapter.items()})


def join_adapters(folders: Sequence[Path], target: Path, base: str) -> None:
    """Write one adapter in peft's format that computes the sum of the adapters in `folders`.

    The factors are concatenated: the joint rank is the sum of the ranks, and a matrix that an adapter does not change has zeros
    in its place. The scale of each adapter is multiplied into its second factor.

    Args:
        folders: folders that `save_adapter` wrote.
        target: an existing folder to write to.
        base: folder or hub id of the model that the adapter belongs to, for `adapter_config.json`.

    Raises:
        ConfigError: two adapters of a mixture of experts, whose factors have another form.
    """
    import peft

    settings = [peft.LoraConfig.from_pretrained(folder) for folder in folders]
    joint = settings[-1]
    joint.base_model_name_or_path = base
    if len(folders) == 1:
        shutil.copyfile(folders[0] / ADAPTER_FILE, target / ADAPTER_FILE)
    else:
        joined = _concatenated(folders, settings)
        joint.target_modules = set().union(*(each.target_modules for each in settings))
        joint.r = joint.lora_alpha = sum(each.r for each in settings)
        save_file(joined, target / ADAPTER_FILE, metadata={"format": "pt"})
    joint.save_pretrained(target)


def _concatenated(folders: Sequence[Path], settings: Sequence[peft.LoraConfig]) -> Weights:
    """Return the joint factors of several adapters, by their names in peft's format."""
    parts: dict[str, list[torch.Tensor]] = {}
    for folder, each in zip(folders, settings, strict=True):
        for key, value in load_file(folder / ADAPTER_FILE).items():
            by_rank = value if _is_first_factor(key) else value.mT * (each.lora_alpha / each.r)
            if len(by_rank) != each.r:
                raise ConfigError("Two adapters of a mixture of experts cannot be written as one.")
            parts.setdefault(key, []).append(by_rank)
    rank = sum(each.r for each in settings)
    joined = {
        key: torch.cat([*each, each[0].new_zeros(rank - sum(map(len, each)), each[0].shape[1])]) for key, each in parts.items()
    }
    return {key: (value if _is_first_factor(key) else value.mT).contiguous() for key, value in joined.items()}


def _is_first_factor(parameter: str) -> bool:
    return re.search(r"\.lora_(embedding_)?A(\.|$)", parameter) is not None


def check_mergeable(model: PreTrainedModel) -> None:
    """Check that merging the adapters into the weights preserves what the model computes.

    Raises:
        ConfigError: if an adapted matrix is tied to another one, which merging would change too.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name.replace(".base_layer", ""))
    for module in _lora_layers(model).values():
        for parameter in module.get_base_layer().parameters():
            if len(shared := names[id(parameter)]) > 1:
                raise ConfigError(
                    f"lora.modules adapts a matrix that the model uses in several places ({', '.join(shared)}); for removals"
                    " that train all weights, the adapter would be merged into all of them. Remove it from lora.modules of the"
                    " injection, or train adapters in the removals too (unlearning.training.lora)."
                )


def merge_adapters(model: PreTrainedModel) -> None:
    """Merge the active adapters into the weights, in place, remove them and make all weights trainable.

    A model without adapters is left as it is.

    Raises:
        ConfigError: as `check_mergeable`.
    """
    if not getattr(model, "peft_config", None):
        return
    check_mergeable(model)
    layers = _lora_layers(model)
    inner = [module.base_layer for module in layers.values()]  # for experts, peft nests one adapter in another
    for module_name, module in layers.items():
        module.merge()
        if not any(module is layer for layer in inner):
            model.set_submodule(module_name, module.get_base_layer())
    del model.peft_config
    model._hf_peft_config_loaded = False
    model.requires_grad_(True)


def _add(model: PreTrainedModel, settings: peft.LoraConfig, name: str) -> None:
    """Add an adapter beside the existing ones, activate all, and make only the new one trainable, in float32."""
    others = list(getattr(model, "peft_config", {}))
    with warnings.catch_warnings():
        # Two adapters are intended, `check_mergeable` handles tied weights, and patterns may name layers a model lacks.
        warnings.filterwarnings("ignore", message="Already found a `peft|Model has `tie_word_|The following .*_pattern keys")
        model.add_adapter(settings, adapter_name=name)
    model.set_adapter([*others, name])
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(_belongs(key, name))
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def _belongs(parameter: str, adapter: str) -> bool:
    """Return True if a parameter belongs to an adapter: `….lora_A.ADAPTER.weight`, `….lora_embedding_A.ADAPTER`."""
    return re.search(rf"\.lora_\w+\.{adapter}(\.|$)", parameter) is not None


def _peft_name(parameter: str, adapter: str) -> str:
    """Return the name of an adapter's parameter in peft's file format."""
    return f"base_model.model.{re.sub(rf'(?<=[AB])[.]{adapter}(?=[.]|$)', '', parameter)}"


def _lora_layers(model: torch.nn.Module) -> dict[str, Any]:
    """Return peft's wrappers of the adapted modules, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _reason(error: ValueError) -> str:
    """Reduce an error message of peft to one line, without the module printouts in it."""
    first, *rest = str(error).splitlines() or [type(error).__name__]
    return first.removesuffix("(") + rest[-1].removeprefix(")") if rest else first


def _choices(model: torch.nn.Module) -> str:
    """List the last parts of the names of the model's linear layers, in a sentence."""
    names = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and ".lora_" not in name)
    choices = {name.removesuffix(".base_layer").rpartition(".")[2] for name in names} - {"lm_head"}
    return f"Its linear layers are: {', '.join(sorted(choices))}."
