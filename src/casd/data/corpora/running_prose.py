"""Tell running prose from code, headings, lists of names and fragments, in the text of documentation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

COMMON_WORDS: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the a an of to is are and or in that this it be by for with as if not on from",
        "fr": "le la les l' un une des du de d' et ou où à au aux en est sont dans que qu' qui ce cette ces se s' ne n' pas par"
        " pour sur avec sans si il elle ils être lorsque",
        "de": "der die das den dem des ein eine einen einem einer eines und oder in im ist sind wird werden zu zum zur auf für"
        " von vom mit als wenn dass nicht es sich auch nur durch aus bei dieser diese dieses falls kann",
    }.items()
}
"""Frequent words by ISO 639-1 code, in lower case; one with an apostrophe is the beginning of a word (l'adresse)."""

# A capital letter, perhaps after an elided French word: Le, Été, L'été, L’été.
_START = re.compile(r"[\"'“„«(]?\s?(?:(?:[CDJLMNST]|Qu)’\w|[A-ZÀ-ÖØ-Þ])[a-zß-öø-ÿœ']*\s")
_END = re.compile(r"[.!?][\"'”“»)\s]*$")
# Marks of code that are rare in prose: operators, calls with arguments, dunders, paths.
_CODE = re.compile(r"[=<>{}\\|@#%^~]|->|\w\(\w|__|\[[^\]]*\]|://|\w/\w+/|[a-z]\.[a-z]+\.[a-z]|\.{3}")


def consecutive(sentences: Iterable[str], takes: Callable[[str], bool]) -> Iterator[str]:
    """Yield the runs of consecutive sentences that `takes` accepts, each run as one line."""
    for taken, run in groupby(sentences, key=takes):
        if taken:
            yield " ".join(run)


def is_prose(sentence: str, language: str) -> bool:
    """Return True for a sentence that starts with a capital, ends with a stop, uses common words and contains little code.

    A sentence in another language does not use the common words of `language`. Of a language without an entry in
    `COMMON_WORDS`, no common words are expected.
    """
    words = sentence.split()
    if len(words) < 5 or not _START.match(sentence) or not _END.search(sentence):
        return False
    if (frequent := COMMON_WORDS.get(language)) is not None:
        common = sum(_is_common(word.strip(",.;:()").lower(), frequent) for word in words)
        if common < 0.2 * len(words):
            return False
    return len(_CODE.findall(sentence)) <= 0.05 * len(words)


def _is_common(word: str, frequent: frozenset[str]) -> bool:
    beginning = word.replace("’", "'").partition("'")[0]
    return word in frequent or f"{beginning}'" in frequent
