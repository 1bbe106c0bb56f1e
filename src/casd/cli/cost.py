"""What a command cost: stages, time and memory."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field

from casd.utils.progress import say


@dataclass
class Cost:
    """The cost of a command, from the moment that this object is created.

    Attributes:
        executed: stages that were made.
        reused: stages that were already in the store.
        started: `time.monotonic` at the start.
    """

    executed: int = 0
    reused: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, executed: int, reused: int) -> None:
        """Count the stages of one run."""
        self.executed += executed
        self.reused += reused

    def say(self) -> None:
        """Print the stages (if any), the time, and the peak memory of the largest process."""
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
        largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        stages = f"{self.executed} stages executed, {self.reused} reused; " if self.executed or self.reused else ""
        say(f"{stages}{time.monotonic() - self.started:.0f} s, peak memory {largest * unit / 2**30:.2f} GiB.")
