"""Text on its way to a person. Names and generated text may hold anything; whatever shows them passes them through here.

What is only computed with, Parquet files included, keeps the text as it is.
"""

from __future__ import annotations

import unicodedata
from typing import Final

_FORMULA: Final = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a formula begins with in spreadsheets; the last four are the full-width forms of the others."""


def printable(text: str) -> str:
    r"""`text` without characters that steer a terminal, reorder a line or cannot be seen.

    Control characters (C0 and C1, so terminal sequences, too), format characters such as the bidirectional overrides,
    separators of lines and paragraphs, lone surrogates, and characters that are private or not assigned become their escape
    sequences: ESC becomes the four characters ``\x1b``. Line feeds and spaces of every width stay.
    """
    if text.isprintable():
        return text
    return "".join(character if _is_shown(character) else repr(character)[1:-1] for character in text)


def spreadsheet_cell(text: str) -> str:
    """`text` as a cell of a CSV file: printable, and with a leading apostrophe where a spreadsheet would see a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


def _is_shown(character: str) -> bool:
    return character.isprintable() or character == "\n" or unicodedata.category(character) == "Zs"
