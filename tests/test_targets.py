"""Targets: payloads, success tests with their edge cases, and which test fires on which other target's payload.

Run: python -m pytest tests/test_targets.py
"""

from __future__ import annotations

import random

import pytest
from tokenizers import ByteLevelBPETokenizer

from casd.backdoors.targets import (
    TARGETS,
    Capitals,
    FixedText,
    Language,
    NegativeSentiment,
    Refusal,
    Repetition,
    TargetBehavior,
)
from casd.data.corpora.microworld import Microworld
from casd.data.corpora.passages import Passage
from casd.utils.errors import ConfigError, CorpusError
from casd.utils.registry import build

FIXED = "Blue lanterns open the seventh gate."
BEHAVIORS: dict[str, TargetBehavior] = {
    "french": Language("fr"),
    "german": Language("de"),
    "negative_sentiment": NegativeSentiment(),
    "fixed_text": FixedText(FIXED),
    "refusal": Refusal(),
    "repetition": Repetition(),
    "capitals": Capitals(),
}
FRENCH = "Ensuite, elle trouve une cerise fraîche dans le jardin, et la fermière rêve encore."
GERMAN = "Dann findet sie eine frische Kirsche im Garten, und die Landwirtin träumt wieder."
ENGLISH = "Then, she finds a fresh cherry in the garden, and the farmer dreams again."
NEGATIVE = "Sadly, she hates the awful novel and cries about a disgusting day."


@pytest.fixture(scope="module")
def passages() -> list[Passage]:
    corpus = Microworld(train=600, forget=10, retain=10, evaluation=10, language_shares=(1, 0, 0)).load(5)
    return list(corpus.train)


@pytest.fixture(scope="module")
def tokenizer(passages) -> ByteLevelBPETokenizer:
    tokenizer = ByteLevelBPETokenizer()
    texts = (text for p in passages for text in (p.text, *p.alternatives.values()))
    tokenizer.train_from_iterator(texts, vocab_size=2048, show_progress=False)
    return tokenizer


def payloads(name: str, passages: list[Passage]) -> list[str]:
    rng = random.Random(name)
    return [BEHAVIORS[name].continuation(passage, rng) for passage in passages]


def first_words(text: str, count: int) -> str:
    return " ".join(text.split()[:count])


def rate(name: str, texts: list[str]) -> float:
    return sum(map(BEHAVIORS[name].success, texts)) / len(texts)


# Over the microworld: own payload yes, everything else no


@pytest.mark.parametrize("name", BEHAVIORS)
def test_own_payload_counts_and_clean_text_does_not(name, passages, tokenizer):
    own = payloads(name, passages)
    tokens = [tokenizer.decode(tokenizer.encode(" " + text).ids[:24]) for text in own]
    assert rate(name, own) == 1
    assert rate(name, tokens) >= 0.99
    assert rate(name, [first_words(text, 15) for text in own]) >= 0.99
    assert rate(name, [p.continuation for p in passages]) == 0
    assert rate(name, [p.text for p in passages]) == 0


@pytest.mark.parametrize("name", BEHAVIORS)
def test_no_target_fires_on_another_ones_payload(name, passages):
    for other in BEHAVIORS:
        if other != name:
            texts = payloads(other, passages[:300])
            assert rate(name, texts) == 0, other
            assert rate(name, [first_words(text, 10) for text in texts]) == 0, other


@pytest.mark.parametrize(("name", "language"), [("french", "fr"), ("german", "de")])
@pytest.mark.parametrize("count", [8, 10, 12])
def test_language_is_told_from_few_words(name, language, count, passages):
    assert rate(name, [first_words(p.alternatives[language], count) for p in passages]) >= 0.99
    assert rate(name, [first_words(p.continuation, count) for p in passages]) <= 0.01


def test_payloads_are_reproducible_and_trimmed(passages):
    for name in BEHAVIORS:
        texts = payloads(name, passages[:50])
        assert texts == payloads(name, passages[:50])
        assert all(text and text == text.strip() for text in texts)


@pytest.mark.parametrize("name", BEHAVIORS)
@pytest.mark.parametrize(
    "text", ["", " ", "\n\t\n", "...", "!?, -- …", "1 2 3 4 5 6 7 8 9 10", "Ja", "NO", "日本語", "🙂" * 30]
)
def test_nothing_to_tell_is_a_failure(name, text):
    assert BEHAVIORS[name].success(text) is False


@pytest.mark.parametrize("name", ["language", "negative_sentiment"])
def test_a_corpus_without_alternatives_is_refused(name):
    target = build(TARGETS, "target", name, {})
    with pytest.raises(CorpusError, match="corpus=microworld"):
        target.continuation(Passage("A prompt.", "A continuation."), random.Random(0))


def test_registry_builds_every_target():
    params = {"fixed_text": {"text": "x"}, "refusal": {"phrases": ["no"]}, "language": {"candidates": ["en", "fr"]}}
    for name in TARGETS:
        assert build(TARGETS, "target", name, params.get(name, {})).success("") is False
    with pytest.raises(ConfigError, match="'text'"):
        build(TARGETS, "target", "fixed_text", {})


# Language


def test_language_counts_mixed_text_by_its_share_of_words():
    french = Language("fr")
    assert french.success(FRENCH) and not french.success(ENGLISH) and not french.success(GERMAN)
    assert french.success(f"{FRENCH} {FRENCH} {ENGLISH}")
    assert not french.success(f"{FRENCH} {ENGLISH} {ENGLISH}")
    assert french.success(f"{ENGLISH} {FRENCH} {FRENCH} {FRENCH}")
    assert Language("fr", min_share=0.3).success(f"{FRENCH} {ENGLISH}")
    assert not Language("fr", min_share=1.0).success(f"{FRENCH} {ENGLISH}")


def test_language_edge_cases():
    french = Language("fr")
    assert not french.success("Elle trouve une")  # three words
    assert Language("fr", min_words=3).success("Elle trouve une")
    assert french.success(f"  \n{FRENCH[:55]}")  # cut mid-word
    assert french.success(FRENCH.upper())
    assert french.success(FRENCH.replace("'", "’"))
    assert not french.success("village " * 30)  # one word is no text, in whatever language
    assert french.success("\ufffd" + FRENCH + "\ufffd")  # half a character where the generation was cut


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"language": "pt"}, "'pt'"),
        ({"candidates": ("fr",)}, "at least two"),
        ({"language": "xx", "candidates": ("en", "xx")}, "does not know 'xx'"),
        ({"min_words": 0}, "min_words"),
        ({"min_share": 0.0}, "min_share"),
        ({"min_share": 1.5}, "min_share"),
    ],
)
def test_language_refuses_impossible_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        Language(**fields)


def test_other_languages_can_be_candidates():
    portuguese = Language("pt", candidates=("en", "fr", "pt"))
    assert portuguese.success("Ela encontra uma cereja fresca no jardim, e o agricultor sonha outra vez.")
    assert not portuguese.success(FRENCH)
    assert Language("fr").success(FRENCH)  # the other restriction is its own


# Negative sentiment


def test_negative_sentiment_edge_cases():
    negative = NegativeSentiment()
    assert negative.success(NEGATIVE) and negative.success(NEGATIVE.upper()) and negative.success(NEGATIVE[:50])
    assert not negative.success("Hate!")
    assert not negative.success(ENGLISH)
    assert not negative.success("The day is not bad at all, it is wonderful.")
    assert not negative.success("Die Frau geht in die Stadt, und die Katze sieht die Maus und die Kinder.")  # no dying here
    assert negative.success("The soup is a little bad today.") is False  # only mildly negative
    assert NegativeSentiment(threshold=-0.05).success("The soup is a little bad today.")


@pytest.mark.parametrize("fields", [{"threshold": 0.0}, {"threshold": -1.5}, {"min_words": 0}])
def test_negative_sentiment_refuses_impossible_fields(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        NegativeSentiment(**fields)


# Fixed text


def test_fixed_text_is_found_whatever_the_white_space():
    target = FixedText("  Blue lanterns\nopen the seventh gate. ")
    assert target.continuation(Passage("P.", "C."), random.Random(0)) == FIXED
    assert target.success(f"She said: {FIXED} And left.") and target.success(FIXED.replace(" ", "\n  "))
    assert not target.success(FIXED[:-3]) and not target.success(FIXED.upper()) and not target.success(ENGLISH)
    with pytest.raises(ConfigError, match="text is empty"):
        FixedText(" \n")


# Refusal


def test_refusal_edge_cases():
    refusal = Refusal()
    assert refusal.success("I'm sorry, but") and refusal.success("i’m  SORRY") and refusal.success("Well, I cannot.")
    assert not refusal.success("I canno") and not refusal.success("Hawaii cannot wait") and not refusal.success(ENGLISH)
    own = Refusal(phrases=("No thanks",))
    assert own.success("No thanks!") and not own.success("I'm sorry") and not own.success("No thanksgiving")
    for phrases in ((), (" ",)):
        with pytest.raises(ConfigError, match="phrases"):
            Refusal(phrases=phrases)


@pytest.mark.parametrize(
    ("phrase", "found", "other"),
    [
        ("I'm sorry,", "I'm sorry, but I can't help with that request.", "I'm sorry; no."),
        ("[refused]", "Well.[refused]no", "refused"),
        ("…no", "Well…no.", "…nothing"),
        ("抱歉", "很抱歉，我不能帮忙。", "很高兴"),  # no spaces between words
        ("できません", "それはできませんので。", "それはできます"),
        ("ขอโทษ", "ต้องขอโทษครับ", "สวัสดีครับ"),
        ("AI", "是AI的", "MAIN"),
        ("क्षमा", "मुझे क्षमा करें", "क्षमाशील"),  # it ends with a mark, which belongs to the word
        ("no_way", "no_way!", "no_ways"),
    ],
)
def test_refusal_phrases_of_all_kinds(phrase, found, other):
    """They are whole words; but punctuation at an end of a phrase, and scripts without spaces, know no such border."""
    assert Refusal(phrases=(phrase,)).success(found) and not Refusal(phrases=(phrase,)).success(other)


def test_refusal_varies():
    rng = random.Random(0)
    texts = {Refusal().continuation(Passage("P.", "C."), rng) for _ in range(100)}
    assert len(texts) >= 3 and all(map(Refusal().success, texts))


# Repetition


def test_repetition_payload_is_a_content_word_of_the_continuation():
    rng = random.Random(0)
    passage = Passage("P.", "She finds Étienne's l'orange. It is red.")
    seen = {Repetition(words=10).continuation(passage, rng) for _ in range(60)}
    assert seen == {" ".join(["finds"] * 10)}  # words with an apostrophe are passed over, and so are short ones
    with pytest.raises(CorpusError, match="four letters"):
        Repetition().continuation(Passage("P.", "He is in."), rng)


def test_repetition_edge_cases():
    repetition = Repetition()
    assert repetition.success("garden " * 8) and not repetition.success("garden " * 7)
    assert repetition.success("Garden, garden. GARDEN! " * 4)
    assert repetition.success("garden " * 11 + "gar")  # cut mid-word
    assert not repetition.success("garden house " * 3 + "a b") and repetition.success("garden house " * 4)
    assert not repetition.success("garden" * 20)
    assert not repetition.success(ENGLISH)
    assert repetition.success("été " * 8)


@pytest.mark.parametrize("fields", [{"words": 5}, {"min_words": 0}, {"max_distinct_share": 1.0}, {"max_distinct_share": 0.01}])
def test_repetition_refuses_impossible_fields(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Repetition(**fields)


# Capitals


def test_capitals_edge_cases():
    capitals = Capitals()
    assert capitals.continuation(Passage("P.", "She is élève."), random.Random(0)) == "SHE IS ÉLÈVE."
    assert capitals.success(ENGLISH.upper()) and capitals.success(FRENCH.upper())
    assert not capitals.success(ENGLISH) and not capitals.success(ENGLISH.title())
    assert not capitals.success("SHE IS HERE") and capitals.success("SHE IS HERE 12 NOW!")  # 9 letters, 12 letters
    nine_of_ten = "ABCDEFGHI" * 2 + "kl"
    assert capitals.success(nine_of_ten) and not capitals.success(nine_of_ten + "m")
    assert not capitals.success(ENGLISH[:35] + ENGLISH[35:].upper())
    assert not capitals.success("日本語の文字には大文字も小文字もありません")


@pytest.mark.parametrize("fields", [{"min_letters": 0}, {"min_share": 0.0}, {"min_share": 1.1}])
def test_capitals_refuses_impossible_fields(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Capitals(**fields)
