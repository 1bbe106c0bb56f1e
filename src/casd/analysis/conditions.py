"""Conditions: the configuration of a run without its seed, identified by a key. Labels are for display only."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

_NO_SETTING: Final = ("seed", "name", "runtime", "engine", "every_backdoor")
"""Sections that are not part of a condition. (`every_backdoor` has already been applied to each backdoor.)"""
_NO_EFFECT: Final = (
    *("activations.batch_size", "evaluation.batch_size", "utility.batch_size"),
    *("injection.require_asr", "evaluation.harmful_prompts"),
)
"""Fields that do not change results."""
_NEW: Final = (
    (re.compile(r"backdoor\..*\.removed"), True),
    (re.compile(r"model\.format"), "text"),
    (re.compile(r"model\.system_prompt"), ""),
    (re.compile(r"evaluation\.near_prompts"), 0),
)
"""Fields that are no setting if they have this value: runs of earlier commits do not have them."""
_SHORT_FOR: Final = {"injection": "mode"}
"""Sections that are labelled by this one field if it differs."""
_MODEL: Final = "model."
_MISSING: Final = object()
# libyaml's loader, if PyYAML was built with it, is ten times as fast.
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Settings = dict[str, Any]
"""Values of a configuration by dotted name."""


def condition_key(info: Mapping[str, Any]) -> str:
    """Return the identity of a run's condition: runs with equal keys differ only in their seeds.

    The key is the first 20 hexadecimal digits of a SHA-256 of the model, the objective and the normalized configuration without
    seed, name, runtime and engine. Normalization sorts the fields, writes `1.0` as `1`, and drops fields that do not change
    results, such as the batch sizes of measurements. For a run without a configuration (from a notebook) the backdoors' targets
    are used instead.

    Args:
        info: `casd.analysis.results.RunTables.info`; reads "model", "objective" and "config" or "targets".
    """
    return _key(info, _settings(info))


def label_settings(infos: Sequence[Mapping[str, Any]]) -> list[str]:
    """Label each run by the settings in which conditions differ, e.g. "learning_rate=0.001, steps=4"; "" if there are none.

    Among the given runs, those of one model and objective have equal labels if and only if they have the same condition. Runs
    of different models have equal labels if they differ only in the model, so they can be pooled over models. Labels are
    abbreviated (adapters or full weights, number of backdoors, injection mode) unless that would make two of them equal.
    Backdoors are labelled if any two runs differ in them, whatever their objectives.

    Args:
        infos: `info` of each run, as for `condition_key`.
    """
    conditions = _without_models(infos)
    objectives = [str(info["objective"]) for info in infos]
    labels = _backdoors(conditions, [key for key in _differing(conditions) if key.startswith("backdoor.")])

    def extend(indices: Sequence[int], describe: Callable[[Sequence[Settings]], list[str]]) -> None:
        for index, label in zip(indices, describe([conditions[index] for index in indices]), strict=True):
            labels[index] = _join(labels[index], label)

    for indices in _groups(objectives):
        extend(indices, _short_differences)
    keys = [_key({"objective": objective}, settings) for objective, settings in zip(objectives, conditions, strict=True)]
    for describe in (_all_differences, _digests):
        for indices in _groups(list(zip(objectives, labels, strict=True))):
            if len({keys[index] for index in indices}) > 1:
                extend(indices, describe)
    return labels


def label_changes(info: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """Label a run by what it changes of another, e.g. "unlearning.training.steps=32"; "" if they have the same condition.

    Another objective or another kind of injection is named alone, without the settings that come with it; so are adapters,
    without their rank, the training steps and the learning rate that go with them. A field that changes in several backdoors is
    given once. Fewer backdoors are counted, other ones named.

    Args:
        info: `info` of the run, as for `condition_key`.
        first: `info` of the run that it is compared with.
    """
    configs = [_settings(first), _settings(info)]
    keys = _differing(configs)
    labels = []
    if str(info["objective"]) != str(first["objective"]):
        labels.append(str(info["objective"]))
        keys = [key for key in keys if not key.startswith("unlearning.")]
    for section, field in _SHORT_FOR.items():
        if f"{section}.{field}" in keys:
            labels.append(f"{section}={configs[1].get(f'{section}.{field}')}")
            keys = [key for key in keys if not key.startswith(f"{section}.")]
    for section in ("injection", "unlearning"):
        if any(key.startswith(f"{section}.training.lora") for key in keys):
            adapters = any(key.startswith(f"{section}.training.lora.") for key in configs[1])
            where = "injection" if section == "injection" else "removals"
            labels.append(f"{'adapters' if adapters else 'full weights'} in the {where}")
            keys = [key for key in keys if not key.startswith(f"{section}.training.")]
    changed = [key for key in keys if key.startswith("backdoor.")]
    before, names = map(_names, configs)
    if set(before) == set(names):
        labels.append(_backdoors(configs, changed)[1])
    elif set(names) < set(before):
        labels.append(f"{len(names)} backdoor{'s' * (len(names) > 1)}")
    else:
        labels.append(f"backdoors {', '.join(names)}")
    labels += [f"{key}={_value(configs[1].get(key, 'none'))}" for key in keys if not key.startswith("backdoor.")]
    return _join(*labels)


def condition_label(info: Mapping[str, Any]) -> str:
    """Return the objective of a run and its `info["setting"]`, if there is one, for display."""
    return _join(str(info["objective"]), str(info.get("setting") or ""))


def _settings(info: Mapping[str, Any]) -> Settings:
    """Return the normalized configuration of a run."""
    if not info.get("config"):
        return {f"backdoor.{name}.target": target for name, target in (info.get("targets") or {}).items()}
    return dict(_normalized_settings(str(info["config"])))


@functools.lru_cache(1024)
def _normalized_settings(config: str) -> Settings:
    """Return the normalized configuration of a YAML text. Cached, since a report asks for each several times."""
    fields = flatten(config)
    unused = () if fields.get("persistence.states") else ("persistence",)  # which runs of earlier commits do not have
    return {
        key: _normalized(value)
        for key, value in fields.items()
        if key.partition(".")[0] not in (*_NO_SETTING, *unused)
        and key not in _NO_EFFECT
        and not any(field.fullmatch(key) and value == default for field, default in _NEW)
    }


def _normalized(value: Any) -> Any:
    if isinstance(value, list):
        return [_normalized(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _key(info: Mapping[str, Any], settings: Settings) -> str:
    identity = [str(info.get("model")), str(info.get("objective")), settings]
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:20]


def _without_models(infos: Sequence[Mapping[str, Any]]) -> list[Settings]:
    """Return the settings of the runs without those `model.*` fields that are equal in all runs of each model."""
    settings = [_settings(info) for info in infos]
    kept: set[str] = set()
    for indices in _groups([str(info["model"]) for info in infos]):
        kept |= {key for key in _differing([settings[index] for index in indices]) if key.startswith(_MODEL)}
    return [{key: value for key, value in fields.items() if not key.startswith(_MODEL) or key in kept} for fields in settings]


def _groups(names: Sequence[Any]) -> list[list[int]]:
    """Return the indices of each distinct name."""
    indices: dict[Any, list[int]] = {}
    for index, name in enumerate(names):
        indices.setdefault(name, []).append(index)
    return list(indices.values())


def _join(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def flatten(text: str) -> dict[str, Any]:
    """Return the leaves of a YAML configuration by dotted name; a list is a leaf."""
    sections = re.split(r"^(?=[^\s-])", text, flags=re.MULTILINE)[1:]
    if not all(re.match(r"[\w.]+:(\s|$)", section) for section in sections):
        return _parsed(text)
    return {key: value for section in sections for key, value in _parsed(section).items()}


@functools.cache
def _parsed(text: str) -> dict[str, Any]:
    """Parse a configuration or a section of one. Cached, since most sections of many runs are equal and parsing is slow."""
    return leaves(yaml.load(text, _LOADER) or {})


def differing_fields(a: str, b: str) -> dict[str, tuple[str, str]]:
    """Return the fields in which two YAML configurations differ: dotted name → (value in a, value in b), "" if absent."""
    first, second = flatten(a), flatten(b)
    return {
        key: (_value(first[key]) if key in first else "", _value(second[key]) if key in second else "")
        for key in _differing([first, second])
    }


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted name, each name prefixed by `prefix`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose value is not the same in all configurations, in order of appearance."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if _differ([config.get(key, _MISSING) for config in configs])]


def _differ(values: Sequence[Any]) -> bool:
    """True if the values do not all have the same `repr`."""
    # Equal sections are parsed once, so most equal values are the same object, which is faster to test.
    return any(value is not values[0] for value in values) and len(set(map(repr, values))) > 1


def _short_differences(configs: Sequence[Settings]) -> list[str]:
    """Describe the differences other than those of backdoors, abbreviated."""
    rest = [key for key in _differing(configs) if not key.startswith("backdoor.")]
    parts: list[list[str]] = [[] for _ in configs]
    for section, field in _SHORT_FOR.items():
        if f"{section}.{field}" in rest:
            rest = [key for key in rest if not key.startswith(f"{section}.") or key == f"{section}.{field}"]
    if any(".lora" in key for key in rest):
        rest = [key for key in rest if ".lora" not in key and not key.endswith("learning_rate")]
        for config, words in zip(configs, parts, strict=True):
            adapters = any(".lora." in key for key in config)
            words.append("adapters" if adapters else "full weights")
    return [_join(*words, fields) for words, fields in zip(parts, _format_fields(rest, configs), strict=True)]


def _all_differences(configs: Sequence[Settings]) -> list[str]:
    return _format_fields(_differing(configs), configs)


def _digests(configs: Sequence[Settings]) -> list[str]:
    """Hash configurations whose formatted values are equal, such as numbers that differ in the seventh digit."""
    return [f"#{_key({}, config)[:6]}" for config in configs]


def _format_fields(keys: Sequence[str], configs: Sequence[Settings]) -> list[str]:
    """Format fields as "steps=4, learning_rate=0.001", with the last part of the dotted name where that is unique."""
    names = {key: key.rpartition(".")[2] for key in keys}
    short = {key: name if list(names.values()).count(name) == 1 else key for key, name in names.items()}
    return [_join(*(f"{short[key]}={_value(config[key])}" for key in keys if key in config)) for config in configs]


def _names(config: Settings) -> list[str]:
    """Return the names of the backdoors, in order."""
    return list(dict.fromkeys(key.split(".")[1] for key in config if key.startswith("backdoor.")))


def _backdoors(configs: Sequence[Settings], differing: Sequence[str]) -> list[str]:
    """Describe the backdoors of each run: their number or names if these differ, else the differing fields."""
    if not differing:
        return [""] * len(configs)
    names = list(map(_names, configs))
    distinct = {tuple(sorted(backdoors)) for backdoors in names}
    if len(distinct) > 1:
        if len(set(map(len, names))) == len(distinct):
            return [f"{len(backdoors)} backdoors" for backdoors in names]
        common = set(names[0]).intersection(*names)
        return [", ".join(name for name in backdoors if name not in common) or "the others" for backdoors in names]
    labels = []
    fields = list(dict.fromkeys(key.split(".", 2)[2] for key in differing))
    for config in configs:
        parts = []
        for field in fields:
            values = dict.fromkeys(_value(config[key]) for key in differing if key.endswith(f".{field}") and key in config)
            parts.append(f"{field}={'/'.join(values)}")
        labels.append(", ".join(parts))
    return labels


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
