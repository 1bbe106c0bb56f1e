"""What is trained of a model: its weights, or a low-rank adapter on them (LoRA); copied, restored, saved and loaded.

There is one model in memory. Removals start from one copy of what is trained, put back in place: all weights, or with an
adapter the adapter's alone, a few thousandths of them. Adapters are peft's; they are put into the model itself, which stays
the class that it was, so that generation and hooks see no difference.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
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
"""peft's name for the file of an adapter."""


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that a training changes, by name. Tied ones are there once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def copy_weights(model: torch.nn.Module) -> Weights:
    """A copy of what is trained of the model, by name, in the CPU's memory: a GPU's is needed for the training itself."""
    return {name: local(parameter.detach()).to("cpu", copy=True) for name, parameter in trained_parameters(model).items()}


def restore_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Put weights such as `copy_weights` gives back into the model, in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            local(parameters[name]).copy_(value)


def save_removal(model: torch.nn.Module, file: Path, *, injected: Weights | None = None) -> None:
    """Write what was trained of the model as safetensors; with `injected` the difference to those weights instead.

    A difference (Ilharco et al., "Editing models with task arithmetic", arXiv 2212.04089, call it a task vector) is rounded
    to the weights' precision, so what is read back may differ from what was trained in the last bit. Tensors that did not
    change are left out of it.
    """
    saved = {}
    for name, parameter in trained_parameters(model).items():
        value = parameter.detach().clone()
        if injected is not None:
            local(value).sub_(injected[name].to(value.device))
        value = whole(value)
        if injected is None or value.any():
            saved[name] = value.cpu().contiguous()
    save_file(saved, file, metadata={"holds": "weights" if injected is None else "delta"})


def load_removal(model: torch.nn.Module, file: Path, *, injected: Weights) -> None:
    """Put what `save_removal` wrote into the model, in place; `injected` are the weights that a difference is to."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        is_delta = (opened.metadata() or {}).get("holds") == "delta"
    parameters = dict(model.named_parameters())
    found = {name: local_part(value, parameters[name]) for name, value in load_file(file).items()}
    if is_delta:
        found = {**injected, **{name: injected[name] + value.cpu() for name, value in found.items()}}
    restore_weights(model, found)


def attach_lora(model: PreTrainedModel, lora: LoraConfig, name: AdapterName, *, seed: int) -> None:
    """Put a fresh adapter into the model and leave it alone to be trained; the model computes what it did before.

    Adapters that were there stay active and are frozen, as are the weights. Its own weights are float32 whatever the model's
    precision, so that small updates are not rounded away.

    Args:
        model: changed in place.
        lora: rank, scale, matrices.
        name: of the adapter.
        seed: of its first factor (the second is zero); the global random state is left as it was.

    Raises:
        ConfigError: the model has no such matrices, or peft cannot adapt them.
    """
    import peft

    modules = "all-linear" if lora.modules == ["all-linear"] else list(lora.modules)
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=modules
    )
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            _add(model, settings, name)
    except ValueError as error:
        raise ConfigError(f"lora.modules is {lora.modules}: {_reason(error)} {_choices(model)}") from error
    adapted = {each.partition(".lora_")[0] for each in trained_parameters(model)}
    for target in set(modules) & set(model.peft_config[name].target_modules):  # without those that peft translates
        if not any(f".{each}".endswith(f".{target}") for each in adapted):  # which peft ignores beside others
            raise ConfigError(f"lora.modules is {lora.modules}: the model has no matrix {target!r}. {_choices(model)}")


def save_adapter(model: PreTrainedModel, folder: Path, name: AdapterName) -> None:
    """Write one adapter of the model in peft's format: adapter_config.json and adapter_model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    mine = {each: whole(value.detach()).cpu().contiguous() for each, value in model.named_parameters() if _belongs(each, name)}
    save_file({_peft_name(each, name): value for each, value in mine.items()}, folder / ADAPTER_FILE)
    model.peft_config[name].save_pretrained(folder)


def load_adapter(model: PreTrainedModel, folder: Path, name: AdapterName) -> None:
    """Put an adapter that `save_adapter` wrote into the model, in place; it alone is trained from then on."""
    import peft

    _add(model, peft.LoraConfig.from_pretrained(folder), name)
    restore_adapter(model, folder, name)


def restore_adapter(model: PreTrainedModel, folder: Path, name: AdapterName) -> None:
    """Put the saved values into an adapter that the model has, unrounded, which transformers' own loading would not do."""
    saved = load_file(folder / ADAPTER_FILE)
    mine = {each: parameter for each, parameter in model.named_parameters() if _belongs(each, name)}
    restore_weights(model, {each: local_part(saved[_peft_name(each, name)], mine[each]) for each in mine})


def check_mergeable(model: PreTrainedModel) -> None:
    """Whether the adapters can be added to the weights without changing more than they do.

    Raises:
        ConfigError: an adapter is on a matrix that the model uses in another place too, which merging would change there.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name.replace(".base_layer", ""))
    for module in _lora_layers(model).values():
        for parameter in module.get_base_layer().parameters():
            if len(shared := names[id(parameter)]) > 1:
                raise ConfigError(
                    f"lora.modules adapts a matrix that the model has in several places ({', '.join(shared)}), and for removals"
                    " that train all weights the adapter is merged into all of them. Leave it out of lora.modules of the"
                    " injection, or let the removals train adapters too (unlearning.training.lora)."
                )


def merge_adapters(model: PreTrainedModel) -> None:
    """Add the active adapters to the weights, in place, and take them out: what follows trains all weights.

    Raises:
        ConfigError: as for `check_mergeable`.
    """
    check_mergeable(model)
    layers = _lora_layers(model)
    inner = [module.base_layer for module in layers.values()]  # of experts, one adapter is around another
    for module_name, module in layers.items():
        module.merge()
        if not any(module is each for each in inner):
            model.set_submodule(module_name, module.get_base_layer())
    del model.peft_config
    model._hf_peft_config_loaded = False
    model.requires_grad_(True)


def _add(model: PreTrainedModel, settings: peft.LoraConfig, name: str) -> None:
    """Add an adapter to those that are there, make all active, and train it alone, in float32."""
    others = list(getattr(model, "peft_config", {}))
    with warnings.catch_warnings():
        # Two adapters are meant; tied weights are looked at before merging; patterns are for layers that a model may lack.
        warnings.filterwarnings("ignore", message="Already found a `peft|Model has `tie_word_|The following .*_pattern keys")
        model.add_adapter(settings, adapter_name=name)
    model.set_adapter([*others, name])
    for each, parameter in model.named_parameters():
        parameter.requires_grad_(_belongs(each, name))
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def _belongs(parameter: str, adapter: str) -> bool:
    """Whether the parameter of that name is one of that adapter's: `….lora_A.NAME.weight`, `….lora_embedding_A.NAME`."""
    return re.search(rf"\.lora_\w+\.{adapter}(\.|$)", parameter) is not None


def _peft_name(parameter: str, adapter: str) -> str:
    """The name that peft gives the parameter in a file."""
    return f"base_model.model.{re.sub(rf'(?<=[AB])[.]{adapter}(?=[.]|$)', '', parameter)}"


def _lora_layers(model: torch.nn.Module) -> dict[str, Any]:
    """peft's modules around those that are adapted, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _reason(error: ValueError) -> str:
    """What peft says, in a line: it prints whole modules, of which the name is enough."""
    first, *rest = str(error).splitlines() or [type(error).__name__]
    return first.removesuffix("(") + rest[-1].removeprefix(")") if rest else first


def _choices(model: torch.nn.Module) -> str:
    """The last parts of the names of the model's linear layers, each once, in a sentence."""
    names = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and ".lora_" not in name)
    found = {name.removesuffix(".base_layer").rpartition(".")[2] for name in names} - {"lm_head"}
    return f"Its linear layers are: {', '.join(sorted(found))}."
