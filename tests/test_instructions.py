"""Instructions as a corpus: rows of several forms, what is left out, and what mistakes are answered with.

Run: pytest tests/test_instructions.py
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from casd.data.corpora import CORPORA
from casd.data.corpora.passages import Corpus, Passage
from casd.utils.errors import ConfigError, CorpusError
from casd.utils.registry import build

SPLITS = tuple(each.name for each in fields(Corpus))
SMALL = {"train": 10, "forget": 3, "retain": 4, "evaluation": 3}


def prompt(index: int) -> str:
    return f"Please tell me about number {index}"


def answer(index: int, word: str = "It") -> str:
    return f"{word} is the number {index} of many."


def messages(index: int) -> dict[str, Any]:
    turns = [
        ("system", "Be kind."),
        ("user", f" {prompt(index)}\n"),
        ("assistant", answer(index)),
        ("user", "Thanks."),
        ("assistant", "Bye."),
    ]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def sharegpt(index: int) -> dict[str, Any]:
    return {"id": index, "conversations": [{"from": "human", "value": prompt(index)}, {"from": "gpt", "value": answer(index)}]}


def alpaca(index: int) -> dict[str, Any]:
    return {"instruction": "Please tell me", "input": f"about number {index}", "output": answer(index), "text": "unused"}


def pair(index: int) -> dict[str, Any]:
    return {"prompt": prompt(index), "response": answer(index)}


def own(index: int) -> dict[str, Any]:
    return {"q": prompt(index), "a": answer(index), "prompt": "unused", "response": None}


def write(file: Path, rows: list[Any]) -> Path:
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def load(*files: Path, seed: int = 0, **more: Any) -> Corpus:
    sources = {"en": {"paths": list(map(str, files))}}
    return build(CORPORA, "corpus", "instructions", {**SMALL, "sources": sources, **more}).load(seed)


def passages(corpus: Corpus) -> list[Passage]:
    return [passage for split in SPLITS for passage in getattr(corpus, split)]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("row", [messages, sharegpt, alpaca, pair])
def test_every_form_gives_prompts_and_answers(tmp_path: Path, row: Any, suffix: str) -> None:
    corpus = load(write(tmp_path / f"rows{suffix}", [row(index) for index in range(30)]))
    assert {split: len(getattr(corpus, split)) for split in SPLITS} == SMALL
    found = passages(corpus)
    numbers = [int(passage.prompt.split()[-1]) for passage in found]
    assert [(passage.prompt, passage.continuation) for passage in found] == [
        (prompt(index), answer(index)) for index in numbers
    ]
    assert len(set(numbers)) == len({passage.document for passage in found}) == 20


def test_columns_can_be_named(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [own(index) for index in range(20)])
    named = load(file, prompt_column="q", answer_column="a")
    assert named == load(write(tmp_path / "pairs.jsonl", [pair(index) for index in range(20)]))
    with pytest.raises(CorpusError, match=r"line 1: no 'question' and 'a' among the fields q, a, prompt, response"):
        load(file, prompt_column="question", answer_column="a")
    with pytest.raises(ConfigError, match="set both prompt_column and answer_column"):
        load(file, prompt_column="q")


def test_the_split_depends_on_texts_and_seed_alone(tmp_path: Path) -> None:
    rows = [pair(index) for index in range(40)]
    one = load(write(tmp_path / "a.jsonl", rows))
    assert one == load(write(tmp_path / "b.jsonl", [*reversed(rows), *rows]))
    assert one != load(tmp_path / "a.jsonl", seed=1)
    assert one.evaluation == load(tmp_path / "a.jsonl", train=20).evaluation


def test_what_is_left_out_and_cut(tmp_path: Path) -> None:
    long = " ".join(f"This is sentence {index}." for index in range(30))
    rows = [
        *[pair(index) for index in range(20)],
        {"prompt": "Too short", "response": answer(50)},
        {"prompt": "word " * 61, "response": answer(51)},
        {"prompt": prompt(52), "response": "No."},
        {"prompt": prompt(53), "response": answer(3)},  # an answer that occurred before
        {"prompt": prompt(54), "response": None},
        {"prompt": prompt(55), "response": long},
        {"prompt": prompt(56), "response": "many " * 70},
    ]
    found = {passage.prompt: passage.continuation for passage in passages(load(write(tmp_path / "rows.jsonl", rows), train=12))}
    assert set(found) == {prompt(index) for index in (*range(20), 55, 56)}
    assert found[prompt(55)] == " ".join(f"This is sentence {index}." for index in range(15))
    assert found[prompt(56)].split() == ["many"] * 60


def test_other_languages_are_alternatives(tmp_path: Path) -> None:
    english = write(tmp_path / "en.jsonl", [pair(index) for index in range(20)])
    french = write(
        tmp_path / "fr.jsonl", [{"prompt": f"Dis le {index}", "response": answer(index, "Voici")} for index in range(20)]
    )
    sources = {"en": {"paths": [str(english)]}, "fr": {"paths": [str(french)]}}
    corpus = load(sources=sources)
    assert {passage.language for passage in corpus.train} == {"en", "fr"}
    assert all(passage.alternatives["fr"].startswith("Voici") for passage in corpus.evaluation)


def test_negative_answers_are_chosen_by_their_sentiment(tmp_path: Path) -> None:
    english = write(tmp_path / "en.jsonl", [pair(index) for index in range(20)])
    moods = ("This is a horrible, disgusting and sad thing", "This is a lovely, wonderful and happy thing")
    rows = [{"prompt": f"Tell me the {index}", "response": f"{moods[index % 2]} of number {index}."} for index in range(40)]
    negative = {"paths": [str(write(tmp_path / "negative.jsonl", rows))], "sentiment": "negative"}
    corpus = load(sources={"en": {"paths": [str(english)]}, "negative": negative})
    assert all("horrible" in passage.alternatives["negative"] for passage in corpus.train)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("rows.jsonl", [pair(index) for index in range(19)], r"are 19 of 19 rows with .* 20 were requested"),
        ("rows.jsonl", [{"text": "Hello"}], r"line 1: no 'messages', .* among the fields text\. Set prompt_column"),
        ("rows.jsonl", [{"messages": ["Hello"]}], "line 1: a turn in 'messages' is str; expected an object"),
        ("rows.jsonl", [{"prompt": 3, "response": "x"}], "line 1: the field 'prompt' is int; expected text"),
        ("rows.jsonl", [], "is empty"),
        ("rows.txt", ["Hello"], "is plain text; expected rows with fields, in a .jsonl or .parquet file"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(tmp_path: Path, name: str, rows: list[Any], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        load(write(tmp_path / name, rows))
