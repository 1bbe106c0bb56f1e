"""Figures as `<svg>` elements for an HTML page: what is drawn, with text as text, and nothing that only a file needs."""

from __future__ import annotations

import io
import re
from html import escape
from typing import Final

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_NO_METADATA: Final = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_NUMBER: Final = re.compile(r"(\.\d\d)\d+")
"""More than two decimals: a hundredth of a point cannot be seen."""


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
    # Several figures stand in one page: names that nothing refers to, such as "axes_1", would be there several times.
    used = set(re.findall(r"#([\w.-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r' (?:d|x|y|transform|points)="[^"]*"', lambda found: _NUMBER.sub(r"\1", found[0]), text)
    text = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", text)
    text = re.sub(r"font-family: [^;\"]*(; )?", "", text)  # the page's own
    text = re.sub(r"\s*\n\s*", lambda found: "" if text[found.start() - 1] == ">" else " ", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)
