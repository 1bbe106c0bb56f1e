"""Conditions: what a run was done with, apart from its seed. The key is the identity of a condition; labels are for display."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

_NO_SETTING: Final = ("seed", "name", "runtime", "every_backdoor")
"""Sections that are no part of a condition. (`every_backdoor` has been applied to each backdoor.)"""
_NO_EFFECT: Final = ("activations.batch_size", "evaluation.batch_size", "utility.batch_size")
"""Fields that change no result."""
_SHORT_FOR: Final = {"injection": "mode"}
"""Sections whose label is one field, where that field differs."""
_MODEL: Final = "model."
_MISSING: Final = object()
# libyaml's, where PyYAML has it: ten times as fast.
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Settings = dict[str, Any]
"""Fields of a configuration by their dotted names."""


def condition_key(info: Mapping[str, Any]) -> str:
    """The identity of a run's condition: runs with equal keys are repetitions that differ in their seeds.

    A SHA-256 (20 hexadecimal digits) of the model, the objective and the normalized configuration without seed, name and
    runtime. Normalized: whatever the order of fields, `1.0` written as `1`, without batch sizes of
    measurements, which change no result. A run without a configuration (from a notebook) has its backdoors' targets instead.

    Args:
        info: of the run (`casd.analysis.results.RunTables.info`); read are "model", "objective" and "config" or "targets".
    """
    return _key(info, _settings(info))


def label_settings(infos: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each run what sets its condition apart from the others, e.g. "learning_rate=0.001, steps=4"; "" if nothing does.

    Within one report, runs of one model and objective have equal labels if and only if they have the same condition. Runs of
    different models have equal labels if they differ in the model alone: these can be pooled over models. Labels are short
    (adapters and full weights, the number of backdoors, the mode of injection) unless that would make two of them equal.
    Backdoors are named wherever any two runs differ in them, whatever their objectives.

    Args:
        infos: of the runs, as for `condition_key`.
    """
    conditions = _without_models(infos)
    objectives = [str(info["objective"]) for info in infos]
    labels = _backdoors(conditions, [key for key in _differing(conditions) if key.startswith("backdoor.")])
    for indices in _groups(objectives):
        found = _differences([conditions[index] for index in indices])
        for index, label in zip(indices, found, strict=True):
            labels[index] = _join(labels[index], label)
    keys = [_key({"objective": objective}, settings) for objective, settings in zip(objectives, conditions, strict=True)]
    for more in (_every_difference, _digests):
        for indices in _groups(list(zip(objectives, labels, strict=True))):
            if len({keys[index] for index in indices}) > 1:
                found = more([conditions[index] for index in indices])
                for index, label in zip(indices, found, strict=True):
                    labels[index] = _join(labels[index], label)
    return labels


def condition_label(info: Mapping[str, Any]) -> str:
    """The objective of a run and, where `info["setting"]` has it, what sets its condition apart: for display."""
    return _join(str(info["objective"]), str(info.get("setting") or ""))


def _settings(info: Mapping[str, Any]) -> Settings:
    """The normalized configuration of a run."""
    if not info.get("config"):
        return {f"backdoor.{name}.target": target for name, target in (info.get("targets") or {}).items()}
    fields = flatten(str(info["config"]))
    return {
        key: _normalized(value)
        for key, value in fields.items()
        if key.partition(".")[0] not in _NO_SETTING and key not in _NO_EFFECT
    }


def _normalized(value: Any) -> Any:
    if isinstance(value, list):
        return [_normalized(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _key(info: Mapping[str, Any], settings: Settings) -> str:
    named = [str(info.get("model")), str(info.get("objective")), settings]
    return hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()[:20]


def _without_models(infos: Sequence[Mapping[str, Any]]) -> list[Settings]:
    """The runs' settings without those of the model, but for what differs between runs of one model."""
    settings = [_settings(info) for info in infos]
    kept: set[str] = set()
    for indices in _groups([str(info["model"]) for info in infos]):
        kept |= {key for key in _differing([settings[index] for index in indices]) if key.startswith(_MODEL)}
    return [{key: value for key, value in each.items() if not key.startswith(_MODEL) or key in kept} for each in settings]


def _groups(names: Sequence[Any]) -> list[list[int]]:
    """The places of each name."""
    places: dict[Any, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return list(places.values())


def _join(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def flatten(text: str) -> dict[str, Any]:
    """The leaves of a configuration as YAML by their dotted names; a list is a leaf."""
    sections = re.split(r"^(?=[^\s-])", text, flags=re.MULTILINE)[1:]
    if not all(re.match(r"[\w.]+:(\s|$)", section) for section in sections):
        return _parsed(text)
    return {key: value for section in sections for key, value in _parsed(section).items()}


@functools.cache
def _parsed(text: str) -> dict[str, Any]:
    """Of a whole configuration or of a section: most sections of many runs are equal, and parsing takes longest."""
    return leaves(yaml.load(text, _LOADER) or {})


def differing_fields(a: str, b: str) -> dict[str, tuple[str, str]]:
    """The fields in which two configurations (as YAML) differ, by their dotted names: a's value, b's value; "" for none."""
    first, second = flatten(a), flatten(b)
    return {
        key: (_value(first[key]) if key in first else "", _value(second[key]) if key in second else "")
        for key in _differing([first, second])
    }


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by their dotted names, each with `prefix` before it."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys that not all configurations have with one value, in their order."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if _differ([config.get(key, _MISSING) for config in configs])]


def _differ(values: Sequence[Any]) -> bool:
    """Whether they are not all written alike. Equal sections were parsed once, so most values are one and the same."""
    return any(value is not values[0] for value in values) and len(set(map(repr, values))) > 1


def _differences(configs: Sequence[Settings]) -> list[str]:
    """What differs other than the backdoors, in short."""
    rest = [key for key in _differing(configs) if not key.startswith("backdoor.")]
    parts: list[list[str]] = [[] for _ in configs]
    for section, field in _SHORT_FOR.items():
        if f"{section}.{field}" in rest:
            rest = [key for key in rest if not key.startswith(f"{section}.") or key == f"{section}.{field}"]
    if any(".lora" in key for key in rest):
        rest = [key for key in rest if ".lora" not in key and not key.endswith("learning_rate")]
        for place, config in enumerate(configs):
            adapters = any(".lora." in key for key in config)
            parts[place].append("adapters" if adapters else "full weights")
    return [_join(*each, written) for each, written in zip(parts, _written(rest, configs), strict=True)]


def _every_difference(configs: Sequence[Settings]) -> list[str]:
    return _written(_differing(configs), configs)


def _digests(configs: Sequence[Settings]) -> list[str]:
    """For what no words tell apart, such as numbers that differ in their seventh digit."""
    return [f"#{_key({}, config)[:6]}" for config in configs]


def _written(keys: Sequence[str], configs: Sequence[Settings]) -> list[str]:
    """These fields of each configuration as "steps=4, learning_rate=0.001", by their last names where these are unique."""
    names = {key: key.rpartition(".")[2] for key in keys}
    short = {key: name if list(names.values()).count(name) == 1 else key for key, name in names.items()}
    return [_join(*(f"{short[key]}={_value(config[key])}" for key in keys if key in config)) for config in configs]


def _backdoors(configs: Sequence[Settings], differing: Sequence[str]) -> list[str]:
    """Which backdoors a run has, where that differs; else the fields of theirs that do."""
    if not differing:
        return [""] * len(configs)
    names = [list(dict.fromkeys(key.split(".")[1] for key in config if key.startswith("backdoor."))) for config in configs]
    if len({tuple(sorted(each)) for each in names}) > 1:
        if len({len(each) for each in names}) == len({tuple(sorted(each)) for each in names}):
            return [f"{len(each)} backdoors" for each in names]
        common = set(names[0]).intersection(*names)
        return [", ".join(name for name in each if name not in common) or "the others" for each in names]
    labels = []
    fields = list(dict.fromkeys(key.split(".", 2)[2] for key in differing))
    for config in configs:
        told = []
        for field in fields:
            values = dict.fromkeys(_value(config[key]) for key in differing if key.endswith(f".{field}") and key in config)
            told.append(f"{field}={'/'.join(values)}")
        labels.append(", ".join(told))
    return labels


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
