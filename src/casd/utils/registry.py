"""Look up named choices (objectives, targets, corpora, …), and check values of the configuration.

A registry is a dict from names to "module:attribute", so that listing the names imports nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import typing
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from casd.utils.errors import ConfigError

MAX_LISTED = 40
"""Error messages list at most this many choices (transformers has more architectures)."""
LARGEST = 2**31 - 1
"""Largest absolute value of a number in a configuration, unless its field sets another."""
SMALLEST = 1e-30
"""Smallest absolute value of a number other than 0: products with a smaller one underflow in float32."""
LONGEST = 10_000
"""Maximum number of characters of a string in a configuration."""


def unknown(kind: str, name: str, choices: Iterable[str]) -> ConfigError:
    """Return the error for a name that is not among `choices`, with the nearest of them and, unless they are many, all."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name[:100], choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = f"Choices: {', '.join(choices) or 'none'}." if len(choices) <= MAX_LISTED else f"There are {len(choices)} choices."
    return ConfigError(f"Unknown {kind} {shown(name)}.{hint} {listed}")


def shown(value: Any) -> str:
    """Format a value for an error message: on one line, and shortened to 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def check_value(what: str, value: Any, hint: Any = Any, most: float = LARGEST) -> None:
    """Check the type of a value, and that its numbers and strings are usable.

    Args:
        what: the value's name, for the error.
        value: a number, a string, None, or a list or mapping of such values.
        hint: its declared type.
        most: largest absolute value of a number in it; infinity allows infinite ones.

    Raises:
        ConfigError: another type; a number that is NaN, too large or too close to 0; or a string that is too long or has
            control characters or half a surrogate pair.
    """
    if not _fits(value, hint):
        advice = _quoting(what, value) if _fits(_as_text(value), hint) else ""
        raise ConfigError(f"{what} is {shown(value)}; expected {_describe(hint)}.{advice}")
    if isinstance(value, dict):
        for key, item in value.items():
            check_value(f"a name in {what}", key)
            check_value(f"{what}.{key}", item, most=most)
    elif isinstance(value, list | tuple):
        for item in value:
            check_value(f"an entry of {what}", item, most=most)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not (value == 0 or SMALLEST <= abs(value) <= most):
            raise ConfigError(
                f"{what} is {shown(value)}; expected 0 or a number from {SMALLEST:g} to {most} in absolute value."
            )
    elif isinstance(value, str):
        if len(value) > LONGEST:
            raise ConfigError(f"{what} has {len(value)} characters; expected at most {LONGEST}.")
        if any(unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t" for character in value):
            raise ConfigError(f"{what} is {shown(value)}; control characters and halves of surrogate pairs cannot be used.")


def look_up(registry: Mapping[str, str], kind: str, name: str) -> Any:
    """Import and return the entry `name` of a registry. `kind` ("objective", "corpus", …) is for the error message.

    Raises:
        ConfigError: `name` is not in the registry.
    """
    if name not in registry:
        raise unknown(kind, name, registry)
    return import_named(registry[name])


def import_named(path: str) -> Any:
    """Import and return "module:attribute"."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def build(registry: Mapping[str, str], kind: str, name: str, params: Mapping[str, Any]) -> Any:
    """Construct the dataclass `name` of a registry from `params`, after checking their names and types.

    The class's own `__post_init__` checks the values further, and raises ConfigError.

    Raises:
        ConfigError: unknown name, unknown or missing parameter, or a value of the wrong type.
    """
    cls = look_up(registry, kind, name)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    where = f"{kind} {name!r}"
    for key, value in params.items():
        if key not in fields:
            raise unknown(f"parameter of {where}:", key, fields)
        check_value(f"Parameter {key!r} of {where}", value, hints[key])
    missing = [
        key
        for key, field in fields.items()
        if key not in params and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"The {where} needs the parameter {missing[0]!r}, which is missing.")
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in params.items()})


def _quoting(what: str, value: Any) -> str:
    """Say how to quote `value`, which YAML did not read as text, in a file and on the command line."""
    text = '["…"]' if isinstance(value, list | tuple) else '"…"'
    key = what if what.replace(".", "").isidentifier() else "key"
    name = key.rpartition(".")[2]
    return f" YAML did not read it as text: put it in quotes, {name}: {text} in a file, {key}='{text}' on the command line."


def _as_text(value: Any) -> Any:
    """Convert every value in `value` to a string."""
    if isinstance(value, dict):
        return {str(key): _as_text(item) for key, item in value.items()}
    return [_as_text(item) for item in value] if isinstance(value, list | tuple) else str(value)


def _fits(value: Any, hint: Any) -> bool:
    """Return True if `value` has the declared type `hint`; an int counts as a float, a list as a tuple."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:  # `casd.config.fields.Text`
        return _fits(value, arguments[1])
    if hint is Any:
        return True
    if origin is dict:
        return isinstance(value, dict) and all(_fits(key, arguments[0]) and _fits(value[key], arguments[1]) for key in value)
    if origin in (tuple, list):
        return isinstance(value, list | tuple) and all(_fits(item, arguments[0]) for item in value)
    if origin is typing.Literal:
        return value in arguments
    if arguments:  # a union such as `float | None`
        return any(_fits(value, argument) for argument in arguments)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    """Describe a declared type: "float | None", "a list of str", "a mapping from str to int", "one of 'payload', 'clean'"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return "anything"
    if origin is typing.Annotated:
        return _describe(arguments[1])
    if origin is dict:
        return f"a mapping from {_describe(arguments[0])} to {_describe(arguments[1])}"
    if origin in (tuple, list):
        return f"a list of {_describe(arguments[0])}"
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if arguments:
        return " | ".join(map(_describe, arguments))
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))
