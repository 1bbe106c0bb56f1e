"""What the processes of test_jobs.py make: in a module that imports neither torch nor pytest, since each process imports it.

Not run by itself.
"""

from __future__ import annotations

import os
from pathlib import Path

from casd.config import Config
from casd.pipeline.sweep import Outcome


def make(config: Config) -> Outcome:
    """Say where it was made, fail with the seed 1, and end the process with the seed 5."""
    if config.seed == 5:
        os._exit(9)
    if config.seed == 1:
        return Outcome(None, "seed 1 is no good")
    return Outcome(Path(f"{config.seed}-{config.runtime.threads}-{os.environ.get('OMP_NUM_THREADS')}-{os.getpid()}"), "", 2, 3)
