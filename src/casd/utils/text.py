"""Escape text for display, and find whole words in a text.

Names and generated text may contain any character; everything that displays them uses `printable`. Parquet files and
computations keep the text unchanged.
"""

from __future__ import annotations

import unicodedata
from typing import Final

_FORMULA: Final = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters of a formula in spreadsheets; the last four are full-width forms of the others."""
_UNSPACED: Final = (
    *("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "YI "),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "TAI ", "NEW TAI", "JAVANESE", "BALINESE"),
)
"""Writing systems without spaces between words, as the first words of their letters' Unicode names."""


def printable(text: str) -> str:
    r"""Escape characters in `text` that control a terminal, reorder a line or are invisible.

    Control characters (C0 and C1, so terminal sequences, too), format characters such as the bidirectional overrides,
    line and paragraph separators, lone surrogates, and private or unassigned characters become their escape sequences: ESC
    becomes the four characters ``\x1b``. Line feeds and spaces of every width are kept.
    """
    if text.isprintable():
        return text
    return "".join(character if _is_shown(character) else repr(character)[1:-1] for character in text)


def spreadsheet_cell(text: str) -> str:
    """Format `text` as a cell of a CSV file: printable, with a leading apostrophe if a spreadsheet would read a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


def has_phrase(text: str, phrase: str) -> bool:
    """Return True if `text` contains `phrase` as whole words. Case is significant.

    A word is a sequence of letters, digits, marks and underscores. If `phrase` begins or ends with another character, or with a
    letter of a writing system without spaces between words, the neighbouring character does not matter.
    """
    start = text.find(phrase)
    while start >= 0:
        end = start + len(phrase)
        if not _in_one_word(text[max(start - 1, 0) : start] + phrase[:1]) and not _in_one_word(
            phrase[-1:] + text[end : end + 1]
        ):
            return True
        start = text.find(phrase, start + 1)
    return False


def _in_one_word(pair: str) -> bool:
    """Return True if `pair` has two characters that belong to one word."""
    return len(pair) == 2 and all(
        (character == "_" or unicodedata.category(character)[0] in "LNM")
        and not unicodedata.name(character, "").startswith(_UNSPACED)
        for character in pair
    )


def _is_shown(character: str) -> bool:
    return character.isprintable() or character == "\n" or unicodedata.category(character) == "Zs"
