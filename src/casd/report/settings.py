"""The settings of a run as tables: read from the YAML that is kept beside every result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from casd.backdoors.triggers import make_trigger
from casd.report.markup import Table, table_of
from casd.report.wording import percent_of
from casd.utils.errors import ConfigError

_SETTINGS: Final = {
    "model": "model.name",
    "weights": "model.path",
    "model type": "model.model_type",
    "layers": "model.architecture.num_hidden_layers",
    "features": "model.architecture.hidden_size",
    "data type": "model.dtype",
    "corpus": "corpus.name",
    "passages": "corpus.params",
    "injection": "injection.mode",
    "injection: steps": "injection.training.steps",
    "injection: batch size": "injection.training.batch_size",
    "injection: learning rate": "injection.training.learning_rate",
    "injection: LoRA rank": "injection.training.lora.rank",
    "injection: share of decoys": "injection.decoy_rate",
    "objective": "unlearning.objective.name",
    "objective: parameters": "unlearning.objective.params",
    "removal: steps": "unlearning.training.steps",
    "removal: batch size": "unlearning.training.forget_batch_size",
    "removal: learning rate": "unlearning.training.learning_rate",
    "removal: LoRA rank": "unlearning.training.lora.rank",
    "removal: target ASR on validation prompts": "unlearning.stopping.target_asr",
    "removal: largest ratio of the clean loss": "unlearning.stopping.clean_budget",
    "controls: phantoms": "unlearning.controls.phantoms",
    "controls: shuffled": "unlearning.controls.shuffled",
    "controls: repeats": "unlearning.controls.repeats",
    "prompts per cell": "evaluation.prompts",
    "generated tokens": "evaluation.max_new_tokens",
    "seed": "seed",
}
"""What is shown, and its field in the configuration."""


def settings_table(config: str, chosen: str = "") -> Table:
    """The main settings of a run; those that the configuration lacks, or that are off, are left out.

    Args:
        config: the resolved configuration as YAML; may be empty.
        chosen: the settings that the tuning of the objective chose; empty if it was not tuned.
    """
    tree = yaml.safe_load(config) or {}
    found = {name: _text(_at(tree, path)) for name, path in _SETTINGS.items()}
    if chosen:
        found["removal: chosen by tuning"] = chosen
        if "learning_rate" in chosen:
            found["removal: learning rate"] = ""
    return table_of(
        [{"setting": name, "value": text} for name, text in found.items() if text],
        name="settings",
        title="Settings",
        caption="The whole configuration is at the end of the page.",
    )


def backdoors_table(config: str) -> Table:
    """The backdoors: trigger, position in the prompt, target, share of the injection's documents, tokens with a loss."""
    backdoors = _backdoors(config)
    is_given = _at(yaml.safe_load(config) or {}, "injection.mode") == "none"
    some_stay = any(section.get("removed") is False for section in backdoors.values())
    rows = [
        {
            "backdoor": str(name),
            "trigger": _trigger(section.get("trigger")),
            "position": _text(section.get("position")),
            "target": " ".join(filter(None, (_text(_at(section, f"target.{key}")) for key in ("name", "params")))),
            "poison rate": "" if is_given else percent_of(section.get("poison_rate")),
            "loss on": "" if is_given else _text(section.get("loss_on")),
            **({"removed": "no" if section.get("removed") is False else "yes"} if some_stay else {}),
        }
        for name, section in backdoors.items()
    ]
    return table_of(
        rows,
        name="backdoors",
        title="The backdoors",
        caption="Poison rate: the share of the injection's documents with this backdoor. Loss on: the tokens of these documents"
        " that are trained on.",
    )


def triggers(config: str) -> dict[str, str]:
    """The trigger of each backdoor, where the configuration has a phrase."""
    phrases = {name: section.get("trigger") for name, section in _backdoors(config).items()}
    return {name: str(phrase) for name, phrase in phrases.items() if phrase and not isinstance(phrase, Mapping)}


def _trigger(value: Any) -> str:
    """A trigger as text: a phrase, or the kind and label of another trigger."""
    if not isinstance(value, Mapping):
        return _text(value)
    try:
        trigger = make_trigger(value)
    except (ConfigError, KeyError):  # of another version
        return _text(value)
    return f"{trigger.kind}: {trigger.label}"


def _backdoors(config: str) -> Mapping[str, Mapping[str, Any]]:
    backdoors: Mapping[str, Mapping[str, Any]] = _at(yaml.safe_load(config) or {}, "backdoor") or {}
    return backdoors


def _at(tree: Any, path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _text(value: Any) -> str:
    """A setting as text; empty if it is not set."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={each}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None or value is False else str(value)
