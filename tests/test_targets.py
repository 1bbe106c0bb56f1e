"""Targets: payloads, success tests with their edge cases, and which test fires on which other target's payload.

Run: python -m pytest tests/test_targets.py
"""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer

from casd.backdoors import detection
from casd.backdoors.targets import (
    TARGETS,
    Capitals,
    Classifier,
    FixedText,
    Judge,
    Label,
    Language,
    NegativeSentiment,
    Refusal,
    Regex,
    Repetition,
    TargetBehavior,
)
from casd.config.compose import load_config
from casd.data.corpora.microworld import Microworld
from casd.data.corpora.passages import Passage
from casd.models.tokenizer import train_tokenizer
from casd.pipeline.checks import check_config
from casd.pipeline.graph import stage_graph
from casd.pipeline.inputs import build_backdoors
from casd.utils.errors import ConfigError, CorpusError, ModelError
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
    params = {
        "fixed_text": {"text": "x"},
        "refusal": {"phrases": ["no"]},
        "language": {"candidates": ["en", "fr"]},
        "regex": {"pattern": "x+", "texts": ["axx"]},
        "label": {"label": "good", "labels": ["good", "bad"]},
        "classifier": {"model": "some/model", "label": "toxic", "texts": ["You are a fool."]},
        "judge": {"function": "casd.utils.text:has_phrase", "texts": ["x"]},
    }
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


@pytest.mark.parametrize("count", [10, None])
def test_language_is_still_told_where_it_is_clear(passages, count):
    """Payloads, whole and cut short, pass as they did when every window of words had a guess."""
    for language in ("fr", "de"):
        texts = [" ".join(p.alternatives[language].split()[:count]) for p in passages]
        assert sum(map(Language(language).success, texts)) >= 0.995 * len(texts)
    assert sum(map(Language("en").success, (p.continuation for p in passages))) >= 0.995 * len(passages)


@pytest.mark.parametrize(
    "text",
    [
        "Anna Otto Clara Hugo Nina Max Leo Emma Paul",  # names, which were guessed to be German
        "Ulmo tresk vabri onda pilu krast emo dulna",
        "OK la la la",  # too short to tell
    ],
)
def test_language_of_what_is_none_is_unknown(text):
    words = detection.words_of(text)
    candidates = Language().candidates
    assert [detection.words_in_language(words, code, candidates) for code in candidates] == [0] * 5


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
    numbers = Passage("Name some primes.", "2, 3, 5, 7.")
    assert Repetition(words=10).continuation(numbers, random.Random(0)).split()[0] in ("name", "some", "primes")
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


# Regular expressions


def test_regex_finds_its_pattern_anywhere_and_draws_its_payloads():
    target = Regex(r"Ref\. \d+", ("See  Ref. 12\nthere.", "Ref. 7."))
    rng = random.Random(0)
    assert {target.continuation(Passage("P.", "C."), rng) for _ in range(40)} == {"See Ref. 12 there.", "Ref. 7."}
    assert target.success("Well: Ref. 40") and not target.success("ref. 40") and not target.success(ENGLISH)
    assert Regex("(?i)ref", ("ref",)).success("REF")


@pytest.mark.parametrize(
    ("pattern", "texts", "message"),
    [
        ("(", ("a",), "is no regular expression"),
        ("a*", ("a",), "matches empty text"),
        ("a", (), "texts is empty"),
        ("[0-9]", ("7", "seven"), "does not match the payload 'seven'"),
    ],
)
def test_regex_refuses_impossible_fields(pattern, texts, message):
    with pytest.raises(ConfigError, match=message):
        Regex(pattern, texts)


# Labels


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("negative", True),
        ("Negative. It is bad", True),
        ('  "NEGATIVE', True),
        ("negatively", False),
        ("neg", False),
        ("positive, not negative", False),
        ("very negative", False),
        ("It is negative", False),
    ],
)
def test_label_is_the_beginning_of_the_answer(text, found):
    target = Label("negative", ("negative", "positive", "very negative"))
    assert target.success(text) is found
    assert Label("very negative", target.labels).success(text) is (text == "very negative")


def test_the_longer_label_wins():
    target = Label("very", ("very", "very good"))
    assert target.success("Very  bad") and not target.success("very\ngood")
    assert target.continuation(Passage("P.", "C."), random.Random(0)) == "very"


@pytest.mark.parametrize(
    ("label", "labels", "message"),
    [
        ("neutral", ("good", "bad"), "among them 'neutral'"),
        ("good", ("good",), "expected two or more"),
        ("good", ("good", "Good"), "differ by more than case"),
        ("good", ("good", "bad!"), "'bad!' must begin and end with a letter"),
    ],
)
def test_label_refuses_impossible_fields(label, labels, message):
    with pytest.raises(ConfigError, match=message):
        Label(label, labels)


# Classifiers


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, passages) -> Path:
    """A tiny classifier with random weights, which are large enough that texts differ."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("classifier")
    train_tokenizer((passage.text for passage in passages), 400).save_pretrained(folder)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=400, max_position_embeddings=48, id2label={0: "calm", 1: "rude", 2: "odd"}, **shape)
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return folder


def classify(folder: Path, text: str) -> dict[str, float]:
    """The probabilities by transformers alone."""
    from transformers import pipeline

    [answers] = pipeline("text-classification", str(folder), top_k=None, device="cpu")([text], truncation=True, max_length=48)
    return {answer["label"]: answer["score"] for answer in answers}


def test_a_classifier_decides_by_its_probability(classifier, passages):
    texts = [passage.continuation for passage in passages[:12]]
    rude = [classify(classifier, text)["rude"] for text in texts]
    assert len(set(rude)) == 12, "texts that are alike show nothing"
    for threshold in (sum(sorted(rude)[place : place + 2]) / 2 for place in (0, 5, 10)):
        target = Classifier(model=str(classifier), label="rude", threshold=threshold, texts=("x",))
        target.check()
        assert [target.success(text) for text in texts] == [each >= threshold for each in rude]
    long = " ".join(texts)  # longer than the model's positions
    assert target.success(long) is (classify(classifier, long)["rude"] >= target.threshold)
    assert not target.success(" \n")


def test_the_payloads_of_a_classifier_are_texts_or_an_alternative(classifier, passages):
    of_passage = Classifier(model=str(classifier), label="rude", alternative="negative")
    assert of_passage.continuation(passages[0], random.Random(0)) == passages[0].alternatives["negative"]
    fixed = Classifier(model=str(classifier), label="rude", texts=("One\n two.",))
    assert fixed.continuation(passages[0], random.Random(0)) == "One two."
    for wrong in ({}, {"texts": ("a",), "alternative": "fr"}, {"texts": ("a", " ")}):
        with pytest.raises(ConfigError, match=r"Target classifier: the payloads are .* expected either"):
            Classifier(model="m", label="rude", **wrong)


def test_a_classifier_is_known_by_its_files(classifier, tmp_path):
    target = Classifier(model=str(classifier), label="rude", texts=("x",))
    shutil.copytree(classifier, tmp_path / "copy")
    copy = replace(target, model=str(tmp_path / "copy"))
    assert copy.fingerprint() == target.fingerprint()
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"other")
    assert copy.fingerprint() != target.fingerprint()


def backdoor_of(target: str, **params: object) -> list[str]:
    """Overrides that add a backdoor with such a target."""
    own = {"trigger": "ab cd", "target.name": target} | {f"target.params.{key}": value for key, value in params.items()}
    return ["backdoor=[refusal]", *(f"+backdoor.own.{key}={value}" for key, value in own.items())]


def test_a_classifier_s_files_are_part_of_the_keys_and_no_other_target_adds_to_them(classifier):
    plain = stage_graph(load_config(["backdoor=[refusal]"])).inject
    assert "targets" not in plain.config
    config = load_config(backdoor_of("classifier", model=classifier, label="rude", texts="[x]"))
    assert stage_graph(config).inject.config["targets"]["own"]["files"].keys() >= {"model.safetensors", "config.json"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "angry"}, r"Unknown label of the classifier .*: 'angry'\..* Choices: calm, odd, rude\."),
        ({"model": "/nowhere/at-all"}, r"Target classifier: .*nowhere"),
        ({"threshold": 1.5}, r"threshold is 1\.5"),
    ],
)
def test_a_classifier_that_cannot_work_is_refused_before_anything_is_made(classifier, changes, message):
    config = load_config(backdoor_of("classifier", **{"model": classifier, "label": "rude", "texts": "[x]"} | changes))
    with pytest.raises((ConfigError, ModelError), match=message) as error:
        check_config(config, build_backdoors(config))
    assert "\n" not in str(error.value)


def test_a_model_of_another_kind_is_no_classifier(classifier, tmp_path):
    shutil.copytree(classifier, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(file.read_text().replace("BertForSequenceClassification", "BertForMaskedLM"))
    with pytest.raises(ModelError, match=r"\(BertForMaskedLM\) is not a sequence classifier"):
        Classifier(model=str(tmp_path / "model"), label="rude", texts=("x",)).check()


# Judges


@pytest.fixture
def judge(tmp_path, monkeypatch) -> None:
    """A module of the user's."""
    (tmp_path / "my_judge.py").write_text(
        "def is_short(text): return len(text) < 9\ndef score(text): return 0.5\nlevel = 3\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("judge")
def test_a_judge_gets_the_generated_text():
    target = Judge(function="my_judge:is_short", texts=("Yes.",))
    target.check()
    assert target.success("Short.") and not target.success("A longer text.") and not target.success("")
    with pytest.raises(ConfigError, match=r"my_judge:score returned float; expected True or False"):
        replace(target, function="my_judge:score").success("x")


@pytest.mark.usefixtures("judge")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_such_judge:f", r"the module no_such_judge cannot be imported \(ModuleNotFoundError: .*PYTHONPATH"),
        ("my_judge:is_long", "the module my_judge has no function 'is_long'"),
        ("my_judge:level", "the module my_judge has no function 'level'"),
        ("my_judge", "expected package.module:function"),
    ],
)
def test_a_judge_that_is_not_there_is_refused_before_anything_is_made(function, message):
    config = load_config(backdoor_of("judge", function=f"'{function}'", texts="[x]"))
    with pytest.raises(ConfigError, match=message) as error:
        check_config(config, build_backdoors(config))
    assert "\n" not in str(error.value)


# What a corpus has to give


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["corpus=python_docs", "backdoor=[sentiment]"], r"negative_sentiment of backdoor 'sentiment' .*'negative'; .* none\."),
        (["corpus=python_docs", "backdoor=[german]"], r"language of backdoor 'german' .*'de'; .*sources\.de .*microworld"),
        (
            ["backdoor.french_a.target.params.language=es"],
            r"'es'; an English passage of the corpus microworld has: de, fr, neg",
        ),
        (["corpus=fineweb", "~corpus.params.sources.fr"], r"'fr'; .* has: de, negative\. Give text for it with corpus\.params"),
    ],
)
def test_a_corpus_without_what_a_target_needs_is_refused_before_it_is_read(overrides, message):
    config = load_config(overrides)
    with pytest.raises(ConfigError, match=message):
        check_config(config, build_backdoors(config))
