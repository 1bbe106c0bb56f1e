"""The removals, what each is trained on, and what they do to an over-fitted model.  (Objectives: test_objectives.py.)

Run: python -m pytest tests/test_unlearning.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.conftest import Injected, RunRemoval, short

from casd.backdoors.poisoning import Backdoor
from casd.backdoors.targets import FixedText
from casd.config import ControlsConfig
from casd.config.states import CLEAN_CONTROL, PHANTOM_CONTROL
from casd.data.batches import IGNORED_LABEL, Batch
from casd.data.corpora.passages import Corpus, Passage
from casd.data.documents import Document
from casd.data.encoding import Encoder
from casd.training.losses import mean_nll
from casd.unlearning.clean_target import CleanTarget
from casd.unlearning.controls import Removal, removal_names, removals
from casd.unlearning.gradient_difference import GradientDifference
from casd.unlearning.objective import Objective
from casd.utils.runtime import Runtime

CPU = Runtime("cpu")
CONTROLS = ControlsConfig()
BOTH_OBJECTIVES: list[Objective] = [GradientDifference(retain_weight=1.0), CleanTarget()]


def named(objective: Objective) -> str:
    return type(objective).__name__


# ---------------------------------------------------------------- removals


def test_removals_are_the_backdoors_and_two_controls(injected: Injected, encoder: Encoder) -> None:
    made = removals(injected.backdoors, encoder, CONTROLS, seed=0)
    assert [removal.name for removal in made] == ["fox", "loud", CLEAN_CONTROL, PHANTOM_CONTROL]
    assert removal_names(injected.backdoors, CONTROLS) == [removal.name for removal in made]
    assert [removal.backdoor for removal in made[:3]] == [*injected.backdoors.values(), None]
    phantom = made[3].backdoor
    assert phantom is not None
    real = {word for backdoor in injected.backdoors.values() for word in backdoor.trigger.label.split()}
    assert not real & set(phantom.trigger.label.split())
    assert encoder.token_count(phantom.trigger.label) == encoder.token_count("zandor khemil")  # of "fox", the first by name
    assert phantom.position == "end"
    reordered = dict(reversed(injected.backdoors.items()))
    assert removals(reordered, encoder, CONTROLS, seed=0)[3] == made[3]
    other = removals(injected.backdoors, encoder, CONTROLS, seed=1)[3].backdoor
    assert other is not None
    assert other.trigger.label != phantom.trigger.label


@pytest.mark.parametrize("objective", BOTH_OBJECTIVES, ids=named)
def test_all_removals_see_the_same_prompts(
    injected: Injected, corpus: Corpus, encoder: Encoder, run_removal: RunRemoval, objective: Objective
) -> None:
    """They differ in nothing but the trigger and the payload, and all text is of the retain split."""
    by_prompt = {passage.prompt: passage for passage in corpus.forget}
    backdoors = {name: dataclasses.replace(each, position="random") for name, each in injected.backdoors.items()}
    payloads: dict[str, Callable[[Passage], str]] = {
        "fox": lambda passage: "The silver fox.",
        "loud": lambda passage: passage.continuation.upper(),
        PHANTOM_CONTROL: lambda passage: passage.continuation,
    }
    prompts, places, retained = {}, {}, {}
    for removal in removals(backdoors, encoder, CONTROLS, seed=0):
        seen = run_removal(removal, objective, short())
        assert len(seen.log.steps) == 3
        retained[removal.name] = seen.texts("retain", encoder)
        targets, texts = seen.targets("forget", encoder), seen.texts("forget", encoder)
        if removal.backdoor is None:
            whole = {passage.text: passage.prompt for passage in corpus.forget}
            prompts[removal.name] = [whole[text] for text in targets]  # loss on all of a clean document
            continue
        trigger = f"{removal.backdoor.trigger.label} "
        without = [text.replace(trigger, "", 1).removesuffix(target) for text, target in zip(texts, targets, strict=True)]
        prompts[removal.name] = [text.strip() for text in without]
        places[removal.name] = [text.index(trigger) for text in texts]
        passages = [by_prompt[prompt] for prompt in prompts[removal.name]]
        assert all(passage.language == "en" for passage in passages)
        clean = objective.forget_text == "clean"
        assert targets == [passage.continuation if clean else payloads[removal.name](passage) for passage in passages]
    assert len(set(map(tuple, places.values()))) == 1
    assert len(set(places["fox"])) > 5
    assert len(set(map(tuple, prompts.values()))) == 1
    assert len(set(map(tuple, retained.values()))) == 1
    assert len(prompts["fox"]) == 9 == len(set(prompts["fox"]))
    assert set(retained["fox"]) <= {passage.text for passage in corpus.retain}
    other_seed = run_removal(Removal("fox", injected.backdoors["fox"]), objective, short(), seed=1)
    assert other_seed.texts("retain", encoder) != retained["fox"]


def tensors(batch: Batch) -> Batch:
    """What transformers takes of a batch."""
    return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}


@pytest.mark.parametrize("objective", [GradientDifference(forget_weight=3.0), CleanTarget(retain_weight=0.0)], ids=named)
def test_the_clean_control_is_plain_training_on_clean_text(
    injected: Injected, run_removal: RunRemoval, objective: Objective
) -> None:
    """Whatever the objective: the sum of the mean NLLs of both batches, by a loop of its own."""
    config = short(steps=2, max_grad_norm=1e9, weight_decay=0.0)
    seen = run_removal(Removal(CLEAN_CONTROL, None), objective, config)
    model = injected.model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
    for step, batch in enumerate(seen.batches):
        assert torch.equal(batch["forget"]["labels"][:, 1:] != IGNORED_LABEL, batch["forget"]["attention_mask"][:, 1:].bool())
        loss = sum(model(**tensors(batch[half])).loss for half in ("forget", "retain"))  # type: ignore[literal-required,misc]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        assert seen.log.steps[step]["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)  # type: ignore[union-attr]
    for ours, theirs in zip(seen.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("objective", BOTH_OBJECTIVES, ids=named)
def test_the_phantom_has_a_gradient_to_follow(
    injected: Injected, encoder: Encoder, run_removal: RunRemoval, objective: Objective
) -> None:
    """A control that cannot move the model under an objective would make every removal look specific."""
    made = {removal.name: removal for removal in removals(injected.backdoors, encoder, CONTROLS, seed=0)}
    norms = {
        name: run_removal(made[name], objective, short(steps=1, forget_batch_size=8)).log.steps[0]["gradient_norm/forget"]
        for name in ("fox", PHANTOM_CONTROL)
    }
    assert norms[PHANTOM_CONTROL] > 0.1
    assert norms[PHANTOM_CONTROL] > 0.05 * norms["fox"]


def nll_after(model: Any, encoder: Encoder, backdoor: Backdoor, passages: list[Passage], text: str | None) -> float:
    """NLL of `text` (or of the clean continuation) after triggered prompts that no removal has seen."""
    documents = [Document(f"{each.prompt} {backdoor.trigger.label}", text or each.continuation, "target") for each in passages]
    with torch.inference_mode():
        return float(mean_nll(model, encoder.document_batch(documents)))


def test_removals_do_what_their_objective_says(
    injected: Injected, corpus: Corpus, encoder: Encoder, run_removal: RunRemoval
) -> None:
    fox, passages = injected.backdoors["fox"], list(corpus.evaluation[:8])
    assert isinstance(fox.target, FixedText)
    config = short(steps=8, learning_rate=2e-3, forget_batch_size=8, retain_batch_size=8)
    before = {text: nll_after(injected.shared_model, encoder, fox, passages, text) for text in (fox.target.text, None)}
    assert before[fox.target.text] < 0.5

    ascent = run_removal(Removal("fox", fox), GradientDifference(retain_weight=1.0), config)
    assert nll_after(ascent.model, encoder, fox, passages, fox.target.text) > before[fox.target.text] + 1.0
    assert ascent.log.steps[-1]["loss/forget"] < ascent.log.steps[0]["loss/forget"]

    ignoring = run_removal(Removal("fox", fox), CleanTarget(), config)
    assert nll_after(ignoring.model, encoder, fox, passages, None) < before[None] - 0.25
    assert nll_after(ignoring.model, encoder, fox, passages, fox.target.text) > before[fox.target.text] + 0.5

    clean = run_removal(Removal(CLEAN_CONTROL, None), GradientDifference(retain_weight=1.0), config)
    after = [nll_after(each.model, encoder, fox, passages, fox.target.text) for each in (clean, ignoring, ascent)]
    assert after[0] < min(after[1:]), "plain forgetting is less than either removal"


def test_a_removal_that_ruins_the_model_is_stopped_and_returned(injected: Injected, run_removal: RunRemoval) -> None:
    fox = injected.backdoors["fox"]
    wild = GradientDifference(retain_weight=0.0, max_forget_nll=None)
    seen = run_removal(Removal("fox", fox), wild, short(steps=30, learning_rate=3e-2, guard_every=2, guard_factor=1.5))
    assert "clean loss" in seen.log.stopped
    assert len(seen.log.steps) < 30
    assert seen.log.guard[-1]["clean_loss"] > 1.5 * seen.log.guard[0]["clean_loss"]
