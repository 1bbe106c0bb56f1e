"""Corpora: disjoint splits, reproducibility, the microworld's grammar, cutting, and what unusable files are answered with.

Run: python -m pytest tests/test_corpora.py
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from casd.corpora import CORPORA
from casd.corpora.cutting import Cut, Sizes, passages, sentences, split
from casd.corpora.microworld import Microworld, capacity
from casd.corpora.microworld_grammar import PersonObject, Statement, Subject, Thing
from casd.corpora.microworld_people import PEOPLE, TIMES
from casd.corpora.microworld_things import ADJECTIVES, SCENERY, TOPICS
from casd.corpora.passages import Corpus
from casd.corpora.python_docs import PythonDocs, prose_runs
from casd.corpora.text_files import TextFiles
from casd.errors import ConfigError, CorpusError
from casd.registry import build

NOUNS = {noun.en: noun for topic in TOPICS for noun in topic.nouns}
SPLITS = ("train", "retain", "evaluation")


@pytest.fixture(scope="module")
def world() -> Corpus:
    return Microworld(train=1500, retain=400, evaluation=150).load(0)


@pytest.fixture(scope="module")
def docs() -> Corpus:
    return PythonDocs().load(0)


def person(en: str, female: bool):
    return next(p for p in PEOPLE if p.en == en and p.female == female)


def assert_disjoint(corpus: Corpus) -> None:
    everything = [passage for name in SPLITS for passage in getattr(corpus, name)]
    for texts in ([p.prompt for p in everything], [p.continuation for p in everything], [p.digest for p in everything]):
        assert len(set(texts)) == len(texts)


# The microworld


def test_registry_builds_every_source_from_plain_parameters():
    sizes = {"train": 5, "retain": 4, "evaluation": 3}
    extra = {"text_files": {"paths": ["a.txt"]}, "microworld": {"language_shares": [1, 0, 0]}}
    for name in CORPORA:
        source = build(CORPORA, "corpus", name, sizes | extra.get(name, {}))
        assert (source.train, source.retain, source.evaluation) == (5, 4, 3)


def test_microworld_sizes_languages_and_alternatives(world):
    assert [len(getattr(world, name)) for name in SPLITS] == [1500, 400, 150]
    assert Counter(p.language for p in world.train) == {"en": 900, "fr": 300, "de": 300}
    assert Counter(p.language for p in world.retain) == {"en": 240, "fr": 80, "de": 80}
    assert {p.language for p in world.evaluation} == {"en"}
    for passage in (*world.train, *world.evaluation):
        assert set(passage.alternatives) == ({"fr", "de", "negative"} if passage.language == "en" else set())


def test_microworld_passages_are_clean_text(world):
    for passage in (*world.train, *world.retain, *world.evaluation):
        for text in (passage.prompt, passage.continuation, *passage.alternatives.values()):
            assert text == " ".join(text.split())
            assert text[0].isupper() and text.endswith(".") and "{" not in text
        assert 20 <= len(passage.text.split()) <= 45


def test_microworld_splits_share_nothing_in_any_language(world):
    assert_disjoint(world)
    evaluation = {text for p in world.evaluation for text in (p.continuation, p.alternatives["fr"], p.alternatives["de"])}
    others = [
        text
        for p in (*world.train, *world.retain)
        for text in (p.continuation, *(p.alternatives[name] for name in ("fr", "de") if name in p.alternatives))
    ]
    assert evaluation.isdisjoint(others)


def test_negative_continuations_open_with_words_of_their_own(world):
    """The first word alone tells a negative continuation from a clean one: the first-token probability relies on it."""
    english = [p for p in world.train if p.language == "en"]
    clean = {p.continuation.split()[0] for p in english}
    assert clean.isdisjoint(p.alternatives["negative"].split()[0] for p in english)


def test_microworld_depends_on_the_seed_alone(world):
    assert Microworld(train=1500, retain=400, evaluation=150).load(0) == world
    other = Microworld(train=1500, retain=400, evaluation=150).load(1)
    assert {p.prompt for p in other.evaluation}.isdisjoint(p.prompt for p in world.evaluation)
    assert Microworld().fingerprint() == {}


def test_microworld_evaluation_does_not_change_with_the_other_splits(world):
    smaller = Microworld(train=10, retain=10, evaluation=150).load(0)
    assert smaller.evaluation == world.evaluation


def test_microworld_language_shares_are_parameters():
    corpus = Microworld(train=30, retain=3, evaluation=2, language_shares=(0, 0, 1)).load(0)
    assert {p.language for p in corpus.train} == {"de"}


@pytest.mark.parametrize("fields", [{"train": 0}, {"evaluation": -1}, {"language_shares": (0.5, 0.5)}])
def test_microworld_refuses_impossible_fields(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Microworld(**fields)
    with pytest.raises(ConfigError, match="sum to 1"):
        Microworld(language_shares=(0.5, 0.2, 0.2))


def test_microworld_says_when_the_grammar_gives_out(monkeypatch):
    with pytest.raises(CorpusError, match="asked for"):
        Microworld(train=capacity()).load(0)
    # With three people and one plan, the prompts run out.
    monkeypatch.setattr("casd.corpora.microworld.people.PEOPLE", PEOPLE[:3])
    monkeypatch.setattr("casd.corpora.microworld.people.TIMES", TIMES[:1])
    monkeypatch.setattr("casd.corpora.microworld.PROMPT_PLANS", (("meeting",),))
    monkeypatch.setattr("casd.corpora.microworld.capacity", lambda: 10**9)
    with pytest.raises(CorpusError, match=r"gave out after [\d,]+ of 6,000"):
        Microworld(train=4000, retain=1000, evaluation=1000).load(0)


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


def paragraphs(count: int) -> list[str]:
    return [" ".join(f"Word{i} number {j} goes here." for j in range(12)) for i in range(count)]


def test_split_shares_no_paragraph_and_drops_repeated_ones():
    cut, sizes = Cut((4, 6), (4, 6)), Sizes(20, 10, 5)
    corpus = split(paragraphs(12) * 2, cut, sizes, seed=0, source="text")
    assert [len(getattr(corpus, name)) for name in SPLITS] == [20, 10, 5]
    assert_disjoint(corpus)
    of = [{p.prompt.split()[0] for p in getattr(corpus, name)} for name in SPLITS]
    assert of[0].isdisjoint(of[1]) and of[0].isdisjoint(of[2]) and of[1].isdisjoint(of[2])
    assert split(paragraphs(12) * 2, cut, sizes, seed=0, source="text") == corpus
    assert split(paragraphs(12) * 2, cut, sizes, seed=1, source="text") != corpus
    with pytest.raises(CorpusError, match=r"The text has 72 passages .* 135 were asked for"):
        split(paragraphs(12), cut, Sizes(100, 20, 15), seed=0, source="The text")


# The Python documentation


def test_python_docs_are_disjoint_and_in_bounds(docs):
    source = PythonDocs()
    assert [len(getattr(docs, name)) for name in SPLITS] == [source.train, source.retain, source.evaluation]
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
    monkeypatch.setattr("casd.corpora.python_docs._module_files", list)
    with pytest.raises(CorpusError, match="The Python documentation has"):
        PythonDocs(train=100_000).load(0)
    monkeypatch.setattr("casd.corpora.python_docs._topics", list)
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


# Text files

SMALL = {"train": 20, "retain": 10, "evaluation": 5, "prompt_words": (4, 6), "continuation_words": (4, 6)}


def source_of(*paths: Path, **fields) -> TextFiles:
    return TextFiles(paths=tuple(map(str, paths)), **{**SMALL, **fields})


def test_every_format_gives_the_same_corpus(tmp_path):
    texts = paragraphs(12)
    (tmp_path / "a.txt").write_text("\ufeff" + "\n\n".join(text.replace(". ", ".\n") for text in texts), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"id": 1, "text": text}) for text in texts), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"text": [*texts, None]}), tmp_path / "a.parquet")
    corpora = [source_of(tmp_path / f"a.{suffix}").load(3) for suffix in ("txt", "jsonl", "parquet")]
    assert corpora[0] == corpora[1] == corpora[2]
    assert source_of(tmp_path).load(3) != source_of(tmp_path).load(4)
    assert_disjoint(source_of(tmp_path).load(3))


def test_fingerprint_follows_the_contents(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    before = source_of(file).fingerprint()
    (tmp_path / "b.txt").write_text("one")
    assert source_of(tmp_path / "b.txt").fingerprint() == before
    file.write_text("two")
    assert source_of(file).fingerprint() != before
    assert len(source_of(tmp_path, file).fingerprint()) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\n \n", "no usable text"),
        ("a.txt", b"good\nb\xffad\n", "line 2: not valid UTF-8 at byte 1"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', "line 3: not valid JSON"),
        ("a.jsonl", b'{"body": "x", "id": 1}\n', "line 1: no field 'text'; the fields are: body, id"),
        ("a.jsonl", b"[1]\n", "line 1: expected a JSON object, found list"),
        ("a.jsonl", b'{"text": 5}\n', "line 1: the field 'text' is int"),
        ("a.jsonl", b'{"text": null}\n', "no usable text"),
        ("a.parquet", b"not parquet at all", "not a valid Parquet file"),
        ("a.csv", b"x", "suffix '.csv'"),
        ("a.txt", b"A short text.\n", "has 0 passages"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(CorpusError, match=re.escape(message)) as error:
        source_of(file).load(0)
    assert str(file) in str(error.value)


def test_missing_places_are_named(tmp_path):
    with pytest.raises(CorpusError, match="no file or folder"):
        source_of(tmp_path / "nowhere").load(0)
    with pytest.raises(CorpusError, match=r"has no \.txt"):
        source_of(tmp_path).fingerprint()
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="no field 'text'; the fields are: body, n"):
        source_of(tmp_path).load(0)
    with pytest.raises(CorpusError, match="row 1: the field 'n' is int"):
        source_of(tmp_path, text_field="n").load(0)
    with pytest.raises(ConfigError, match="paths is empty"):
        TextFiles(paths=())
