"""The description of a stage, and its key."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from casd.utils.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Stage:
    """Description of a stage, which determines its key.

    `config` is copied and converted to a canonical form: tuples become lists, and floats without a fraction become integers,
    because YAML allows both `1` and `1.0` for the same number. (`true` and `1` stay different.)

    Raises:
        ConfigError: a number in `config` is NaN or infinite.
        TypeError: `config` has a value that JSON cannot represent.
    """

    name: str
    """Kind of the stage; also its folder below the store's root."""
    version: int
    """Version of the code that makes it: increase it when the result of the same configuration changes."""
    config: Mapping[str, Any]
    """The stage's own settings that can change its result: no devices, folders or logging."""
    inputs: tuple[Stage, ...] = ()
    """Stages that it reads, in order."""
    label: str = ""
    """Label for display ("french_a"). Not part of the key."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(
                f"A stage's name has letters, digits and underscores, because it is also a folder's name; got {self.name!r}."
            )
        object.__setattr__(self, "config", _canonical(self.config))

    @cached_property
    def key(self) -> str:
        """20 hexadecimal digits (80 bits) of the SHA-256 of name, version, configuration and the inputs' keys."""
        parts = [self.name, self.version, self.config, [stage.key for stage in self.inputs]]
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def __str__(self) -> str:
        return f"{self.name} ({self.label})" if self.label else self.name


def _canonical(value: Any) -> Any:
    match value:
        case None | bool() | str():
            return value
        case int():
            return int(value)
        case float():
            if not math.isfinite(value):
                raise ConfigError(f"A number of the configuration is {value}; expected a finite one.")
            return int(value) if value.is_integer() else float(value)
        case Mapping():
            if invalid := [name for name in value if not isinstance(name, str)]:
                raise TypeError(f"A stage's configuration has the key {invalid[0]!r}, which is not a string.")
            return {name: _canonical(item) for name, item in value.items()}
        case list() | tuple():
            return [_canonical(item) for item in value]
    raise TypeError(f"A stage's configuration has a {type(value).__name__}, which JSON cannot represent: {value!r}.")
