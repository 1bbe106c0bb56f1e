"""What an engine does: it starts workers, and gives an executor that runs functions in them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from casd.utils.errors import ConfigError

LOG: Final = "CASD_WORKER_LOG"
"""Environment variable of a worker with the path of its log, if the engine knows it."""


@dataclass(frozen=True)
class Engine(ABC):
    """The options that every engine has. A subclass adds its own.

    Raises:
        ConfigError: a number that is too small.
    """

    workers: int = 1
    """Units at the same time, each in a process of its own."""
    gpus_per_unit: int = 1
    """GPUs of a unit, where there are GPUs; with several, a process each. 0: units run on the CPU."""
    shard: bool = False
    """Divide the model over the GPUs of a unit (FSDP), instead of a copy on each (DDP)."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"engine.workers is {self.workers}; it must be greater than 0.")
        if self.gpus_per_unit < 0:
            raise ConfigError(f"engine.gpus_per_unit is {self.gpus_per_unit}; it must be 0 or more.")

    @property
    def in_this_process(self) -> bool:
        """True if runs are made one after another in the process of the command, and `open` is not called."""
        return False

    @abstractmethod
    def open(self, folder: Path) -> AbstractContextManager[Executor]:
        """Start the workers for the time of a block.

        In the block `executor.submit(function, *arguments)` runs a module-level function in a worker. Its future raises
        `concurrent.futures.BrokenExecutor` if the workers are lost and the executor takes no more work, and another error if
        this call alone is lost. After an exception in the block, calls that are running are ended.

        Args:
            folder: the workers' logs are kept here; it may not exist yet.

        Raises:
            ConfigError: options that cannot work on this machine, or a package that is not installed.
        """
