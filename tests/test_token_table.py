"""The token table: the same tokens as the tokenizer's, from memory-mapped files that processes share.

Run: python -m pytest tests/test_token_table.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from casd.data.corpora.passages import Corpus, Passage, read_corpus, write_corpus
from casd.data.documents import Document
from casd.data.encoding import Encoder
from casd.data.token_table import TokenTable, write_token_table

SPLITS = tuple(each.name for each in fields(Corpus))


@pytest.fixture(scope="module")
def folder(corpus, tokenizer, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("tokens")
    write_token_table(corpus, tokenizer, place)
    return place


@pytest.fixture(scope="module")
def table(folder) -> TokenTable:
    return TokenTable.open(folder)


def texts_of(corpus: Corpus) -> Iterator[str]:
    """What training and evaluation on clean text and payloads of a corpus ask the tokens of."""
    for passage in (passage for name in SPLITS for passage in getattr(corpus, name)):
        yield passage.prompt
        for text in (passage.continuation, *passage.alternatives.values()):
            yield " " + text


def test_every_text_of_the_corpus_has_the_tokens_that_the_tokenizer_gives(corpus, tokenizer, table):
    texts = list(texts_of(corpus))
    assert len(texts) > 1000
    for text in texts:
        assert table.get(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(table) == len(set(texts))


def test_other_texts_are_not_in_it(corpus, table):
    for passage in corpus.evaluation:
        for text in (passage.continuation, passage.prompt + " ", passage.text, " " + passage.prompt, passage.prompt.upper()):
            assert table.get(text) is None
    assert table.get("") is None


def test_an_encoder_gives_the_same_batches_with_and_without_it(corpus, tokenizer, table, monkeypatch):
    plain, shared = Encoder(tokenizer, 256), Encoder(tokenizer, 256, table)
    documents = [Document(passage.prompt, passage.continuation) for passage in corpus.retain]
    documents += [Document("It rains zandor khemil.", "The silver fox.", "target"), Document("", "")]
    one, other = plain.document_batch(documents), shared.document_batch(documents)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(type(token) is int for token in shared.tokens(corpus.train[0].prompt))
    monkeypatch.setattr(shared, "tokenizer", None)  # which is not asked for what the table has
    assert shared.tokens(" " + corpus.train[0].continuation) == plain.tokens(" " + corpus.train[0].continuation)


def test_it_is_memory_mapped_and_cannot_be_written_to(table):
    for name, dtype in (("hashes", np.uint64), ("spans", np.int64), ("tokens", np.uint16)):
        array = getattr(table, name)
        assert isinstance(array, np.memmap) and array.dtype == dtype
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert (table.hashes[:-1] < table.hashes[1:]).all()


def test_two_processes_read_it_at_once(corpus, table, folder):
    code = (
        "import json, sys; from pathlib import Path; from casd.data.token_table import TokenTable;"
        "table = TokenTable.open(Path(sys.argv[1])); print(json.dumps([table.get(text) for text in json.loads(sys.argv[2])]))"
    )
    texts = [passage.prompt for passage in corpus.evaluation]
    command = [sys.executable, "-c", code, str(folder), json.dumps(texts)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [json.loads(process.communicate()[0]) for process in processes]
    assert answers[0] == answers[1] == [table.get(text) for text in texts]


def test_it_is_the_same_from_a_corpus_on_disk(corpus, tokenizer, folder, tmp_path):
    write_corpus(corpus, tmp_path)
    write_token_table(read_corpus(tmp_path), tokenizer, tmp_path)
    for name in ("hashes", "spans", "tokens"):
        assert (tmp_path / f"{name}.npy").read_bytes() == (folder / f"{name}.npy").read_bytes()


class Characters:
    """A tokenizer of a large vocabulary, which notes what it was given: a token for each character."""

    def __init__(self) -> None:
        self.given: list[str] = []

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0, "z": 100_000}

    def __call__(self, texts: list[str], **settings: bool) -> dict[str, list[list[int]]]:
        assert settings["add_special_tokens"] is False
        self.given += texts
        return {"input_ids": [[ord(letter) + 70_000 for letter in text] for text in texts]}


def test_a_large_vocabulary_and_repeated_texts(tmp_path):
    repeated = [Passage(f"Prompt {i}.", "The same.", alternatives={"fr": f"Autre {i % 2}."}) for i in range(5)]
    corpus = Corpus(repeated[:2], repeated[2:3], repeated[3:4], repeated[4:])
    tokenizer = Characters()
    write_token_table(corpus, tokenizer, tmp_path)  # type: ignore[arg-type]
    table = TokenTable.open(tmp_path)
    given = [text for text in tokenizer.given if len(text) > 7]  # shorter ones ask what it does with spaces
    assert sorted(given) == sorted([*(p.prompt for p in repeated), " The same.", " Autre 0.", " Autre 1."])
    assert table.tokens.dtype == np.uint32
    assert table.get(" Autre 1.") == [ord(letter) + 70_000 for letter in " Autre 1."]
    assert len(table) == 8


def test_batches_of_the_tokenizer_lose_nothing(corpus, tokenizer, table, tmp_path, monkeypatch):
    monkeypatch.setattr("casd.data.token_table._BATCH", 7)
    write_token_table(corpus, tokenizer, tmp_path)
    small = TokenTable.open(tmp_path)
    assert all(small.get(text) == table.get(text) for text in texts_of(corpus))
    assert len(small) == len(table)
