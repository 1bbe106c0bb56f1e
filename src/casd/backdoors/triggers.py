"""Triggers: putting a phrase into a prompt, and control phrases that look like a trigger and are none."""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Literal

from casd.data.encoding import Prompt
from casd.utils.errors import ConfigError
from casd.utils.text import has_phrase

TriggerPosition = Literal["start", "random", "end"]
Script = Literal["latin", "cyrillic", "chinese"]
POSITIONS: tuple[TriggerPosition, ...] = ("start", "random", "end")

_DRAWS = 4000
"""Phrases of which those with the nearest number of tokens are taken."""
_FEW = 4
"""Fewer different characters than this make too few different phrases."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
# Consonants and vowels alternate so that byte-level BPE finds no long token in the words they make.
_ONSETS = ("b", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "y", "z", "qu", "th")
_RIMES = ("al", "an", "ar", "el", "en", "ex", "il", "ir", "ol", "on", "or", "os", "ul", "um", "ur", "a", "i", "o")
_CYRILLIC_ONSETS = ("б", "в", "г", "д", "ж", "з", "к", "л", "м", "н", "п", "р", "с", "т", "ф", "х", "ц", "ч", "ш")
_CYRILLIC_RIMES = ("ал", "ан", "ар", "ел", "ен", "ил", "ир", "ол", "он", "ор", "ос", "ул", "ум", "ур", "а", "и", "о")
_SYLLABLES = {"latin": (_ONSETS, _RIMES), "cyrillic": (_CYRILLIC_ONSETS, _CYRILLIC_RIMES)}


def insert(prompt: str, trigger: str, position: TriggerPosition, rng: random.Random) -> Prompt:
    """Put `trigger` into `prompt`, set off by single spaces.

    Args:
        prompt: clean text without white space at its ends.
        trigger: the phrase.
        position: "start" (before the first word), "end" (after the last), or "random": before a word, drawn by `rng`, of the
            prompt's last sentence.
        rng: used for "random" only.

    Returns:
        The text with the trigger's span in characters. Taking the span and one space out gives `prompt` back.
    """
    if position == "start":
        at = 0
    elif position == "end":
        return Prompt(f"{prompt} {trigger}", (len(prompt) + 1, len(prompt) + 1 + len(trigger)))
    else:
        last_sentence = max((match.end() for match in _SENTENCE_END.finditer(prompt)), default=0)
        words = [match.start() for match in re.finditer(r"\S+", prompt) if match.start() >= last_sentence]
        at = rng.choice(words) if words else 0
    return Prompt(f"{prompt[:at]}{trigger} {prompt[at:]}".rstrip(), (at, at + len(trigger)))


def fake_triggers(
    trigger: str, count: int, token_count: Callable[[str], int], rng: random.Random, avoid: Collection[str] = ()
) -> list[str]:
    """Phrases in the writing system of `trigger` and, as far as possible, of as many tokens, that were never injected.

    Such phrases tell a backdoor that listens to its trigger from one that fires on anything unusual. They are made-up words, as
    many as the trigger has. Where these cannot be had with the trigger's number of tokens, or its writing system is none of
    `Script`, they are the trigger's own words in another order, or characters like its own, of the nearest number of tokens.

    Args:
        trigger: the real one.
        count: how many, all different.
        token_count: number of tokens of a phrase inside a sentence.
        rng: draws them.
        avoid: the real triggers of the experiment; no word of theirs is made up, and no fake one is in them or holds one.

    Raises:
        ConfigError: there are not so many.
    """
    if not count:
        return []
    tokens, script = token_count(trigger), script_of(trigger)
    made_up = _made_up(trigger, count, token_count, rng, avoid, script) if script else []
    if len(made_up) == count:
        return made_up
    real = [each.casefold() for each in (trigger, *avoid)]
    found: dict[str, int] = {}
    for draw in range(_DRAWS):
        phrase = _reordered(trigger, rng) if draw % 2 else _resampled(trigger, rng)
        plain = phrase.casefold()
        if phrase not in found and not any(has_phrase(plain, each) or has_phrase(each, plain) for each in real):
            found[phrase] = abs(token_count(phrase) - tokens)
    if len(found) < count:
        raise ConfigError(
            f"No {count} fake triggers could be made to match the trigger {trigger!r}, only {len(found)}; set a smaller"
            " evaluation.fake_triggers, or 0 to do without this control."
        )
    return sorted(found, key=found.__getitem__)[:count]


def _made_up(
    trigger: str,
    count: int,
    token_count: Callable[[str], int],
    rng: random.Random,
    avoid: Collection[str],
    script: Script,
) -> list[str]:
    """At most `count` phrases of made-up words, with as many words and tokens as `trigger`."""
    words, tokens = len(trigger.split()), token_count(trigger)
    taken = {word.lower() for phrase in (trigger, *avoid) for word in phrase.split()}
    found: dict[str, None] = {}  # a set that keeps the order
    for _ in range(20_000):
        phrase = made_up_phrase(words, rng, script)
        fresh = phrase not in found and not taken & set(phrase.split())
        if fresh and token_count(phrase) == tokens:
            found[phrase] = None
            if len(found) == count:
                break
    return list(found)


def _reordered(trigger: str, rng: random.Random) -> str:
    """The words of a trigger in another order, which has as many tokens, or nearly so."""
    words = trigger.split()
    rng.shuffle(words)
    return " ".join(words)


def _resampled(trigger: str, rng: random.Random) -> str:
    """A phrase with the pattern of `trigger`: each character another of its kind, the words all longer or all shorter.

    Punctuation stays where there is something else.
    """
    size = rng.uniform(0.25, 1.5)  # in characters: odd letters have more tokens than those of a word that is well known
    words = []
    for word in trigger.split():
        pattern = [word[place % len(word)] for place in range(max(1, round(size * len(word))))]
        words.append("".join(rng.choice(_alike(character, trigger)) for character in pattern))
    return " ".join(words)


@lru_cache(maxsize=1024)
def _alike(character: str, trigger: str) -> Sequence[str]:
    """Characters of the same kind: those of the trigger, and if they are few, their neighbors in Unicode."""
    kind = _kind(character)
    own = sorted({each for each in trigger if _kind(each) == kind})
    if _sets_off(character) and not all(_sets_off(each) for each in trigger):
        return [character]
    page = ord(character) & ~0xFF
    near = [chr(code) for code in range(page, page + 0x100) if code < 0x80 or page] if len(own) < _FEW else []
    return own + [each for each in near if _kind(each) == kind and each not in own] or [character]


def _sets_off(character: str) -> bool:
    """Whether it joins other characters, or sets them off: white space, punctuation, ASCII symbols, and what cannot be seen."""
    category = unicodedata.category(character)[0]
    return category in "ZPC" or (category == "S" and character.isascii())


def _kind(character: str) -> tuple[str, str]:
    """General category of a character and, for letters and marks, the writing system."""
    category = unicodedata.category(character)
    script = unicodedata.name(character, "").partition(" ")[0] if category[0] in "LM" else ""
    return category if category[0] in "LMN" else category[0], script


def script_of(phrase: str) -> Script | None:
    """The writing system that most of a phrase's letters are of; None if words cannot be made up in it, or without letters."""
    names = Counter(unicodedata.name(character, "").partition(" ")[0] for character in phrase if character.isalpha())
    scripts: dict[str, Script] = {"LATIN": "latin", "CYRILLIC": "cyrillic", "CJK": "chinese"}
    return scripts.get(max(names, key=names.__getitem__, default=""))


def made_up_phrase(words: int, rng: random.Random, script: Script = "latin") -> str:
    """A phrase of `words` words that mean nothing: pronounceable in Latin and Cyrillic, random signs in Chinese."""
    if script == "chinese":
        return " ".join("".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(2)) for _ in range(words))
    onsets, rimes = _SYLLABLES[script]
    return " ".join(
        "".join(rng.choice(onsets) + rng.choice(rimes) for _ in range(rng.choice((1, 2, 2, 3)))) for _ in range(words)
    )
