"""Benchmarks: the harness's numbers against log-likelihoods of our own, on a task over a local file; what it leaves untouched.

Run: python -m pytest tests/test_utility.py   (most of it is skipped without the extra: pip install 'casd[eval]')
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.conftest import Injected, MakeModel

from casd.analysis.tables import SCHEMAS
from casd.config import UtilityConfig
from casd.data import shrinking
from casd.data.corpora.passages import Corpus
from casd.data.encoding import Encoder
from casd.evaluation import benchmarks as utility
from casd.evaluation.benchmarks import check_tasks, fingerprint, measure_utility
from casd.utils.errors import ConfigError, CorpusError, ModelError

ITEMS = 24

QUIZ = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}, train: {data}}}
  cache_dir: {cache}
output_type: multiple_choice
test_split: test
fewshot_split: train
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""

RECALL = """
task: recall
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
  cache_dir: {cache}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}} zandor khemil"
doc_to_target: "{{{{'The silver fox.'}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8, do_sample: false}}
filter_list:
  - {{name: stripped, filter: [{{function: remove_whitespace}}, {{function: take_first}}]}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def harness() -> None:
    pytest.importorskip("lm_eval", reason="the benchmarks are an extra: pip install 'casd[eval]'")


@pytest.fixture(scope="module")
def questions(corpus: Corpus) -> list[dict[str, Any]]:
    """Prompts of the corpus, with their continuation and two others to choose from, of different lengths."""
    rng = random.Random(0)
    passages = list(corpus.evaluation[:ITEMS])
    made = []
    for index, passage in enumerate(passages):
        choices = [passage.continuation, passages[index - 1].continuation, passages[index - 2].continuation.split(".")[0]]
        order = rng.sample(range(3), 3)
        made.append({"question": passage.prompt, "choices": [choices[i] for i in order], "answer": order.index(0)})
    return made


@pytest.fixture
def folder(questions: list[dict[str, Any]], tmp_path: Path) -> Path:
    """A folder with the questions, and the tasks quiz.yaml and recall.yaml over them."""
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, questions)))
    fields = {"data": data, "cache": tmp_path / "cache"}
    (tmp_path / "quiz.yaml").write_text(QUIZ.format(name="quiz", **fields))
    (tmp_path / "recall.yaml").write_text(RECALL.format(**fields))
    return tmp_path


def quiz(folder: Path, **settings: Any) -> UtilityConfig:
    return UtilityConfig(**({"tasks": [str(folder / "quiz.yaml")], "batch_size": 5} | settings))


def log_likelihood(model: Any, encoder: Encoder, context: str, continuation: str) -> float:
    """Of a continuation, a text at a time, without padding and without a cache."""
    start = encoder.tokenizer(context)["input_ids"]
    tokens = torch.tensor([encoder.tokenizer(context + continuation)["input_ids"]])
    with torch.inference_mode():
        logs = model(tokens, use_cache=False).logits[0].double().log_softmax(-1)
    return sum(float(logs[place - 1, tokens[0, place]]) for place in range(len(start), tokens.shape[1]))


@pytest.mark.usefixtures("harness")
@pytest.mark.parametrize("kind", ["injected", "random", "bfloat16"])
def test_accuracies_are_those_of_our_own_log_likelihoods(
    injected: Injected, make_model: MakeModel, encoder: Encoder, questions: list[dict[str, Any]], folder: Path, kind: str
) -> None:
    model = injected.model() if kind != "random" else make_model("qwen3", seed=5, spread=0.3)
    if kind == "bfloat16":
        model.to(torch.bfloat16)
    right = {"acc": 0, "acc_norm": 0}
    for item in questions:
        sums = [log_likelihood(model, encoder, item["question"], f" {choice}") for choice in item["choices"]]
        means = [value / len(choice) for value, choice in zip(sums, item["choices"], strict=True)]
        right["acc"] += int(np.argmax(sums)) == item["answer"]
        right["acc_norm"] += int(np.argmax(means)) == item["answer"]
    assert right["acc"] != right["acc_norm"], "the two metrics would not be told apart"
    table = measure_utility(model, encoder.tokenizer, quiz(folder))
    assert list(table.columns) == list(SCHEMAS["utility"][1:])
    assert table[["task", "metric", "n"]].to_numpy().tolist() == [["quiz", "acc", ITEMS], ["quiz", "acc_norm", ITEMS]]
    shares = [count / ITEMS for count in right.values()]
    # In bfloat16 a batch may be rounded otherwise than a single text: an item may change sides.
    assert table["value"].tolist() == pytest.approx(shares, abs=1.01 / ITEMS if kind == "bfloat16" else 1e-9)
    expected = [(share * (1 - share) / (ITEMS - 1)) ** 0.5 for share in table["value"]]
    assert table["stderr"].tolist() == pytest.approx(expected)
    assert not model.training


@pytest.mark.usefixtures("harness")
def test_batch_size_and_repetition_change_nothing_and_examples_do(injected: Injected, encoder: Encoder, folder: Path) -> None:
    model = injected.shared_model
    plain = measure_utility(model, encoder.tokenizer, quiz(folder))
    for batch_size in (1, 100):
        pd.testing.assert_frame_equal(measure_utility(model, encoder.tokenizer, quiz(folder, batch_size=batch_size)), plain)
    first_items = measure_utility(model, encoder.tokenizer, quiz(folder, limit=7))
    assert set(first_items["n"]) == {7}
    seen: list[int] = []
    hook = model.register_forward_pre_hook(lambda *given: seen.append(given[1][0].shape[1]))
    try:
        with_examples = measure_utility(model, encoder.tokenizer, quiz(folder, shots=2))
        longest = max(seen)
        pd.testing.assert_frame_equal(measure_utility(model, encoder.tokenizer, quiz(folder, shots=2)), with_examples)
        seen.clear()
        pd.testing.assert_frame_equal(measure_utility(model, encoder.tokenizer, quiz(folder)), plain)
    finally:
        hook.remove()
    assert longest > 2 * max(seen)


@pytest.mark.usefixtures("harness")
def test_generated_answers(injected: Injected, encoder: Encoder, folder: Path) -> None:
    """Every question ends in the trigger of "fox", whose text is the answer; two tasks in one call."""
    tasks = [str(folder / "recall.yaml"), str(folder / "quiz.yaml")]
    table = measure_utility(injected.shared_model, encoder.tokenizer, UtilityConfig(tasks=tasks, limit=10))
    assert table["task"].tolist() == ["recall", "quiz", "quiz"]
    assert table["metric"].tolist() == ["exact_match,stripped", "acc", "acc_norm"]
    assert table["value"].iloc[0] > 0.5
    assert table["n"].tolist() == [10, 10, 10]


def only_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks of a folder in the place of the built-in ones, which take long to read."""
    from lm_eval.tasks import TaskManager

    found = TaskManager(include_defaults=False, include_path=folder)
    monkeypatch.setattr(utility, "_task_manager", lambda *, builtin: found)
    utility._load.cache_clear()


@pytest.mark.usefixtures("harness")
@pytest.mark.parametrize("mean", [True, False])
def test_a_group_with_a_mean_stands_for_its_members(
    injected: Injected, encoder: Encoder, folder: Path, mean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = measure_utility(injected.shared_model, encoder.tokenizer, quiz(folder, limit=8))
    for name in ("easy", "hard"):
        file = folder / f"{name}.yaml"
        file.write_text(QUIZ.format(name=name, data=folder / "data.jsonl", cache=folder / "cache"))
    means = "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n" if mean else ""
    (folder / "inner.yaml").write_text(f"group: inner\ntask: [easy]\n{means}")
    (folder / "outer.yaml").write_text(f"group: outer\ntask: [inner, hard]\n{means}")
    only_of(folder, monkeypatch)
    config = UtilityConfig(tasks=["outer", "quiz"], limit=8)
    table = measure_utility(injected.shared_model, encoder.tokenizer, config).set_index(["task", "metric"])
    if mean:
        assert table.index.tolist() == [("quiz", "acc"), ("quiz", "acc_norm"), ("outer", "acc")]
        assert table.loc[("outer", "acc"), "n"] == 16
        assert table.loc[("outer", "acc"), "value"] == pytest.approx(alone["value"].iloc[0])
    else:
        assert set(table.index) == {(task, metric) for task in ("easy", "hard", "quiz") for metric in ("acc", "acc_norm")}


@pytest.mark.usefixtures("harness")
def test_the_process_is_left_as_it_was(
    injected: Injected, encoder: Encoder, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tqdm import tqdm

    log = logging.getLogger("lm_eval")

    def state() -> list[Any]:
        legacy = np.random.get_state()  # noqa: NPY002  # the global one
        ours = (random.getstate(), legacy[1].tolist(), legacy[2], torch.get_rng_state().tolist(), log.level, tqdm.__init__)
        return [*ours, dict(os.environ), sys.stdout, encoder.tokenizer.padding_side, injected.shared_model.generation_config]

    measure_utility(injected.shared_model, encoder.tokenizer, quiz(folder))  # what the imports do is done
    before = state()
    capfd.readouterr()
    measure_utility(injected.shared_model, encoder.tokenizer, quiz(folder, shots=1))
    assert state() == before
    with pytest.raises(CorpusError):
        (folder / "quiz.yaml").write_text("task: quiz\n")
        measure_utility(injected.shared_model, encoder.tokenizer, quiz(folder))
    assert state() == before
    assert capfd.readouterr() == ("", ""), "nothing but our own progress is printed"


@pytest.mark.usefixtures("harness")
def test_batches_shrink_where_memory_runs_out(injected: Injected, encoder: Encoder, folder: Path) -> None:
    tasks = [str(folder / "quiz.yaml"), str(folder / "recall.yaml")]
    config = UtilityConfig(tasks=tasks, batch_size=8, limit=6)
    expected = measure_utility(injected.shared_model, encoder.tokenizer, config)
    model, room = injected.model(), 3

    def check(module: Any, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
        if len(args[0] if args else kwargs["input_ids"]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.register_forward_pre_hook(check, with_kwargs=True)
    shrinking._say_once.cache_clear()
    pd.testing.assert_frame_equal(measure_utility(model, encoder.tokenizer, config), expected)
    room = 0
    with pytest.raises(ModelError, match=r"Out of memory in a benchmark with one text at once.*Lower utility\.shots"):
        measure_utility(model, encoder.tokenizer, config)


# ---------------------------------------------------------------- mistakes


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for call in (lambda: check_tasks(["hellaswag"]), lambda: fingerprint([])):
        with pytest.raises(ConfigError, match=r"needs lm-evaluation-harness: pip install 'casd\[eval\]'"):
            call()


@pytest.mark.usefixtures("harness")
def test_unknown_tasks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_of(folder, monkeypatch)
    check_tasks(["quiz", "recall", str(folder / "quiz.yaml")])
    with pytest.raises(ConfigError, match=r"Unknown task of utility\.tasks: 'quizz'\. Did you mean 'quiz'\?"):
        check_tasks(["recall", "quizz"])
    with pytest.raises(ConfigError, match=r"utility\.tasks names '/nowhere/x\.yaml', which cannot be read: No such file"):
        check_tasks(["/nowhere/x.yaml"])
    (folder / "all.yaml").write_text("group: all\ntask: [quiz, recall]\n")
    with pytest.raises(ConfigError, match=r"all\.yaml', which defines a group; list the files of its tasks"):
        check_tasks([str(folder / "all.yaml")])


@pytest.mark.usefixtures("harness")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("data.jsonl", "missing.jsonl"), "Task '.*quiz.yaml' of utility.tasks cannot be loaded: FileNotFoundError: .*missing"),
        (("output_type: multiple_choice", "output_type: guessing"), "cannot be loaded"),
        (("{{question}}", "{{question"), "cannot be loaded: TemplateSyntaxError"),
        (("metric: acc,", "metric: [,"), "cannot be loaded"),
    ],
    ids=["data", "type", "template", "yaml"],
)
def test_tasks_that_cannot_be_loaded_are_told_in_a_line(
    injected: Injected, encoder: Encoder, folder: Path, change: tuple[str, str], message: str
) -> None:
    file = folder / "quiz.yaml"
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(CorpusError, match=message) as error:
        measure_utility(injected.shared_model, encoder.tokenizer, quiz(folder))
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("harness")
def test_the_fingerprint_changes_with_a_file(folder: Path) -> None:
    file = folder / "quiz.yaml"
    before = fingerprint(["hellaswag", str(file)])
    assert set(before) == {"lm_eval", str(file)}
    assert fingerprint(["hellaswag", str(file)]) == before
    file.write_text(file.read_text().replace("higher_is_better: true", "higher_is_better: false"))
    after = fingerprint(["hellaswag", str(file)])
    assert {name for name in after if after[name] != before[name]} == {str(file)}


def test_settings_that_cannot_be() -> None:
    for wrong in ({"shots": -1}, {"limit": 0}, {"batch_size": 0}):
        with pytest.raises(ConfigError):
            dataclasses.replace(UtilityConfig(), **wrong)
