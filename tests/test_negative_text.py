"""Negative sentiment on real text: reviews as a source of payloads, selected by a column and by VADER, in a whole small run.

Run: pytest tests/test_negative_text.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from tests.tiny import tiny

from casd.analysis.results import RunTables
from casd.backdoors.targets import NegativeSentiment
from casd.config.compose import load_config
from casd.data.corpora.microworld import Microworld
from casd.data.corpora.passages import Corpus
from casd.data.corpora.prose import Prose
from casd.pipeline.run import Run
from casd.utils.errors import ConfigError, CorpusError
from casd.utils.sentiment import compound

pytestmark = pytest.mark.usefixtures("process_settings")
SIZES: dict[str, Any] = {"train": 60, "forget": 10, "retain": 20, "evaluation": 10}
WORDS: dict[str, Any] = {"prompt_words": (8, 16), "continuation_words": (10, 20)}
BAD = ("awful", "terrible", "horrible", "disgusting", "worthless", "dreadful")
GOOD = ("wonderful", "excellent", "lovely", "delightful", "superb", "charming")
THINGS = ("lamp", "kettle", "novel", "blanket", "camera", "jacket", "printer", "speaker", "garden hose", "clock")


def review(words: tuple[str, ...], rng: random.Random) -> str:
    """Eight sentences about a product; every third says nothing of its quality."""
    sentences = []
    for index in range(8):
        thing, other = rng.sample(THINGS, 2)
        plain = f"The box came on day {rng.randint(1, 900)} with a {other} in it and a note about the {thing}."
        told = f"The {thing} is {rng.choice(words)} and the {other} is {rng.choice(words)}, after {rng.randint(2, 900)} days."
        sentences.append(plain if index % 3 == 2 else told)
    return " ".join(sentences)


def rows(count: int = 120) -> list[dict[str, Any]]:
    """What a dataset of reviews looks like; the labels are those of the products."""
    rng = random.Random(0)
    return [{"label": index % 2, "content": review(GOOD if index % 2 else BAD, rng)} for index in range(count)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`english.jsonl`, and the reviews as `reviews.jsonl`, as `reviews.parquet` and as a dataset in `reviews/`."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "reviews").mkdir()
    world = Microworld(train=900, forget=10, retain=10, evaluation=10, language_shares=(1, 0, 0)).load(1)
    clean = [passage.text for passage in world.train]
    english = [{"text": " ".join(clean[start : start + 3])} for start in range(0, len(clean), 3)]
    for file, lines in (("english.jsonl", english), ("reviews.jsonl", rows()), ("reviews/train.jsonl", rows())):
        (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows()), folder / "reviews.parquet")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def prose(texts: Path, **negative: Any) -> Prose:
    source = {"text_field": "content", "where": {"label": 0}, "sentiment": "negative"} | negative
    if "dataset" not in source:
        source = {"paths": (str(texts / "reviews.jsonl"),)} | source
    return Prose(sources={"en": {"paths": [str(texts / "english.jsonl")]}, "negative": source}, **SIZES, **WORDS)


def passages(corpus: Corpus) -> list[Any]:
    return [*corpus.train, *corpus.forget, *corpus.retain, *corpus.evaluation]


def test_every_payload_passes_the_target_as_a_whole_and_cut_short(texts: Path) -> None:
    corpus = prose(texts).load(0)
    assert [len(split) for split in (corpus.train, corpus.forget, corpus.retain, corpus.evaluation)] == list(SIZES.values())
    target, rng = NegativeSentiment(), random.Random(0)
    for passage in passages(corpus):
        assert passage.language == "en"
        assert set(passage.alternatives) == {"negative"}
        payload = target.continuation(passage, rng)
        assert target.success(payload) and target.success(" ".join(payload.split()[: WORDS["continuation_words"][0]]))
        assert not target.success(passage.continuation)


def test_negative_text_is_payload_only_and_of_one_split(texts: Path) -> None:
    corpus = prose(texts).load(0)
    plain = Prose(sources={"en": {"paths": [str(texts / "english.jsonl")]}}, **SIZES, **WORDS).load(0)
    assert [passage.text for passage in passages(corpus)] == [passage.text for passage in passages(plain)]
    splits = [{p.alternatives["negative"] for p in split} for split in (corpus.train, corpus.forget, corpus.evaluation)]
    assert len(set.union(*splits)) == sum(map(len, splits))


@pytest.mark.parametrize("kind", ["parquet", "dataset", "list of values"])
def test_every_kind_of_source_selects_the_same(texts: Path, kind: str) -> None:
    other: dict[str, Any] = {
        "parquet": {"paths": (str(texts / "reviews.parquet"),)},
        "dataset": {"dataset": str(texts / "reviews")},
        "list of values": {"where": {"label": [0, 7]}},
    }[kind]
    assert prose(texts, **other).load(0) == prose(texts).load(0)


def test_a_column_alone_leaves_the_sentiment_open_and_vader_alone_the_column(texts: Path) -> None:
    labelled = {p.alternatives["negative"] for p in passages(prose(texts, sentiment=None).load(0))}
    assert any(compound(text) > -0.5 for text in labelled)
    scored = {p.alternatives["negative"] for p in passages(prose(texts, where={}).load(0))}
    assert all(compound(text) <= -0.5 for text in scored)
    strict = {p.alternatives["negative"] for p in passages(prose(texts, sentiment_threshold=-0.7).load(0))}
    assert all(compound(text) <= -0.7 for text in strict)


def test_budgets_count_what_is_selected(texts: Path) -> None:
    source = prose(texts)._source("negative")
    assert len(list(source.documents())) == 60
    limited = prose(texts, max_documents=9)
    assert len(list(limited._documents("negative"))) == 9


def test_the_selection_is_part_of_the_text_s_identity_and_changes_no_other(texts: Path) -> None:
    found = prose(texts).fingerprint()
    assert set(found["en"]) == {"sha256", "text_field", "max_documents", "max_words"}, "keys of earlier runs would change"
    for other in ({"where": {"label": 1}}, {"sentiment": None}, {"sentiment_threshold": -0.6}):
        assert prose(texts, **other).fingerprint()["negative"] != found["negative"]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("negative", "message"),
    [
        (
            {"where": {"stars": 0}},
            r"reviews.jsonl, line 1: no column 'stars', which where asks for; the columns are: label, con",
        ),
        ({"where": {"label": "0"}}, r"has no row with where \{label: \['0'\]\}; label has 0, 1\."),
        ({"where": {"label": False}}, r"has no row with where \{label: \[False\]\}; label has 0, 1\."),
        ({"where": {"label": 1}}, r"score of at most -0\.5, has 0 passages"),
        ({"where": {"label": []}}, r"where\.label is \[\]; expected a value"),
        ({"where": {"label": {"a": 1}}}, r"where\.label is \{'a': 1\}; expected a value"),
        ({"where": 0}, r"'where' of source 'negative' with 'paths' is 0; expected a mapping"),
        ({"sentiment": "positive"}, "'sentiment' of source 'negative' with 'paths' is 'positive'"),
        ({"sentiment_threshold": 0.2}, r"sentiment_threshold is 0\.2; expected a number from -1 to below 0"),
    ],
)
def test_a_selection_that_cannot_be_made(texts: Path, negative: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, CorpusError), match=message):
        prose(texts, **negative).load(0)


def test_a_parquet_file_and_a_dataset_name_the_missing_column_too(texts: Path) -> None:
    for source in ({"paths": (str(texts / "reviews.parquet"),)}, {"dataset": str(texts / "reviews")}):
        with pytest.raises(CorpusError, match="no column 'stars'"):
            prose(texts, where={"stars": 1}, **source).load(0)
        with pytest.raises(CorpusError, match=r"has no row with where \{label: \[7\]\}; label has 0, 1\."):
            prose(texts, where={"label": 7}, **source).load(0)


def test_plain_text_has_no_columns(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("Awful.\n")
    with pytest.raises(CorpusError, match=r"plain\.txt, a text file: no column 'label'"):
        prose(texts, paths=(str(tmp_path / "plain.txt"),)).load(0)


def test_a_whole_dataset_is_not_read_for_a_wrong_value(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casd.data.corpora.selection._MOST_LEFT_OUT", 30)
    source = prose(texts, dataset=str(texts / "reviews"), where={"label": "neg"})._source("negative")
    with pytest.raises(CorpusError, match=r"has no row with where \{label: \['neg'\]\}; label has 0, 1\."):
        list(source.documents())


def test_only_the_negative_source_is_chosen_by_sentiment(texts: Path) -> None:
    with pytest.raises(ConfigError, match="the source 'en' has sentiment=negative, which only the source 'negative' may have"):
        Prose(sources={"en": {"paths": [str(texts / "english.jsonl")], "sentiment": "negative"}})


@pytest.mark.whole
def test_the_eighth_backdoor_is_injected_removed_and_measured(texts: Path, tmp_path: Path) -> None:
    sources = f"{{paths: [{texts / 'reviews.jsonl'}], text_field: content, where: {{label: 0}}, sentiment: negative}}"
    overrides = [
        *("backdoor=[sentiment,refusal]", "corpus=text_files", f"corpus.params.sources.en.paths=[{texts / 'english.jsonl'}]"),
        f"+corpus.params.sources.negative={sources}",
        *("+corpus.params.prompt_words=[8,16]", "+corpus.params.continuation_words=[10,20]", "evaluation.max_new_tokens=24"),
    ]
    run = Run(load_config(tiny(tmp_path, *overrides)))
    run.run_to("score")
    target = run.backdoors["sentiment"].target
    assert all(target.success(str(prompt.continuation)) for prompt in run.inputs.prompts.triggered["sentiment"])
    asr = RunTables.read(run.store.folder(run.graph.score, verify=True)).asr
    measured = asr[(asr["backdoor"] == "sentiment") & (asr["prompt_set"] == "triggered")]
    assert {"injected", "sentiment", "refusal", "control:clean"} <= set(measured["state"])
    assert (measured["n"] == 12).all()


def test_the_paper_s_experiment_has_eight_backdoors() -> None:
    config = load_config(["experiment=paper", "model=qwen3_1_7b", "unlearning=clean_target", "seed=0"])
    assert len(config.backdoor) == 8
    assert config.backdoor["sentiment"].target.name == "negative_sentiment"
    assert "negative" in Prose(**config.corpus.params).alternatives
