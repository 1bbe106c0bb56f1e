"""What all figures share: colors, names, and writing them. Figures are made without pyplot, so nothing global is touched.

Sequential maps are viridis and cividis, categories come from Okabe and Ito's palette: both can be told apart with any
color vision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
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
    """Write `path`.png and `path`.pdf, the same bytes for the same figure; returns the PNG's path. Its layout is fixed then.

    Raises:
        OSError: a file cannot be written.
    """
    png = path.with_name(path.name + ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    # By their canvases: `savefig` draws once more than it writes, to solve the layout, which drawing does anyway.
    dpi = figure.dpi
    figure.dpi = PNG_DPI
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    figure.dpi = dpi
    # The layout was solved for the PNG; solving it again for other formats would take as long and change nothing.
    figure.set_layout_engine("none")
    with mpl.rc_context({"pdf.fonttype": 42}):  # TrueType: what publishers ask for
        canvas = FigureCanvasPdf(figure)
        canvas.print_pdf(path.with_name(path.name + ".pdf"), metadata={"CreationDate": None, "Producer": None})
    return png


def without_frame(axes: Axes) -> None:
    """Leave a panel its two axes, without the lines at the top and on the right."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8.5)


def figure_title(text: str, tables: RunTables) -> str:
    """What a figure shows, and of which run."""
    return plain(f"{text}\n{short_run_name(tables)}")


def short_name(name: str) -> str:
    """A long name with its middle left out: its two ends tell names apart."""
    if len(name) <= LONGEST_NAME:
        return name
    half = (LONGEST_NAME - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def plain(text: str) -> str:
    """Text for a figure: printable, and not read as mathematics. Every name in a figure goes through here."""
    return printable(text).replace("$", r"\$")
