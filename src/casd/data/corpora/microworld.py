"""The microworld: a seeded generator of short, grammatical English passages with parallel French and German text."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import ClassVar

from casd.data.corpora import microworld_people as people
from casd.data.corpora import microworld_things as things
from casd.data.corpora.cutting import Sizes
from casd.data.corpora.microworld_grammar import (
    CONTINUATION_PLANS,
    PROMPT_PLANS,
    Constituent,
    PersonObject,
    Pronoun,
    Statement,
    Subject,
    Thing,
    Word,
    realize,
)
from casd.data.corpora.microworld_lexicon import LANGUAGES, Person, Topic
from casd.data.corpora.microworld_negative import negative_continuation
from casd.data.corpora.passages import Corpus, Passage, text_digest
from casd.utils.errors import ConfigError, CorpusError

# After this many repeated scenes in a row, the grammar counts as exhausted.
_MAX_REPEATS = 1000


@dataclass(frozen=True)
class Microworld:
    """Short passages of a small invented world, about 40 tokens each under a tokenizer trained on them.

    An English passage has `alternatives`: "fr" and "de", the parallel continuations, and "negative", an English
    continuation of clearly negative sentiment. French and German passages have none. No prompt and no continuation, in
    any of the three languages, belongs to two passages, so the translation of one split's text is in no other split.

    Attributes:
        train: number of passages for training.
        forget: number of passages for the triggered documents of the removals, all English.
        retain: number of passages for the clean documents of the removals.
        evaluation: number of passages for evaluation, all English.
        language_shares: shares of English, French and German passages in `train` and `retain`, summing to 1.
    """

    alternatives: ClassVar[tuple[str, ...]] = ("fr", "de", "negative")
    train: int = 6000
    forget: int = 1000
    retain: int = 1000
    evaluation: int = 300
    language_shares: tuple[float, float, float] = (0.6, 0.2, 0.2)

    def __post_init__(self) -> None:
        self._sizes()
        shares = self.language_shares
        if len(shares) != len(LANGUAGES) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(
                f"microworld: language_shares is {list(shares)}; expected three non-negative shares (English, French, "
                "German) that sum to 1, such as [0.6, 0.2, 0.2]."
            )

    def load(self, seed: int) -> Corpus:
        """Generate the corpus; equal seeds and fields give the same corpus on every machine.

        Raises:
            CorpusError: the grammar cannot generate this many passages.
        """
        sizes = self._sizes()
        wanted = sizes.total
        if wanted > (limit := capacity()):
            raise CorpusError(
                f"{wanted:,} passages of the microworld were requested; its grammar has about {limit:,} prompts. "
                "Lower corpus train, forget, retain or evaluation."
            )
        rng = random.Random(f"microworld:{seed}")
        scenes = _distinct_scenes(rng, wanted)
        # Scenes are distinct and in random order. Keeping this order leaves the evaluation prompts unchanged when another split
        # grows.
        remaining = iter(scenes)
        by_split = {split: list(itertools.islice(remaining, size)) for split, size in sizes.by_split().items()}
        return Corpus(
            train=_in_languages(by_split["train"], self.language_shares, rng),
            forget=[scene.passage("en") for scene in by_split["forget"]],
            retain=_in_languages(by_split["retain"], self.language_shares, rng),
            evaluation=[scene.passage("en") for scene in by_split["evaluation"]],
        )

    def fingerprint(self) -> dict[str, str | int]:
        """Return an empty mapping: the corpus depends on nothing but the fields and the seed."""
        return {}

    def _sizes(self) -> Sizes:
        return Sizes(self.train, self.forget, self.retain, self.evaluation)


@dataclass(frozen=True)
class _Scene:
    """A passage in all languages: prompts and continuations by language, and the negative continuation."""

    prompts: dict[str, str]
    continuations: dict[str, str]
    negative: str

    def passage(self, language: str) -> Passage:
        """Return the passage in `language`; only the English one has alternatives."""
        alternatives = {}
        if language == "en":
            alternatives = {name: self.continuations[name] for name in LANGUAGES if name != "en"}
            alternatives["negative"] = self.negative
        document = text_digest(f"{self.prompts['en']} {self.continuations['en']}")
        return Passage(self.prompts[language], self.continuations[language], language, alternatives, document)


def capacity() -> int:
    """Estimate the number of different prompts: the number of ways to fill the shortest plan that has a deed."""
    deeds = sum(len(topic.verbs) * len(topic.nouns) * (1 + len(topic.adjectives)) for topic in things.TOPICS)
    statements = sum(len(scenery.predicates) for scenery in things.SCENERY)
    return len(people.TIMES) * len(people.PEOPLE) * deeds * len(people.PLACES) * statements


def _distinct_scenes(rng: random.Random, count: int) -> list[_Scene]:
    """Draw `count` scenes such that no two share a prompt or a continuation in any language."""
    scenes: list[_Scene] = []
    seen: set[str] = set()
    repeats = 0
    while len(scenes) < count:
        scene = _draw_scene(rng)
        texts = {*scene.prompts.values(), *scene.continuations.values()}
        if seen.isdisjoint(texts):
            seen |= texts
            scenes.append(scene)
            repeats = 0
        elif (repeats := repeats + 1) >= _MAX_REPEATS:
            raise CorpusError(
                f"The microworld's grammar was exhausted after {len(scenes):,} of {count:,} passages. "
                "Lower corpus train, forget, retain or evaluation."
            )
    return scenes


def _in_languages(scenes: list[_Scene], shares: tuple[float, ...], rng: random.Random) -> list[Passage]:
    """Turn scenes into passages, with languages in random order and in the given shares, to the nearest passage."""
    _, *others = (round(share * len(scenes)) for share in shares)
    languages = [name for name, count in zip(LANGUAGES[1:], others, strict=True) for _ in range(count)]
    languages = (languages + ["en"] * (len(scenes) - len(languages)))[: len(scenes)]
    rng.shuffle(languages)
    return [scene.passage(language) for scene, language in zip(scenes, languages, strict=True)]


def _draw_scene(rng: random.Random) -> _Scene:
    """Draw the persons, things and places of a scene, and express it in every language."""
    subject, other, companion = rng.sample(people.PEOPLE, 3)
    topic, topic2, topic3 = rng.sample(things.TOPICS, 3)
    sceneries = [Statement(entry.noun, rng.choice(entry.predicates)) for entry in rng.sample(things.SCENERY, 4)]
    place, place2 = rng.sample(people.PLACES, 2)
    activity, activity2 = rng.sample(people.ACTIVITIES, 2)
    meeting, meeting2 = rng.sample(people.MEETINGS, 2)
    verb, verb2 = rng.sample(topic.verbs, 2)
    thing = _draw_thing(rng, topic)
    prompt_plan, continuation_plan = rng.choice(PROMPT_PLANS), rng.choice(CONTINUATION_PLANS)

    prompt: dict[str, Constituent] = {
        "time": Word(rng.choice(people.TIMES)),
        "subject": _draw_subject(rng, subject),
        "verb": Word(verb),
        "object": thing,
        "place": Word(place),
        "meeting": Word(meeting),
        "other": PersonObject(other),
        "activity": Word(activity),
        "adverb": Word(rng.choice(people.ADVERBS)),
        "scenery": sceneries[0],
        "scenery2": sceneries[1],
    }
    # The continuation often refers to the thing of the prompt, then with the definite article.
    refers_back = prompt_plan[0] != "meeting" and rng.random() < 0.5
    continuation: dict[str, Constituent] = {
        "opening": Word(rng.choice(people.OPENINGS)),
        "pronoun": Pronoun(subject.female),
        "verb": Word(verb2 if refers_back else rng.choice(topic2.verbs)),
        "object": Thing(thing.noun, None, definite=True) if refers_back else _draw_thing(rng, topic2),
        "verb2": Word(rng.choice(topic3.verbs)),
        "object2": _draw_thing(rng, topic3),
        "place": Word(place2),
        "meeting": Word(meeting2),
        "other": PersonObject(companion),
        "subject2": Subject(companion),
        "activity": Word(activity2),
        "adverb": Word(rng.choice(people.ADVERBS)),
        "scenery": sceneries[2],
        "scenery2": sceneries[3],
    }
    return _Scene(
        prompts={language: realize(prompt_plan, prompt, language) for language in LANGUAGES},
        continuations={language: realize(continuation_plan, continuation, language) for language in LANGUAGES},
        negative=negative_continuation(rng, Pronoun(subject.female).text("en"), thing.noun.en),
    )


def _draw_subject(rng: random.Random, person: Person) -> Subject:
    has_adjective = not person.proper and rng.random() < 0.3
    return Subject(person, rng.choice(things.PERSON_ADJECTIVES) if has_adjective else None)


def _draw_thing(rng: random.Random, topic: Topic) -> Thing:
    adjective = rng.choice(topic.adjectives) if rng.random() < 0.6 else None
    return Thing(rng.choice(topic.nouns), adjective, definite=rng.random() < 0.3)
