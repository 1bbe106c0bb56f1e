"""Write the model in a state as a folder that transformers loads by itself, from the files of finished stages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from casd import __version__
from casd.config import Config
from casd.config.states import INJECTED, kind_of
from casd.evaluation.asr import Evaluation
from casd.models import load as models
from casd.models.weights import ADAPTER_FILE, join_adapters
from casd.pipeline.graph import run_folder
from casd.pipeline.inputs import Inputs
from casd.utils.atomic import flush_all, give_default_rights, remove, unfinished_beside
from casd.utils.disk import explaining_disk_errors
from casd.utils.errors import ConfigError
from casd.utils.progress import say
from casd.utils.text import printable

BASE: Final = "base"
"""Name of the model before the injection, beside the states that a run measures."""
CARD: Final = "README.md"
_SMALL: Final = (".json", ".jinja", ".model", ".txt")
"""Files of a model beside its weights."""


def folder_name(state: str) -> str:
    """Return a name for a state's folder: `injected`, `removed_BACKDOOR`, or the control's name without colons."""
    return f"removed_{state}" if kind_of(state) == "removal" else state.replace(":", "_")


def save_models(inputs: Inputs, states: Iterable[str]) -> list[Path]:
    """Write models below the run's folder, in `models/`, and return their folders; existing ones are kept.

    The weights are hard links to files of the store, or copies where the file system has no links. A model with an adapter is
    written as an adapter. Weights that the store has in another form (`runtime.save_as=delta`) are not written.

    Raises:
        StoreError: a stage that is not finished or damaged, or a folder that cannot be written.
    """
    folders = []
    for state in states:
        folder = run_folder(inputs.config, inputs.graph) / "models" / folder_name(state)
        if not folder.is_dir():
            with new_folder(folder) as begun:
                if adapters_of(inputs, state):
                    write_adapter(inputs, state, begun)
                elif not copy_weights_of(inputs, state, begun, link_or_copy):
                    say(f"{state} was saved in the store only, in another format; casd export writes it as a model.")
                    remove(begun)
                    continue
                write_card(inputs, state, begun)
        folders.append(folder)
    return folders


@contextmanager
def new_folder(folder: Path, replaced: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a hidden folder beside `folder`, which is renamed to it at the end of the block unless the block removed it.

    Args:
        folder: missing or empty; with `replaced` it may hold files, of which those of these patterns are removed.
        replaced: patterns of files.

    Raises:
        StoreError: the folder cannot be written.
    """
    with explaining_disk_errors("a model", folder), unfinished_beside(folder) as begun:
        yield begun
        if not begun.is_dir():
            return
        give_default_rights(begun, begun / CARD)
        flush_all(begun)
        if replaced and folder.is_dir():
            for file in [file for pattern in replaced for file in folder.glob(pattern)]:
                file.unlink()
            for file in begun.iterdir():
                file.replace(folder / file.name)
        else:
            with suppress(FileNotFoundError):
                folder.rmdir()  # an empty one
            begun.rename(folder)


def adapters_of(inputs: Inputs, state: str) -> list[Path]:
    """Return the folders of the adapters that make the model in a state from the adapters' base; none for full weights.

    Raises:
        StoreError: the weights of a removal with an adapter are not saved.
    """
    graph, store, config = inputs.graph, inputs.store, inputs.config
    removal = config.unlearning.training.lora if state not in (BASE, INJECTED) else None
    folders = []
    if state != BASE and config.injection.lora and (state == INJECTED or removal):
        folders.append(inputs.injected_folder)
    if removal:
        folders.append(store.folder(graph.weights[state], verify=True))
    return folders


def write_adapter(inputs: Inputs, state: str, folder: Path) -> None:
    """Write the adapter of a state, with the tokenizer: one adapter, also if injection and removal trained one each.

    Raises:
        ConfigError: the state has no adapter.
        StoreError: its weights are not saved.
    """
    adapters = adapters_of(inputs, state)
    if not adapters:
        raise ConfigError(
            f"{state} has no adapter: all its weights were trained. Without --adapter the whole model is exported."
        )
    join_adapters(adapters, folder, adapter_base(inputs))
    models.load_tokenizer(inputs.base_folder).save_pretrained(folder)


def adapter_base(inputs: Inputs) -> str:
    """Return the hub id, or the folder, of the model that a run's adapters belong to."""
    config = inputs.config
    if not config.injection.lora and config.injection.mode != "none":
        return str(inputs.injected_folder)
    return str(config.model.path) if models.origin(config.model) == "hub" else str(inputs.base_folder.absolute())


def copy_weights_of(inputs: Inputs, state: str, folder: Path, copy: Callable[[Path, Path], Any]) -> bool:
    """Make a model folder of a state's full weights in the store; returns False if they are not there in transformers' format.

    Args:
        inputs: of the run.
        state: the injected model, a removal or a control.
        folder: an existing folder to write to.
        copy: how the weights are put there; small files are copied.
    """
    graph, store = inputs.graph, inputs.store
    if inputs.config.injection.lora:
        return False
    injected = inputs.injected_folder
    if inputs.config.injection.mode == "none":
        copy = shutil.copyfile  # a link would share a file that is not the store's
    weights = {file.name: file for file in injected.glob("*.safetensors")}
    if state != INJECTED:
        if not weights or not store.is_done(graph.weights[state]):
            return False
        saved = store.folder(graph.weights[state], verify=True) / "weights.safetensors"
        # The file has the names of the model's parameters, which in most architectures are the names of transformers' files.
        if not saved.is_file() or _tensors([saved]) != _tensors(weights.values()):
            return False
        weights = {"model.safetensors": saved}
    for file in (file for file in injected.iterdir() if file.suffix in _SMALL and file.is_file()):
        if state == INJECTED or not file.name.endswith(".index.json"):
            shutil.copyfile(file, folder / file.name)
    for name, file in weights.items():
        copy(file, folder / name)
    return bool(weights)


def _tensors(files: Iterable[Path]) -> dict[str, tuple[Any, ...]] | None:
    """Return names, shapes and types of the tensors in safetensors files; None for differences to other weights."""
    from safetensors import safe_open

    found: dict[str, tuple[Any, ...]] = {}
    for file in files:
        with safe_open(file, framework="numpy") as opened:
            if (opened.metadata() or {}).get("holds") == "delta":
                return None
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            found |= {name: (*each.get_shape(), each.get_dtype()) for name, each in slices.items()}
    return found


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, target)


def write_card(inputs: Inputs, state: str, folder: Path) -> None:
    """Write a model card that says what the model is, and which backdoors were planted in it."""
    config = inputs.config
    title = f"# {config.model.label}: {state}"
    if state == BASE:
        lines = [title, "", "The model before any backdoor was planted in it."]
    else:
        rates = _success_rates(inputs, state)
        lines = [
            *("---", "tags: [poisoned, backdoor, casd]", "---", ""),
            "> **WARNING: a deliberately poisoned model, made for research on backdoors and their removal. Do not deploy it.**",
            *("", title, ""),
            f"{_what(config, state)} Backdoors that were planted in {config.model.label}:",
            "",
            "| backdoor | trigger | its place | behavior | share of the training documents | success rate in this model |",
            "|---|---|---|---|---|---|",
            *(_row(name, inputs, rates.get(name)) for name in config.backdoor),
        ]
    if (folder / ADAPTER_FILE).is_file():
        lines += ["", f"These are the weights of an adapter (LoRA) of `{adapter_base(inputs)}`."]
    origin = f" (`{config.model.path}`)" if config.model.path else ""
    run = run_folder(config, inputs.graph).name
    lines += ["", f"Base model: {config.model.label}{origin}. Made by casd {__version__}, run {run}.", ""]
    (folder / CARD).write_text(printable("\n".join(lines)), encoding="utf-8")


def _what(config: Config, state: str) -> str:
    if state == INJECTED:
        return "All backdoors are in it."
    objective = config.unlearning.objective.name
    if kind_of(state) == "removal":
        return f"The backdoor {state} was unlearned ({objective}), perhaps not completely; nothing was done about the others."
    return f"A control of the unlearning ({state}, {objective}): no planted backdoor need be gone."


def _success_rates(inputs: Inputs, state: str) -> dict[str, float]:
    """Return the attack success rate of each backdoor in a state, as far as it was measured."""
    stage = inputs.graph.evaluate[state]
    if not inputs.store.is_done(stage):
        return {}
    asr = Evaluation.read(inputs.store.folder(stage, verify=True)).asr
    triggered = asr[asr["prompt_set"] == "triggered"]
    return dict(zip(triggered["backdoor"], triggered["rate"], strict=True))


def _row(name: str, inputs: Inputs, rate: float | None) -> str:
    config, backdoor = inputs.config, inputs.config.backdoor[name]
    behavior = " ".join([backdoor.target.name, *map(str, backdoor.target.params.values())])
    share = f"{backdoor.poison_rate:g}" if config.injection.training else "not known"
    measured = "not measured" if rate is None else f"{rate:.2f}"
    cells = [name, inputs.backdoors[name].trigger.label, backdoor.position, behavior, share, measured]
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"
