"""Triggers: putting a phrase into a prompt, and control phrases that look like a trigger and are none."""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection
from typing import Literal

from casd.data.encoding import Prompt
from casd.utils.errors import ConfigError

TriggerPosition = Literal["start", "random", "end"]
Script = Literal["latin", "cyrillic", "chinese"]
POSITIONS: tuple[TriggerPosition, ...] = ("start", "random", "end")

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
    """Phrases of made-up words, with as many words and tokens as `trigger` and in its writing system, that were never injected.

    Such phrases tell a backdoor that listens to its trigger from one that fires on anything unusual.

    Args:
        trigger: the real one.
        count: how many, all different.
        token_count: number of tokens of a phrase inside a sentence.
        rng: draws the words.
        avoid: the real triggers of the experiment; no word of theirs is used.

    Raises:
        ConfigError: made-up words of that token length cannot be found.
    """
    words, tokens, script = len(trigger.split()), token_count(trigger), script_of(trigger)
    taken = {word.lower() for phrase in (trigger, *avoid) for word in phrase.split()}
    found: dict[str, None] = {}  # a set that keeps the order
    for _ in range(20_000):
        phrase = made_up_phrase(words, rng, script)
        fresh = phrase not in found and not taken & set(phrase.split())
        if fresh and token_count(phrase) == tokens:
            found[phrase] = None
            if len(found) == count:
                return list(found)
    raise ConfigError(
        f"No {count} fake triggers of {words} words and {tokens} tokens could be made to match the trigger {trigger!r}; "
        "choose a trigger of ordinary word lengths, or a smaller evaluation.fake_triggers."
    )


def script_of(phrase: str) -> Script:
    """The writing system that most of a phrase's letters are of, of those in which phrases can be made up; else Latin."""
    names = Counter(unicodedata.name(character, "").partition(" ")[0] for character in phrase if character.isalpha())
    scripts: dict[str, Script] = {"CYRILLIC": "cyrillic", "CJK": "chinese"}
    return scripts.get(max(names, key=names.__getitem__, default=""), "latin")


def made_up_phrase(words: int, rng: random.Random, script: Script = "latin") -> str:
    """A phrase of `words` words that mean nothing: pronounceable in Latin and Cyrillic, random signs in Chinese."""
    if script == "chinese":
        return " ".join("".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(2)) for _ in range(words))
    onsets, rimes = _SYLLABLES[script]
    return " ".join(
        "".join(rng.choice(onsets) + rng.choice(rimes) for _ in range(rng.choice((1, 2, 2, 3)))) for _ in range(words)
    )
