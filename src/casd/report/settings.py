"""What sets the runs of a sweep apart beside model, objective and seed, in a few words: read from their configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

_NO_SETTING: Final = ("seed", "name", "runtime", "every_backdoor")
"""Sections that change no result, or that are told by themselves or by others."""
_TOLD_BY: Final = {"injection": "mode"}
"""Sections of which one field tells the others, where it differs."""
_MISSING: Final = object()


def distinguish(groups: Sequence[tuple[Any, str]]) -> list[str]:
    """For each run, what of its configuration differs within its group: "learning_rate=0.001, steps=4"; "" if nothing does.

    Args:
        groups: of each run whatever names its group (model and objective), and its configuration as YAML.
    """
    configs = [_flat(yaml.safe_load(text) or {}) for _, text in groups]
    members: dict[Any, list[int]] = {}
    for index, (group, _) in enumerate(groups):
        members.setdefault(group, []).append(index)
    labels = [""] * len(groups)
    for indices in members.values():
        found = _differences([configs[index] for index in indices])
        for index, label in zip(indices, found, strict=True):
            labels[index] = label
    return labels


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves by their dotted names; a list is a leaf."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if not prefix and key in _NO_SETTING:
            continue
        if isinstance(value, Mapping) and value:
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differing = [key for key in keys if len({repr(config.get(key, _MISSING)) for config in configs}) > 1]
    parts: list[list[str]] = [[] for _ in configs]
    backdoors = [key for key in differing if key.startswith("backdoor.")]
    for place, label in enumerate(_backdoors(configs, backdoors)):
        parts[place] += [label] if label else []
    rest = [key for key in differing if key not in backdoors]
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
