"""Progress bars on stderr, with the time left.

On a terminal these are live bars, nested ones below each other. In a file or a pipe they are plain lines, at most one every ten
seconds. Nothing is written to stdout.

    with track("inject", total=300) as advance:
        for step in range(300):
            ...
            advance(note=f"loss {loss:.2f}")
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from casd.utils.distributed import is_main
from casd.utils.registry import unknown
from casd.utils.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

MIN_LABEL = 12
"""Characters of a bar's description that are shown on the narrowest terminal."""
Mode = Literal["auto", "plain", "off"]

PLAIN_INTERVAL_S = 10.0
"""Seconds between two plain lines, and before the first."""


class Advance(Protocol):
    """The function that `track` yields."""

    def __call__(self, steps: int = 1, note: str = "", *, reused: bool = False, seconds_left: float | None = None) -> None:
        """Advance the bar by `steps`; a `note` ("loss 1.23") replaces the text at its end.

        Steps that are `reused` took no time, and are not used to estimate the time left. Where steps are uneven, `seconds_left`
        is a better estimate; NaN shows none.
        """


@contextmanager
def track(description: str, total: int | None, done: int = 0) -> Iterator[Advance]:
    """Show a bar while the block runs. Bars opened inside the block are shown below it, and removed when they end.

    Args:
        description: text before the bar ("inject", "evaluate french_a").
        total: number of steps; None if it is not known, in which case no time left is shown.
        done: steps that an earlier, interrupted run has done; they are not used to estimate the time left.
    """
    bar = _Bar(printable(description), total, done, done_before=done, started=time.monotonic())
    _display.open(bar)
    try:
        yield lambda steps=1, note="", *, reused=False, seconds_left=None: _display.advance(
            bar, steps, note, reused, seconds_left
        )
    finally:
        _display.close(bar)


def set_progress(mode: str) -> None:
    """Set how progress is shown, starting with the next outermost bar.

    Args:
        mode: "auto": bars on a terminal, plain lines elsewhere; "plain": plain lines; "off": nothing.

    Raises:
        ConfigError: another mode.
    """
    if mode not in get_args(Mode):
        raise unknown("progress mode", mode, get_args(Mode))
    _display.mode = mode


def say(text: str, *, progress: bool = False) -> None:
    """Print a line to stderr, above the live bars if there are any, in the main process.

    The mode "off" silences only lines about `progress`. Errors in writing (stderr is closed, or its disk full) are ignored.
    """
    if progress and _display.mode == "off":
        return
    text = printable(text)
    if _display.heard is not None:
        _display.heard.append(text)
    _write(text)


def stop_bars() -> None:
    """Leave the live bars as they are, for a question that they would cover."""
    if _display.live is not None:
        _display.live.stop()


@contextmanager
def hearing() -> Iterator[list[str]]:
    """Yield a list to which `say` adds its lines in the block."""
    heard: list[str] = []
    _display.heard = heard
    try:
        yield heard
    finally:
        _display.heard = None


def _write(text: str) -> None:
    if not is_main():
        return
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
    seconds_left: float | None = None
    task: TaskID | None = None

    @property
    def how_far(self) -> str:
        """ "120/300 (40%)", or "120" if the total is not known."""
        if not self.total:
            return str(self.done)
        return f"{self.done}/{self.total} ({self.done / self.total:.0%})"

    def elapsed(self) -> str:
        """Return "0:18", the time since the bar was opened."""
        return _clock(time.monotonic() - self.started)

    def time_left(self) -> str:
        """Return "0:18": the estimate given with the last step, else the mean time of all steps so far times those left.

        The mean is over the whole bar, because the steps of the outer bar (stages) are few and uneven. Without any: "-:--".
        """
        steps = self.done - self.done_before
        if self.seconds_left is not None:
            at_last_step = self.seconds_left
        elif self.total and steps > 0:
            at_last_step = (self.moved - self.started) / steps * (self.total - self.done)
        else:
            at_last_step = math.nan
        if math.isnan(at_last_step):
            return "-:--"
        return _clock(max(0.0, at_last_step - (time.monotonic() - self.moved)))

    def line(self) -> str:
        """Format the bar as text, for logs."""
        parts = [f"{self.description} {self.how_far}", f"{self.elapsed()} elapsed"]
        if self.total:
            parts.append(f"{self.time_left()} left")
        return ", ".join([*parts, self.note] if self.note else parts)


def shortened(text: str, length: int) -> str:
    """Replace the middle of a longer text by "…"."""
    if len(text) <= length:
        return text
    end = (length - 1) // 2
    return f"{text[: length - 1 - end]}…{text[len(text) - end :]}"


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class _Display:
    """The open bars, outermost first, and the live display that draws them."""

    def __init__(self) -> None:
        self.mode: str = "auto"
        self.bars: list[_Bar] = []
        self.live: Progress | None = None
        self.heard: list[str] | None = None
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

    def advance(self, bar: _Bar, steps: int, note: str, reused: bool, seconds_left: float | None) -> None:
        bar.done += steps
        bar.done_before += steps if reused else 0
        bar.moved = time.monotonic()
        bar.seconds_left = seconds_left
        bar.note = printable(note) or bar.note
        if self.live is not None and bar.task is not None:
            self.live.update(bar.task, completed=bar.done)
        elif self.mode != "off" and bar.moved - self.quiet_since >= PLAIN_INTERVAL_S:
            self.quiet_since = bar.moved
            _write(printable(" | ".join(each.line() for each in self.bars)))

    def close(self, bar: _Bar) -> None:
        self.bars.remove(bar)
        if self.live is None:
            return
        if self.bars and bar.task is not None:
            self.live.remove_task(bar.task)
        elif not self.bars:  # leave the outermost bar on the screen
            self.live.stop()
            self.live = None


def _new_live() -> Progress:
    """Create Rich's live display; it is imported here because most commands show no bar."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task
    from rich.table import Column
    from rich.text import Text

    class Part(ProgressColumn):
        """A text about a bar, which is never wrapped: a live display has to know its lines."""

        def __init__(self, text: Callable[[_Bar], str]) -> None:
            super().__init__(Column(no_wrap=True))
            self.text = text

        def render(self, task: Task) -> Text:
            return Text(self.text(task.fields["bar"]))

    console = Console(stderr=True)
    width = 24 if console.width >= 100 else 8
    texts: list[Callable[[_Bar], str]] = [
        lambda bar: bar.how_far,
        lambda bar: bar.elapsed(),
        lambda bar: f"{bar.time_left()} left",
        lambda bar: shortened(bar.note, console.width // 4),
    ]

    def label(bar: _Bar) -> str:
        """Shorten a description to what the other columns, which are as wide as their longest text, leave of a line."""
        others = sum(max(len(text(each)) for each in [bar, *_display.bars]) + 1 for text in texts)
        return shortened(bar.description, max(MIN_LABEL, console.width - width - others - 2))

    return Progress(
        Part(label),
        BarColumn(bar_width=width),
        *map(Part, texts),
        console=console,
        refresh_per_second=4,
        # Rich would print stdout on this console, which is stderr: wrong if stdout is redirected.
        redirect_stdout=sys.stdout.isatty(),
    )


_display = _Display()
