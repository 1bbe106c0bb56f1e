"""Check overrides against the schema and the groups, and suggest what was meant."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Container, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args, get_origin, get_type_hints

from casd.config import Config, DefendConfig
from casd.config.options import groups
from casd.engines import ENGINES
from casd.utils.errors import ConfigError
from casd.utils.registry import import_named, shown, unknown

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
MOVED: Final = {"runtime.jobs": "engine.workers"}
"""Keys of earlier versions that are now in another section."""
OF_DEFENCES: Final = ("attack", "defence")
"""Sections of `casd defend` alone."""
ALIASES: Final = RENAMED | {"lr": "learning_rate", "precision": "dtype"}
"""Names that are common elsewhere, too, for suggestions."""
MOST_SUGGESTED: Final = 6


def check_words(overrides: Sequence[str]) -> None:
    """Check that every override has a "=", or removes something ("~key").

    Raises:
        ConfigError: a bare word; if it is an option of groups, the message has the overrides that choose it.
    """
    for word in overrides:
        if word and "=" not in word and not word.startswith("~"):
            raise ConfigError(f"{shown(word)} is not an override, which is key=value.{_for_word(word)}")


def check_keys(overrides: Sequence[Override], schema: type[Config] = Config) -> None:
    """Check the keys of parsed overrides, and those of mappings in their values, against the schema.

    Keys below a mapping with free names (`backdoor`, `params`) are not decided by the schema alone; Hydra checks them.

    Raises:
        ConfigError: a key that the schema does not have; several experiments; a path instead of an option; or one of Hydra's
            launchers.
    """
    experiments: list[str] = []
    known = groups()  # reads all files: once, and not for every key
    for override in overrides:
        key, value = override.key_or_group, override.value()
        if key == "hydra/launcher" or key.startswith("hydra.launcher"):
            raise ConfigError(
                f"Hydra's launchers are not used ({key}): use an engine, such as engine=local engine.workers=N;"
                " `casd list engine` shows all."
            )
        if not key or override.is_delete() or override.package or "/" in key or key.partition(".")[0] == "hydra":
            continue
        choices = value.list if override.is_choice_sweep() else [value]  # type: ignore[union-attr]
        for choice in choices:
            if key == "experiment":
                experiments += map(str, choice if isinstance(choice, list) else [choice])
            if key in OF_DEFENCES and schema is Config:
                raise ConfigError(f"{key} is a section of a defence: use casd defend.")
            if key in known and not isinstance(choice, dict):  # an option of a group
                _check_not_a_path(key, str(getattr(choice, "text", choice)), known[key])
                continue
            for path in _paths(key, choice):
                if error := _schema_error(path, choice, schema):
                    raise error
    if len(experiments) > 1:
        raise ConfigError(
            f"One experiment at a time; given were {', '.join(experiments)}. Each is a set of overrides with sweeps of its own:"
            " give the command once with each."
        )


def unknown_key(key: str, *, entry: str = "") -> ConfigError:
    """Return the error for a key that is not in the configuration, with the choices or how to add it.

    Args:
        key: dotted name.
        entry: if the key itself is there, what its new value has and its present value does not.
    """
    if entry:
        return ConfigError(f"{key} has no {entry!r} that could be changed; to add it, write +{key}=…")
    section, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    if error := _schema_error(key, schema=DefendConfig if section in OF_DEFENCES else Config):
        return error
    if section == "backdoor" and name in groups()["backdoor"]:
        return ConfigError(f"The backdoor {name} is not chosen: add it to the list, backdoor=[…,{name}].")
    if section == "engine":
        return _unknown_option(name)
    return ConfigError(f"The key {key!r} is not in the configuration; to add a new entry, write +{key}=…")


def _unknown_option(name: str) -> ConfigError:
    """Return the error for an option that the chosen engine does not have."""
    options = _engine_options()
    if owners := [engine for engine, names in options.items() if name in names]:
        one_of = " or ".join(f"engine={owner}" for owner in owners)
        return ConfigError(f"engine.{name} is an option of another engine: add {one_of}.")
    return unknown("option of an engine:", name, {option for names in options.values() for option in names})


def _engine_options() -> dict[str, list[str]]:
    """Return the options of every engine."""
    return {engine: [each.name for each in fields(import_named(path))] for engine, path in ENGINES.items()}


@functools.cache
def schema_paths() -> tuple[str, ...]:
    """The full key of every value in the schema. NAME stands for the name of a backdoor, a variant, …"""
    options = dict.fromkeys(option for names in _engine_options().values() for option in names)
    return (
        *(".".join(path) for path in _leaves(Config, ()) if path[0] != "engine"),
        *(f"engine.{name}" for name in ("name", *options)),
    )


def _leaves(hint: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    section = next((each for each in (hint, *get_args(hint)) if is_dataclass(each)), None)
    if section is None:
        yield path
    elif get_origin(hint) is dict:
        yield from _leaves(section, (*path, "NAME"))
    else:
        for name, inner in get_type_hints(section).items():
            yield from _leaves(inner, (*path, name))


def _full_keys(key: str) -> list[str]:
    """Return the keys of the schema that end like `key` and have its other parts in this order (`unlearning.lr`)."""
    *above, last = key.split(".")
    last = ALIASES.get(last, last)
    found = []
    for path in schema_paths():
        *sections, name = path.split(".")
        remaining = iter(sections)
        if name == last and all(part in remaining for part in above):
            found.append(path)
    return found


def _choosing(option: str) -> list[str]:
    """Return the overrides that choose `option`, one for each group that has it."""
    return [
        f"{group}=[{option}]" if group == "backdoor" else f"{group}={option}"
        for group, options in groups().items()
        if option in options
    ]


def _for_word(word: str) -> str:
    """Suggest overrides for a bare word: an option, a group, a key, or the nearest option."""
    if chosen := _choosing(word):
        return _did_you_mean(chosen)
    if word in groups():
        return f" Did you mean {word}=OPTION? `casd list {word}` shows the options."
    if keys := _full_keys(word):
        return _did_you_mean([f"{key}=…" for key in keys])
    options = {option for each in groups().values() for option in each}
    near = difflib.get_close_matches(word[:100], sorted(options), n=1)
    return _did_you_mean(_choosing(near[0])) if near else " Examples: seed=1, experiment=demo. `casd list` shows the groups."


def _did_you_mean(suggestions: Sequence[str]) -> str:
    *others, last = suggestions[:MOST_SUGGESTED]
    return f" Did you mean {' or '.join(filter(None, [', '.join(others), last]))}?"


def _check_not_a_path(group: str, choice: str, options: Container[str]) -> None:
    """Raise ConfigError, with the overrides that read it, for a model or text that is given by its path or its hub id."""
    if choice in options or not choice:
        return
    path = Path(choice)
    if group == "model" and ("/" in choice or path.suffix == ".gguf" or path.is_dir()):
        raise ConfigError(
            f"Unknown option of model: {shown(choice)}. Did you mean model=hub model.path={choice}? (experiment=real has"
            " settings for pretrained models.)"
        )
    if group == "corpus" and (path.suffix in (".txt", ".jsonl", ".parquet") or path.is_dir()):
        raise ConfigError(
            f"Unknown option of corpus: {shown(choice)}. Did you mean corpus=text_files"
            f" 'corpus.params.sources.en.paths=[{choice}]'?"
        )


def _paths(key: str, value: Any) -> list[str]:
    """Return the full key of every value in a nested mapping below `key`."""
    if not isinstance(value, dict):
        return [key]
    return [key, *(path for name, item in value.items() for path in _paths(f"{key}.{name}", item))]


def _schema_error(key: str, value: Any = None, schema: type[Config] = Config) -> ConfigError | None:
    """Walk the schema as far as `key` leads, and return the error for a field that it does not have."""
    section: Any = schema
    path: list[str] = []
    for part in key.split("."):
        if is_dataclass(section):
            hints = get_type_hints(section)
            names = [each.name for each in fields(section)]
            if part not in names:
                return _unknown_field(key, path, part, names, value)
            section = hints[part]
            if get_origin(section) is not dict:  # an optional section
                section = next((each for each in get_args(section) if is_dataclass(each)), section)
        elif get_origin(section) is dict:  # any name, then the type of its values
            section = get_args(section)[-1]
        path.append(part)
    return None


def _unknown_field(key: str, path: list[str], part: str, names: list[str], value: Any) -> ConfigError:
    """Return the error for the field `part`, which is not among the `names` of the section at `path`."""
    if new := MOVED.get(full := ".".join((*path, part))):
        return ConfigError(f"The key {full} is now called {new}.")
    if not path and part in OF_DEFENCES:
        return ConfigError(f"{part} is a section of a defence: use casd defend.")
    if (new := RENAMED.get(part)) in names:
        return ConfigError(f"The key {'.'.join((*path, part))} is now called {'.'.join((*path, str(new)))}.")
    if found := _full_keys(key):
        return ConfigError(f"Unknown key {shown(key)}.{_did_you_mean(found)}")
    if not path and part in groups():
        return ConfigError(f"{unknown('key', part, names)} It is a group: choose one of its options.")
    if not path and isinstance(value, str) and not difflib.get_close_matches(part, names) and (chosen := _choosing(value)):
        return ConfigError(f"Unknown key {shown(part)}.{_did_you_mean(chosen)}")
    return unknown(f"key in {'.'.join(path)}:" if path else "key", part, names)
