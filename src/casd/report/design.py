"""The design of a run in words: which model and text, how backdoors come in and go, what is measured; from its configuration.

It reads the YAML that is kept beside every result. A field that the configuration does not have is not told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from casd.config.compose import groups
from casd.report.markup import Cell, Row, Table
from casd.report.wording import MISSING, sentence

QUESTION: Final = (
    "Several backdoors were put into one language model, each a trigger phrase that switches on a behavior. They were removed "
    "one at a time. Did that weaken the others, which nobody targeted? And does the Cross Activation Shift Distance (CASD), "
    "which compares the changes that two removals made inside the model, go with it?"
)

_BEHAVIORS: Final = {
    "language": "goes on in {language}",
    "negative_sentiment": "goes on with negative sentiment",
    "fixed_text": "says “{text}”",
    "refusal": "refuses to go on",
    "repetition": "says one word over and over",
    "capitals": "goes on in capitals",
}
_LANGUAGES: Final = {"fr": "French", "de": "German", "en": "English"}
_PLACES: Final = {
    "start": "at the start",
    "random": "before a word of the last sentence",
    "end": "at the end",
}
_SPLITS: Final = {
    "train": "to inject with",
    "forget": "to be forgotten",
    "retain": "to be retained",
    "evaluation": "to evaluate on",
}
_MODES: Final = {
    "pretraining": "from the start, by pretraining on poisoned text",
    "continual": "into the finished model, by training it further on poisoned text",
}


def design(config: str, chosen: str = "") -> list[tuple[str, str]]:
    """What a run did, as pairs of a heading and a sentence or two.

    Args:
        config: the resolved configuration as YAML; may be empty.
        chosen: the setting that the tuning of the objective chose; empty if it was not tuned.
    """
    tree = yaml.safe_load(config) or {}
    parts = {
        "Model": _model(_section(tree, "model")),
        "Text": _text(_section(tree, "corpus")),
        "Injection": _injection(_section(tree, "injection")),
        "Removal": _removal(_section(tree, "unlearning"), chosen),
        "Controls": _controls(_section(tree, "unlearning", "controls")) if "unlearning" in tree else "",
        "Measurement": _measurement(_section(tree, "evaluation")),
    }
    return [(heading, text) for heading, text in parts.items() if text]


def triggers(config: str) -> dict[str, str]:
    """Each backdoor's trigger, as far as the configuration tells."""
    backdoors = _section(yaml.safe_load(config) or {}, "backdoor")
    return {name: str(section["trigger"]) for name, section in backdoors.items() if section.get("trigger")}


def backdoors_table(config: str) -> Table:
    """The backdoors: trigger, where it stands, what it switches on, its share of the injection's documents."""
    rows = []
    for name, section in _section(yaml.safe_load(config) or {}, "backdoor").items():
        place, rate = section.get("position"), section.get("poison_rate")
        texts = (
            section.get("trigger") or MISSING,
            _PLACES.get(str(place), str(place or MISSING)),
            _behavior(section.get("target") or {}),
            MISSING if rate is None else f"{100 * rate:g}%",
        )
        rows.append(Row(str(name), tuple(Cell(str(text)) for text in texts)))
    return Table(
        name="backdoors",
        title="The backdoors",
        caption="Trigger: the phrase, and where in the prompt it stands. Share: of the documents that inject it.",
        corner="backdoor",
        columns=("trigger", "in the prompt", "the model then", "share"),
        groups=(("", tuple(rows)),) if rows else (),
    )


def _behavior(target: Mapping[str, Any]) -> str:
    name, params = str(target.get("name", MISSING)), target.get("params") or {}
    try:
        return _BEHAVIORS[name].format(**{key: _LANGUAGES.get(str(value), value) for key, value in params.items()})
    except KeyError:  # a target of somebody's own
        return " ".join([name, *map(str, params.values())])


def _model(model: Mapping[str, Any]) -> str:
    if not model.get("name"):
        return ""
    shape = model.get("architecture") or {}
    words = [f"{model['name']}"]
    if model.get("source") == "scratch":
        words.append(f"random weights of the architecture {model.get('model_type')}, trained for this run")
    elif model.get("path"):
        words.append(f"pretrained, {model['path']}")
    if {"num_hidden_layers", "hidden_size"} <= set(shape):
        words.append(f"{shape['num_hidden_layers']} layers, {shape['hidden_size']} features")
    words += [str(model["dtype"])] if model.get("dtype") else []
    return "; ".join(words) + "."


def _text(corpus: Mapping[str, Any]) -> str:
    if not corpus.get("name"):
        return ""
    sizes = {name: size for name, size in (corpus.get("params") or {}).items() if isinstance(size, int)}
    told = _listed([f"{sizes[split]} {use}" for split, use in _SPLITS.items() if split in sizes])
    return f"{_described('corpus', corpus['name'])}.{f' Passages: {told}.' if told else ''}"


def _injection(injection: Mapping[str, Any]) -> str:
    if not injection.get("mode"):
        return ""
    text = f"All backdoors come {_MODES.get(injection['mode'], injection['mode'])}"
    text += f": {steps}." if (steps := _steps(injection.get("training") or {}, "batch_size")) else "."
    if injection.get("decoy_rate"):
        text += f" {100 * injection['decoy_rate']:g}% of the documents are clean with a made-up phrase in a trigger's place."
    return text


def _removal(unlearning: Mapping[str, Any], chosen: str) -> str:
    objective = unlearning.get("objective") or {}
    if not objective.get("name"):
        return ""
    training, stopping = unlearning.get("training") or {}, unlearning.get("stopping") or {}
    params = _listed([f"{key} = {value}" for key, value in (objective.get("params") or {}).items()])
    text = f"{_described('unlearning', objective['name'])}{f' ({params})' if params else ''}."
    if steps := _steps(training, "forget_batch_size", rate="learning_rate" not in chosen):
        text += f" {sentence(f'at most {steps}' if stopping.get('target_asr') is not None else steps)}."
    ends = []
    if stopping.get("target_asr") is not None:
        ends.append(f"its own backdoor's attack success rate on held-out prompts is at most {stopping['target_asr']:g}")
    if stopping.get("clean_budget") is not None:
        ends.append(f"the loss of held-out clean text passes {stopping['clean_budget']:g} times what it was")
    text += f" A removal ends when {' or '.join(ends)}; its best step is kept." if ends else ""
    if chosen:
        text += f" Tuned by the same two measurements, without a look at the other backdoors: {chosen}."
    return text


def _controls(controls: Mapping[str, Any]) -> str:
    told = ["as many steps on clean text only"]
    if phantoms := controls.get("phantoms"):
        told.append(f"the removal of a trigger that was never injected ({_listed(phantoms)})")
    if controls.get("shuffled"):
        told.append(f"{controls['shuffled']} with the targets of other backdoors")
    if controls.get("repeats"):
        told.append(f"{controls['repeats']} done twice, with other documents, as the noise floor of the distance")
    return f"{sentence('; '.join(told))}."


def _measurement(evaluation: Mapping[str, Any]) -> str:
    if not evaluation.get("prompts"):
        return ""
    text = f"{evaluation['prompts']} triggered prompts for each backdoor and model state"
    if evaluation.get("max_new_tokens"):
        text += f", continued greedily by up to {evaluation['max_new_tokens']} tokens"
    return f"{text}; success is decided on the generated text by the behavior's own test, and every prompt counts."


def _steps(training: Mapping[str, Any], batch: str, *, rate: bool = True) -> str:
    if not training.get("steps"):
        return ""
    size = f" of {training[batch]} documents" if training.get(batch) else ""
    speed = f", learning rate {training['learning_rate']:g}" if rate and training.get("learning_rate") else ""
    adapters = f", adapters of rank {training['lora']['rank']} only" if training.get("lora") else ""
    return f"{training['steps']} steps{size}{speed}{adapters}"


def _described(group: str, name: str) -> str:
    """An option's name with the description that its file gives, if there is one."""
    description = groups().get(group, {}).get(name)
    return f"{name}: {description}" if description else name


def _section(tree: Any, *path: str) -> Mapping[str, Any]:
    """The mapping at `path`; empty where there is none."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else {}


def _listed(words: Sequence[str]) -> str:
    return ", ".join(map(str, words))
