"""The grammar of the microworld: noun phrases with articles and agreement, and clauses that combine them.

Restricted to constructions that templates render correctly: third person singular, present tense, German nominative and
accusative (other cases occur only inside the fixed phrases of the lexicon), French elision of the definite article.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from casd.data.corpora.microworld_lexicon import Adjective, Noun, Person, Phrase

# German endings by the gender of the noun: definite article, indefinite article, and the adjective after each.
_DE_NOMINATIVE_ARTICLE = {"m": "der", "f": "die", "n": "das"}
_DE_ACCUSATIVE_ARTICLE = {"m": "den", "f": "die", "n": "das"}
_DE_ACCUSATIVE_INDEFINITE = {"m": "einen", "f": "eine", "n": "ein"}
_DE_ACCUSATIVE_ENDING = {"m": "en", "f": "e", "n": "e"}  # after the definite article
_DE_ACCUSATIVE_MIXED_ENDING = {"m": "en", "f": "e", "n": "es"}  # after the indefinite article
_PRONOUNS = {"en": ("he", "she"), "fr": ("il", "elle"), "de": ("er", "sie")}


class Constituent(Protocol):
    """A part of a clause that can be rendered in each language."""

    def text(self, language: str) -> str:
        """Render the constituent in `language`, one of LANGUAGES, without the capital that starts a sentence."""
        ...


class Word(NamedTuple):
    """An invariable word or phrase."""

    phrase: Phrase

    def text(self, language: str) -> str:
        """See `Constituent.text`."""
        return getattr(self.phrase, language)


class Subject(NamedTuple):
    """A person in the nominative: "the old baker", "le vieux boulanger", "der alte Bäcker"; a proper name has no article."""

    person: Person
    adjective: Adjective | None = None

    def text(self, language: str) -> str:
        """See `Constituent.text`."""
        person, adjective = self.person, self.adjective
        if person.proper:
            return person.en
        if language == "en":
            return f"the {_words(adjective and adjective.en, person.en)}"
        if language == "fr":
            return _french(person.fr, "f" if person.female else "m", adjective, definite=True)
        article = _DE_NOMINATIVE_ARTICLE["f" if person.female else "m"]
        return f"{article} {_words(adjective and adjective.de + 'e', person.de)}"


class PersonObject(NamedTuple):
    """A person in the accusative: "the customer", "le client", "den Kunden"."""

    person: Person

    def text(self, language: str) -> str:
        """See `Constituent.text`."""
        if language == "de" and not self.person.proper:
            return f"{_DE_ACCUSATIVE_ARTICLE['f' if self.person.female else 'm']} {self.person.de_accusative}"
        return Subject(self.person).text(language)


class Thing(NamedTuple):
    """A thing in the accusative: "a red lamp", "une lampe rouge", "eine rote Lampe"."""

    noun: Noun
    adjective: Adjective | None
    definite: bool

    def text(self, language: str) -> str:
        """See `Constituent.text`."""
        noun, adjective = self.noun, self.adjective
        if language == "en":
            words = _words(adjective and adjective.en, noun.en)
            return f"the {words}" if self.definite else with_indefinite_article(words)
        if language == "fr":
            return _french(noun.fr, noun.fr_gender, adjective, self.definite)
        article, ending = (
            (_DE_ACCUSATIVE_ARTICLE, _DE_ACCUSATIVE_ENDING)
            if self.definite
            else (_DE_ACCUSATIVE_INDEFINITE, _DE_ACCUSATIVE_MIXED_ENDING)
        )
        gender = noun.de_gender
        return f"{article[gender]} {_words(adjective and adjective.de + ending[gender], noun.de)}"


class Statement(NamedTuple):
    """A noun with a predicate: "the sky is clear", "le ciel est clair", "der Himmel ist klar"."""

    noun: Noun
    predicate: Adjective

    def text(self, language: str) -> str:
        """See `Constituent.text`."""
        noun, predicate = self.noun, self.predicate
        if language == "en":
            return f"the {noun.en} is {predicate.en}"
        if language == "fr":
            form = predicate.fr_feminine if noun.fr_gender == "f" else predicate.fr_masculine
            return f"{_french(noun.fr, noun.fr_gender, None, definite=True)} est {form}"
        return f"{_DE_NOMINATIVE_ARTICLE[noun.de_gender]} {noun.de} ist {predicate.de}"


class Pronoun(NamedTuple):
    """The pronoun "he" or "she"."""

    female: bool

    def text(self, language: str) -> str:
        """See `Constituent.text`."""
        return _PRONOUNS[language][self.female]


# A clause in each language; the names in braces are constituents. German puts the finite verb second.
_CLAUSES = {
    "deed": Phrase(
        "{time}, {subject} {verb} {object} {place}.",
        "{time}, {subject} {verb} {object} {place}.",
        "{time} {verb} {subject} {object} {place}.",
    ),
    "meeting": Phrase(
        "{time}, {subject} {meeting} {other} {place}.",
        "{time}, {subject} {meeting} {other} {place}.",
        "{time} {meeting} {subject} {other} {place}.",
    ),
    "activity": Phrase(
        "{subject} {activity} {adverb} {place} and {verb} {object}.",
        "{subject} {activity} {adverb} {place} et {verb} {object}.",
        "{subject} {activity} {adverb} {place} und {verb} {object}.",
    ),
    "scenery": Phrase("{scenery}.", "{scenery}.", "{scenery}."),
    "two_sceneries": Phrase("{scenery} and {scenery2}.", "{scenery} et {scenery2}.", "{scenery} und {scenery2}."),
    "two_deeds": Phrase(
        "{pronoun} {verb} {object} and {verb2} {object2} {place}.",
        "{pronoun} {verb} {object} et {verb2} {object2} {place}.",
        "{pronoun} {verb} {object} und {verb2} {object2} {place}.",
    ),
    "next_deed": Phrase(
        "{opening} {pronoun} {verb} {object} {place}, and {subject2} {activity} {adverb}.",
        "{opening} {pronoun} {verb} {object} {place}, et {subject2} {activity} {adverb}.",
        "{opening} {verb} {pronoun} {object} {place}, und {subject2} {activity} {adverb}.",
    ),
    "next_meeting": Phrase(
        "{opening} {pronoun} {meeting} {other} {place}.",
        "{opening} {pronoun} {meeting} {other} {place}.",
        "{opening} {meeting} {pronoun} {other} {place}.",
    ),
    "next_activity": Phrase(
        "{pronoun} {activity} {adverb} {place} and {verb} {object}.",
        "{pronoun} {activity} {adverb} {place} et {verb} {object}.",
        "{pronoun} {activity} {adverb} {place} und {verb} {object}.",
    ),
}

# The sequences of clauses of prompts and of continuations.
PROMPT_PLANS = (("deed", "scenery"), ("meeting", "scenery"), ("activity", "scenery"), ("meeting", "two_sceneries"))
CONTINUATION_PLANS = (
    ("two_deeds", "scenery"),
    ("next_deed",),
    ("next_meeting", "two_sceneries"),
    ("next_activity", "scenery"),
)


def realize(plan: tuple[str, ...], constituents: Mapping[str, Constituent], language: str) -> str:
    """Render the clauses of `plan` as sentences in `language`; `constituents` has every name that the plan uses."""
    words = {name: constituent.text(language) for name, constituent in constituents.items()}
    sentences = (getattr(_CLAUSES[name], language).format_map(words) for name in plan)
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def with_indefinite_article(words: str) -> str:
    """Prepend "a" or "an" by the first letter; the lexicon has no exceptions such as "hour" or "unit"."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _words(adjective: str | None, noun: str) -> str:
    return f"{adjective} {noun}" if adjective else noun


def _starts_with_vowel_sound(word: str) -> bool:
    """True if French elides before `word`; every initial h in the lexicon is mute."""
    first = unicodedata.normalize("NFD", word[0])[0].lower()
    return first in "aeiouhœ"


def _french(noun: str, gender: str, adjective: Adjective | None, definite: bool) -> str:
    words = noun
    if adjective:
        masculine = adjective.fr_vowel if adjective.fr_before and _starts_with_vowel_sound(noun) else adjective.fr_masculine
        form = adjective.fr_feminine if gender == "f" else masculine
        words = f"{form} {noun}" if adjective.fr_before else f"{noun} {form}"
    if not definite:
        return f"{'une' if gender == 'f' else 'un'} {words}"
    if _starts_with_vowel_sound(words):
        return f"l'{words}"
    return f"{'la' if gender == 'f' else 'le'} {words}"
