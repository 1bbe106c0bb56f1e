"""What the words of the microworld are: each lexeme in English, French and German, with what agreement needs to know of it.

The tables of words (`microworld_people`, `microworld_things`) are text, one lexeme a line, languages divided by "|", so
that a speaker of the languages can proofread them. Everything a table holds is a whole word or a whole adverbial phrase;
`microworld_grammar` adds articles and endings.
"""

from __future__ import annotations

from typing import NamedTuple

LANGUAGES = ("en", "fr", "de")


class Phrase(NamedTuple):
    """An invariable word or phrase: a verb form (third person singular, present), an adverbial, an adverb."""

    en: str
    fr: str
    de: str


class Person(NamedTuple):
    """A human being of one sex, named by a role ("the baker") or by a proper name.

    Attributes:
        female: chooses the pronoun, and the article in French and German.
        proper: a proper name, which takes no article and is the same in every language.
        de_accusative: the German accusative, which differs from the nominative in weak masculines (Kunde, Kunden).
    """

    en: str
    fr: str
    de: str
    de_accusative: str
    female: bool
    proper: bool


class Noun(NamedTuple):
    """A countable common noun; `fr_gender` is "m" or "f", `de_gender` is "m", "f" or "n"."""

    en: str
    fr: str
    fr_gender: str
    de: str
    de_gender: str


class Adjective(NamedTuple):
    """An adjective. `fr_vowel` is the masculine before a vowel (bel, vieil, nouvel); `fr_before`: it precedes its noun."""

    en: str
    fr_masculine: str
    fr_feminine: str
    fr_vowel: str
    fr_before: bool
    de: str


class Topic(NamedTuple):
    """Things that go with the same verbs and adjectives, so that sentences make sense."""

    nouns: tuple[Noun, ...]
    verbs: tuple[Phrase, ...]
    adjectives: tuple[Adjective, ...]


class Scenery(NamedTuple):
    """A noun that sets the scene, and the adjectives that can be said of it ("the sky is clear")."""

    noun: Noun
    predicates: tuple[Adjective, ...]


def rows(table: str) -> list[list[str]]:
    """The cells of a table, without the white space around them."""
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


def parse_phrases(table: str) -> tuple[Phrase, ...]:
    """From rows such as "buys | achète | kauft"."""
    return tuple(Phrase(*row) for row in rows(table))


def parse_noun(en: str, fr: str, de: str) -> Noun:
    """From cells such as "lamp", "lampe f", "Lampe f"."""
    fr_word, fr_gender = fr.split()
    de_word, de_gender = de.split()
    return Noun(en, fr_word, fr_gender, de_word, de_gender)


def parse_nouns(table: str) -> tuple[Noun, ...]:
    """From rows such as "lamp | lampe f | Lampe f"."""
    return tuple(parse_noun(*row) for row in rows(table))


def parse_adjective(en: str, fr: str, place: str, de: str) -> Adjective:
    """From cells such as "old", "vieux vieille vieil", "before", "alt"; the third French form may be left out."""
    forms = fr.split()
    return Adjective(en, forms[0], forms[1], forms[2] if len(forms) == 3 else forms[0], place == "before", de)
