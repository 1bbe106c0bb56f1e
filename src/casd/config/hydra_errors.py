"""Errors of Hydra and OmegaConf as one line that names the key, what was expected, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from traceback import walk_tb
from typing import Any, Final, cast, get_args, get_origin, get_type_hints

from casd.config import Config
from casd.config.options import groups
from casd.utils.errors import CasdError, ConfigError
from casd.utils.registry import shown, unknown

_SEPARATOR: Final = "\n\0\n"
RENAMED: Final = {
    "keep_as": "save_as",
    "keep_models": "save_models",
    "max_gradient_norm": "max_grad_norm",
    "max_tokens": "max_length",
    "rivals": "baselines",
    "vocabulary": "vocab_size",
}
"""Keys of earlier versions, and what they are called now."""


@contextmanager
def explaining(overrides: Sequence[str]) -> Iterator[None]:
    """Turn Hydra's and OmegaConf's errors into a line that names the key and the choices."""
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        yield
    except CasdError:
        raise
    except OverrideParseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"Cannot read the override {shown(error.override)}: {_cut(reason)}. Expected key=value.") from error
    except YAMLError as error:
        raise ConfigError(
            f"A file is not YAML: {_cut(' '.join(str(error).split()))}. Text with ': ' or ' #' needs quotes."
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise _explained(error) from error
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        if not _raised_by_hydra(error):
            raise
        given, reason = _cut(" ".join(overrides)), _cut(str(error).partition("\n")[0])
        raise ConfigError(
            f"The overrides {given} cannot be applied ({reason}); each is key=value, and not below a key that is null."
            " (Adapters are there with weights=lora.)"
        ) from error


def _raised_by_hydra(error: BaseException) -> bool:
    """Whether the innermost frame is Hydra's or OmegaConf's; other libraries' errors in a job are none of our business."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return frames[-1].f_globals["__name__"].partition(".")[0] in ("hydra", "omegaconf")


def _explained(error: BaseException) -> ConfigError:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        if isinstance(error, CasdError):
            return ConfigError(str(error))
        chain.append(error)
        error = cast(BaseException, error.__cause__ or error.__context__)
    text = _SEPARATOR.join(str(each) for each in chain)
    if found := re.search(r"Could not (?:find|load) '(?:(?P<group>[\w/]+)/)?(?P<option>[^']*)'", text):
        group = found["group"] or ""
        return unknown(f"option of {group}:" if group else "config", found["option"], groups().get(group, groups()))
    if found := re.search(r"Could not override '(?P<key>[^']+)'|Key '(?P<name>[^']+)' not in '\w+'", text):
        full = re.search(r"full_key: (\S+)", text)
        return unknown_key(found["key"] or (full[1] if full else found["name"]))
    if found := re.search(r"Error merging override \++(backdoor\.\w+).*is not a subclass of BackdoorConfig", text, re.DOTALL):
        return unknown_key(found[1])
    if found := re.search(r"full_key: (\S+)", text) if "missing mandatory value" in text else None:
        return ConfigError(f"{found[1]} is not set, and it has no default.")
    # The outermost message says where, the innermost what: "Error merging override seed=abc", "Value 'abc' …".
    # OmegaConf forgets to fill these in.
    text = text.replace("Value '$VALUE' of type '$VALUE_TYPE'", "the value")
    text = text.replace("Key $KEY ($KEY_TYPE) is incompatible with (str)", "the name is not text; put it in quotes")
    lines = [line for each in text.split(_SEPARATOR) if (line := each.strip().partition("\n")[0]) not in ("", "None")]
    if lines[0].startswith("Ambiguous value"):
        return ConfigError(f"{_cut(lines[0])}: write key=[a,b] for a list, and use casd sweep for one run with each.")
    full = re.search(r"full_key: (\S+)", text)
    where = f"{full[1]}: " if full and full[1] not in lines[0] else ""
    return ConfigError(where + ": ".join(dict.fromkeys((_cut(lines[0]), _cut(lines[-1])))))


def _cut(line: str) -> str:
    """A line of OmegaConf's, which repeats values as they are, without control characters and not too long."""
    text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)
    return text if len(text) <= 300 else f"{text[:297]}..."


def unknown_key(key: str) -> ConfigError:
    """The error for a key that the schema does not have: walks the schema as far as the key leads."""
    section: Any = Config
    path: list[str] = []
    for part in key.split("."):
        if is_dataclass(section):
            hints = get_type_hints(section)
            names = [each.name for each in fields(section)]
            if part not in names:
                if (new := RENAMED.get(part)) in names:
                    old = ".".join((*path, part))
                    return ConfigError(f"The key {old} is now called {'.'.join((*path, str(new)))}.")
                inside = f"key in {'.'.join(path)}:" if path else "key"
                hint = "" if path or part not in groups() else " It is a group: choose one of its options."
                return ConfigError(f"{unknown(inside, part, names)}{hint}")
            section = hints[part]
            if get_origin(section) is not dict:  # an optional section
                section = next((each for each in get_args(section) if is_dataclass(each)), section)
        elif get_origin(section) is dict:  # any name, then the type of its values
            section = get_args(section)[-1]
        path.append(part)
    if path[0] == "backdoor" and path[1] in groups()["backdoor"]:
        return ConfigError(f"The backdoor {path[1]} is not chosen: add it to the list, backdoor=[…,{path[1]}].")
    return ConfigError(f"The key {key!r} is not in the configuration; to add an entry that is new, write +{key}=…")
