"""What the sections of the configuration are made of: a value that has to be given, a named choice, and checks."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from casd.errors import ConfigError
from casd.registry import unknown

MISSING: Any = "???"
"""What OmegaConf reads as: has no default, has to be given."""


def require_one_of(what: str, value: str, choices: Collection[str]) -> None:
    """Raise ConfigError, with the choices and the nearest of them, for a value that is none."""
    if value not in choices:
        raise unknown(what, value, choices)


def require_file_name(what: str, value: str) -> None:
    """Raise ConfigError for a value that cannot name a folder."""
    if not re.fullmatch(r"\w[\w.-]*", value):
        raise ConfigError(f"{what} is {value!r}; it becomes a folder: letters, digits, '.', '_' and '-' only.")


def require(section: object, condition: str, accepts: Any, *names: str) -> None:
    """Raise ConfigError for the first of the fields `names` whose value `accepts` refuses."""
    for name in names:
        if not accepts(getattr(section, name)):
            raise ConfigError(f"{type(section).__name__}: {name} is {getattr(section, name)}; it must be {condition}.")


@dataclass
class Choice:
    """A named choice of a registry, with its parameters."""

    name: str = MISSING
    """Its name in the registry."""
    params: dict[str, Any] = field(default_factory=dict)
    """The parameters of the dataclass it stands for; checked by name and type when it is built."""
