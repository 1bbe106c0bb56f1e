"""What the sections of the configuration are made of: a value that has to be given, a named choice, and checks."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from casd.utils.errors import ConfigError
from casd.utils.registry import LARGEST, check_value, shown, unknown

MISSING: Any = "???"
"""What OmegaConf reads as: has no default, has to be given."""

if TYPE_CHECKING:
    Text = str
else:
    # In a field of type str, OmegaConf turns a number into a text: 3.10 into "3.1", yes into "True". One of type Any keeps what
    # YAML made of it, and `Section` refuses what is no text.
    Text = Annotated[Any, str]

MOST_TOKENS = 2**20
"""More tokens than any text of a run has."""


class Section:
    """A section of the configuration: a dataclass that checks its fields when it is built.

    Each field has to have its declared type, and nothing can be done with some values of any type (see
    `casd.utils.registry.check_value`). A field whose numbers may be larger than others says so: `metadata={"most": …}`.

    Raises:
        ConfigError: a field that has not; it names the field.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for each in fields(self):  # type: ignore[arg-type]  # its subclasses are dataclasses
            value, name = getattr(self, each.name), f"{type(self).__name__}: {each.name}"
            if value != MISSING:
                check_value(name, value, hints[each.name], each.metadata.get("most", LARGEST))
            elif not is_dataclass(hints[each.name]):  # a section that is missing is told by whoever needs it
                raise ConfigError(f"{name} is not set.")


def require_one_of(what: str, value: str, choices: Collection[str]) -> None:
    """Raise ConfigError, with the choices and the nearest of them, for a value that is none."""
    if value not in choices:
        raise unknown(what, value, choices)


def require_name(what: str, value: str) -> None:
    """Raise ConfigError for a value that cannot be the name of a run, a model, a backdoor or a variant of CASD.

    Names become folders, columns of tables and parts of the names of states, so there is one rule for all of them.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise ConfigError(
            f"{what} is {shown(value)}; a name has at most 64 characters, which are letters (a-z, A-Z), digits, '.', '_' and"
            " '-', and begins with a letter or a digit."
        )


def require_path(what: str, value: str) -> None:
    """Raise ConfigError for a value that cannot be the path of a file or a folder."""
    if not value.strip() or len(os.fsencode(value)) > 4000 or any(len(os.fsencode(part)) > 255 for part in value.split("/")):
        raise ConfigError(f"{what} is {shown(value)}; expected a path of at most 4000 bytes, its parts of at most 255.")
    if "\n" in value or "\t" in value:
        raise ConfigError(f"{what} is {shown(value)}; a path with line breaks or tabs cannot be used.")


def require_different(section: object, *names: str) -> None:
    """Raise ConfigError for the first of the fields `names` whose list has an entry twice."""
    require(section, "a list without repeats", lambda value: len(set(value)) == len(value), *names)


def require(section: object, condition: str, accepts: Any, *names: str) -> None:
    """Raise ConfigError for the first of the fields `names` whose value `accepts` refuses."""
    for name in names:
        value = getattr(section, name)
        if not accepts(value):
            raise ConfigError(f"{type(section).__name__}: {name} is {shown(value)}; it must be {condition}.")


@dataclass
class Choice(Section):
    """A named choice of a registry, with its parameters."""

    name: Text = MISSING
    """Its name in the registry."""
    params: dict[str, Any] = field(default_factory=dict)
    """The parameters of the dataclass it stands for; checked by name and type when it is built."""
