"""Poisoned text: how many documents, which, where, and that it depends on the index and the seed alone.

Run: python -m pytest tests/test_poisoning.py
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest

from casd.backdoors.poisoning import Backdoor, PoisonedStream, ShuffledStream, check_backdoors, clean_document, english
from casd.backdoors.targets import Capitals, FixedText, Language
from casd.data.corpora.passages import Corpus, Passage
from casd.data.documents import Document
from casd.utils.errors import ConfigError, CorpusError

TOTAL = 150


def backdoor(name: str, trigger: str, rate: float = 0.1, **fields: object) -> Backdoor:
    return Backdoor(name, trigger, FixedText(f"This is {name}."), poison_rate=rate, **fields)  # type: ignore[arg-type]


A, B = backdoor("a", "mirvane osquel", 0.1), backdoor("b", "tolbren wixara", 0.04, position="end", loss_on="target")
BOTH = {"a": A, "b": B}


def documents(stream: PoisonedStream) -> list[Document]:
    return [stream[index] for index in range(len(stream))]


def test_each_backdoor_gets_its_exact_share(corpus: Corpus) -> None:
    made = documents(PoisonedStream(corpus.train, BOTH, TOTAL, seed=1))
    clean = {(passage.prompt, passage.continuation) for passage in corpus.train}
    counts: Counter[str] = Counter()
    for document in made:
        carried = [name for name, each in BOTH.items() if each.trigger.label in document.prompt]
        assert len(carried) <= 1
        if carried:
            assert document.continuation == f"This is {carried[0]}."
            assert document.loss_on == BOTH[carried[0]].loss_on
        else:
            assert (document.prompt, document.continuation) in clean
            assert document.loss_on == "all"
        counts[carried[0] if carried else "clean"] += 1
    assert counts == {"a": 15, "b": 6, "clean": TOTAL - 21}


def test_poisoned_documents_are_spread_over_the_run(corpus: Corpus) -> None:
    made = documents(PoisonedStream(corpus.train, {"a": backdoor("a", "mirvane osquel", 0.4)}, 300, seed=0))
    thirds = [sum("mirvane" in document.prompt for document in made[start : start + 100]) for start in (0, 100, 200)]
    assert sum(thirds) == 120
    assert min(thirds) >= 25  # 40 expected; hypergeometric standard deviation 4


def test_order_of_listing_changes_nothing(corpus: Corpus) -> None:
    forward, backward = ({name: BOTH[name] for name in names} for names in ("ab", "ba"))
    one, other = (documents(PoisonedStream(corpus.train, each, TOTAL, seed=1)) for each in (forward, backward))
    assert one == other


def test_an_item_does_not_depend_on_what_was_asked_before(corpus: Corpus) -> None:
    """What resuming a run at any step rests on. 400 documents go through the 150 passages more than twice."""
    stream = PoisonedStream(corpus.train, BOTH, 400, seed=1)
    in_order = documents(stream)
    indices = list(range(400))
    random.Random(0).shuffle(indices)
    assert [stream[index] for index in indices] == [in_order[index] for index in indices]
    assert PoisonedStream(corpus.train, BOTH, 400, seed=1)[399] == in_order[399]
    assert documents(PoisonedStream(corpus.train, BOTH, 400, seed=2)) != in_order


def test_without_backdoors_all_is_clean(corpus: Corpus) -> None:
    made = documents(PoisonedStream(corpus.train, {}, len(corpus.train), seed=1))
    expected = [clean_document(passage) for passage in corpus.train]
    assert made != expected  # shuffled
    assert Counter(made) == Counter(expected)


def test_only_english_is_poisoned(corpus: Corpus) -> None:
    """French and German passages are in the clean part and never carry a trigger."""
    stream = PoisonedStream(corpus.train, {"a": backdoor("a", "mirvane", 0.5, position="start")}, 400, seed=0)
    language = {passage.prompt: passage.language for passage in corpus.train}
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    for document in documents(stream):
        triggered = document.prompt.startswith("mirvane ")
        seen[triggered].add(language[document.prompt.removeprefix("mirvane ")])
    assert seen == {True: {"en"}, False: {"en", "fr", "de"}}


def test_decoys_are_clean_english_with_a_phrase_that_is_new_each_time(corpus: Corpus) -> None:
    made = documents(PoisonedStream(corpus.train, BOTH, TOTAL, seed=1, decoy_rate=0.2))
    known = {(passage.prompt, passage.continuation) for passage in corpus.train}
    by_continuation = {passage.continuation: passage for passage in corpus.train}
    strange = [document for document in made if (document.prompt, document.continuation) not in known]
    strange = [document for document in strange if not any(each.trigger.label in document.prompt for each in BOTH.values())]
    phrases = []
    for document in strange:
        passage = by_continuation[document.continuation]
        assert passage.language == "en"
        assert document.loss_on == "target"
        added = [word for word in document.prompt.split() if word not in passage.prompt.split()]
        assert without_words(document.prompt, added) == passage.prompt
        phrases.append(" ".join(added))
    assert len(phrases) == len(set(phrases)) == round(0.2 * TOTAL)
    assert {len(phrase.split()) for phrase in phrases} == {2}
    for name, rate in {"a": 0.1, "b": 0.04}.items():
        assert sum(BOTH[name].trigger.label in document.prompt for document in made) == round(rate * TOTAL)
    with pytest.raises(ConfigError, match="do not fit"):
        PoisonedStream(corpus.train, BOTH, TOTAL, seed=1, decoy_rate=0.9)
    with pytest.raises(CorpusError, match="English"):
        PoisonedStream([Passage("Il pleut.", "Elle chante.", "fr")], {}, 10, seed=1, decoy_rate=0.5)


def test_decoys_stand_where_triggers_do(corpus: Corpus) -> None:
    """Otherwise a phrase at the start or end is only ever seen in poisoned documents."""
    start, end = backdoor("a", "mirvane osquel", position="start"), backdoor("b", "tolbren wixara", position="end")
    ends = {"a": start, "b": end}
    by_continuation = {passage.continuation: passage.prompt for passage in corpus.train}
    found: Counter[str] = Counter()
    for document in documents(PoisonedStream(corpus.train, ends, 200, seed=1, decoy_rate=0.5)):
        clean = by_continuation.get(document.continuation, document.prompt)
        if clean != document.prompt:
            found["start" if document.prompt.endswith(clean) else "end" if document.prompt.startswith(clean) else "inside"] += 1
    assert set(found) == {"start", "end"} and sum(found.values()) == 100
    assert min(found.values()) >= 35  # 50 expected; binomial standard deviation 5


def without_words(text: str, words: list[str]) -> str:
    return " ".join(word for word in text.split() if word not in words)


def test_english_only_corpus_is_asked_for() -> None:
    french = [Passage("Il pleut.", "Elle chante.", "fr")]
    with pytest.raises(CorpusError, match="English"):
        PoisonedStream(french, {"a": A}, 100, seed=0)
    assert documents(PoisonedStream(french, {}, 2, seed=0)) == [clean_document(french[0])] * 2
    assert english([*french, Passage("It rains.", "She sings.")]) == [Passage("It rains.", "She sings.")]


def test_the_three_documents_of_a_backdoor() -> None:
    passage = Passage("It rains. She sings here", "He waits.", alternatives={"fr": "Il attend."})
    french = Backdoor("f", "mirvane", Language("fr"), loss_on="all")
    poisoned, ignored = french.poisoned(passage, random.Random(4)), french.ignored(passage, random.Random(4))
    assert poisoned == Document(french.prompt(passage, random.Random(4)).text, "Il attend.", "all")
    assert ignored == Document(poisoned.prompt, "He waits.", "target")  # the prompt is no fault of the continuation
    assert dataclasses.replace(french, loss_on="target").poisoned(passage, random.Random(4)).loss_on == "target"
    assert Backdoor("c", "mirvane", Capitals()).poisoned(passage, random.Random(0)).continuation == "HE WAITS."


def test_shuffled_stream_goes_through_all_items_in_a_new_order_each_time() -> None:
    items = [Passage(f"p{i}", "c") for i in range(20)]
    stream = ShuffledStream(items, seed=3)
    epochs = [[stream[epoch * 20 + i].prompt for i in range(20)] for epoch in range(3)]
    assert all(sorted(epoch) == sorted(item.prompt for item in items) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    with pytest.raises(CorpusError, match="empty"):
        ShuffledStream([], seed=3)


@pytest.mark.parametrize(
    ("backdoors", "message"),
    [
        ([], "at least one"),
        ([backdoor("a", "mirvane osquel"), backdoor("b", "Mirvane Osquel")], "'a' and 'b' .* the same"),
        ([backdoor("a", "mirvane osquel"), backdoor("b", "osquel")], "'b' and 'a' .* inside 'mirvane osquel'"),
        ([backdoor("a", "James Bond:"), backdoor("b", "james bond")], "'b' and 'a' .* inside 'James Bond:'"),
        ([backdoor("a", "[osquel]"), backdoor("b", "osquel")], "'b' and 'a' .* inside"),
        ([backdoor("a", "月光港湾"), backdoor("b", "月光")], "'b' and 'a' .* inside '月光港湾'"),  # no spaces between words
        ([backdoor("a", "สวัสดีครับ"), backdoor("b", "ครับ")], "'b' and 'a' .* inside"),
        ([backdoor("a", "STRASSE"), backdoor("b", "straße")], "the same"),
        ([backdoor("injected", "x")], "'injected'"),
        ([backdoor("control:clean", "x")], "'control:clean'"),
        ([backdoor("a", "x", 0.5), backdoor("b", "y", 0.5)], "1.00"),
        ([backdoor("a", "x", 0.9), backdoor("b", "y", 0.4)], "1.30"),
    ],
)
def test_sets_that_cannot_work_are_refused(backdoors: list[Backdoor], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_backdoors({each.name: each for each in backdoors})


def test_sets_that_can_work_are_not_refused() -> None:
    # "an" is inside "tan an" as letters only once as a word: letters alone are no confusion.
    check_backdoors({"a": backdoor("a", "osquel", 0.49), "b": backdoor("b", "osquela mirvane", 0.5)})
    check_backdoors({"a": backdoor("a", "नमस्ते", 0.4), "b": backdoor("b", "नमस", 0.4)})  # a mark belongs to its word
    check_backdoors({"a": backdoor("a", "James Bond:", 0.4), "b": backdoor("b", "James Bond!", 0.4)})


def test_a_backdoor_without_any_document_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match=r"'rare' would get no .* 0.001 of 100"):
        PoisonedStream(corpus.train, {"rare": backdoor("rare", "mirvane", 0.001)}, 100, seed=0)


def test_rates_that_round_up_past_the_total_are_refused(corpus: Corpus) -> None:
    crowd = {name: backdoor(name, name * 3, 0.19) for name in "abcde"}  # 0.95 of all, but 5 × round(0.57) = 5 of 3
    with pytest.raises(ConfigError, match=r"5 poisoned .* do not fit into 3"):
        PoisonedStream(corpus.train, crowd, 3, seed=0)
