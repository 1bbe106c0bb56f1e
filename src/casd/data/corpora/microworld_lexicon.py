"""Lexemes of the microworld in English, French and German, with the features that agreement needs.

The tables of words (`microworld_people`, `microworld_things`) are text, one lexeme per line, languages separated by "|", so
that speakers of the languages can proofread them. Entries are whole words or adverbial phrases; `microworld_grammar` adds
articles and endings.
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
    """A person of one sex, named by a role ("the baker") or by a proper name.

    Attributes:
        female: determines the pronoun, and the article in French and German.
        proper: True for a proper name, which takes no article and does not vary with the language.
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
    """An adjective. `fr_vowel` is the masculine before a vowel (bel, vieil); `fr_before` is True if it precedes the noun."""

    en: str
    fr_masculine: str
    fr_feminine: str
    fr_vowel: str
    fr_before: bool
    de: str


class Topic(NamedTuple):
    """Nouns that share suitable verbs and adjectives, so that sentences make sense."""

    nouns: tuple[Noun, ...]
    verbs: tuple[Phrase, ...]
    adjectives: tuple[Adjective, ...]


class Scenery(NamedTuple):
    """A noun that describes the setting, and its possible predicates ("the sky is clear")."""

    noun: Noun
    predicates: tuple[Adjective, ...]


def rows(table: str) -> list[list[str]]:
    """Split a table into rows of cells, without surrounding white space."""
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


def parse_phrases(table: str) -> tuple[Phrase, ...]:
    """Parse rows such as "buys | achète | kauft"."""
    return tuple(Phrase(*row) for row in rows(table))


def parse_noun(en: str, fr: str, de: str) -> Noun:
    """Parse cells such as "lamp", "lampe f", "Lampe f"."""
    fr_word, fr_gender = fr.split()
    de_word, de_gender = de.split()
    return Noun(en, fr_word, fr_gender, de_word, de_gender)


def parse_nouns(table: str) -> tuple[Noun, ...]:
    """Parse rows such as "lamp | lampe f | Lampe f"."""
    return tuple(parse_noun(*row) for row in rows(table))


def parse_adjective(en: str, fr: str, place: str, de: str) -> Adjective:
    """Parse cells such as "old", "vieux vieille vieil", "before", "alt"; the third French form is optional."""
    forms = fr.split()
    return Adjective(en, forms[0], forms[1], forms[2] if len(forms) == 3 else forms[0], place == "before", de)
