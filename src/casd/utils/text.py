"""Text on its way to a person, and whole words in a text.

Names and generated text may hold anything; whatever shows them passes them through `printable`. What is only computed with,
Parquet files included, keeps the text as it is.
"""

from __future__ import annotations

import unicodedata
from typing import Final

_FORMULA: Final = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a formula begins with in spreadsheets; the last four are the full-width forms of the others."""
_UNSPACED: Final = (
    *("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "YI "),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "TAI ", "NEW TAI", "JAVANESE", "BALINESE"),
)
"""Writing systems without spaces between words: what their letters' names in Unicode begin with."""


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


def has_phrase(text: str, phrase: str) -> bool:
    """Whether `phrase` stands in `text` as whole words; case counts.

    A word ends where a letter, digit, mark or underscore is next to none. Where `phrase` begins or ends with another character,
    or with a letter of a writing system that has no spaces between words, what is beside it does not matter.
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
    """Whether these are two characters, and of one word."""
    return len(pair) == 2 and all(
        (character == "_" or unicodedata.category(character)[0] in "LNM")
        and not unicodedata.name(character, "").startswith(_UNSPACED)
        for character in pair
    )


def _is_shown(character: str) -> bool:
    return character.isprintable() or character == "\n" or unicodedata.category(character) == "Zs"
