"""Colors of cells: the maps of the heatmaps in steps, without matplotlib, which takes longer to import than a page to write."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

_STEPS: Final = {
    "viridis": (
        "440154 471164 482071 472e7c 443b84 3f4889 3a548c 34608d 2f6c8e 2a768e 26818e 228b8d "
        "1f958b 1fa088 24aa83 2fb47c 42be71 58c765 70cf57 8bd646 a8db34 c5e021 e2e418 fde725"
    ),
    "cividis": (
        "00224e 002a61 003171 1c396f 2d416d 3a486c 45506c 50576c 5b606e 656870 6e6f73 777777 "
        "817f78 8c8878 969077 a19975 ada272 b9ab6d c4b468 d0be62 dcc859 e8d24f f5dc41 fee838"
    ),
}
"""Matplotlib's maps of these names in steps of equal width, from shade 0 to shade 1; with "_r" behind the name from 1 to 0."""
SHADES: Final = 24
"""Steps of a map: in a page a class of cells each, which takes less room than a color in each cell."""


def step_of(shade: float) -> int:
    """The step of a shade in [0, 1]."""
    return round(shade * (SHADES - 1))


@functools.cache
def palette(name: str) -> tuple[str, ...]:
    """The steps of the color map `name`, as "#rrggbb"."""
    steps = tuple(f"#{color}" for color in _STEPS[name.removesuffix("_r")].split())
    return steps[::-1] if name.endswith("_r") else steps


def text_color(rgb: Sequence[float]) -> str:
    """Black or white, whichever has the higher contrast (WCAG 2) on a background of `rgb` in [0, 1]."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"


def text_on(color: str) -> str:
    """`text_color` on a background that is given as "#rrggbb"."""
    return text_color([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])
