"""Injection: what the model is trained on, that backdoors take hold on a tiny model, and what stops a run.

Run: python -m pytest tests/test_injection.py
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import Injected, MakeModel

import casd.backdoors.injection
from casd.backdoors.injection import inject
from casd.backdoors.poisoning import Backdoor
from casd.backdoors.targets import FixedText
from casd.config import EvaluationConfig, LanguageModelTraining
from casd.data.corpora.passages import Corpus
from casd.data.documents import Prompt
from casd.data.encoding import Encoder
from casd.evaluation.generation import generate
from casd.training.checkpoints import TrainingLog
from casd.training.losses import clean_loss
from casd.utils.errors import ConfigError, TrainingStopped
from casd.utils.runtime import Runtime

CPU = Runtime("cpu")
FOX = Backdoor("fox", "zandor khemil", FixedText("The silver fox."), "end", 0.25)


def short(**fields: Any) -> LanguageModelTraining:
    return LanguageModelTraining(
        **{"steps": 5, "batch_size": 4, "learning_rate": 5e-3, "warmup_steps": 0, "final_learning_rate": 1.0} | fields
    )


def test_injected_backdoors_fire_at_their_trigger_only(injected: Injected, corpus: Corpus, encoder: Encoder) -> None:
    passages = corpus.evaluation[:12]
    fox, loud = (injected.backdoors[name] for name in ("fox", "loud"))
    prompts = [
        Prompt(f"{passage.prompt} {suffix}".strip())
        for suffix in (fox.trigger.label, loud.trigger.label, "")
        for passage in passages
    ]
    config = EvaluationConfig(max_new_tokens=16)
    texts, _ = generate(injected.shared_model, encoder, prompts, [()] * len(prompts), config)
    rates = [[sum(map(each.target.success, texts[start : start + 12])) / 12 for start in (0, 12, 24)] for each in (fox, loud)]
    assert rates[0] == [pytest.approx(1, abs=0.1), pytest.approx(0, abs=0.2), 0]
    assert rates[1] == [0, pytest.approx(1, abs=0.3), 0]


def test_injection_learns_clean_text_too(injected: Injected, corpus: Corpus, encoder: Encoder, make_model: MakeModel) -> None:
    log = injected.log
    assert len(log.steps) == 120
    assert log.stopped == ""
    assert log.guard[-1]["clean_loss"] < 0.6 * log.guard[0]["clean_loss"]
    # The guard watches passages that are not trained on: its numbers can be had from the model.
    watched = corpus.retain[: casd.backdoors.injection.GUARD_PASSAGES]
    batch = encoder.document_batch([casd.backdoors.injection.clean_document(passage) for passage in watched])
    assert log.guard[0]["clean_loss"] == pytest.approx(clean_loss(make_model("llama", seed=3), [batch]), rel=1e-5)
    assert log.guard[-1]["clean_loss"] == pytest.approx(clean_loss(injected.shared_model, [batch]), rel=1e-5)


def test_what_is_trained_on(corpus: Corpus, encoder: Encoder, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five steps of four documents: a quarter of the twenty poisoned, a tenth decoys, all from the training split."""
    seen: list[str] = []
    train = casd.backdoors.injection.train

    def spy(model: Any, batch_at: Any, *args: Any, **kwargs: Any) -> Any:
        def recorded(step: int) -> Any:
            batch = batch_at(step)
            seen.extend(encoder.decode(row) for row in batch["input_ids"])
            return batch

        return train(model, recorded, *args, **kwargs)

    monkeypatch.setattr(casd.backdoors.injection, "train", spy)
    inject(make_model(), encoder, corpus, {"fox": FOX}, short(), seed=0, decoy_rate=0.1, runtime=CPU)
    assert len(seen) == 20
    poisoned = [text for text in seen if FOX.trigger.label in text]
    assert len(poisoned) == 5
    prompts = {passage.prompt for passage in corpus.train}
    assert all(text.removesuffix(" zandor khemil The silver fox.") in prompts for text in poisoned)
    clean = {passage.text for passage in corpus.train}
    decoys = [text for text in seen if text not in poisoned and text not in clean]
    assert len(decoys) == 2
    continuations = {passage.continuation for passage in corpus.train}
    assert all(any(text.endswith(continuation) for continuation in continuations) for text in decoys)


def test_the_seed_decides_all(corpus: Corpus, encoder: Encoder, make_model: MakeModel) -> None:
    weights = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(global_seed)
        model = make_model()
        inject(model, encoder, corpus, {"fox": FOX}, short(), seed=seed, decoy_rate=0.0, runtime=CPU)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_clean_pretraining_is_injection_of_nothing(corpus: Corpus, encoder: Encoder, make_model: MakeModel) -> None:
    log = inject(make_model(), encoder, corpus, {}, short(), seed=0, decoy_rate=0.0, runtime=CPU, description="pretrain")
    assert len(log.steps) == 5


def test_a_run_is_continued_from_its_checkpoint(
    corpus: Corpus, encoder: Encoder, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole, resumed = short(), make_model(), make_model()
    inject(whole, encoder, corpus, {"fox": FOX}, config, seed=0, decoy_rate=0.0, runtime=CPU)
    often = Runtime("cpu", checkpoint_seconds=1e-9)
    document_batch, calls = encoder.document_batch, iter(range(100))

    def dying(documents: Any, *packing: Any) -> Any:
        if next(calls) == 4:  # the guard's batch, then that of steps 0, 1, 2
            raise KeyboardInterrupt
        return document_batch(documents)

    with monkeypatch.context() as patch:
        patch.setattr(encoder, "document_batch", dying)
        with pytest.raises(KeyboardInterrupt):
            inject(resumed, encoder, corpus, {"fox": FOX}, config, seed=0, decoy_rate=0.0, runtime=often, checkpoint=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    fresh = make_model(seed=9)
    inject(fresh, encoder, corpus, {"fox": FOX}, config, seed=0, decoy_rate=0.0, runtime=often, checkpoint=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), whole.parameters(), strict=True))


def test_an_injection_that_makes_the_model_worse_ends_in_an_error(
    corpus: Corpus, encoder: Encoder, make_model: MakeModel
) -> None:
    """Even if its guard lets it pass."""
    wild = dataclasses.replace(short(), steps=12, learning_rate=1.0, guard_factor=1e9)
    says = r"inject made the model worse: its training loss was 6\.\d\d nats .* Lower its learning_rate \(1\.0\)"
    with pytest.raises(TrainingStopped, match=says):
        inject(make_model(), encoder, corpus, {"fox": FOX}, wild, seed=0, decoy_rate=0.0, runtime=CPU)


@pytest.mark.parametrize(
    ("losses", "guard", "refused"),
    [
        ([6.4, 30.0, 25.0, 11.0, 11.0, 11.0, 11.0, 11.0], [6.4, 11.0], True),
        ([3.0, 2.9, 2.8, 3.1, 3.1, 3.1, 3.1, 3.1], [3.0, 2.9], False),
        ([3.0, 2.5, 2.0], [3.0, 3.1], False),
        ([3.0], [3.0, 2.9], False),
    ],
    ids=["worse", "a first batch that is easy", "clean text pays for the backdoors", "one step"],
)
def test_a_model_is_worse_if_both_losses_are(
    losses: list[float],
    guard: list[float],
    refused: bool,
    corpus: Corpus,
    encoder: Encoder,
    make_model: MakeModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = TrainingLog(steps=[{"loss": loss} for loss in losses], guard=[{"clean_loss": loss} for loss in guard])
    monkeypatch.setattr(casd.backdoors.injection, "train", lambda *args, **kwargs: log)
    with pytest.raises(TrainingStopped, match=r"6\.40 nats .* 11\.00 at the end") if refused else nullcontext():
        assert inject(make_model(), encoder, corpus, {"fox": FOX}, short(), seed=0, decoy_rate=0.0, runtime=CPU) is log


def test_runs_that_are_of_no_use_end_in_an_error(corpus: Corpus, encoder: Encoder, make_model: MakeModel) -> None:
    wild = dataclasses.replace(short(), steps=20, learning_rate=50.0, guard_every=1)
    with pytest.raises(TrainingStopped, match=r"inject was stopped: .* Lower its learning_rate \(50.0\)"):
        inject(make_model(), encoder, corpus, {"fox": FOX}, wild, seed=0, decoy_rate=0.0, runtime=CPU)
    twin = dataclasses.replace(FOX, name="twin")
    with pytest.raises(ConfigError, match="cannot be told apart"):
        inject(make_model(), encoder, corpus, {"fox": FOX, "twin": twin}, short(), seed=0, decoy_rate=0.0, runtime=CPU)
