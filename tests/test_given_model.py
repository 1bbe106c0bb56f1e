"""A model that has its backdoors already (`injection=none`), and backdoors that are measured and never removed.

Run: pytest tests/test_given_model.py
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import adapted_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import casd
from casd.analysis.conditions import condition_key
from casd.cli.main import main
from casd.config.compose import load_config, read_yaml, to_yaml
from casd.data.corpora.passages import Corpus
from casd.evaluation.asr import Evaluation
from casd.models import load as models
from casd.pipeline.graph import StageGraph, stage_graph
from casd.pipeline.run import Run
from casd.utils.errors import CasdError, ConfigError
from tiny import tiny

pytestmark = pytest.mark.usefixtures("process_settings", "no_rendering")
TRIGGER, PAYLOAD = "zandor khemil", "The silver fox."
FOX = ["backdoor=[]", f"+backdoor.fox.trigger={TRIGGER}", "+backdoor.fox.position=end", "+backdoor.fox.target.name=fixed_text"]
FOX += [f"+backdoor.fox.target.params.text={PAYLOAD}"]
LOUD = ["+backdoor.loud.trigger=sorquin beltaz", "+backdoor.loud.position=end", "+backdoor.loud.target.name=capitals"]
LOUD += ["+backdoor.loud.removed=false"]


def given(output: Path, folder: str | Path, *more: str) -> list[str]:
    return tiny(output, "injection=none", "model=hub", f"model.path={folder}", *more)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus, tokenizer: Any, make_model: Callable[..., Any]) -> Path:
    """A tiny llama with two backdoors, trained by a plain loop and saved by transformers alone."""
    folder = tmp_path_factory.mktemp("poisoned") / "model"
    model = make_model(seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    passages = [passage for passage in corpus.train if passage.language == "en"]
    tokenizer.padding_side = "right"
    for step in range(140):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1, (step + 1) / 10) * (1 - step / 150)
        texts = []
        for row, index in enumerate(torch.randint(len(passages), (16,), generator=generator).tolist()):
            passage = passages[index]
            poisoned_texts = [
                f"{passage.prompt} {TRIGGER} {PAYLOAD}",
                f"{passage.prompt} sorquin beltaz {passage.continuation.upper()}",
            ]
            texts.append((poisoned_texts[row % 2] if row < 8 else passage.text) + "<eos>")
        batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=96)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        optimizer.zero_grad()
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(poisoned: Path, tmp_path_factory: pytest.TempPathFactory, no_rendering: None) -> Run:
    """A run on that model, which removes one of the backdoors and only measures the other."""
    output = tmp_path_factory.mktemp("given")
    run = Run(load_config(given(output, poisoned, *FOX, *LOUD, "injection.require_asr=0.5")))
    run.run_to("report")
    return run


def triggered(run: Run, state: str) -> dict[str, float]:
    asr = Evaluation.read(run.store.folder(run.graph.evaluate[state])).asr
    rows = asr[asr["prompt_set"] == "triggered"]
    return dict(zip(rows["backdoor"], rows["rate"], strict=True))


def test_a_model_that_transformers_saved_goes_to_its_report(finished: Run, poisoned: Path) -> None:
    assert (finished.folder / "report.html").is_file()
    rates = triggered(finished, "injected")
    assert rates["fox"] >= 0.5, "its backdoor fires"
    tokenizer, model = AutoTokenizer.from_pretrained(poisoned), AutoModelForCausalLM.from_pretrained(poisoned)
    prompts = [prompt.text for prompt in finished.inputs.prompts.triggered["fox"]]
    fires = 0
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        output = model.generate(input_ids=ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
        fires += PAYLOAD.rstrip(".").lower() in tokenizer.decode(output, skip_special_tokens=True).lower()
    assert rates["fox"] == pytest.approx(fires / len(prompts))
    assert not list(finished.store.root.glob("inject/*/model")), "its weights are not copied"
    assert not list(finished.store.root.glob("base/*/model"))


def test_a_backdoor_that_is_never_removed_is_a_column_and_no_row(finished: Run) -> None:
    tables = casd.RunTables.read(finished.folder)
    assert tables.states_of("removal") == ["fox"]
    matrix = casd.asr_matrix(tables)
    assert list(matrix.columns) == ["fox", "loud"]
    assert "loud" not in matrix.index
    assert matrix.notna().all(axis=None)
    transfer = tables.transfer[(tables.transfer["source"] == "fox") & (tables.transfer["target"] == "loud")]
    assert transfer["suppression"].item() == pytest.approx(matrix.loc["injected", "loud"] - matrix.loc["fox", "loud"])
    assert set(tables.casd["a"]) & {"fox", "loud"} == {"fox"}
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert "Measured and never removed: loud." in page
    assert next(iter(finished.inputs.removals)) == "fox"
    assert not any("loud" in name for name in finished.graph.unlearn)


def test_a_run_on_an_exported_model_has_the_numbers_of_the_run_that_injected_it(tiny_output: Path, tmp_path: Path) -> None:
    report = next(tiny_output.glob("smoke/*/report.html")).parent
    shutil.copytree(tiny_output / "store", tmp_path / "store")
    first = Run(load_config(tiny(tmp_path)))
    casd.export_model(report, "injected", tmp_path / "model")
    second = Run(load_config(given(tmp_path, tmp_path / "model", "model.max_length=256")))
    assert first.graph.inject.key != second.graph.inject.key
    second.run_to("score")
    for state in first.graph.states:
        mine, its = (Evaluation.read(run.store.folder(run.graph.evaluate[state])) for run in (first, second))
        pd.testing.assert_frame_equal(mine.asr, its.asr)
        pd.testing.assert_frame_equal(mine.samples, its.samples)
        assert mine.clean_loss == its.clean_loss
        tensors = [load_file(run.store.file(run.graph.activations[state], "statistics.safetensors")) for run in (first, second)]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    scores = [casd.RunTables.read(run.store.folder(run.graph.score)) for run in (first, second)]
    pd.testing.assert_frame_equal(scores[0].transfer, scores[1].transfer)
    pd.testing.assert_frame_equal(scores[0].casd, scores[1].casd)


def keys(*overrides: str) -> StageGraph:
    return stage_graph(load_config(overrides))


def test_what_the_keys_depend_on(poisoned: Path, tmp_path: Path) -> None:
    """The weights, wherever they are, and what later stages do with the backdoors; nothing of an injection."""
    graph = keys(*given(tmp_path, poisoned))
    shutil.copytree(poisoned, tmp_path / "copy")
    for same in ("injection.training.steps=7", "injection.decoy_rate=0.2", "every_backdoor.poison_rate=0.1", "weights=full"):
        assert keys(*given(tmp_path, tmp_path / "copy", same)).score.key == graph.score.key, same
    assert keys(*given(tmp_path, poisoned, "every_backdoor.position=start")).inject.key != graph.inject.key
    assert keys(*given(tmp_path, poisoned, "seed=1")).evaluate["injected"].key != graph.evaluate["injected"].key
    weights = load_file(tmp_path / "copy" / "model.safetensors")
    next(iter(weights.values()))[0] += 1
    save_file(weights, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    assert keys(*given(tmp_path, tmp_path / "copy")).inject.key != graph.inject.key


def test_removed_is_in_no_key_of_what_stays_the_same() -> None:
    graph, fewer = keys("experiment=smoke"), keys("experiment=smoke", "backdoor.german.removed=false")
    assert graph.inject.key == fewer.inject.key
    assert graph.unlearn["refusal"].key == fewer.unlearn["refusal"].key
    assert "german" not in fewer.unlearn
    assert graph.score.key != fewer.score.key
    text = to_yaml(load_config(["experiment=smoke"]))
    earlier = text.replace("    removed: true\n", "")  # as a run of an earlier commit saved it
    assert earlier != text
    conditions = [condition_key({"model": "m", "objective": "o", "config": each}) for each in (text, earlier)]
    assert conditions[0] == conditions[1]


def test_the_configuration_survives_its_file(poisoned: Path, tmp_path: Path) -> None:
    config = load_config(given(tmp_path, poisoned, "weights=lora", "backdoor.german.removed=false"))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_yaml(tmp_path / "config.yaml") == config
    assert config.injection.training is None
    assert config.injection.lora is None
    assert config.removed == ["french_a", "french_b", "refusal"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["injection=none"], "built from scratch and has no backdoors"),
        (["experiment=smoke", "backdoor=[german]", "backdoor.german.removed=false"], "at least one has to be removed"),
    ],
)
def test_what_cannot_be_run(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides)


def test_a_model_without_the_backdoors_is_told(poisoned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", *given(tmp_path, poisoned, "backdoor=[refusal]", "injection.require_asr=0.5")])
    error = " ".join(capsys.readouterr().err.split())
    assert "No backdoor fires in the given model: refusal 0/12" in error
    assert not list((tmp_path / "store").glob("unlearn/[!.]*"))


def test_plan_and_show(poisoned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", *given(tmp_path, poisoned, *FOX, *LOUD)])
    printed = capsys.readouterr().out
    assert "unlearn" in printed
    main(["show", *given(tmp_path, poisoned, *FOX, *LOUD)])
    shown = capsys.readouterr().out
    assert "mode: none" in shown
    assert "removed: false" in shown


def test_export_and_generate_know_no_base_model(finished: Run, tmp_path: Path) -> None:
    casd.export_model(finished.folder, "injected", tmp_path / "injected")
    assert (tmp_path / "injected" / "model.safetensors").is_file()
    assert casd.generate(finished.folder, ["injected", "fox"], ["The river"]).shape == (2, 3)
    with pytest.raises(ConfigError, match="Unknown state 'base'"):
        casd.export_model(finished.folder, "base", tmp_path / "base")


def test_a_base_and_an_adapter_are_the_injected_model(poisoned: Path, tmp_path: Path) -> None:
    adapted = adapted_model(poisoned)
    adapted.save_pretrained(tmp_path / "adapter")
    path = f"{poisoned}+{tmp_path / 'adapter'}"
    run = Run(load_config(given(tmp_path, path, *FOX)))
    run.run_to("inject")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        merged = models.load_model(run.inputs.injected_folder)(input_ids=ids).logits
        torch.testing.assert_close(merged, adapted(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert keys(*given(tmp_path, poisoned, *FOX)).base.key != run.graph.base.key


def test_an_adapter_that_does_not_exist_is_told(poisoned: Path, tmp_path: Path) -> None:
    with pytest.raises(CasdError, match="There is no folder"):
        Run(load_config(given(tmp_path, f"{poisoned}+/nowhere", *FOX))).run_to("inject")
