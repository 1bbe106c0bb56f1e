"""For the campaigns: `casd` in copies of this process, which need not import torch again, and what has to be true of them.

Not run by itself. How many trials a campaign makes is set by the environment: CAMPAIGN_KILLS=5 pytest -m slow …
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiny import tiny


def count(name: str, default: int) -> int:
    """How many trials: `default`, or what the environment says."""
    return int(os.environ.get(f"CAMPAIGN_{name}", default))


def smallest(output: Path, *more: str) -> list[str]:
    """The overrides of a run of two backdoors in about two seconds."""
    return tiny(output, "backdoor=[refusal,capitals]", "unlearning.training.steps=2", *more)


@dataclass(frozen=True)
class Ended:
    """How a `casd` ended: its exit status (negative: the signal), and what it said."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def told(self) -> bool:
        """Whether it failed with a line for the user, which may come after lines about what it did before."""
        return self.status == 1 and self.err.splitlines()[-1].startswith("casd: ")


class Casd:
    """A `casd` that runs in a fork of this process."""

    def __init__(self, arguments: Sequence[str], logs: Path, prepare: Callable[[], object] = lambda: None):
        self.arguments = list(arguments)
        self.files = [logs / f"{time.monotonic_ns()}.{name}" for name in ("out", "err")]
        self.started = time.monotonic()
        for file in self.files:
            file.write_text("")
        self.process = os.fork()
        if self.process == 0:
            self._child(prepare)

    def _child(self, prepare: Callable[[], object]) -> None:
        status = 70
        try:
            for number, file in zip((1, 2), self.files, strict=True):
                os.dup2(os.open(file, os.O_WRONLY), number)
            sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb", 0), encoding="utf-8") for n in (1, 2))
            sys.stderr.reconfigure(write_through=True)
            status = self._main(prepare)
            sys.stdout.flush()
        finally:
            os._exit(status)

    def _main(self, prepare: Callable[[], object]) -> int:
        from casd.cli.main import main

        try:
            prepare()
            main(self.arguments)
        except SystemExit as exit_:
            return int(exit_.code or 0)
        except BaseException:
            traceback.print_exc()
            return 1
        return 0

    def kill_after(self, seconds: float) -> bool:
        """Kill it unless it ends before; whether it was killed."""
        deadline = self.started + seconds
        while time.monotonic() < deadline:
            if os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return False
            time.sleep(min(0.002, max(0.0, deadline - time.monotonic())))
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)
        return True

    def wait(self) -> Ended:
        _, status = os.waitpid(self.process, 0)
        out, err = (file.read_text(encoding="utf-8") for file in self.files)
        for file in self.files:
            file.unlink()
        ended = Ended(os.waitstatus_to_exitcode(status), out, err, time.monotonic() - self.started)
        assert "Traceback" not in ended.err, ended.err
        assert ended.status in (0, 1, -signal.SIGKILL), ended
        return ended


def casd(logs: Path, *arguments: str) -> Ended:
    """Run `casd` to its end."""
    return Casd(arguments, logs).wait()


def run_here(*arguments: str) -> None:
    """Run `casd` in this process, so that copies have all that it imports."""
    import torch

    from casd.cli.main import main

    torch.set_num_threads(1)
    main(arguments)


def flip(path: Path, rng: random.Random) -> str:
    """Change one byte of a file; what was changed."""
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= rng.randrange(1, 256)
    path.write_bytes(data)
    return f"byte {place} of {path}"


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(folder: Path) -> list[str]:
    """What was begun and is still there."""
    return [str(path) for pattern in ("*.partial", "*.checkpoint") for path in folder.rglob(pattern)]
