"""What all figures share: colors, names, and writing them. Figures are made without pyplot, so nothing global is touched.

Color maps are viridis and cividis, categories come from Okabe and Ito's palette: both can be told apart with any color vision.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from casd.analysis.results import RunTables
from casd.report.wording import short_run_name
from casd.utils.text import printable

BLUE, VERMILLION = "#0072B2", "#D55E00"
LONGEST_NAME: Final = 24
PNG_DPI: Final = 150


@contextmanager
def own_style() -> Iterator[None]:
    """Draw and write with matplotlib's defaults inside the block, whatever the user's matplotlibrc or a style has set.

    A report looks the same for everyone, and `text.usetex` does not make it need LaTeX.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        yield


def save(figure: Figure, path: Path) -> Path:
    """Write `path`.png and `path`.pdf, the same bytes for the same figure; returns the PNG's path.

    Raises:
        OSError: a file cannot be written.
    """
    png = path.with_name(path.name + ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Solve the layout once and not again for each format.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.savefig(png, dpi=PNG_DPI, metadata={"Software": None})
    with mpl.rc_context({"pdf.fonttype": 42}):  # TrueType, which publishers ask for
        figure.savefig(path.with_name(path.name + ".pdf"), metadata={"CreationDate": None, "Producer": None})
    return png


@functools.lru_cache(1024)
def cell_colors(colormap: str, shade: float) -> tuple[str, str]:
    """The background of a cell, and black or white for its text, whichever has the higher contrast on it (WCAG 2).

    Args:
        colormap: name of a matplotlib color map.
        shade: place on it, in [0, 1].
    """
    color = mpl.colormaps[colormap](shade)
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return to_hex(color), "#000000" if luminance > 0.179 else "#ffffff"


def without_frame(axes: Axes) -> None:
    """Remove the lines at the top and on the right of a panel."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8.5)


def legend_below(figure: Figure, columns: int) -> None:
    """Put one legend of all panels below them, where it covers nothing."""
    marks: dict[str, Artist] = {}
    for axes in figure.axes:
        for mark, label in zip(*axes.get_legend_handles_labels(), strict=True):
            marks.setdefault(label, mark)
    if marks:
        figure.legend(list(marks.values()), list(marks), loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def figure_title(text: str, tables: RunTables) -> str:
    """What a figure shows, and of which run."""
    return plain(f"{text}\n{short_run_name(tables)}")


def short_name(name: str) -> str:
    """A long name without its middle: its two ends tell names apart."""
    if len(name) <= LONGEST_NAME:
        return name
    half = (LONGEST_NAME - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def plain(text: str) -> str:
    """Text for a figure: printable, and not read as mathematics. Every name in a figure goes through here."""
    return printable(text).replace("$", r"\$")
