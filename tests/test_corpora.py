"""Corpora: disjoint splits, reproducibility, the microworld's grammar, cutting and dealing, and corpora on disk.

Run: python -m pytest tests/test_corpora.py
"""

from __future__ import annotations

import json
import pickle
import random
import re
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest

from casd.backdoors.poisoning import ShuffledStream, english
from casd.data.corpora import CORPORA
from casd.data.corpora.cutting import Cut, Sizes, passages, sentences, split
from casd.data.corpora.microworld import Microworld
from casd.data.corpora.microworld_grammar import PersonObject, Statement, Subject, Thing
from casd.data.corpora.microworld_people import PEOPLE, TIMES
from casd.data.corpora.microworld_things import ADJECTIVES, SCENERY, TOPICS
from casd.data.corpora.passages import Corpus, Passage, PassageView, languages_of, read_corpus, text_digest, write_corpus
from casd.data.corpora.python_docs import PythonDocs, prose_runs
from casd.utils.errors import ConfigError, CorpusError
from casd.utils.registry import build

NOUNS = {noun.en: noun for topic in TOPICS for noun in topic.nouns}
WORLD = Microworld(train=1500, forget=100, retain=400, evaluation=150)
SPLITS = tuple(each.name for each in fields(Corpus))


@pytest.fixture(scope="module")
def world() -> Corpus:
    return WORLD.load(0)


@pytest.fixture(scope="module")
def docs() -> Corpus:
    return PythonDocs().load(0)


def person(en: str, female: bool):
    return next(p for p in PEOPLE if p.en == en and p.female == female)


def assert_disjoint(corpus: Corpus) -> None:
    everything = [passage for name in SPLITS for passage in getattr(corpus, name)]
    for texts in ([p.prompt for p in everything], [p.continuation for p in everything], [p.digest for p in everything]):
        assert len(set(texts)) == len(texts)
    documents = [{passage.document for passage in getattr(corpus, name)} for name in SPLITS]
    assert len(set.union(*documents)) == sum(map(len, documents))


# The microworld


def test_registry_builds_every_source_from_plain_parameters():
    sizes = {"train": 5, "forget": 2, "retain": 4, "evaluation": 3}
    sources = {"sources": {"en": {"paths": ["a.txt"]}}}
    extra = {"prose": sources, "instructions": sources, "microworld": {"language_shares": [1, 0, 0]}}
    for name in CORPORA:
        source = build(CORPORA, "corpus", name, sizes | extra.get(name, {}))
        assert (source.train, source.forget, source.retain, source.evaluation) == (5, 2, 4, 3)


def test_microworld_sizes_languages_and_alternatives(world):
    assert [len(getattr(world, name)) for name in SPLITS] == [1500, 100, 400, 150]
    assert Counter(p.language for p in world.train) == {"en": 900, "fr": 300, "de": 300}
    assert Counter(p.language for p in world.retain) == {"en": 240, "fr": 80, "de": 80}
    assert {p.language for p in (*world.forget, *world.evaluation)} == {"en"}
    for passage in (*world.train, *world.forget, *world.evaluation):
        assert set(passage.alternatives) == ({"fr", "de", "negative"} if passage.language == "en" else set())


def test_microworld_passages_are_clean_text(world):
    for passage in (*world.train, *world.forget, *world.retain, *world.evaluation):
        for text in (passage.prompt, passage.continuation, *passage.alternatives.values()):
            assert text == " ".join(text.split())
            assert text[0].isupper() and text.endswith(".") and "{" not in text
        assert 20 <= len(passage.text.split()) <= 45


def test_microworld_splits_share_nothing_in_any_language(world):
    assert_disjoint(world)
    evaluation = {text for p in world.evaluation for text in (p.continuation, p.alternatives["fr"], p.alternatives["de"])}
    others = [
        text
        for p in (*world.train, *world.forget, *world.retain)
        for text in (p.continuation, *(p.alternatives[name] for name in ("fr", "de") if name in p.alternatives))
    ]
    assert evaluation.isdisjoint(others)


def test_negative_continuations_open_with_words_of_their_own(world):
    """The first word alone tells a negative continuation from a clean one: the first-token probability relies on it."""
    english = [p for p in world.train if p.language == "en"]
    clean = {p.continuation.split()[0] for p in english}
    assert clean.isdisjoint(p.alternatives["negative"].split()[0] for p in english)


def test_microworld_depends_on_the_seed_alone(world):
    assert WORLD.load(0) == world
    other = WORLD.load(1)
    assert {p.prompt for p in other.evaluation}.isdisjoint(p.prompt for p in world.evaluation)
    assert Microworld().fingerprint() == {}


def test_microworld_evaluation_does_not_change_with_the_other_splits(world):
    smaller = Microworld(train=10, forget=10, retain=10, evaluation=150).load(0)
    assert smaller.evaluation == world.evaluation


def test_microworld_language_shares_are_parameters():
    corpus = Microworld(train=30, forget=4, retain=3, evaluation=2, language_shares=(0, 0, 1)).load(0)
    assert {p.language for p in corpus.train} == {"de"}


@pytest.mark.parametrize("fields", [{"train": 0}, {"forget": 0}, {"evaluation": -1}, {"language_shares": (0.5, 0.5)}])
def test_microworld_refuses_impossible_fields(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Microworld(**fields)
    with pytest.raises(ConfigError, match="sum to 1"):
        Microworld(language_shares=(0.5, 0.2, 0.2))


def test_microworld_says_when_the_grammar_gives_out(monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(CorpusError, match="were requested"):
        patch.setattr("casd.data.corpora.microworld.capacity", lambda: 2000)
        Microworld(train=2000).load(0)
    # With three people and one plan, the prompts run out.
    monkeypatch.setattr("casd.data.corpora.microworld.people.PEOPLE", PEOPLE[:3])
    monkeypatch.setattr("casd.data.corpora.microworld.people.TIMES", TIMES[:1])
    monkeypatch.setattr("casd.data.corpora.microworld.PROMPT_PLANS", (("meeting",),))
    monkeypatch.setattr("casd.data.corpora.microworld.capacity", lambda: 10**9)
    with pytest.raises(CorpusError, match=r"was exhausted after [\d,]+ of 6,000"):
        Microworld(train=4000, forget=500, retain=500, evaluation=1000).load(0)


# Hand-checked phrases: (constituent, English, French, German).
PHRASES = [
    (Thing(NOUNS["lamp"], ADJECTIVES["red"], False), "a red lamp", "une lampe rouge", "eine rote Lampe"),
    (Thing(NOUNS["chair"], ADJECTIVES["small"], False), "a small chair", "une petite chaise", "einen kleinen Stuhl"),
    (Thing(NOUNS["book"], ADJECTIVES["interesting"], False), "an interesting book", "un livre intéressant",
     "ein interessantes Buch"),
    (Thing(NOUNS["book"], ADJECTIVES["new"], True), "the new book", "le nouveau livre", "das neue Buch"),
    (Thing(NOUNS["chair"], ADJECTIVES["old"], True), "the old chair", "la vieille chaise", "den alten Stuhl"),
    (Thing(NOUNS["tree"], ADJECTIVES["old"], True), "the old tree", "le vieil arbre", "den alten Baum"),
    (Thing(NOUNS["bird"], ADJECTIVES["beautiful"], False), "a beautiful bird", "un bel oiseau", "einen schönen Vogel"),
    (Thing(NOUNS["squirrel"], ADJECTIVES["curious"], True), "the curious squirrel", "l'écureuil curieux",
     "das neugierige Eichhörnchen"),
    (Thing(NOUNS["umbrella"], None, False), "an umbrella", "un parapluie", "einen Regenschirm"),
    (Thing(NOUNS["clock"], None, True), "the clock", "l'horloge", "die Uhr"),
    (Thing(NOUNS["egg"], ADJECTIVES["fresh"], True), "the fresh egg", "l'œuf frais", "das frische Ei"),
    (Subject(person("worker", False), ADJECTIVES["old"]), "the old worker", "le vieil ouvrier", "der alte Arbeiter"),
    (Subject(person("pupil", True)), "the pupil", "l'élève", "die Schülerin"),
    (Subject(person("friend", True), ADJECTIVES["friendly"]), "the friendly friend", "la gentille amie",
     "die freundliche Freundin"),
    (Subject(person("Anna", True)), "Anna", "Anna", "Anna"),
    (PersonObject(person("customer", False)), "the customer", "le client", "den Kunden"),
    (PersonObject(person("customer", True)), "the customer", "la cliente", "die Kundin"),
    (PersonObject(person("baker", False)), "the baker", "le boulanger", "den Bäcker"),
    (PersonObject(person("assistant", False)), "the assistant", "l'assistant", "den Assistenten"),
    (Statement(SCENERY[0].noun, ADJECTIVES["clear"]), "the sky is clear", "le ciel est clair", "der Himmel ist klar"),
    (Statement(SCENERY[2].noun, ADJECTIVES["fresh"]), "the air is fresh", "l'air est frais", "die Luft ist frisch"),
]  # fmt: skip


@pytest.mark.parametrize(("constituent", "english", "french", "german"), PHRASES, ids=lambda v: v if isinstance(v, str) else "")
def test_phrases_agree(constituent, english, french, german):
    assert [constituent.text(language) for language in ("en", "fr", "de")] == [english, french, german]


def test_articles_agree_with_their_nouns_in_running_text(world):
    """An independent check on whole texts: no impossible article, elision or ending occurs."""
    french = " ".join(p.alternatives.get("fr", p.text if p.language == "fr" else "") for p in world.train)
    assert not re.search(r"\b(?:le|la) (?:[aeiouâéèêîôûœ]|h)", french, re.IGNORECASE)
    assert not re.search(r"\bl'(?![aeiouâéèêîôûœh])", french)
    assert not re.search(r"\b(?:beau|nouveau|vieux) (?!et )[aeiouâéèêîôûœh]", french)
    german = " ".join(p.alternatives.get("de", p.text if p.language == "de" else "") for p in world.train)
    genders = {noun.de: noun.de_gender for topic in TOPICS for noun in topic.nouns}
    accusative = {"m": {"den", "einen"}, "f": {"die", "eine"}, "n": {"das", "ein"}}
    found = re.findall(r"\b(den|die|das|ein|eine|einen) (?:[a-zäöüß]+ )?([A-ZÄÖÜ][a-zäöüß]+)", german)
    objects = [(article, genders[noun]) for article, noun in found if noun in genders]
    assert len(objects) > 1000
    assert all(article in accusative[gender] for article, gender in objects)
    assert not re.search(r"\b[dD]e[rn] (?!Cousin)\w+in\b", german)  # -in is feminine
    english = " ".join(p.continuation for p in world.train if p.language == "en")
    assert not re.search(r"\ba [aeiou]|\ban (?!hour)[^aeiou]", english)


def test_lexicon_agrees_with_itself():
    """One English noun has one translation, and French nouns keep their gender wherever they occur."""
    nouns = [noun for topic in TOPICS for noun in topic.nouns] + [entry.noun for entry in SCENERY]
    for attribute in ("fr", "de"):
        genders = {(getattr(noun, attribute), getattr(noun, f"{attribute}_gender")) for noun in nouns}
        assert len(genders) == len({word for word, _ in genders})
    assert {noun.fr_gender for noun in nouns} == {"m", "f"} and {noun.de_gender for noun in nouns} == {"m", "f", "n"}
    assert len({p.en for p in PEOPLE}) * 2 - 24 == len(PEOPLE)


# Cutting

TEN = "One two three four five six seven eight nine ten."


def test_sentences_keep_abbreviations_and_decimals_whole():
    text = 'He asked, e.g. Dr. Smith.  It cost 3.5 francs! "Why?" Nobody knew (at all). The end'
    parts = sentences(text)
    assert parts == ["He asked, e.g. Dr. Smith.", "It cost 3.5 francs!", '"Why?"', "Nobody knew (at all).", "The end"]
    assert " ".join(parts) == " ".join(text.split())
    assert sentences("  ") == []


def test_passages_end_at_sentences_or_at_the_greatest_length():
    cut = Cut((5, 12), (8, 10))
    (whole,) = passages(f"{TEN} {TEN}", cut, "en")
    assert (whole.prompt, whole.continuation) == (TEN, TEN)
    words = [f"w{i}" for i in range(30)]
    (long,) = passages(" ".join(words), cut, "en")
    assert long.prompt.split() == words[:12] and long.continuation.split() == words[12:22]
    assert list(passages("Too short.", cut, "en")) == []
    assert list(passages("", cut, "en")) == []


def test_passages_of_a_paragraph_do_not_overlap():
    rng = random.Random(0)
    lengths = [rng.randint(3, 25) for _ in range(60)]
    counter = iter(range(10_000))
    paragraph = " ".join(" ".join(f"W{next(counter)}" for _ in range(n)) + "." for n in lengths)
    cut = Cut((5, 12), (8, 20))
    words = [word for p in passages(paragraph, cut, "en") for word in p.text.split()]
    assert len(words) > 200 and len(set(words)) == len(words)
    order = [int(word.strip("W.")) for word in words]
    assert order == sorted(order)


@pytest.mark.parametrize("bounds", [(0, 5), (6, 5), (5,)])
def test_cut_refuses_impossible_bounds(bounds):
    with pytest.raises(ConfigError, match="prompt_words"):
        Cut(bounds, (5, 10))


def texts(count: int, sentences: int = 12) -> list[str]:
    return [" ".join(f"Word{i} number {j} goes here." for j in range(sentences)) for i in range(count)]


SHORT, SIZES = Cut((4, 6), (4, 6)), Sizes(train=20, forget=8, retain=10, evaluation=5)


def deal(documents: list[list[str]], seed: int = 0, **fields) -> Corpus:
    return split(documents, SHORT, SIZES, seed, "The text", **fields)


def test_split_shares_no_document_whatever_their_order_and_however_often_they_are_repeated():
    documents = [[text] for text in texts(14)]
    corpus = deal(documents)
    assert [len(getattr(corpus, name)) for name in SPLITS] == [20, 8, 10, 5]
    assert_disjoint(corpus)
    assert deal(documents[::-1]) == deal(documents * 3) == deal([[" \n".join(text.split())] for (text,) in documents]) == corpus
    assert deal(documents, seed=1) != corpus
    for passage in corpus.train:
        source = next(text for (text,) in documents if text.startswith(passage.prompt.split()[0] + " "))
        assert passage.document == text_digest(source)
        assert passage.text in source


def test_split_deals_evaluation_first_so_that_a_larger_training_split_leaves_it_as_it_was():
    documents = [[text] for text in texts(30)]
    larger = split(documents, SHORT, replace(SIZES, train=80), 0, "The text")
    assert (larger.evaluation, larger.retain, larger.forget) == tuple(
        getattr(deal(documents), name) for name in ("evaluation", "retain", "forget")
    )


def test_a_text_that_two_documents_share_is_in_one_split():
    """A web page that another one quotes: the documents differ, and what they share must not be in two splits."""
    shared, *rest = texts(14)
    corpus = deal([[shared], [shared, "And a comment of one's own."], *([text] for text in rest)])
    assert_disjoint(corpus)


def test_no_passage_goes_from_one_run_of_a_document_into_the_next():
    runs = [f"W{i} a b c d." for i in range(10)]
    with pytest.raises(CorpusError, match=r"has 0 passages .* in 0 of 10 documents"):
        deal([[run] for run in runs])
    with pytest.raises(CorpusError, match=r"has 0 passages .* in 0 of 1 documents"):
        deal([runs])
    with pytest.raises(CorpusError, match=r"has 5 passages .* in 1 of 1 documents"):
        deal([[" ".join(runs)]])


def test_split_says_when_the_text_is_too_little():
    documents = [[text] for text in texts(12)]
    with pytest.raises(CorpusError, match=r"The text has 72 passages .* in 12 of 12 documents; 143 were requested \(train 100"):
        split(documents, SHORT, Sizes(100, 20, 10, 13), 0, "The text")


def test_split_gives_up_to_at_most_and_shares_out_what_there_is():
    documents = [[text] for text in texts(100, sentences=2)]  # a passage each
    most = Sizes(train=200, forget=80, retain=100, evaluation=50)
    corpus = deal(documents, at_most=most)
    counts = [len(getattr(corpus, name)) for name in SPLITS]
    assert counts == [20 + 57 * 180 // 387, 8 + 57 * 72 // 387, 10 + 57 * 90 // 387, 5 + 57 * 45 // 387]
    plenty = deal([[text] for text in texts(500, sentences=2)], at_most=most)
    assert [len(getattr(plenty, name)) for name in SPLITS] == [200, 80, 100, 50]


def test_split_leaves_out_what_was_taken_before():
    documents = [[text] for text in texts(40)]
    taken: set[str] = set()
    first = deal(documents[:20], taken=taken)
    second = deal(documents, taken=taken)
    of_first, of_second = ({p.document for name in SPLITS for p in getattr(each, name)} for each in (first, second))
    assert of_first.isdisjoint(of_second)
    assert taken == {text_digest(text) for (text,) in documents}


# The Python documentation


def test_python_docs_are_disjoint_and_in_bounds(docs):
    source = PythonDocs()
    assert [len(getattr(docs, name)) for name in SPLITS] == [source.train, source.forget, source.retain, source.evaluation]
    assert_disjoint(docs)
    for passage in docs.train:
        assert source.prompt_words[0] <= len(passage.prompt.split()) <= source.prompt_words[1]
        assert source.continuation_words[0] <= len(passage.continuation.split()) <= source.continuation_words[1]
        assert passage.alternatives == {} and passage.language == "en"


def test_python_docs_read_as_prose(docs):
    """Few symbols, many common words, and none of what code, tables and reST markup look like."""
    texts = [p.text for p in docs.train]
    debris = [text for text in texts if re.search(r">>>|::=|``|:\w+:`|\*\*\w+\*\*| {2}|\n|={3}|-{3}\+|\+-{3}", text)]
    assert debris == []
    joined = " ".join(texts)
    letters = sum(character.isalpha() or character == " " for character in joined)
    assert letters >= 0.94 * len(joined)
    words = [word.strip('.,;:()"').lower() for word in joined.split()]
    assert sum(word in {"the", "a", "of", "to", "is", "and", "in", "that"} for word in words) >= 0.2 * len(words)


def test_python_docs_fingerprint_names_the_version_and_the_text():
    fingerprint = PythonDocs().fingerprint()
    assert fingerprint == PythonDocs(train=5).fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert len(fingerprint["topics_sha256"]) == len(fingerprint["modules_sha256"]) == 64


def test_python_docs_say_when_they_are_too_short(monkeypatch):
    monkeypatch.setattr("casd.data.corpora.python_docs._module_files", list)
    with pytest.raises(CorpusError, match="The Python documentation has"):
        PythonDocs(train=100_000).load(0)
    monkeypatch.setattr("casd.data.corpora.python_docs._topics", list)
    with pytest.raises(CorpusError, match="without pydoc_data"):
        PythonDocs().load(0)


def test_prose_runs_leave_markup_and_code_out():
    text = """The "x" statement
*****************

The *first* word is :ref:`marked <here>` and ``this`` is a name. It stands in a run
of sentences.

* This item of the list is also a sentence of the run.

   stmt ::= "x" expression

   >>> print(1)
   1

After the code there is a new run of it.  The call f(x) = g(y) is not in it.

Usage is shown as in this example:

+-----+-----+
| a   | b   |
"""
    assert list(prose_runs(text)) == [
        "The first word is marked and this is a name. It stands in a run of sentences. "
        "This item of the list is also a sentence of the run.",
        "After the code there is a new run of it.",
    ]


# Corpora on disk


@pytest.fixture(scope="module")
def stored(world: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("stored")
    write_corpus(world, folder)
    return read_corpus(folder)


def test_a_written_corpus_is_the_same_corpus(world, stored):
    assert stored == world
    assert [len(getattr(stored, name)) for name in SPLITS] == [1500, 100, 400, 150]
    assert all(one.document == other.document for one, other in zip(stored.retain, world.retain, strict=True))
    assert stored != WORLD.load(1)


def test_any_text_survives_the_disk(tmp_path):
    strange = Passage("Zeile\u2028 eins\n\x85", 'Ünï 🙂 "quoted" \\ {}', "de", {"fr": "l’été\r\n"}, "d")
    write_corpus(Corpus([strange], [Passage("a", "b")], [], [Passage("c", "d", "nah"), Passage("e", "f")]), tmp_path)
    corpus = read_corpus(tmp_path)
    assert corpus.train[0] == strange
    assert list(corpus.retain) == [] and len(corpus.retain) == 0
    assert list(languages_of(corpus.evaluation)) == ["nah", "en"]


@pytest.mark.parametrize("key", [slice(32), slice(-5, None), slice(None, None, -7), slice(10, 4), slice(390, 1000)])
def test_slices_of_a_stored_split_are_views_of_it(world, stored, key):
    assert isinstance(stored.retain[key], PassageView)
    assert list(stored.retain[key]) == list(world.retain)[key]
    assert list(stored.retain[key][1:3]) == list(world.retain)[key][1:3]


def test_items_of_a_stored_split(world, stored):
    assert stored.retain[-1] == world.retain[-1]
    assert stored.retain[np.int64(7)] == world.retain[7]
    assert world.retain[9] in stored.retain and world.train[0] not in stored.retain
    for beyond in (400, -401):
        with pytest.raises(IndexError):
            stored.retain[beyond]
    with pytest.raises(IndexError):
        stored.retain[:32][32]


def test_only_the_lines_that_are_asked_for_are_parsed(world, tmp_path, monkeypatch):
    write_corpus(world, tmp_path)
    parsed = []
    loads = json.loads
    monkeypatch.setattr("casd.data.corpora.passages.json.loads", lambda line: parsed.append(line) or loads(line))
    chosen = english(read_corpus(tmp_path).retain)
    assert len(chosen) == 240 and parsed == []
    assert chosen[5:][3] == [p for p in world.retain if p.language == "en"][8]
    assert list(languages_of(chosen[:4])) == ["en"] * 4
    assert len(parsed) == 1


def test_streams_draw_the_same_from_disk_and_from_memory(world, stored):
    one, other = (ShuffledStream(english(corpus.retain), seed=5) for corpus in (world, stored))
    assert [one[i] for i in range(500)] == [other[i] for i in range(500)]


def test_a_stored_split_goes_to_another_process_by_its_place(stored):
    sent = pickle.dumps(stored.train)
    assert len(sent) < 1000
    assert pickle.loads(sent) == stored.train


def test_splits_that_share_a_document_are_not_written(world, tmp_path):
    leaked = replace(world, retain=[*world.retain, replace(world.retain[0], document=world.train[3].document)])
    with pytest.raises(ValueError, match=f"{world.train[3].document} has passages in train and in retain"):
        write_corpus(leaked, tmp_path)
