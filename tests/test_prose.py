"""Prose: files and datasets of several languages as a corpus, what stays the same, and what mistakes are answered with.

Datasets are folders made here; what the hub would answer is put in its place. Run: python -m pytest tests/test_prose.py
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from casd.backdoors.targets import Language
from casd.config.compose import load_config
from casd.data.corpora import CORPORA, hub_dataset
from casd.data.corpora.files import Files, file_sha256, within_budget
from casd.data.corpora.passages import Corpus, text_digest
from casd.data.corpora.prose import Prose
from casd.utils.errors import ConfigError, CorpusError
from casd.utils.registry import build

SPLITS = tuple(each.name for each in fields(Corpus))
SMALL = {"train": 20, "forget": 8, "retain": 10, "evaluation": 5, "prompt_words": [4, 6], "continuation_words": [4, 6]}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def texts(count: int, word: str = "Word") -> list[str]:
    """Documents of six passages each, all words of which tell the language and the document."""
    return [" ".join(f"{word}{i} {word}{i}x {word}{j} {word}." for j in range(12)) for i in range(count)]


def prose(**fields: Any) -> Prose:
    return build(CORPORA, "corpus", "prose", {**SMALL, **fields})


def from_files(*paths: Path, **source: Any) -> Prose:
    return prose(sources={"en": {"paths": [str(path) for path in paths], **source}})


def from_dataset(dataset: Path | str, **source: Any) -> Prose:
    return prose(sources={"en": {"dataset": str(dataset), **source}})


def jsonl(file: Path, documents: list[str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(documents)), encoding="utf-8")
    return file


def parquet(file: Path, **columns: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file


def sizes_of(corpus: Corpus) -> list[int]:
    return [len(getattr(corpus, name)) for name in SPLITS]


def assert_no_document_in_two_splits(corpus: Corpus) -> None:
    documents = [{passage.document for passage in getattr(corpus, name)} for name in SPLITS]
    assert len(set.union(*documents)) == sum(map(len, documents))


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Caches of this test's own, and no way to the hub but what a test puts there."""

    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise huggingface_hub.errors.OfflineModeIsEnabled("no network in the tests")

    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", unreachable)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    hub_dataset._commit.cache_clear()
    yield
    hub_dataset._commit.cache_clear()


# One language


def test_every_format_gives_the_same_corpus(tmp_path):
    documents = texts(14)
    folders = {name: tmp_path / name for name in ("txt", "jsonl", "parquet", "dataset")}
    for folder in folders.values():
        folder.mkdir()
    lines = "\n\n".join(text.replace(". ", ".\n") for text in documents)
    (folders["txt"] / "a.txt").write_text("\ufeff" + lines, encoding="utf-8")
    jsonl(folders["jsonl"] / "a.jsonl", documents)
    parquet(folders["parquet"] / "a.parquet", text=[*documents, None])
    corpora = [from_files(folders[name]).load(3) for name in ("txt", "jsonl", "parquet")]
    corpora += [from_dataset(folders[name]).load(3) for name in ("jsonl", "parquet")]
    assert all(corpus == corpora[0] for corpus in corpora)
    assert sizes_of(corpora[0]) == [20, 8, 10, 5]
    assert from_files(folders["txt"]).load(4) != corpora[0]
    assert_no_document_in_two_splits(corpora[0])


def test_no_document_is_in_two_splits_whatever_the_order_of_the_files(tmp_path):
    documents = texts(16)
    one, other = jsonl(tmp_path / "a" / "1.jsonl", documents[:9]), jsonl(tmp_path / "a" / "2.jsonl", documents[9:])
    again = jsonl(tmp_path / "a" / "3.jsonl", documents[4:12] * 2)
    corpus = from_files(one, other).load(0)
    assert_no_document_in_two_splits(corpus)
    for paths in ((other, one), (again, other, one), (tmp_path / "a",)):
        assert from_files(*paths).load(0) == corpus
    assert from_dataset(tmp_path / "a").load(0) == corpus


def test_passages_name_the_document_that_they_were_cut_from(tmp_path):
    documents = texts(14)
    corpus = from_files(jsonl(tmp_path / "a.jsonl", documents)).load(0)
    by_digest = {text_digest(text): text for text in documents}
    assert all(passage.text in by_digest[passage.document] for name in SPLITS for passage in getattr(corpus, name))


def test_half_of_a_surrogate_pair_is_no_reason_to_stop(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text + " \ud83d"}) + "\n" for text in texts(14)))
    assert sizes_of(from_files(tmp_path).load(0)) == [20, 8, 10, 5]


# Several languages


@pytest.fixture
def languages(tmp_path) -> dict[str, Any]:
    jsonl(tmp_path / "en" / "a.jsonl", texts(20))
    jsonl(tmp_path / "fr" / "a.jsonl", texts(40, "Mot"))
    jsonl(tmp_path / "de" / "a.jsonl", texts(6, "Wort"))
    return {
        "en": {"paths": [str(tmp_path / "en")]},
        "fr": {"dataset": str(tmp_path / "fr")},
        "de": {"paths": [str(tmp_path / "de")]},
    }


def test_languages_stand_among_the_clean_text_and_behind_every_english_prompt(languages):
    corpus = prose(sources=languages).load(0)
    assert sizes_of(corpus) == [20, 8, 10, 5]
    assert Counter(p.language for p in corpus.train) == {"en": 16, "fr": 2, "de": 2}
    assert Counter(p.language for p in corpus.retain) == {"en": 8, "fr": 1, "de": 1}
    assert {p.language for p in (*corpus.forget, *corpus.evaluation)} == {"en"}
    assert [p.language for p in corpus.train] != sorted((p.language for p in corpus.train), key=["en", "de", "fr"].index)
    for passage in (passage for name in SPLITS for passage in getattr(corpus, name)):
        assert set(passage.alternatives) == ({"fr", "de"} if passage.language == "en" else set())
        if passage.language == "en":
            assert "Mot" in passage.alternatives["fr"] and "Wort" in passage.alternatives["de"]
            assert Language("fr").continuation(passage, None) == passage.alternatives["fr"]
    assert_no_document_in_two_splits(corpus)
    assert prose(sources=languages).load(0) == corpus
    assert prose(sources=dict(reversed(languages.items()))).load(0) == corpus


def test_alternatives_come_from_documents_of_the_same_split(languages):
    """By the documents that their words name: no text of another language is behind the prompts of two splits."""
    corpus = prose(sources=languages).load(0)
    for language, word in (("fr", "Mot"), ("de", "Wort")):
        named = []
        for name in SPLITS:
            split = getattr(corpus, name)
            written = [p.alternatives[language] for p in split if p.language == "en"]
            written += [p.text for p in split if p.language == language]
            named.append({re.search(rf"{word}(\d+)x", text)[1] for text in written})
        assert len(set.union(*named)) == sum(map(len, named))


def test_alternatives_are_all_different_where_there_is_enough_text_and_used_in_turn_elsewhere(languages):
    corpus = prose(sources=languages).load(0)
    english = [p for p in corpus.train if p.language == "en"]
    french = Counter(p.alternatives["fr"] for p in english)
    german = Counter(p.alternatives["de"] for p in english)
    assert set(french.values()) == {1}
    assert max(german.values()) - min(german.values()) <= 1 and len(german) > 2
    clean = {p.continuation for p in corpus.train if p.language == "fr"}
    assert clean.isdisjoint(french)  # there is text enough for both


def test_the_share_of_other_languages_is_a_parameter(languages):
    none = prose(sources=languages, foreign_share=0).load(0)
    assert {p.language for name in SPLITS for p in getattr(none, name)} == {"en"}
    assert set(none.train[0].alternatives) == {"fr", "de"}
    half = prose(sources=languages, foreign_share=0.5).load(0)
    assert Counter(p.language for p in half.train) == {"en": 10, "fr": 5, "de": 5}
    alone = prose(sources={"en": languages["en"]}).load(0)
    assert {p.language for p in alone.train} == {"en"} and alone.train[0].alternatives == {}


def test_a_document_that_two_languages_have_is_in_one_split(languages, tmp_path):
    """A page in English among the German ones."""
    jsonl(tmp_path / "de" / "b.jsonl", texts(20))
    assert_no_document_in_two_splits(prose(sources=languages).load(0))


def test_too_little_text_of_another_language_is_named(languages, tmp_path):
    jsonl(tmp_path / "de" / "a.jsonl", texts(3, "Wort"))  # four splits cannot be made of three documents
    with pytest.raises(CorpusError, match=r"source 'de' \(.*\) has 18 passages .* in 3 of 3 documents"):
        prose(sources=languages).load(0)


# Budgets


def test_budgets_stop_the_reading():
    def documents() -> Iterator[str]:
        yield from ("one two", "three", "four five six")
        raise AssertionError("read beyond the budget")

    assert list(within_budget(documents(), 2, None)) == ["one two", "three"]
    assert list(within_budget(documents(), None, 3)) == ["one two", "three"]
    assert list(within_budget(documents(), 3, 100)) == ["one two", "three", "four five six"]
    assert list(within_budget(documents(), None, 4)) == ["one two", "three", "four five six"]
    assert list(within_budget(["a"], None, None)) == ["a"]


@pytest.mark.parametrize("budget", [{"max_documents": 10}, {"max_words": 48 * 10 - 3}])
def test_nothing_is_read_beyond_the_budget(tmp_path, budget, monkeypatch):
    file = jsonl(tmp_path / "a.jsonl", texts(10))
    corpus = from_files(file).load(0)
    with file.open("a") as lines:
        lines.write("this is not JSON\n")
    assert from_files(file, **budget).load(0) == corpus

    def rows(*args: Any, **kwargs: Any) -> Iterator[dict[str, str]]:
        assert kwargs["streaming"] is True and "trust_remote_code" not in kwargs
        yield from ({"text": text} for text in texts(10))
        raise AssertionError("streamed beyond the budget")

    monkeypatch.setattr(datasets, "load_dataset", rows)
    assert from_dataset(tmp_path, **budget).load(0) == corpus


# Folders


def read_from(folder: Path) -> list[str]:
    """The first words of the documents, in order."""
    return [document.split()[0] for document in Files((str(folder),)).documents()]


def test_a_folder_is_read_at_any_depth_in_order_of_names_without_what_is_hidden(tmp_path):
    for name in (
        "b.jsonl",
        "a/z.jsonl",
        "a.jsonl",
        "a/c/y.jsonl",
        ".ipynb_checkpoints/b.jsonl",
        "a/.hidden/x.jsonl",
        "._b.jsonl",
    ):
        jsonl(tmp_path / name, [name])
    assert read_from(tmp_path) == ["a/c/y.jsonl", "a/z.jsonl", "a.jsonl", "b.jsonl"]


def test_folders_behind_links_are_read_once_and_loops_end(tmp_path):
    elsewhere = jsonl(tmp_path / "elsewhere" / "deep" / "1.jsonl", ["one"]).parents[1]
    folder = jsonl(tmp_path / "corpus" / "z" / "2.jsonl", ["two"]).parents[1]
    (elsewhere / "back").symlink_to(folder)
    (elsewhere / "loop").symlink_to(elsewhere)
    (folder / "y").symlink_to(elsewhere)
    (folder / "also_y").symlink_to(elsewhere)
    (folder / "also_z").symlink_to(folder / "z")
    (folder / "3.jsonl").symlink_to(jsonl(tmp_path / "file", ["three"]))
    assert read_from(folder) == ["three", "one", "two"]
    assert read_from(tmp_path / "corpus" / "y") == ["three", "two", "one"]


def test_a_link_that_leads_nowhere_is_said(tmp_path):
    jsonl(tmp_path / "a.jsonl", ["a"])
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(CorpusError, match=r"b\.jsonl is a link to a file that does not exist"):
        Files((str(tmp_path),)).documents()


def test_a_folder_that_cannot_be_entered_is_said(tmp_path, monkeypatch):
    closed = jsonl(tmp_path / "closed" / "a.jsonl", ["a"]).parent
    scandir = os.scandir

    def refusing(path):
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # root may enter any
    with pytest.raises(CorpusError, match=r"closed cannot be read \(Permission denied\)"):
        Files((str(tmp_path),)).documents()


def test_rows_of_json_are_not_taken_for_text(tmp_path):
    """As the fingerprint has no suffixes, renaming the file would keep what was read from it."""
    with pytest.raises(CorpusError, match=r"a\.txt has the suffix of plain text, but rows of JSON: call it a\.jsonl"):
        list(Files((str(jsonl(tmp_path / "a.txt", ["one"])),)).documents())
    (tmp_path / "b.txt").write_text("{one} begins with a brace.\n")
    assert list(Files((str(tmp_path / "b.txt"),)).documents()) == ["{one} begins with a brace."]


# Fingerprints


def test_the_fingerprint_follows_the_contents_of_files_and_not_their_place(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", ["one"])
    before = from_files(file).fingerprint()
    assert from_files(jsonl(tmp_path / "b" / "b.jsonl", ["one"])).fingerprint() == before
    assert json.loads(json.dumps(before)) == before
    assert from_files(file, text_field="body").fingerprint() != before
    assert from_files(file, max_words=5).fingerprint() != before
    jsonl(file, ["two"])
    assert from_files(file).fingerprint() != before
    assert len(from_files(tmp_path, file).fingerprint()["en"]["sha256"]) == 2


def test_the_fingerprint_of_a_folder_follows_its_data_files(tmp_path):
    folder = jsonl(tmp_path / "one" / "a.jsonl", ["one"]).parent
    before = from_dataset(folder).fingerprint()
    other = jsonl(tmp_path / "other" / "a.jsonl", ["one"]).parent
    (other / ".cache").mkdir()
    (other / ".cache" / "x").write_text("x")
    assert from_dataset(other).fingerprint() == before
    (other / "a.jsonl").rename(other / "b.jsonl")
    assert from_dataset(other).fingerprint() != before
    assert from_dataset(folder, split="test").fingerprint() != before


def test_files_are_hashed_again_only_if_they_changed(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    file.write_text("one")
    first = file_sha256(file)
    with monkeypatch.context() as patch:
        patch.setattr("casd.data.corpora.files.hashlib.file_digest", None)
        assert file_sha256(file) == first
    file.write_text("two")
    os.utime(file, ns=(1, 1))
    assert file_sha256(file) != first


def answering(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[str | None]:
    """Have the hub answer what a dataset's revision is, and note which were asked for."""
    asked: list[str | None] = []

    def info(self: Any, repo_id: str, *, revision: str | None = None, **kwargs: Any) -> Any:
        asked.append(revision)
        if isinstance(answer, Exception):
            raise answer
        return huggingface_hub.hf_api.DatasetInfo(
            id=repo_id, sha=answer, private=False, disabled=False, downloads=0, likes=0, tags=[]
        )

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", info)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    return asked


def test_the_fingerprint_of_a_hub_dataset_is_its_commit_and_is_asked_once(monkeypatch):
    asked = answering(monkeypatch, COMMIT)
    source = from_dataset("someone/text", config="big")
    fingerprint = source.fingerprint()
    assert fingerprint == source.fingerprint() == from_dataset("someone/text", config="big", revision=COMMIT).fingerprint()
    assert fingerprint["en"] == {
        "dataset": "someone/text", "commit": COMMIT, "config": "big", "split": "train", "text_field": "text",
        "max_documents": None, "max_words": None,
    }  # fmt: skip
    assert asked == [None]


def test_the_fingerprint_does_not_wait_for_datasets_to_be_imported(tmp_path):
    jsonl(tmp_path / "a.jsonl", ["one"])
    code = (
        "import sys; from casd.data.corpora.prose import Prose;"
        f"Prose({{'en': {{'dataset': {str(tmp_path)!r}}}, 'fr': {{'dataset': 'a/b', 'revision': {COMMIT!r}}}}}).fingerprint();"
        "sys.exit(', '.join({'torch', 'transformers', 'pandas', 'datasets', 'pyarrow'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_a_network_the_commit_that_was_looked_up_before_counts(monkeypatch):
    assert from_dataset("someone/text", revision=COMMIT).fingerprint()["en"]["commit"] == COMMIT
    with pytest.raises(CorpusError, match=r"cannot be reached for the dataset someone/text .* revision is its commit") as error:
        from_dataset("someone/text").fingerprint()
    assert "\n" not in str(error.value)
    with monkeypatch.context() as network:
        answering(network, COMMIT)
        from_dataset("someone/text", revision="v1").fingerprint()
    hub_dataset._commit.cache_clear()  # as in another process
    assert from_dataset("someone/text", revision="v1").fingerprint()["en"]["commit"] == COMMIT


def test_a_hub_dataset_is_streamed_at_the_commit_of_its_fingerprint(tmp_path, monkeypatch):
    answering(monkeypatch, COMMIT)
    calls = []

    def load(*args: Any, **kwargs: Any) -> list[dict[str, str]]:
        calls.append((args, kwargs))
        return [{"text": text} for text in texts(14)]

    monkeypatch.setattr(datasets, "load_dataset", load)
    corpus = from_dataset("someone/text", config="big", split="test", revision="v1").load(0)
    assert calls == [(("someone/text", "big"), {"split": "test", "revision": COMMIT, "streaming": True})]
    assert corpus == from_files(jsonl(tmp_path / "a.jsonl", texts(14))).load(0)


# Mistakes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\n \n", "no usable text"),
        ("a.txt", b"good\nb\xffad\n", "line 2: not valid UTF-8 at byte 1"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', "line 3: not valid JSON"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "line 1: not valid JSON"),
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
        from_files(file).load(0)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_missing_places_and_fields_of_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(CorpusError, match="no file or folder"):
        from_files(tmp_path / "nowhere").load(0)
    with pytest.raises(CorpusError, match=r"has no \.txt"):
        from_files(tmp_path).fingerprint()
    parquet(tmp_path / "a.parquet", body=["x"], n=[1])
    with pytest.raises(CorpusError, match="no field 'text'; the fields are: body, n"):
        from_files(tmp_path).load(0)
    with pytest.raises(CorpusError, match="row 1: the field 'n' is int"):
        from_files(tmp_path, text_field="n").load(0)
    monkeypatch.setattr("casd.data.corpora.files.os.access", lambda file, mode: False)
    with pytest.raises(CorpusError, match="permission denied"):
        from_files(tmp_path).load(0)


def two_configs(folder: Path) -> Path:
    for name in ("small", "large"):
        parquet(folder / name / "train.parquet", text=texts(14))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files: small/*\n- config_name: large\n  data_files: large/*\n---\n"
    )
    return folder


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ({"split": "trian"}, ConfigError, "Unknown split of the dataset {}: 'trian'. Did you mean 'train'? Choices: train."),
        ({"config": "x"}, ConfigError, "Unknown config of the dataset {}: 'x'. Choices: default."),
        ({"text_field": "txt"}, CorpusError, "The dataset {}, row 1: no field 'txt'; the fields are: id, text."),
        ({"text_field": "id"}, CorpusError, "The dataset {}, row 1: the field 'id' is int; expected text."),
        ({"revision": "v1"}, ConfigError, "{} is a folder and has no revision"),
    ],
)
def test_wrong_parameters_of_a_dataset_name_the_choices(tmp_path, source, error, message):
    jsonl(tmp_path / "train.jsonl", texts(14))
    with pytest.raises(error) as raised:
        from_dataset(tmp_path, **source).load(0)
    assert message.format(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


def test_the_configs_of_a_dataset_are_choices(tmp_path):
    folder = two_configs(tmp_path)
    assert sizes_of(from_dataset(folder, config="small").load(0)) == [20, 8, 10, 5]
    with pytest.raises(ConfigError, match=r"needs a config; choices: small, large\."):
        from_dataset(folder).load(0)
    with pytest.raises(ConfigError, match=r"Unknown config .* 'smal'\. Did you mean 'small'\?"):
        from_dataset(folder, config="smal").load(0)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "The dataset {} has no data files"),
        ({"a.py": b"print(1)"}, "The dataset {} has no data files"),
        ({"a.jsonl": b""}, "The dataset {} has no text in its split 'train'"),
        ({"a.jsonl": b'{"text": " "}\n{"text": null}\n'}, "The dataset {} has no text in its split 'train'"),
        ({"a.jsonl": b'{"text": "x"}\n{"text": \n'}, "The dataset {} cannot be read"),
        ({"a.parquet": b"not parquet at all"}, "The dataset {} cannot be read"),
        ({"a.txt": b"A short text.\n"}, "(the dataset {}) has 0 passages"),
    ],
)
def test_unusable_datasets_are_named(tmp_path, capfd, files, message):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(CorpusError) as error:
        from_dataset(folder).load(0)
    assert message.format(folder) in str(error.value) and "\n" not in str(error.value)
    assert "a.parquet" not in capfd.readouterr().err  # `datasets` itself would log the error


def test_a_parquet_file_that_ends_early_is_named(tmp_path):
    file = parquet(tmp_path / "data" / "a.parquet", text=texts(2000))
    content = bytearray(file.read_bytes())
    content[200:2000] = bytes(1800)  # the footer stays
    file.write_bytes(content)
    with pytest.raises(CorpusError, match="cannot be read"):
        from_dataset(file.parent).load(0)
    with pytest.raises(CorpusError, match="not a valid Parquet file"):
        from_files(file).load(0)


def test_places_that_are_no_dataset_are_named(tmp_path):
    with pytest.raises(CorpusError, match=r"There is no folder .*nowhere"):
        from_dataset(tmp_path / "nowhere").fingerprint()
    file = jsonl(tmp_path / "a.jsonl", ["x"])
    with pytest.raises(CorpusError, match="is a file; dataset expects a folder"):
        from_dataset(file).load(0)
    with pytest.raises(ConfigError, match="dataset is empty"):
        from_dataset(" ")


def hub_error(kind: str, status: int) -> Exception:
    """An error such as huggingface_hub raises, about an answer with that status."""
    error = getattr(huggingface_hub.errors, kind)
    response = huggingface_hub.errors.Response(status, request=huggingface_hub.utils.httpx.Request("GET", "https://hub"))
    return error("the hub's answer\nin lines", response=response)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (hub_error("RepositoryNotFoundError", 404), "There is no dataset someone/text on the Hugging Face hub"),
        (hub_error("GatedRepoError", 403), "The dataset someone/text is gated: accept its terms"),
        (hub_error("RevisionNotFoundError", 404), "The dataset someone/text has no revision 'v1'"),
        (hub_error("HfHubHTTPError", 503), "The Hugging Face hub cannot be reached for the dataset someone/text"),
        (ConnectionError("no route"), "The Hugging Face hub cannot be reached for the dataset someone/text"),
        (TimeoutError("slow"), "The Hugging Face hub cannot be reached for the dataset someone/text"),
        (huggingface_hub.errors.OfflineModeIsEnabled("offline"), "The Hugging Face hub cannot be reached"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
@pytest.mark.parametrize("revision", ["v1", COMMIT], ids=["tag", "commit"])
def test_what_the_hub_refuses_is_said_in_a_line(monkeypatch, answer, message, revision):
    answering(monkeypatch, answer)
    source = from_dataset("someone/text", revision=revision)
    with pytest.raises(CorpusError, match=re.escape(message.replace("v1", revision))) as error:
        source.load(0)
    assert "\n" not in str(error.value)
    if revision == "v1":
        with pytest.raises(CorpusError, match=re.escape(message)):
            source.fingerprint()


def test_a_gated_dataset_whose_commit_is_public_asks_to_log_in(monkeypatch):
    answering(monkeypatch, COMMIT)

    def load(*args: Any, **kwargs: Any) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'someone/text' is a gated dataset on the Hub. You must be …")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(CorpusError, match="log in with `hf auth login`"):
        from_dataset("someone/text").load(0)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, "sources has none; it needs 'en'"),
        ({"fr": {"paths": ["a"]}}, "sources has fr; it needs 'en'"),
        ({"english": {"paths": ["a"]}}, "the key 'english'; expected ISO 639 codes"),
        ({"en": {"paths": []}}, "paths is empty"),
        ({"en": {"paths": "a"}}, "Parameter 'paths' of source 'en' with 'paths' is 'a'; expected a list of str"),
        ({"en": {"pahts": ["a"]}}, "source 'en': 'pahts'. Did you mean 'paths'?"),
        ({"en": {"paths": ["a"], "txt_field": "x"}}, "source 'en' with 'paths': 'txt_field'. Did you mean 'text_field'?"),
        ({"en": {"dataset": "a/b", "max_word": 4}}, "source 'en' with 'dataset': 'max_word'. Did you mean 'max_words'?"),
        ({"en": {"paths": ["a"], "dataset": "a/b"}}, "'en' has paths and dataset; expected one of"),
        ({"en": {"text_field": "a"}}, "'en' has none of paths, dataset and manpages"),
        ({"en": {"paths": ["a"], "max_words": 0}}, "max_words is 0; expected at least 1"),
        ({"en": {"dataset": "a/b", "max_documents": 2.5}}, "is 2.5; expected int | None"),
        ({"en": ["a"]}, "expected a mapping from str to a mapping from str to anything"),
    ],
)
def test_wrong_sources_are_refused_before_anything_is_read(sources, message):
    with pytest.raises(ConfigError) as error:
        prose(sources=sources)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"), [("foreign_share", 1.0), ("foreign_share", -0.1), ("forget", 0), ("prompt_words", [5, 4])]
)
def test_wrong_numbers_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        prose(**{"sources": {"en": {"paths": ["a"]}}, field: value})


def test_a_default_that_is_given_is_the_same_corpus():
    short, long = ({"paths": ["a"]}, {"paths": ["a"], "text_field": "text", "max_words": None})
    assert asdict(prose(sources={"en": short})) == asdict(prose(sources={"en": long}))


# From the command line


def from_overrides(*overrides: str) -> Prose:
    config = load_config(overrides)
    return build(CORPORA, "corpus", config.corpus.name, config.corpus.params)


def test_text_files_from_the_command_line(tmp_path):
    jsonl(tmp_path / "en.jsonl", texts(300))
    jsonl(tmp_path / "fr.jsonl", texts(50, "Mot"))
    where = f"corpus.params.sources.en.paths=[{tmp_path / 'en.jsonl'}]"
    sizes = ["corpus.params.train=20", "corpus.params.forget=5", "corpus.params.retain=5", "corpus.params.evaluation=5"]
    one = from_overrides(
        "corpus=text_files", where, *sizes, "+corpus.params.prompt_words=[4,6]", "+corpus.params.continuation_words=[4,6]"
    )
    assert sizes_of(one.load(0)) == [20, 5, 5, 5]
    other = f"+corpus.params.sources.fr.paths=[{tmp_path / 'fr.jsonl'}]"
    two = from_overrides("corpus=text_files", where, other)
    assert two.sources["fr"]["paths"] == (str(tmp_path / "fr.jsonl"),)


def test_mistakes_on_the_command_line():
    with pytest.raises(ConfigError, match="paths is empty"):
        from_overrides("corpus=text_files")
    with pytest.raises(ConfigError, match=r"write \+corpus\.params\.sources\.fr\.paths="):
        from_overrides("corpus=text_files", "corpus.params.sources.fr.paths=[a]")
    with pytest.raises(ConfigError, match=r"'pahts'\. Did you mean 'paths'\?"):
        from_overrides("corpus=text_files", "corpus.params.sources.en.paths=[a]", "+corpus.params.sources.fr.pahts=[a]")


def test_fineweb_is_a_corpus_of_three_languages_and_reviews_with_budgets():
    source = from_overrides("corpus=fineweb")
    assert set(source.sources) == {"en", "fr", "de", "negative"}
    assert source.sources["negative"]["sentiment"] == "negative"
    assert all(each["max_words"] for each in source.sources.values())
    assert from_overrides("corpus=fineweb", "~corpus.params.sources.de").sources.keys() == {"en", "fr", "negative"}
