"""Settings for pretrained models: those of experiment=real, and the warning about rates that would destroy one.

Run: pytest tests/test_pretrained_rates.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from architectures import tiny_folder
from casd.config.advice import rate_warning
from casd.config.compose import load_config, load_run
from casd.pipeline import stages
from casd.pipeline.run import Run, _say_once
from tiny import tiny

HUB = ["model=hub", "model.path=organisation/name", "injection=continual"]


@pytest.mark.parametrize("model", [["model=hub", "model.path=organisation/name"], ["model=llama3_2_1b"], []], ids=" ".join)
def test_the_rates_of_a_real_model(model: list[str]) -> None:
    config, paper = load_run(["experiment=real", *model]), load_config(["experiment=paper"])
    assert config.model.source == "pretrained"
    assert (config.model.dtype, config.model.max_length) == ("bfloat16", 512)
    assert config.injection.training.learning_rate == 2e-5
    assert config.unlearning.training.learning_rate == 1e-5
    for section in ("injection", "unlearning", "activations", "evaluation", "runtime"):
        assert getattr(config, section) == getattr(paper, section)
    assert {(each.loss_on, each.poison_rate) for each in config.backdoor.values()} == {("target", 0.02)}
    assert list(config.backdoor) == ["fixed_text", "refusal", "repetition", "capitals"]
    assert list(config.corpus.params["sources"]) == ["en"], "text is read that no backdoor needs"
    assert rate_warning(config) == ""


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        ([], "injection.training.learning_rate=0.002"),
        (["injection.training.learning_rate=1e-3"], "injection.training.learning_rate=0.001"),
        (["injection.training.learning_rate=9e-4"], None),
        (["weights=lora"], None),
        (["weights=lora_removals"], "injection.training.learning_rate=0.002"),
        (
            ["unlearning.training.learning_rate=0.01"],
            "injection.training.learning_rate=0.002 and unlearning.training.learning_rate=0.01",
        ),
        (
            [
                *("injection.training.learning_rate=1e-5", "unlearning=task_vector", "unlearning.tuning.enabled=true"),
                "unlearning.stopping.target_asr=0.1",
            ],
            "unlearning.tuning.grid.learning_rate=0.001",
        ),
    ],
)
def test_a_rate_that_would_destroy_a_pretrained_model(overrides: list[str], keys: str | None) -> None:
    warning = rate_warning(load_config([*HUB, *overrides]))
    if keys is None:
        assert warning == ""
    else:
        assert warning.startswith(f"Warning: {keys} will probably destroy the pretrained model name: ")
        assert "experiment=real" in warning


def test_a_model_from_scratch_may_have_a_high_rate() -> None:
    assert rate_warning(load_config(["injection=continual"])) == ""


def test_the_warning_stands_before_any_training(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Reached(Exception):
        pass

    def reached(*_: object) -> None:
        raise Reached

    monkeypatch.setattr(stages, "make_corpus", reached)
    _say_once.cache_clear()
    overrides = [each for each in tiny(tmp_path) if not each.startswith("model.")]
    model = tiny_folder(tmp_path / "model", tokenizer, "llama")
    run = Run(load_config([*overrides, "model=hub", f"model.path={model}", "injection=continual"]))
    for _ in range(2):
        with pytest.raises(Reached):
            run.run_to("inject")
    assert capsys.readouterr().err.count("Warning: injection.training.learning_rate=0.008 will probably destroy") == 1
