"""Colors of cells. Matplotlib, whose maps they are of, is imported when the first one is asked for: texts need none."""

from __future__ import annotations

from collections.abc import Sequence


def map_color(name: str, shade: float) -> tuple[float, float, float]:
    """Red, green and blue in [0, 1] of a shade in [0, 1] on the color map `name`."""
    import matplotlib as mpl

    red, green, blue, _ = mpl.colormaps[name](shade)
    return red, green, blue


def to_hex(rgb: Sequence[float]) -> str:
    """As "#rrggbb"."""
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in rgb)


def text_color(rgb: Sequence[float]) -> str:
    """Black or white, whichever has the higher contrast (WCAG 2) on a background of `rgb` in [0, 1]."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"
