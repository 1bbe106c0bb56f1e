"""What sets runs apart beside model, objective and seed: in a few words, or field by field; read from their configurations."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

_NO_SETTING: Final = ("seed", "name", "runtime", "every_backdoor")
"""Sections that change no result, or that are told by themselves or by others."""
_TOLD_BY: Final = {"injection": "mode"}
"""Sections of which one field tells the others, where it differs."""
_MISSING: Final = object()
# libyaml's, where PyYAML has it: ten times as fast.
_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def distinguish(groups: Sequence[tuple[Any, str]]) -> list[str]:
    """For each run, what of its configuration differs within its group: "learning_rate=0.001, steps=4"; "" if nothing does.

    The backdoors are told wherever any two of all runs differ in them: rates of other backdoors are never those of one
    treatment, whichever models they were measured on.

    Args:
        groups: of each run whatever names its group (model and objective), and its configuration as YAML.
    """
    configs = [
        {key: value for key, value in fields.items() if key.partition(".")[0] not in _NO_SETTING}
        for fields in (flatten(text) for _, text in groups)
    ]
    members: dict[Any, list[int]] = {}
    for index, (group, _) in enumerate(groups):
        members.setdefault(group, []).append(index)
    labels = _backdoors(configs, [key for key in _differing(configs) if key.startswith("backdoor.")])
    for indices in members.values():
        found = _differences([configs[index] for index in indices])
        for index, label in zip(indices, found, strict=True):
            labels[index] = ", ".join(filter(None, (labels[index], label)))
    return labels


def treatment(info: Mapping[str, Any]) -> str:
    """What a run was treated with: its objective, and what sets it apart from others where `info["setting"]` says so."""
    setting = info.get("setting")
    return f"{info['objective']}, {setting}" if setting else str(info["objective"])


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


def _differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What differs but for the backdoors."""
    rest = [key for key in _differing(configs) if not key.startswith("backdoor.")]
    parts: list[list[str]] = [[] for _ in configs]
    for section, field in _TOLD_BY.items():
        if f"{section}.{field}" in rest:
            rest = [key for key in rest if not key.startswith(f"{section}.") or key == f"{section}.{field}"]
    if any(".lora" in key for key in rest):
        rest = [key for key in rest if ".lora" not in key and not key.endswith("learning_rate")]
        for place, config in enumerate(configs):
            adapters = any(".lora." in key for key in config)
            parts[place].append("adapters" if adapters else "full weights")
    for key in rest:
        short = key.rpartition(".")[2]
        unique = sum(other.rpartition(".")[2] == short for other in rest) == 1
        for place, config in enumerate(configs):
            if key in config:
                parts[place].append(f"{short if unique else key}={_value(config[key])}")
    return [", ".join(each) for each in parts]


def _backdoors(configs: Sequence[Mapping[str, Any]], differing: Sequence[str]) -> list[str]:
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
