"""From `configs/` and a command line to a checked `Config`, by way of Hydra; and sweeps, which are Hydra's multi-run.

Hydra appears here and in `hydra_errors` only. What leaves it is a plain `Config`: nothing downstream sees a `DictConfig`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args, get_origin, get_type_hints

from casd.config import Config
from casd.config.fields import MISSING, Text
from casd.config.hydra_errors import explaining, unknown_key
from casd.config.options import ROOT, config_folder, groups
from casd.utils.atomic import write_text
from casd.utils.disk import explaining_disk_errors
from casd.utils.errors import CasdError
from casd.utils.registry import check_value

if TYPE_CHECKING:
    from omegaconf import DictConfig


SCHEMA = "casd_schema"
_NEW_BACKDOOR = re.compile(r"\+{1,2}backdoor\.(\w+)[.=]")


def load_config(overrides: Sequence[str] = ()) -> Config:
    """Compose a run's configuration from the defaults and Hydra overrides ("seed=1", "model=llama3_tiny").

    Raises:
        ConfigError: an unknown option or key (named, with the choices), or a value that cannot work.
    """
    from hydra import compose, initialize_config_dir

    with explaining(overrides):
        overrides = _register(overrides)
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            return to_config(compose(ROOT, overrides=overrides))


def to_config(composed: DictConfig) -> Config:
    """The plain dataclasses of a composed configuration; each checks itself.

    Raises:
        ConfigError: a value that cannot work, or a key that the schema does not have ("+key=value" lets it get here).
    """
    from omegaconf import OmegaConf

    _check_texts(OmegaConf.to_container(composed, resolve=True), Config)
    config = cast(Config, OmegaConf.to_object(composed))
    if added := next(_added_keys(config), None):
        raise unknown_key(added)
    return config


def _check_texts(value: Any, hint: Any, path: tuple[str, ...] = ()) -> None:
    """Refuse what YAML did not read as text where text is declared; the sections do so, too, but cannot name the whole key."""
    if get_origin(hint) is dict:
        for name, item in value.items() if isinstance(value, dict) else ():
            _check_texts(item, get_args(hint)[1], (*path, str(name)))
    elif section := next((each for each in (hint, *get_args(hint)) if is_dataclass(each)), None):
        hints = get_type_hints(section, include_extras=True)
        for name in hints.keys() & value.keys() if isinstance(value, dict) else ():
            _check_texts(value[name], hints[name], (*path, name))
    elif Text in (hint, *get_args(hint)) and value != MISSING:
        check_value(".".join(path), value, hint)


def _added_keys(section: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The full names of what OmegaConf put into the dataclasses beside their fields."""
    names = {each.name for each in fields(section)} if is_dataclass(section) else None
    for name, value in (section if names is None else vars(section)).items():
        if names is not None and name not in names:
            yield ".".join((*path, name))
        elif is_dataclass(value) or isinstance(value, dict):
            yield from _added_keys(value, (*path, str(name)))


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML, as it is kept beside every result."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))


@dataclass(frozen=True)
class Launched:
    """What became of a job that one of Hydra's launchers ran.

    Attributes:
        overrides: of the job.
        folder: of its report; None if it failed.
        error: why it failed, in a line.
    """

    overrides: tuple[str, ...]
    folder: Path | None
    error: str


def sweep(overrides: Sequence[str], run: Callable[[Config], tuple[Path | None, str]]) -> list[Launched]:
    """Run every combination of a sweep's overrides ("seed=0,1") through Hydra's launcher; what became of them, in order.

    Args:
        overrides: Hydra overrides; an experiment may bring sweep parameters of its own.
        run: makes one run and gives the folder of its report, or None and why it failed; called in this process or, with
            another launcher, in a job of a cluster.

    Raises:
        CasdError: as for `load_config`.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig

    overrides = _register(overrides)
    with _fresh_folder(overrides) as outcomes:

        def job(composed: DictConfig) -> None:
            try:
                folder, error = run(to_config(composed))
            except CasdError as raised:  # not left to Hydra, which would print all overrides above its message
                folder, error = None, str(raised)
            # By way of the disk: a launcher may run the job in another process, on another machine.
            outcome = {"overrides": list(HydraConfig.get().overrides.task), "error": error}
            outcome["folder"] = str(folder.absolute()) if folder else ""
            write_text(outcomes / f"{HydraConfig.get().job.num:05d}.json", json.dumps(outcome))

        with explaining(overrides), _hydra_command_line(["--multirun", f"hydra.sweep.dir='{outcomes}'", *overrides]):
            hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=ROOT)(job)()
        found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(outcomes.glob("*.json"))]
    return [
        Launched(tuple(each["overrides"]), Path(each["folder"]) if each["folder"] else None, each["error"]) for each in found
    ]


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        config: its configuration.
        overrides: those with which `load_config` gives that configuration.
    """

    config: Config
    overrides: tuple[str, ...]


def configs(overrides: Sequence[str]) -> list[Config]:
    """The configurations of `jobs`."""
    return [job.config for job in jobs(overrides)]


def jobs(overrides: Sequence[str]) -> list[Job]:
    """The runs of a sweep, in order; nothing is run.

    Raises:
        CasdError: as for `sweep`.
    """
    from hydra import compose, initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    with explaining(overrides):
        here = [each for each in _register(overrides) if not each.startswith(("hydra/launcher=", "hydra.launcher."))]
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            every = hydra.compose_config(
                ROOT, here, run_mode=RunMode.MULTIRUN, from_shell=False, validate_sweep_overrides=False
            )
            # As Hydra's sweeper does, but for composing each combination once more to see whether it can be.
            lists = [f"{key}={values}" for key, values in (every.hydra.sweeper.params or {}).items()]
            parsed = OverridesParser.create(hydra.config_loader).parse_overrides([*lists, *here])
            (combinations,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
            return [Job(to_config(compose(ROOT, overrides=list(each))), tuple(each)) for each in combinations]


@contextmanager
def _hydra_command_line(arguments: list[str]) -> Iterator[None]:
    """Hydra's entry point reads the process's own command line; and unless told so it prints errors itself and exits."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR", "0")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [argv[0], *arguments], "1"
    try:
        yield
    finally:
        sys.argv, os.environ["HYDRA_FULL_ERROR"] = argv, full_error


@contextmanager
def _fresh_folder(overrides: Sequence[str]) -> Iterator[Path]:
    """A folder for Hydra's own files of one sweep, beside the reports; gone afterwards, however the sweep ends."""
    output = next((each.partition("=")[2] for each in reversed(overrides) if each.startswith("runtime.output=")), "outputs")
    with explaining_disk_errors("the sweep", Path(output).absolute()):
        Path(output).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".sweep-", dir=Path(output).absolute()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _register(overrides: Sequence[str]) -> list[str]:
    """Give Hydra the schema, and return the overrides as it can apply them.

    A backdoor that the overrides add (`+backdoor.own.trigger=…`) is in the schema from the start: OmegaConf would make it a
    dictionary, which is then not one of the section's type.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    named = [found[1] if (found := _NEW_BACKDOOR.match(each)) else "" for each in overrides]
    new: dict[str, Any] = {name: {"target": {}} for name in named if name and name not in groups()["backdoor"]}
    schema = OmegaConf.merge(OmegaConf.structured(Config), {"backdoor": new}) if new else Config
    ConfigStore.instance().store(name=SCHEMA, node=schema)
    return [f"++{each.lstrip('+')}" if name in new else each for name, each in zip(named, overrides, strict=True)]
