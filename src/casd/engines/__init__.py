"""Engines: where the units of runs are executed. Each is a dataclass of its options (`configs/engine/`)."""

from collections.abc import Mapping
from typing import Any

from casd.engines.base import Engine
from casd.utils.registry import build, check_value

ENGINES: dict[str, str] = {
    "local": "casd.engines.local:Local",
    "slurm": "casd.engines.slurm:Slurm",
    "pbs": "casd.engines.slurm:PBS",
    "lsf": "casd.engines.slurm:LSF",
    "sge": "casd.engines.slurm:SGE",
    "ray": "casd.engines.ray:Ray",
}


def make_engine(options: Mapping[str, Any]) -> Engine:
    """Return the engine of a configuration's section `engine`: its `name`, and its options.

    Raises:
        ConfigError: an unknown engine or option, or a value that cannot work.
    """
    params = dict(options)
    name = params.pop("name", "local")
    check_value("engine.name", name, str)
    engine: Engine = build(ENGINES, "engine", name, params)
    return engine
