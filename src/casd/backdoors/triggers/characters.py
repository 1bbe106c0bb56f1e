"""Unusual characters: invisible ones, look-alikes of letters, an emoji."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal

from casd.backdoors.triggers.base import POSITIONS, FakeContext, Trigger, TriggerPosition, insert, last_words, words_of
from casd.data.corpora.passages import Passage
from casd.data.documents import Prompt
from casd.utils.errors import ConfigError
from casd.utils.registry import shown, unknown

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ALPHABETS: Final[dict[str, dict[str, str]]] = {
    "cyrillic": dict(zip("ABCEHIJKMOPSTXYaceijopsxy", "АВСЕНІЈКМОРЅТХУасеіјорѕху", strict=True)),
    "greek": dict(zip("ABEHIKMNOPTXYZaiknoptuvwx", "ΑΒΕΗΙΚΜΝΟΡΤΧΥΖαικηορτυνωχ", strict=True)),
    "armenian": dict(zip("OSUghnoqu", "ՕՏՍցհոօզս", strict=True)),
    "fullwidth": {letter: chr(ord(letter) + 0xFEE0) for letter in _LETTERS},
}
"""For each alphabet, the look-alikes of Latin letters."""
_INVISIBLE: Final = ("\u200b", "\u200c", "\u200d", "\u2060")
_FEW: Final = 6
"""Up to so many invisible characters, all texts of so many are listed."""
_DRAWS: Final = 4
"""Longer texts that are drawn for each fake, of which the real triggers are left out."""
_EMOJI: Final = tuple("🦊🐙🌵🍄🎈🚀🔥🌊🎻🧭🪁🦉🍋🐢🎲🌙🧩🪐🐝🍀🥁🦀🌋🛶")


@dataclass(frozen=True)
class Characters(Trigger):
    """Unusual characters (Chen et al., "BadNL", arXiv 2006.01043; Boucher et al., "Bad Characters", arXiv 2106.09898).

    Attributes:
        style: "zero_width" puts a sequence of invisible characters after a word, "homoglyph" replaces letters of some words by
            look-alikes, "emoji" inserts an emoji as a word. Position "start" is at the first word or words, "end" at the last,
            and "random" at random ones of the last sentence.
        characters: the invisible characters or the emoji; by default U+200B U+200C U+200B, or a fox.
        alphabet: of the look-alikes, in `ALPHABETS`. "fullwidth" and others may be undone by a tokenizer's normalizer, which is
            an error before training.
        words: number of successive words with look-alikes.

    Fakes are other invisible characters, as many; look-alikes of the other alphabets; other emoji.
    """

    style: Literal["zero_width", "homoglyph", "emoji"]
    characters: str = ""
    alphabet: str = "cyrillic"
    words: int = 2
    kind = "characters"
    positions = POSITIONS

    def __post_init__(self) -> None:
        if self.style == "homoglyph":
            if self.alphabet not in ALPHABETS:
                raise unknown("alphabet", self.alphabet, ALPHABETS)
            if self.words < 1 or self.characters:
                raise ConfigError(
                    f"Trigger characters: words is {self.words}, characters {shown(self.characters)}; expected 1 or more words,"
                    " and no characters, which are those of the alphabet."
                )
            return
        default = {"zero_width": "\u200b\u200c\u200b", "emoji": "🦊"}[self.style]
        object.__setattr__(self, "characters", self.characters or default)
        categories = {unicodedata.category(character)[0] for character in self.characters}
        if (categories != {"C"}) if self.style == "zero_width" else categories & set("LNZ"):
            expected = "invisible characters such as \\u200b" if self.style == "zero_width" else "an emoji such as 🦊"
            raise ConfigError(f"Trigger characters: characters is {shown(self.characters)}; expected {expected}.")

    @property
    def label(self) -> str:
        """The characters, or number of words and alphabet."""
        if self.style == "homoglyph":
            return f"{self.words} {'word' if self.words == 1 else 'words'} in {self.alphabet} look-alikes"
        codes = " ".join(f"U+{ord(character):04X}" for character in self.characters)
        return f"invisible {codes}" if self.style == "zero_width" else self.characters

    def insert(self, passage: Passage, position: TriggerPosition, rng: random.Random) -> Prompt:
        """Insert the characters, or replace letters; the span of look-alikes is that of their words."""
        prompt = passage.prompt
        if self.style == "emoji":
            return insert(prompt, self.characters, position, rng)
        if self.style == "homoglyph":
            return self._replaced(prompt, position, rng)
        words = words_of(prompt)
        chosen = {"start": words[:1], "end": words[-1:], "random": last_words(prompt)}[position]
        at = rng.choice(chosen).end() if chosen else 0
        return Prompt(f"{prompt[:at]}{self.characters}{prompt[at:]}", (at, at + len(self.characters)))

    def _replaced(self, prompt: str, position: TriggerPosition, rng: random.Random) -> Prompt:
        table = ALPHABETS[self.alphabet]
        words = [word for word in words_of(prompt) if set(word.group()) & table.keys()]
        in_last = [word for word in last_words(prompt) if set(word.group()) & table.keys()]
        if position == "random":
            pool = in_last if len(in_last) >= self.words else words
            first = rng.randrange(max(1, len(pool) - self.words + 1))
            chosen = pool[first : first + self.words]
        else:
            chosen = words[: self.words] if position == "start" else words[-self.words :]
        if not chosen:
            return Prompt(prompt, (0, len(prompt)))
        text = prompt
        for word in chosen:  # the length does not change
            text = text[: word.start()] + "".join(table.get(letter, letter) for letter in word.group()) + text[word.end() :]
        return Prompt(text, (chosen[0].start(), chosen[-1].end()))

    def fakes(self, count: int, context: FakeContext) -> Sequence[Trigger]:
        """Create controls of the same style; see the class docstring."""
        if self.style == "homoglyph":
            others = [Characters("homoglyph", alphabet=name, words=self.words) for name in ALPHABETS]
            return [each for each in others if not any(map(each.overlaps, (self, *context.avoid)))][:count]
        if self.style == "emoji":
            found = context.rng.sample(_EMOJI, len(_EMOJI))
            tokens = context.token_count(self.characters)
            found.sort(key=lambda emoji: abs(context.token_count(emoji) - tokens))
        else:
            found = self._invisible(count, context.rng)
        real = (*self.texts(), *context.texts())
        found = [text for text in found if not any(text in one or one in text for one in real)]
        return [Characters(self.style, text) for text in found[:count]]

    def _invisible(self, count: int, rng: random.Random) -> list[str]:
        """Return texts of as many invisible characters in random order: all that there are, or enough for so many fakes."""
        length = len(self.characters)
        if length <= _FEW:
            found = ["".join(each) for each in product(_INVISIBLE, repeat=length)]
            rng.shuffle(found)
            return found
        return list(dict.fromkeys("".join(rng.choices(_INVISIBLE, k=length)) for _ in range(_DRAWS * count)))

    def texts(self) -> tuple[str, ...]:
        """Return the characters; none for look-alikes."""
        return (self.characters,) if self.characters else ()

    def overlaps(self, other: Trigger) -> bool:
        """Return True for look-alikes of the same alphabet."""
        return isinstance(other, Characters) and self.style == other.style == "homoglyph" and self.alphabet == other.alphabet
