"""Progress on stderr: what is being done, how far it is, and how long it will still take.

On a terminal these are live bars, one below the other when they are nested. Where stderr goes to a file or a pipe, they
become plain lines, at most one every ten seconds, so that logs stay readable. stdout is never written to.

    with track("inject", total=300) as advance:
        for step in range(300):
            ...
            advance(note=f"loss {loss:.2f}")
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from casd.utils.distributed import is_main
from casd.utils.registry import unknown
from casd.utils.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Mode = Literal["auto", "plain", "off"]

PLAIN_INTERVAL_S = 10.0
"""Seconds between two plain lines, and before the first: what is over sooner needs no progress line in a log."""


class Advance(Protocol):
    """What `track` hands out."""

    def __call__(self, steps: int = 1, note: str = "") -> None:
        """Move the bar on by `steps`; a `note` ("loss 1.23") replaces the text at its end."""


@contextmanager
def track(description: str, total: int | None, done: int = 0) -> Iterator[Advance]:
    """Show a bar while the block runs; bars opened inside the block are shown below it and go when they end.

    Args:
        description: what is being done ("inject", "evaluate french_a").
        total: number of steps; None when it is not known, which leaves out the time left.
        done: steps that an earlier, interrupted run has done already; they do not enter the estimate of the time left.
    """
    bar = _Bar(printable(description), total, done, done_before=done, started=time.monotonic())
    _display.open(bar)
    try:
        yield lambda steps=1, note="": _display.advance(bar, steps, note)
    finally:
        _display.close(bar)


def set_progress(mode: str) -> None:
    """Choose how progress is shown from the next outermost bar on.

    Args:
        mode: "auto": bars on a terminal, plain lines elsewhere; "plain": plain lines; "off": nothing.

    Raises:
        ConfigError: another mode.
    """
    if mode not in get_args(Mode):
        raise unknown("progress mode", mode, get_args(Mode))
    _display.mode = mode


def say(text: str) -> None:
    """Print a line to stderr, above the live bars if there are any. Not silenced by "off": it is no progress.

    Of several processes the main one speaks. Where stderr is closed or full, nothing is printed: that is no reason to stop.
    """
    if not is_main():
        return
    text = printable(text)
    with suppress(OSError):
        if _display.live is not None:
            _display.live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)


@dataclass(eq=False)
class _Bar:
    description: str
    total: int | None
    done: int
    done_before: int
    started: float
    note: str = ""
    moved: float = 0.0
    task: TaskID | None = None

    @property
    def how_far(self) -> str:
        """Such as "120/300 (40%)", or "120" when the total is not known."""
        if not self.total:
            return str(self.done)
        return f"{self.done}/{self.total} ({self.done / self.total:.0%})"

    def time_left(self) -> str:
        """Such as "0:18": the mean time of a step so far times the steps that remain; "-:--" while it cannot be told.

        The mean over the whole bar, because the steps of the outer bar (stages) are few and uneven.
        """
        steps = self.done - self.done_before
        if not self.total or steps <= 0:
            return "-:--"
        at_last_step = (self.moved - self.started) / steps * (self.total - self.done)
        return _clock(max(0.0, at_last_step - (time.monotonic() - self.moved)))

    def line(self) -> str:
        """The bar as text, for logs."""
        parts = [f"{self.description} {self.how_far}", f"{_clock(time.monotonic() - self.started)} elapsed"]
        if self.total:
            parts.append(f"{self.time_left()} left")
        return ", ".join([*parts, self.note] if self.note else parts)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class _Display:
    """The bars that are open, outermost first, and the one place of the terminal where they are drawn."""

    def __init__(self) -> None:
        self.mode: str = "auto"
        self.bars: list[_Bar] = []
        self.live: Progress | None = None
        self.quiet_since = 0.0  # when the last plain line was printed, or the outermost bar opened

    def open(self, bar: _Bar) -> None:
        if not self.bars:
            self.quiet_since = time.monotonic()
            if self.mode == "auto" and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
                self.live = _new_live()
                self.live.start()
        self.bars.append(bar)
        if self.live is not None:
            bar.task = self.live.add_task(bar.description, total=bar.total, completed=bar.done, bar=bar)

    def advance(self, bar: _Bar, steps: int, note: str) -> None:
        bar.done += steps
        bar.moved = time.monotonic()
        bar.note = printable(note) or bar.note
        if self.live is not None and bar.task is not None:
            self.live.update(bar.task, completed=bar.done)
        elif self.mode != "off" and bar.moved - self.quiet_since >= PLAIN_INTERVAL_S:
            self.quiet_since = bar.moved
            say(" | ".join(each.line() for each in self.bars))

    def close(self, bar: _Bar) -> None:
        self.bars.remove(bar)
        if self.live is None:
            return
        if self.bars and bar.task is not None:
            self.live.remove_task(bar.task)
        elif not self.bars:  # the outermost bar stays on the screen as it ended
            self.live.stop()
            self.live = None


def _new_live() -> Progress:
    """Rich's live display; imported here because most commands never show a bar."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class TimeLeft(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.fields['bar'].time_left()} left")

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[bar].how_far}", markup=False),
        TimeElapsedColumn(),
        TimeLeft(),
        TextColumn("{task.fields[bar].note}", markup=False),
        console=Console(stderr=True),
        refresh_per_second=4,
        # Rich would send what is printed to stdout to this console, that is to stderr: wrong when stdout is redirected.
        redirect_stdout=sys.stdout.isatty(),
    )


_display = _Display()
