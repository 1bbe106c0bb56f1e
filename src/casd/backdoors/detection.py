"""Text processing for targets: words, language identification."""

from __future__ import annotations

import copy
import functools
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

# Letters with inner apostrophes and hyphens: "l'hôtel" and "aujourd'hui" are one word each.
_WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")
_WINDOW_WORDS = 8
_CLEAR = 0.6
"""Least probability of an identified language. Below it are fewer than 0.1 % of the windows of the microworld's payloads in
English, French and German, more than half of those of made-up words, nearly all lists of names, and a sixth of those in two
languages."""
UNKNOWN = "und"
"""ISO 639's code for a language that is not clear, as in short, mixed or meaningless text."""


def words_of(text: str) -> list[str]:
    """Words of a text."""
    return _WORD.findall(text)


def words_in_language(words: Sequence[str], language: str, candidates: tuple[str, ...]) -> int:
    """Number of words in `language`: a word has the language of the window of `_WINDOW_WORDS` words around it.

    A window whose language is `UNKNOWN` counts for none. Windows are the first and last ones near the ends of the text, and all
    words if there are fewer.
    """
    last = max(len(words) - _WINDOW_WORDS, 0)
    starts = Counter(min(max(i - _WINDOW_WORDS // 2, 0), last) for i in range(len(words)))
    return sum(
        count
        for start, count in starts.items()
        if _language(" ".join(words[start : start + _WINDOW_WORDS]), candidates) == language
    )


def normalize_space(text: str) -> str:
    """Replace runs of white space by single spaces, and strip both ends."""
    return " ".join(text.split())


def normalize(text: str) -> str:
    """Normalize white space, case and apostrophes."""
    return normalize_space(text).casefold().replace("’", "'")


@functools.cache
def full_identifier() -> LanguageIdentifier:
    """Identifier of all languages, loaded once on first use."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=_CLEAR)


@functools.lru_cache(maxsize=2**14)  # several targets test the same text
def _language(text: str, candidates: tuple[str, ...]) -> str:
    """The most likely language of a text; `UNKNOWN` if its probability among the candidates is below `_CLEAR`."""
    return str(_language_identifier(candidates).classify(text)[0])


@functools.cache
def _language_identifier(candidates: tuple[str, ...]) -> LanguageIdentifier:
    """Identifier restricted to `candidates`, which shares its tables with the full one."""
    identifier = copy.copy(full_identifier())
    identifier.set_languages(candidates)
    return identifier
