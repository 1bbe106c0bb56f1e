"""The scales of a reproduction: `configs/reproduce/SCALE.yaml` lists the sweeps that make each set of runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from casd.config.options import SCALES, config_folder, description, own_folder
from casd.reproduction.catalogue import EXHIBITS, RUN_SETS
from casd.utils.errors import ConfigError
from casd.utils.registry import unknown

Sweeps = tuple[tuple[str, ...], ...]
"""Sweeps, each as a tuple of overrides."""


@dataclass(frozen=True)
class Scale:
    """A scale.

    Attributes:
        name: "tiny", …
        description: what it is, and the time and hardware it needs.
        sweeps: by the name of the set of runs, one of RUN_SETS.
    """

    name: str
    description: str
    sweeps: Mapping[str, Sweeps]

    @property
    def exhibits(self) -> list[str]:
        """Names of the exhibits that have runs at this scale."""
        return [name for name, exhibit in EXHIBITS.items() if exhibit.run_set in self.sweeps]


def scales() -> dict[str, str]:
    """The names of the scales with their descriptions, the cheapest first."""
    files = {file.stem: description(file) for file in _files()}
    known = [name for name in ("smoke", "tiny", "smollm2", "paper") if name in files]
    return {name: files[name] for name in (*known, *sorted(set(files) - set(known)))}


def _files() -> list[Path]:
    """Return the files of scales: those of the package, then those of `configs/` in the working directory, which come first."""
    folders = [folder for folder in (config_folder(), own_folder()) if folder]
    return [file for folder in folders for file in sorted((folder / SCALES).glob("*.yaml"))]


def read_scale(name: str) -> Scale:
    """Read a scale.

    Raises:
        ConfigError: there is no scale of that name, or its file is malformed.
    """
    if name not in scales():
        raise unknown("scale", name, scales())
    path = next(file for file in reversed(_files()) if file.stem == name)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(tree, dict) or not {RUN_SETS[0]} <= set(tree) <= set(RUN_SETS):
        has = ", ".join(map(str, tree)) if isinstance(tree, dict) else "no mapping"
        raise ConfigError(
            f"{path} needs the key {RUN_SETS[0]}, and may have {', '.join(RUN_SETS[1:])}, each with a list of sweeps; it has"
            f" {has}."
        )
    return Scale(
        name, description(path), {run_set: _sweeps(path, run_set, tree[run_set]) for run_set in RUN_SETS if run_set in tree}
    )


def _sweeps(path: Path, run_set: str, value: Any) -> Sweeps:
    lists = isinstance(value, list) and value and all(isinstance(sweep, list) and sweep for sweep in value)
    if not lists or not all(isinstance(override, str) for sweep in value for override in sweep):
        raise ConfigError(f"{path}: {run_set} is {value!r}; expected a list of sweeps, each a list of overrides.")
    return tuple(tuple(sweep) for sweep in value)
