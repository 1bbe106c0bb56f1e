"""Check overrides against the schema, and report errors of Hydra and OmegaConf in one line that names the key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, Final, get_args, get_origin, get_type_hints

from casd.config import Config
from casd.config.options import groups
from casd.utils.errors import CasdError, ConfigError, first_line
from casd.utils.registry import shown, unknown

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

RENAMED: Final = {
    "keep_as": "save_as",
    "keep_models": "save_models",
    "max_gradient_norm": "max_grad_norm",
    "max_tokens": "max_length",
    "rivals": "baselines",
    "vocabulary": "vocab_size",
}
"""Keys of earlier versions, and what they are called now."""


def check_keys(overrides: Sequence[Override]) -> None:
    """Check the keys of parsed overrides, and those of mappings in their values, against the schema.

    Keys below a mapping with free names (`backdoor`, `params`) are not decided by the schema alone; Hydra checks them.

    Raises:
        ConfigError: a key that the schema does not have.
    """
    for override in overrides:
        key, value = override.key_or_group, override.value()
        if not key or override.is_delete() or override.package or "/" in key or key.partition(".")[0] == "hydra":
            continue
        for choice in value.list if override.is_choice_sweep() else [value]:  # type: ignore[union-attr]
            if key in groups() and not isinstance(choice, dict):  # an option of a group
                continue
            for path in _paths(key, choice):
                if error := _schema_error(path):
                    raise error


def _paths(key: str, value: Any) -> list[str]:
    """Return the full key of every value in a nested mapping below `key`."""
    if not isinstance(value, dict):
        return [key]
    return [key, *(path for name, item in value.items() for path in _paths(f"{key}.{name}", item))]


def _schema_error(key: str) -> ConfigError | None:
    """Walk the schema as far as `key` leads, and return the error for a field that it does not have."""
    section: Any = Config
    path: list[str] = []
    for part in key.split("."):
        if is_dataclass(section):
            hints = get_type_hints(section)
            names = [each.name for each in fields(section)]
            if part not in names:
                if (new := RENAMED.get(part)) in names:
                    return ConfigError(f"The key {'.'.join((*path, part))} is now called {'.'.join((*path, str(new)))}.")
                inside = f"key in {'.'.join(path)}:" if path else "key"
                hint = "" if path or part not in groups() else " It is a group: choose one of its options."
                return ConfigError(f"{unknown(inside, part, names)}{hint}")
            section = hints[part]
            if get_origin(section) is not dict:  # an optional section
                section = next((each for each in get_args(section) if is_dataclass(each)), section)
        elif get_origin(section) is dict:  # any name, then the type of its values
            section = get_args(section)[-1]
        path.append(part)
    return None


def unknown_key(key: str) -> ConfigError:
    """Return the error for a key that is not in the configuration, with the choices or how to add it."""
    section, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    if error := _schema_error(key):
        return error
    if section == "backdoor" and name in groups()["backdoor"]:
        return ConfigError(f"The backdoor {name} is not chosen: add it to the list, backdoor=[…,{name}].")
    return ConfigError(f"The key {key!r} is not in the configuration; to add a new entry, write +{key}=…")


@contextmanager
def explaining(overrides: Sequence[str]) -> Iterator[None]:
    """Turn errors of Hydra and OmegaConf in the block into a ConfigError of one line.

    Args:
        overrides: as they were typed, for the message.

    Raises:
        ConfigError: an error of Hydra, OmegaConf or the YAML parser. Other errors pass.
    """
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        yield
    except CasdError:
        raise
    except OverrideParseException as error:
        reason = _cut(first_line(error))
        raise ConfigError(f"Cannot read the override {shown(error.override)}: {reason}. Expected key=value.") from error
    except YAMLError as error:
        raise ConfigError(
            f"A file is not YAML: {_cut(' '.join(str(error).split()))}. Text with ': ' or ' #' needs quotes."
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise _explained(error, overrides) from error
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        if not _raised_by_hydra(error):
            raise
        given, reason = _cut(" ".join(overrides)), _cut(str(error).partition("\n")[0])
        raise ConfigError(
            f"The overrides {given} cannot be applied ({reason}); each is key=value, and not below a key that is null."
            " (weights=lora sets the sections of adapters.)"
        ) from error


def _raised_by_hydra(error: BaseException) -> bool:
    """Return True if the innermost frame is Hydra's or OmegaConf's: errors of other code in a job must not be hidden."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return frames[-1].f_globals["__name__"].partition(".")[0] in ("hydra", "omegaconf")


def _explained(error: BaseException, overrides: Sequence[str]) -> ConfigError:
    """Return the line for the first error in the chain of causes that names a key or an option, or for the chain itself."""
    from hydra.errors import MissingConfigException
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, ValidationError

    chain = _causes(error)
    for each in chain:
        key = str(getattr(each, "full_key", None) or "")
        if isinstance(each, CasdError):
            return ConfigError(str(each))
        if isinstance(each, MissingConfigException):
            group, _, option = (each.missing_cfg_file or "").rpartition("/")
            choices = each.options or list(groups().get(group, groups()))
            return unknown(f"option of {group}:" if group else "config", option, choices)
        if isinstance(each, MissingMandatoryValue) and key:
            return ConfigError(f"{key} is not set, and it has no default.")
        if isinstance(each, ConfigAttributeError | ConfigKeyError) and key and key.partition(".")[0] != "hydra":
            # OmegaConf names the first part that is missing; an override, if one set it, the whole key.
            given = (override.lstrip("+").partition("=")[0] for override in overrides)
            return unknown_key(next((full for full in given if f"{full}.".startswith(f"{key}.")), key))
        if isinstance(each, ValidationError) and key in groups()["backdoor"]:  # "+" below a backdoor that is not chosen
            return unknown_key(f"backdoor.{key}")
    return _first_lines(chain)


def _causes(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _first_lines(chain: Sequence[BaseException]) -> ConfigError:
    """Join the first lines of the outermost error, which says where ("Error merging …"), and of the innermost (the reason)."""
    key = next((str(key) for each in chain if (key := getattr(each, "full_key", None))), "")
    lines = [line for each in chain if (line := str(each).strip().partition("\n")[0].rstrip(".")) not in ("", "None")]
    if lines[0].startswith("Ambiguous value"):
        return ConfigError(f"{_cut(lines[0])}: write key=[a,b] for a list, and use casd sweep for one run with each.")
    where = f"{key}: " if key not in lines[0] else ""
    text = ": ".join(dict.fromkeys((_cut(lines[0]), _cut(lines[-1]))))
    # OmegaConf leaves these placeholders in some messages.
    text = text.replace("Value '$VALUE' of type '$VALUE_TYPE'", "the value")
    text = text.replace("Key $KEY ($KEY_TYPE) is incompatible with (str)", "the name is not text; put it in quotes")
    return ConfigError(f"{where}{text}.")


def _cut(line: str) -> str:
    """Escape control characters in a message of OmegaConf, which repeats values as they are, and shorten it."""
    text = "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)
    return text if len(text) <= 300 else f"{text[:297]}..."
