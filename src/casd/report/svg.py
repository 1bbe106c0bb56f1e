"""Figures as `<svg>` elements for an HTML page: what is drawn, with text as text, and nothing that only a file needs."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from typing import Final
from urllib.parse import quote, unquote

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from casd.utils.text import printable

_NO_METADATA: Final = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_NUMBER: Final = re.compile(r"(\.\d\d)\d+")
"""More than two decimals: a hundredth of a point cannot be seen."""
_POINT: Final = "point:"
_NAMED: Final = re.compile(rf'<a xlink:href="{_POINT}([^"]*)"[^>]*>(.*?)</a>', re.DOTALL)


def name_points(points: PathCollection, names: Sequence[str]) -> None:
    """Give each point of a scatter plot a name, which `to_svg` shows while it is pointed at; other formats have none."""
    # As addresses, the one text that the SVG writer takes for each point.
    points.set_urls([_POINT + quote(printable(name)) for name in names])


def to_svg(figure: Figure, alt: str) -> str:
    """The figure as an element, the same text for the same figure. A layout that `drawing.save` has solved is kept.

    Args:
        figure: to draw.
        alt: a text for those who cannot see it.
    """
    stream = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": alt}):  # so that the names in no two figures are the same
        FigureCanvasSVG(figure).print_svg(stream, metadata=_NO_METADATA)
    drawn = stream.getvalue()
    text = drawn[drawn.index("<svg") :].strip()
    text = _NAMED.sub(lambda found: f"<g><title>{escape(unquote(found[1]))}</title>{found[2]}</g>", text)
    # Several figures stand in one page: names that nothing refers to, such as "axes_1", would be there several times.
    used = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r' (?:d|x|y|transform|points)="[^"]*"', lambda found: _NUMBER.sub(r"\1", found[0]), text)
    text = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", text)
    text = re.sub(r"font-family: [^;\"]*(; )?", "", text)  # the page's own
    text = re.sub(r"\s*\n\s*", lambda found: "" if text[found.start() - 1] == ">" else " ", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(printable(alt))}" ', 1)
