"""Base class, field types and checks of the configuration's sections."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from casd.utils.errors import ConfigError
from casd.utils.registry import LARGEST, check_value, shown, unknown

MISSING: Any = "???"
"""OmegaConf's marker of a field without a default."""

if TYPE_CHECKING:
    Text = str
    TextOrMapping = str | dict[str, Any]
else:
    # In a field of type str, OmegaConf converts other values: 3.10 to "3.1", yes to "True". A field of type Any keeps what YAML
    # read, and `Section` refuses it unless it is a string.
    Text = Annotated[Any, str]
    TextOrMapping = Annotated[Any, str | dict[str, Any]]

MOST_TOKENS = 2**20
"""Upper limit of numbers of tokens per text."""


class Section:
    """Base of the configuration's sections: a dataclass that checks its fields when it is built.

    `casd.utils.registry.check_value` checks each field's type and value; `metadata={"most": …}` sets another largest number.

    Raises:
        ConfigError: a field with a wrong value; the message names the field.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for each in fields(self):  # type: ignore[arg-type]  # its subclasses are dataclasses
            value, name = getattr(self, each.name), f"{type(self).__name__}: {each.name}"
            if value != MISSING:
                check_value(name, value, hints[each.name], each.metadata.get("most", LARGEST))
            elif not is_dataclass(hints[each.name]):  # whoever needs a missing section reports it
                raise ConfigError(f"{name} is not set.")


def require_one_of(what: str, value: str, choices: Collection[str]) -> None:
    """Raise ConfigError, with the choices and the nearest of them, if `value` is not one of `choices`."""
    if value not in choices:
        raise unknown(what, value, choices)


def require_name(what: str, value: str) -> None:
    """Raise ConfigError if `value` cannot be the name of a run, a model, a backdoor or a variant of CASD.

    All names follow one rule, because they become folders, table columns and parts of the names of states.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise ConfigError(
            f"{what} is {shown(value)}; a name has at most 64 characters, which are letters (a-z, A-Z), digits, '.', '_' and"
            " '-', and begins with a letter or a digit."
        )


def require_path(what: str, value: str) -> None:
    """Raise ConfigError if `value` cannot be the path of a file or a folder."""
    if not value.strip() or len(os.fsencode(value)) > 4000 or any(len(os.fsencode(part)) > 255 for part in value.split("/")):
        raise ConfigError(f"{what} is {shown(value)}; expected a path of at most 4000 bytes, its parts of at most 255.")
    if "\n" in value or "\t" in value:
        raise ConfigError(f"{what} is {shown(value)}; a path with line breaks or tabs cannot be used.")


def require_different(section: object, *names: str) -> None:
    """Raise ConfigError for the first of the fields `names` whose list has duplicates."""
    require(section, "a list without repeats", lambda value: len(set(value)) == len(value), *names)


def require(section: object, condition: str, accepts: Any, *names: str) -> None:
    """Raise ConfigError, with the `condition`, for the first of the fields `names` whose value `accepts` rejects."""
    for name in names:
        value = getattr(section, name)
        if not accepts(value):
            raise ConfigError(f"{type(section).__name__}: {name} is {shown(value)}; it must be {condition}.")


@dataclass
class Choice(Section):
    """A named choice of a registry, with its parameters."""

    name: Text = MISSING
    """Name in the registry."""
    params: dict[str, Any] = field(default_factory=dict)
    """Parameters of the dataclass that the name refers to; checked when it is built."""
