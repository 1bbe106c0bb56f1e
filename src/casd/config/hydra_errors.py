"""Report errors of Hydra and OmegaConf in one line that names the key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from traceback import walk_tb

from casd.config.inputs import BackdoorConfig
from casd.config.keys import unknown_key
from casd.config.options import groups
from casd.utils.errors import CasdError, ConfigError, first_line
from casd.utils.registry import shown, unknown


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
    except UnicodeDecodeError as error:
        raise ConfigError(f"A file of the configuration is not text in UTF-8 ({error.reason}); save it as UTF-8.") from error
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
    if any(str(each).find("Could not override 'attack'") >= 0 for each in chain):
        named = next((each for each in overrides if each.startswith("experiment=")), "This experiment")
        return ConfigError(f"{named} is a defence: use casd defend.")
    for each in chain:
        key = str(getattr(each, "full_key", None) or "")
        if isinstance(each, CasdError):
            return ConfigError(str(each))
        if key.startswith("backdoor.") and key.split(".")[1] in {field.name for field in fields(BackdoorConfig)}:
            return ConfigError(
                f"{key.split('.')[1]!r} is not the name of a backdoor: does a file of yours in backdoor/ lack its first line,"
                " `# @package backdoor.NAME`?"
            )
        if isinstance(each, MissingConfigException):
            group, _, option = (each.missing_cfg_file or "").rpartition("/")
            choices = each.options or list(groups().get(group, groups()))
            return unknown(f"option of {group}:" if group else "config", option, choices)
        if isinstance(each, MissingMandatoryValue) and key:
            return ConfigError(f"{key} is not set, and it has no default.")
        if isinstance(each, ConfigAttributeError | ConfigKeyError) and key and key.partition(".")[0] != "hydra":
            # OmegaConf names the first part that is missing; an override, if one set it, the whole key.
            given = [override.lstrip("+").partition("=")[0] for override in overrides]
            if inside := next((full for full in given if "." in full and key.startswith(f"{full}.")), ""):
                return unknown_key(inside, entry=key.removeprefix(f"{inside}."))
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
