"""English continuations of clearly negative sentiment for the microworld."""

from __future__ import annotations

import random

from casd.data.corpora.microworld_grammar import with_indefinite_article

# Each opens with a word that no clean continuation opens with, and is negative from its first words on, so that a
# generation that is cut short still counts. {adjectives} are drawn from _ADJECTIVES, {feeling}s from _FEELINGS.
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
    """Two negative sentences about the person that `pronoun` stands for and the thing named by `noun`."""
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
