"""Compose a checked `Config` from `configs/` and overrides with Hydra; sweeps are Hydra's multi-run.

Only this module and `hydra_errors` use Hydra. They return a plain `Config`: no other code sees a `DictConfig`.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args, get_origin, get_type_hints

from casd.config import Config, DefendConfig
from casd.config.fields import MISSING, Text, TextOrMapping
from casd.config.hydra_errors import explaining
from casd.config.keys import check_keys, check_words
from casd.config.options import DEFENCE_ROOT, ROOT, SCHEMA, config_folder, groups, own_folder
from casd.utils.errors import CasdError, ConfigError, first_line
from casd.utils.registry import check_value

if TYPE_CHECKING:
    from omegaconf import DictConfig


def load_config(overrides: Sequence[str] = ()) -> Config:
    """Compose a run's configuration from the defaults and Hydra overrides ("seed=1", "model=llama3_tiny").

    Raises:
        ConfigError: an unknown option or key, with the choices, or a value that cannot work.
    """
    from hydra import compose, initialize_config_dir

    with explaining(overrides):
        overrides = _register(overrides)
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            return to_config(compose(ROOT, overrides=overrides))


def load_run(overrides: Sequence[str]) -> Config:
    """Compose the configuration of a single run as `load_config` does, and refuse overrides that mean a sweep.

    Raises:
        ConfigError: see `load_config`; or an experiment with lists of values that the overrides do not choose from.
    """
    from hydra import compose, initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with explaining(overrides):
        registered = _register(overrides)
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            composed = compose(ROOT, overrides=registered, return_hydra_config=True)
            given = {each.lstrip("+").partition("=")[0] for each in overrides}
            params = (composed.hydra.sweeper.params or {}).items()
            swept = [f"{key}={values}" for key, values in params if key not in given]
            (runs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(swept), max_batch_size=None)
            if len(runs) > 1:
                raise _is_sweep(overrides, swept, runs)
            return to_config(compose(ROOT, overrides=[*runs[0], *registered]))


def _is_sweep(overrides: Sequence[str], swept: Sequence[str], runs: Sequence[Sequence[str]]) -> ConfigError:
    """Return the error for overrides of a single run that are those of a sweep."""
    what = next((each for each in overrides if each.startswith("experiment=")), "This")
    return ConfigError(
        f"{what} is a sweep of {len(runs)} runs ({' '.join(swept)}). For all of them:"
        f" {shlex.join(['casd', 'sweep', *overrides])}. For a single one add, for example, {' '.join(runs[0])}."
    )


def to_config(composed: DictConfig) -> Config:
    """Convert a composed configuration to plain dataclasses, each of which checks itself.

    Raises:
        ConfigError: a value that cannot work.
    """
    from omegaconf import OmegaConf

    _check_texts(OmegaConf.to_container(composed, resolve=True), OmegaConf.get_type(composed))
    return cast(Config, OmegaConf.to_object(composed))


def _check_texts(value: Any, hint: Any, path: tuple[str, ...] = ()) -> None:
    """Raise ConfigError where YAML read something else than the declared text; sections do so, too, but without the key."""
    if get_origin(hint) is dict:
        for name, item in value.items() if isinstance(value, dict) else ():
            _check_texts(item, get_args(hint)[1], (*path, str(name)))
    elif section := next((cls for cls in (hint, *get_args(hint)) if is_dataclass(cls)), None):
        hints = get_type_hints(section, include_extras=True)
        for name in hints.keys() & value.keys() if isinstance(value, dict) else ():
            _check_texts(value[name], hints[name], (*path, name))
    elif {Text, TextOrMapping} & {hint, *get_args(hint)} and value != MISSING:
        check_value(".".join(path), value, hint)


def to_yaml(config: Config) -> str:
    """Convert a configuration to YAML, as it is saved beside every result."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))


def read_yaml(file: Path) -> Config:
    """Read a configuration that `to_yaml` wrote.

    Raises:
        ConfigError: a file of another version, with keys or values that this one does not have.
    """
    from omegaconf import OmegaConf

    try:
        composed = cast("DictConfig", OmegaConf.load(file))
        composed.get("runtime", {}).pop("jobs", None)  # of earlier versions; it changes no result
        new: dict[str, Any] = {name: {"target": {}} for name in composed.backdoor}
        schema = OmegaConf.merge(OmegaConf.structured(Config), {"backdoor": new})
        return to_config(cast("DictConfig", OmegaConf.merge(schema, composed)))
    except (CasdError, OSError):
        raise
    except Exception as error:  # OmegaConf and its YAML parser raise errors of many types, all caused by the file
        raise ConfigError(
            f"{file} is not a configuration of this version of casd ({first_line(error)}). Make the run again, or use the"
            " version that made it."
        ) from error


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        config: its configuration.
        overrides: the overrides from which `load_config` makes this configuration.
    """

    config: Config
    overrides: tuple[str, ...]


def configs(overrides: Sequence[str]) -> list[Config]:
    """Return the configurations of a sweep, in order; see `jobs`."""
    return [job.config for job in jobs(overrides)]


def load_defence(overrides: Sequence[str] = ()) -> DefendConfig:
    """Compose the configuration of a single defence, as `load_config` does for a run.

    Raises:
        ConfigError: see `load_config`; or overrides that describe several defences.
    """
    found = defences(overrides)
    if len(found) > 1:
        raise ConfigError(f"These overrides describe {len(found)} defences: give one value of each, or use casd defend.")
    return found[0]


def defences(overrides: Sequence[str]) -> list[DefendConfig]:
    """Return the configurations of one or several defences, in order; see `jobs`."""
    return [cast(DefendConfig, job.config) for job in jobs(overrides, DEFENCE_ROOT)]


def jobs(overrides: Sequence[str], root: str = ROOT) -> list[Job]:
    """Return the runs of a sweep, or the defences with `DEFENCE_ROOT`, in order, without running anything.

    Raises:
        ConfigError: see `load_config`.
    """
    from hydra import compose, initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    with explaining(overrides):
        registered = _register(overrides, root)
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            composed = hydra.compose_config(
                root, registered, run_mode=RunMode.MULTIRUN, from_shell=False, validate_sweep_overrides=False
            )
            # As Hydra's sweeper does, except that it composes each combination once more to validate it.
            params = [f"{key}={values}" for key, values in (composed.hydra.sweeper.params or {}).items()]
            parsed = OverridesParser.create(hydra.config_loader).parse_overrides([*params, *registered])
            (combinations,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
            return [Job(to_config(compose(root, overrides=list(each))), tuple(each)) for each in combinations]


def _register(overrides: Sequence[str], root: str = ROOT) -> list[str]:
    """Check the overrides, register the schema and the search path with Hydra, and return the overrides as Hydra applies them.

    A backdoor that the overrides add (`+backdoor.own.trigger=…`) is put into the schema first: OmegaConf would otherwise
    make it a plain dictionary and then refuse it, because it is not a BackdoorConfig.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.plugins import Plugins
    from omegaconf import OmegaConf

    check_words(overrides)
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    section: type[Config] = DefendConfig if root == DEFENCE_ROOT else Config
    check_keys(parsed, section)
    Plugins.instance().register(_own_configs())
    keys = [each.key_or_group.split(".") if each.is_add() or each.is_force_add() else [] for each in parsed]
    named = [key[1] if len(key) > 1 and key[0] == "backdoor" else "" for key in keys]
    known = groups()["backdoor"] if any(named) else {}
    new: dict[str, Any] = {name: {"target": {}} for name in named if name and name not in known}
    schema = OmegaConf.merge(OmegaConf.structured(section), {"backdoor": new}) if new else section
    ConfigStore.instance().store(name=SCHEMA, node=schema)
    return [f"++{each.lstrip('+')}" if name in new else each for name, each in zip(named, overrides, strict=True)]


@functools.cache
def _own_configs() -> type:
    """Return a plugin of Hydra that searches `own_folder` before the folder of the package."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class OwnConfigs(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            if own := own_folder():
                search_path.prepend("own", f"file://{own}", anchor="main")

    return OwnConfigs
