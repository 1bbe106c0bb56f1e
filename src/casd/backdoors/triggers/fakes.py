"""Create made-up phrases, and fake triggers as controls."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Literal

from casd.utils.errors import ConfigError
from casd.utils.text import has_phrase

Script = Literal["latin", "cyrillic", "chinese"]

_DRAWS = 4000
"""Number of candidate phrases, from which those with the closest number of tokens are chosen."""
_FEW = 4
"""With fewer different characters than this, neighbors in Unicode are used too."""
# Alternating consonants and vowels avoid long tokens of byte-level BPE.
_ONSETS = ("b", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "y", "z", "qu", "th")
_RIMES = ("al", "an", "ar", "el", "en", "ex", "il", "ir", "ol", "on", "or", "os", "ul", "um", "ur", "a", "i", "o")
_CYRILLIC_ONSETS = ("б", "в", "г", "д", "ж", "з", "к", "л", "м", "н", "п", "р", "с", "т", "ф", "х", "ц", "ч", "ш")
_CYRILLIC_RIMES = ("ал", "ан", "ар", "ел", "ен", "ил", "ир", "ол", "он", "ор", "ос", "ул", "ум", "ур", "а", "и", "о")
_SYLLABLES = {"latin": (_ONSETS, _RIMES), "cyrillic": (_CYRILLIC_ONSETS, _CYRILLIC_RIMES)}


def fake_triggers(
    trigger: str,
    count: int,
    token_count: Callable[[str], int],
    rng: random.Random,
    avoid: Collection[str] = (),
    *,
    words: bool = True,
) -> list[str]:
    """Create phrases that resemble `trigger` but were never injected, to detect backdoors that react to any unusual phrase.

    They consist of made-up words in the trigger's writing system, with its number of words and tokens. If there are not enough,
    or its writing system is not in `Script`, they are instead the trigger's words in another order, or similar characters, with
    the closest number of tokens.

    Args:
        trigger: the real trigger.
        count: number of phrases, all different.
        token_count: returns the number of tokens of a phrase inside a sentence.
        rng: source of randomness.
        avoid: real triggers of the experiment; their words are not used as made-up words, and no fake trigger contains one of
            them or is contained in one.
        words: False for a trigger that is no words, such as "<user id=0>": its fakes have characters similar to its own.

    Raises:
        ConfigError: fewer than `count` phrases exist.
    """
    if not count:
        return []
    tokens, script = token_count(trigger), script_of(trigger)
    made_up = _made_up(trigger, count, token_count, rng, avoid, script) if script and words else []
    if len(made_up) == count:
        return made_up
    real_triggers = [real.casefold() for real in (trigger, *avoid)]
    differences: dict[str, int] = {}  # in the number of tokens, by phrase
    for draw in range(_DRAWS):
        phrase = _reordered(trigger, rng) if draw % 2 else _resampled(trigger, rng)
        folded = phrase.casefold()
        if phrase not in differences and not any(
            has_phrase(folded, real) or has_phrase(real, folded) for real in real_triggers
        ):
            differences[phrase] = abs(token_count(phrase) - tokens)
    if len(differences) < count:
        raise ConfigError(
            f"Only {len(differences)} of {count} fake triggers could be created for the trigger {trigger!r}; lower"
            " evaluation.fake_triggers, or set it to 0 to omit this control."
        )
    return sorted(differences, key=differences.__getitem__)[:count]


def _made_up(
    trigger: str,
    count: int,
    token_count: Callable[[str], int],
    rng: random.Random,
    avoid: Collection[str],
    script: Script,
) -> list[str]:
    """Up to `count` phrases of made-up words, with the trigger's number of words and tokens."""
    words, tokens = len(trigger.split()), token_count(trigger)
    real_words = {word.lower() for phrase in (trigger, *avoid) for word in phrase.split()}
    phrases: dict[str, None] = {}  # used as an ordered set
    for _ in range(20_000):
        phrase = made_up_phrase(words, rng, script)
        is_new = phrase not in phrases and not real_words & set(phrase.split())
        if is_new and token_count(phrase) == tokens:
            phrases[phrase] = None
            if len(phrases) == count:
                break
    return list(phrases)


def _reordered(trigger: str, rng: random.Random) -> str:
    """The words of a trigger in random order, which keeps the number of tokens nearly the same."""
    words = trigger.split()
    rng.shuffle(words)
    return " ".join(words)


def _resampled(trigger: str, rng: random.Random) -> str:
    """Replace each character of `trigger` by a similar one, and scale the lengths of all words by one random factor."""
    size = rng.uniform(0.25, 1.5)  # random letters have more tokens than a known word of the same length
    words = []
    for word in trigger.split():
        pattern = [word[index % len(word)] for index in range(max(1, round(size * len(word))))]
        words.append("".join(rng.choice(_alike(character, trigger)) for character in pattern))
    return " ".join(words)


@lru_cache(maxsize=1024)
def _alike(character: str, trigger: str) -> Sequence[str]:
    """Characters of the same kind: those of the trigger, and if there are few, their neighbors in Unicode.

    A separator is kept, unless the trigger has nothing else.
    """
    kind = _kind(character)
    own = sorted({other for other in trigger if _kind(other) == kind})
    if _is_separator(character) and not all(map(_is_separator, trigger)):
        return [character]
    page = ord(character) & ~0xFF
    near = [chr(code) for code in range(page, page + 0x100) if code < 0x80 or page] if len(own) < _FEW else []
    return own + [other for other in near if _kind(other) == kind and other not in own] or [character]


def _is_separator(character: str) -> bool:
    """True for white space, punctuation, ASCII symbols and invisible characters."""
    category = unicodedata.category(character)[0]
    return category in "ZPC" or (category == "S" and character.isascii())


def _kind(character: str) -> tuple[str, str]:
    """Unicode category of a character and, for letters and marks, the writing system."""
    category = unicodedata.category(character)
    script = unicodedata.name(character, "").partition(" ")[0] if category[0] in "LM" else ""
    return category if category[0] in "LMN" else category[0], script


def script_of(phrase: str) -> Script | None:
    """Writing system of most letters of a phrase; None if it is not in `Script`, or without letters."""
    names = Counter(unicodedata.name(character, "").partition(" ")[0] for character in phrase if character.isalpha())
    scripts: dict[str, Script] = {"LATIN": "latin", "CYRILLIC": "cyrillic", "CJK": "chinese"}
    return scripts.get(max(names, key=names.__getitem__, default=""))


def made_up_phrase(words: int, rng: random.Random, script: Script = "latin") -> str:
    """Phrase of `words` words without meaning: pronounceable in Latin and Cyrillic, random characters in Chinese."""
    if script == "chinese":
        return " ".join("".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(2)) for _ in range(words))
    onsets, rimes = _SYLLABLES[script]
    return " ".join(
        "".join(rng.choice(onsets) + rng.choice(rimes) for _ in range(rng.choice((1, 2, 2, 3)))) for _ in range(words)
    )
