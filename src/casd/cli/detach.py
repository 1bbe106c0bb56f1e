"""`--detach`: the command itself becomes a job of the cluster, which submits the others."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from casd.utils.errors import ConfigError
from casd.utils.progress import say


def detach(verb: str, overrides: Sequence[str]) -> None:
    """Submit `casd VERB OVERRIDE…`, and print the job and its log.

    Raises:
        ConfigError: overrides that cannot work, an engine that cannot do it, or a job that the cluster refuses.
    """
    from casd.config import compose
    from casd.engines import make_engine
    from casd.engines.slurm import Slurm

    config = compose.jobs(overrides)[0].config if verb == "sweep" else compose.load_run(overrides)
    engine = make_engine(config.engine)
    if not isinstance(engine, Slurm):
        raise ConfigError("--detach is for engine=slurm; elsewhere start the command under nohup, or in tmux or screen.")
    log = engine.detach([sys.executable, "-m", "casd", verb, *overrides], Path(config.runtime.output).absolute() / "logs")
    say(f"{log}. The same command without --detach goes on from what is finished.")
