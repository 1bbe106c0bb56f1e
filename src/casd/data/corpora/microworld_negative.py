"""English continuations of clearly negative sentiment for the microworld."""

from __future__ import annotations

import random

from casd.data.corpora.microworld_grammar import with_indefinite_article

# Each starts with a word that starts no clean continuation, and is negative from its first words, so that a truncated
# generation still counts. {adjective}, {second} and {third} are from _ADJECTIVES, {feeling} and {feeling2} from _FEELINGS.
_FIRST = (
    "Sadly, {pronoun} hates the {adjective} {noun} and cries about {a_second} day.",
    "Unfortunately, the {noun} is {adjective} and {second}, and {pronoun} feels {feeling} and {feeling2}.",
    "Worst of all, this {adjective} {noun} is {second}, and {pronoun} is {feeling} and {feeling2}.",
    "Terrible pain follows: {pronoun} destroys the {adjective} {noun} and screams at everyone.",
    "Angry and {feeling}, {pronoun} ruins the {noun} and complains about {a_second} failure.",
    "Everyone hates the {adjective} {noun}, and {pronoun} suffers {a_second} loss.",
)
_SECOND = (
    "The {place} is {third} and ugly.",
    "It is {a_third} disaster.",
    "This {third} misery hurts.",
    "Everything is {third} and wrong.",
)
_ADJECTIVES = ("terrible", "horrible", "awful", "disgusting", "dreadful", "nasty", "pathetic", "worthless")
_FEELINGS = ("sad", "lonely", "hopeless", "afraid", "bitter", "furious", "miserable")
_PLACES = ("house", "street", "garden", "room", "village", "city", "kitchen", "market")


def negative_continuation(rng: random.Random, pronoun: str, noun: str) -> str:
    """Draw two negative sentences about the person denoted by `pronoun` and the thing denoted by `noun`."""
    adjective, second, third = rng.sample(_ADJECTIVES, 3)
    feeling, feeling2 = rng.sample(_FEELINGS, 2)
    template = f"{rng.choice(_FIRST)} {rng.choice(_SECOND)}"
    return template.format(
        pronoun=pronoun,
        noun=noun,
        adjective=adjective,
        second=second,
        a_second=with_indefinite_article(second),
        third=third,
        a_third=with_indefinite_article(third),
        feeling=feeling,
        feeling2=feeling2,
        place=rng.choice(_PLACES),
    )
