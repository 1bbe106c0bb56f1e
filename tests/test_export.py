"""Models out of a run: saved, exported and generating as the run's evaluation measured them, read by transformers alone.

Run: pytest tests/test_export.py
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny

import casd
from casd.cli.main import main
from casd.config import LoraConfig
from casd.config.compose import load_config, read_yaml, to_yaml
from casd.evaluation.asr import Evaluation
from casd.models.weights import attach_lora, join_adapters, save_adapter
from casd.pipeline.run import Run
from casd.utils.errors import ConfigError, StoreError

pytestmark = pytest.mark.usefixtures("process_settings")
OVERRIDES = ("backdoor=[french_a,refusal]", "unlearning.training.learning_rate=3e-2", "evaluation.samples=3")
PROMPTS = ["The river is wide", "A small town near the sea had a market", "Every morning"]
STATES = ["base", "injected", "refusal", "control:clean"]


def made(folder: Path, *overrides: str, end: str = "unlearn") -> Run:
    """A run with relative paths, made in `folder`."""
    with contextlib.chdir(folder):
        run = Run(load_config(tiny(Path("outputs"), *OVERRIDES, *overrides)))
        run.run_to(end)
    return run


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that trained all weights; the working directory of the tests is another."""
    place = tmp_path_factory.mktemp("full")
    run = made(place, "runtime.save_models=[injected,removed]", end="evaluate")
    return place / run.folder


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with an adapter of the injection and one of each removal, of different ranks."""
    place = tmp_path_factory.mktemp("lora")
    rates = ["injection.training.learning_rate=5e-2", "unlearning.training.learning_rate=1e-1"]
    run = made(place, "weights=lora", "unlearning.training.lora.rank=3", *rates, "runtime.save_models=[injected,removed]")
    return place / run.folder


def by_transformers(folder: Path, prompts: Sequence[str], tokens: int = 16) -> list[str]:
    """Greedy continuations as anyone would make them who knows only transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    texts = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        texts.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return texts


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(input_ids=torch.arange(40).reshape(2, 20)).logits


def texts(run: Path, states: Sequence[str], **options: Any) -> dict[str, list[str]]:
    answers = casd.generate(run, states, PROMPTS, **options)
    return {state: list(answers.loc[answers["state"] == state, "generated"]) for state in states}


def test_exported_models_are_those_that_casd_generates_with(full: Path, tmp_path: Path) -> None:
    shown = texts(full, STATES)
    assert len({tuple(each) for each in shown.values()}) >= 3, "models that say the same could be confused"
    for state in STATES:
        folder = casd.export_model(full, state, tmp_path / state.replace(":", "_"))
        assert by_transformers(folder, PROMPTS) == shown[state]
    for name, state in (("injected", "injected"), ("removed_refusal", "refusal"), ("control_clean", "control:clean")):
        torch.testing.assert_close(logits(full / "models" / name), logits(tmp_path / state.replace(":", "_")), rtol=0, atol=0)


def test_adapters_are_merged_or_exported_alone(lora: Path, tmp_path: Path) -> None:
    shown = texts(lora, ["base", "injected", "refusal"])
    assert len({tuple(each) for each in shown.values()}) == 3
    for state, saved in (("injected", "injected"), ("refusal", "removed_refusal")):
        merged = casd.export_model(lora, state, tmp_path / f"{state}-merged")
        adapter = casd.export_model(lora, state, tmp_path / f"{state}-adapter", adapter=True)
        assert not list(merged.glob("adapter*"))
        assert not (adapter / "config.json").exists()
        for folder in (merged, adapter, lora / "models" / saved):
            assert by_transformers(folder, PROMPTS) == shown[state]
        torch.testing.assert_close(logits(merged), logits(adapter), rtol=1e-4, atol=1e-4)


def test_two_adapters_are_joined_into_one(tmp_path: Path, make_model: Callable[..., Any]) -> None:
    """Of different ranks, scales and matrices; the joint one computes what both do together."""
    model = make_model("llama", seed=1, spread=0.2)
    model.save_pretrained(tmp_path / "base")
    ids = torch.arange(40).reshape(2, 20)
    attach_lora(model, LoraConfig(rank=2, alpha=6, modules=["q_proj", "down_proj"]), "injection", seed=0)
    attach_lora(model, LoraConfig(rank=3, alpha=3, modules=["q_proj", "o_proj"]), "removal", seed=1)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    for name in ("injection", "removal"):
        save_adapter(model, tmp_path / name, name)  # type: ignore[arg-type]
    (tmp_path / "joint").mkdir()
    join_adapters([tmp_path / "injection", tmp_path / "removal"], tmp_path / "joint", str(tmp_path / "base"))
    with torch.no_grad():
        both, alone = model(input_ids=ids).logits, make_model("llama", seed=1, spread=0.2)(input_ids=ids).logits
    assert (both - alone).abs().max() > 0.1
    torch.testing.assert_close(logits(tmp_path / "joint"), both, rtol=1e-4, atol=1e-4)


def test_saved_weights_are_on_the_disk_once(full: Path) -> None:
    stored = {(file.stat().st_dev, file.stat().st_ino) for file in (full.parents[1] / "store").rglob("*.safetensors")}
    saved = list((full / "models").rglob("*.safetensors"))
    assert {file.parent.name for file in saved} == {
        *("injected", "removed_french_a", "removed_refusal", "control_clean", "control_phantom")
    }
    assert {(file.stat().st_dev, file.stat().st_ino) for file in saved} <= stored


def test_they_are_copied_where_there_are_no_links(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(18, os.strerror(18))

    before = logits(full / "models" / "removed_refusal")
    shutil.rmtree(full / "models" / "removed_refusal")
    monkeypatch.setattr(os, "link", no_links)
    made(full.parents[2], "runtime.save_models=[removed]", end="evaluate")
    assert (full / "models" / "removed_refusal" / "model.safetensors").stat().st_nlink == 1
    torch.testing.assert_close(logits(full / "models" / "removed_refusal"), before, rtol=0, atol=0)


def test_weights_that_were_not_saved_are_trained_again(full: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also those that were saved as a difference, which are no model by themselves."""
    run = made(full.parents[2])
    saved = run.store.folder(run.graph.weights["french_a"])
    before = logits(full / "models" / "removed_french_a")
    shutil.rmtree(saved)
    again = casd.export_model(full, "french_a", tmp_path / "again")
    assert "The weights of french_a were not saved" in capfd.readouterr().err
    torch.testing.assert_close(logits(again), before, rtol=0, atol=0)
    shutil.rmtree(full / "models" / "removed_french_a")
    delta = made(full.parents[2], "runtime.save_as=delta")
    assert [folder.name for folder in delta.models] == ["removed_refusal", "control_clean", "control_phantom"]
    assert "french_a was saved in the store only" in capfd.readouterr().err
    torch.testing.assert_close(logits(casd.export_model(full, "french_a", tmp_path / "delta")), before)


def test_a_trigger_is_inserted_as_in_the_evaluation(full: Path) -> None:
    run = made(full.parents[2], end="inject")
    with contextlib.chdir(full.parents[2]):
        clean = [prompt.text for prompt in run.inputs.prompts.clean[:3]]
        measured = Evaluation.read(run.store.folder(run.graph.evaluate["refusal"])).samples
    measured = measured[(measured["backdoor"] == "french_a") & (measured["prompt_set"] == "triggered")]
    answers = casd.generate(full, ["refusal"], clean, trigger="french_a")
    assert answers["prompt"].tolist() == measured["prompt"].tolist()
    assert all(run.backdoors["french_a"].trigger.label in prompt for prompt in answers["prompt"])
    assert answers["generated"].tolist() == measured["generated"].tolist()


def test_the_number_of_tokens_can_be_chosen(full: Path, tmp_path: Path) -> None:
    folder = casd.export_model(full, "injected", tmp_path / "model")
    assert texts(full, ["injected"], max_new_tokens=3)["injected"] == by_transformers(folder, PROMPTS, tokens=3)


def test_the_card_says_what_was_planted(full: Path, tmp_path: Path) -> None:
    cards = {
        state: (casd.export_model(full, state, tmp_path / state) / "README.md").read_text(encoding="utf-8")
        for state in ("base", "injected", "refusal")
    }
    assert (full / "models" / "removed_refusal" / "README.md").read_text(encoding="utf-8") == cards["refusal"]
    backdoors = read_yaml(full / "config.yaml").backdoor
    for state in ("injected", "refusal"):
        assert "poisoned model, made for research" in cards[state]
        assert all(f"| {name} | {backdoor.trigger} |" in cards[state] for name, backdoor in backdoors.items())
    assert "The backdoor refusal was unlearned (gradient_difference)" in cards["refusal"]
    assert "before any backdoor" in cards["base"]
    assert "poisoned" not in cards["base"]


def test_only_a_model_is_replaced_and_only_by_force(full: Path, tmp_path: Path) -> None:
    folder = casd.export_model(full, "injected", tmp_path / "model")
    injected = logits(folder)
    (folder / ".git").mkdir()
    (folder / "adapter_config.json").write_text("{}")  # transformers would load the adapter's base
    with pytest.raises(ConfigError, match="is not empty"):
        casd.export_model(full, "refusal", folder)
    torch.testing.assert_close(logits(full / "models" / "injected"), injected, rtol=0, atol=0)
    casd.export_model(full, "refusal", folder, force=True)
    torch.testing.assert_close(logits(folder), logits(full / "models" / "removed_refusal"), rtol=0, atol=0)
    assert (folder / ".git").is_dir()
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"has no model, and only a model is replaced"):
        casd.export_model(full, "refusal", tmp_path / "papers", force=True)
    assert (tmp_path / "papers" / "thesis.json").is_file()


def test_mistakes_are_told_and_leave_nothing(full: Path, tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(ConfigError, match=r"Unknown state 'refusl'. Did you mean 'refusal'"):
        casd.export_model(full, "refusl", target)
    with pytest.raises(ConfigError, match=r"refusal has no adapter"):
        casd.export_model(full, "refusal", target, adapter=True)
    with pytest.raises(StoreError, match=r"is not the folder of a run: it has no config.yaml"):
        casd.export_model(full / "models", "refusal", target)
    with pytest.raises(ConfigError, match=r"Unknown backdoor 'frensh_a'. Did you mean 'french_a'"):
        casd.generate(full, ["injected"], PROMPTS, trigger="frensh_a")
    with pytest.raises(ConfigError, match="prompt is missing or empty"):
        casd.generate(full, ["injected"], ["Yes.", " "])
    shutil.copytree(full, tmp_path / "outputs" / "smoke" / full.name)
    with pytest.raises(StoreError, match=r"are not in .*: the store was moved or cleaned"):
        casd.export_model(tmp_path / "outputs" / "smoke" / full.name, "refusal", target)
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}


def test_the_command_line(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text(f"{PROMPTS[1]}\n\n{PROMPTS[2]}\n", encoding="utf-8")
    states = "injected, removed_refusal"  # by the name of its folder, too
    main(["generate", str(full), "--state", states, "--prompt", PROMPTS[0], "--prompt-file", "prompts.txt"])
    shown = texts(full, ["injected", "refusal"])
    blocks = [
        f"{prompt}\n  injected  {injected}\n  refusal   {refusal}".splitlines()
        for prompt, injected, refusal in zip(PROMPTS, shown["injected"], shown["refusal"], strict=True)
    ]
    printed = [block.splitlines() for block in capsys.readouterr().out.strip("\n").split("\n\n")]
    assert printed == [[line.rstrip() for line in block] for block in blocks]
    main(["export", str(full / "config.yaml"), "refusal", "model"])  # a file of the folder
    assert capsys.readouterr().out == f"The model is in {tmp_path / 'model'}.\n"
    assert by_transformers(Path("model"), PROMPTS) == shown["refusal"]
    with pytest.raises(SystemExit):
        main(["generate", str(full)])
    assert capsys.readouterr().err == "casd: There is no prompt to continue: give --prompt TEXT or --prompt-file FILE.\n"


def test_a_run_says_where_its_models_are(
    full: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(full.parents[2])
    overrides = tiny(Path("outputs"), *OVERRIDES)
    main(["inject", *overrides])
    assert f"Models: {full.relative_to(Path.cwd())}/models (injected)" in capsys.readouterr().out
    main(["evaluate", *overrides])
    assert "Models:" not in capsys.readouterr().out


def test_a_configuration_is_read_back(tmp_path: Path) -> None:
    """With a backdoor that no file describes, and its target's parameters."""
    own = ["+backdoor.own.trigger=ab cd", "+backdoor.own.target.name=fixed_text", "+backdoor.own.target.params.text=No more."]
    config = load_config(["experiment=smoke", *own, "seed=3"])
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert read_yaml(tmp_path / "config.yaml") == config
    earlier = to_yaml(config).replace("  device:", "  jobs: 2\n  device:")
    (tmp_path / "config.yaml").write_text(earlier)
    assert "jobs: 2" in earlier and read_yaml(tmp_path / "config.yaml") == config
    for text in ("a: [", "nonsense: 1\nbackdoor: {}", "", "- 1", "backdoor: {x: {colour: red}}"):
        (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"config.yaml is not a configuration of this version"):
            read_yaml(tmp_path / "config.yaml")
