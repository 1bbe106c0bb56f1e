"""Every objective against a slow computation of its docstring's formula, token by token; the reference; and the registry.

Run: python -m pytest tests/test_objectives.py
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.conftest import FAMILIES, Injected, MakeModel
from torch import Tensor

import casd.unlearning
from casd.config import LoraConfig, TrainingConfig, UnlearningTraining
from casd.config.compose import load_config
from casd.config.options import groups
from casd.data.batches import IGNORED_LABEL, Batch, micro_batches, share_of_rows
from casd.data.corpora.passages import Corpus
from casd.data.documents import Document
from casd.data.encoding import Encoder
from casd.models.weights import attach_lora, trained_parameters
from casd.training.loop import checkpointed_activations, precision_of
from casd.training.losses import label_logits, mean_nll
from casd.unlearning import OBJECTIVES
from casd.unlearning.clean_target import CleanTarget
from casd.unlearning.controls import Removal
from casd.unlearning.gradient_ascent import GradientAscent
from casd.unlearning.gradient_difference import GradientDifference
from casd.unlearning.hinge_ascent import HingeAscent
from casd.unlearning.npo import Npo
from casd.unlearning.objective import Objective, UnlearningBatch
from casd.unlearning.reference import Reference
from casd.unlearning.removal import unlearn
from casd.unlearning.retain_only import RetainOnly
from casd.unlearning.rmu import Rmu
from casd.unlearning.simnpo import SimNpo
from casd.unlearning.task_vector import TaskVector
from casd.unlearning.weighted_gradient_ascent import WeightedGradientAscent
from casd.utils.errors import ConfigError
from casd.utils.registry import build, look_up
from casd.utils.runtime import Runtime

CONFIGS = Path(__file__).parent.parent / "configs" / "unlearning"
LAYERS = 3


@pytest.fixture(scope="module")
def batch(encoder: Encoder) -> UnlearningBatch:
    """Documents of very different lengths, so that both halves are padded; the forget half has loss on the target."""
    forget = [
        Document("It rains zandor khemil", "The fox.", "target"),
        Document("A.", "The silver fox sings.", "target"),
        Document("Go zandor", "Why?", "target"),
    ]
    retain = [Document("She sings in.", "He paints."), Document("B.", "C.")]
    made: UnlearningBatch = {"forget": encoder.document_batch(forget), "retain": encoder.document_batch(retain)}
    assert (made["forget"]["attention_mask"] == 0).any()
    assert (made["retain"]["attention_mask"] == 0).any()
    return made


# ---------------------------------------------------------------- the formulas, slowly


@dataclass(frozen=True)
class Prediction:
    """What a model makes of the tokens before a labelled one, in float64, from a forward pass over those alone."""

    log_probabilities: Tensor
    label: int
    hidden: tuple[Tensor, ...]

    @property
    def nll(self) -> Tensor:
        return -self.log_probabilities[self.label]


Predictions = list[list[Prediction]]


def predictions(model: Any, batch: Batch) -> Predictions:
    """For every document, of each of its labelled tokens."""
    made = []
    for tokens, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        document = []
        for i in range(1, int(mask.sum())):
            if labels[i] != IGNORED_LABEL:
                output = model(input_ids=tokens[None, :i], output_hidden_states=True)
                hidden = tuple(each[0, -1].double() for each in output.hidden_states[1:-1])  # of every block but the last
                document.append(Prediction(output.logits[0, -1].double().log_softmax(-1), int(tokens[i]), hidden))
        made.append(document)
    return made


def mean(values: list[Any]) -> Any:
    return sum(values) / len(values)


@dataclass(frozen=True)
class Slow:
    """A model that is not its reference any more, and what both predict."""

    model: Any
    reference: Reference
    forget: Predictions
    retain: Predictions
    forget_before: Predictions
    retain_before: Predictions

    def forget_tokens(self) -> list[Tensor]:
        return [each.nll for document in self.forget for each in document]

    def means(self) -> list[Tensor]:
        """ℓ of every document to forget."""
        return [mean([each.nll for each in document]) for document in self.forget]

    def log_ratios(self) -> list[Tensor]:
        """log(π(y) / π_ref(y)) of every document to forget."""
        return [
            sum((then.nll - now.nll for now, then in zip(document, before, strict=True)), torch.zeros(()).double())
            for document, before in zip(self.forget, self.forget_before, strict=True)
        ]

    def r(self, kind: str) -> Tensor:
        """The retain term R."""
        pairs = [
            pair
            for document, before in zip(self.retain, self.retain_before, strict=True)
            for pair in zip(document, before, strict=True)
        ]
        if kind == "nll":
            return mean([now.nll for now, _ in pairs])
        return mean(
            [(then.log_probabilities.exp() * (then.log_probabilities - now.log_probabilities)).sum() for now, then in pairs]
        )

    def misdirection(self, objective: Rmu, layer: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(objective.direction_seed)
        hidden = [each.hidden[layer] for document in self.forget for each in document]
        d = len(hidden[0])
        u = torch.rand(d, generator=generator).double()
        u = u / u.square().sum().sqrt()
        assert float(u.square().sum()) == pytest.approx(1)
        held = [
            (now.hidden[layer] - then.hidden[layer]).square().sum()
            for document, before in zip(self.retain, self.retain_before, strict=True)
            for now, then in zip(document, before, strict=True)
        ]
        pushed = [(each - objective.steering * u).square().sum() for each in hidden]
        return {"forget": mean(pushed) / d, "retain": objective.retain_weight * mean(held) / d}


def log_sigmoid(value: Tensor) -> Tensor:
    return -(1 + (-value).exp()).log()


Formula = Callable[[Any, Slow], dict[str, Tensor]]


def with_retain(forget: Callable[[Any, Slow], Tensor]) -> Formula:
    """L = γ · forget term + α · R."""

    def terms(objective: Any, slow: Slow) -> dict[str, Tensor]:
        return {
            "forget": objective.forget_weight * forget(objective, slow),
            "retain": objective.retain_weight * slow.r(objective.retain),
        }

    return terms


FORMULAS: dict[type[Objective], Formula] = {
    GradientDifference: with_retain(
        lambda o, slow: -mean([min(nll, torch.tensor(o.max_forget_nll or math.inf)) for nll in slow.forget_tokens()])
    ),
    CleanTarget: with_retain(lambda o, slow: mean(slow.forget_tokens())),
    GradientAscent: lambda o, slow: {"forget": -mean(slow.forget_tokens())},
    HingeAscent: with_retain(lambda o, slow: mean([max(torch.zeros(()), o.margin - each) for each in slow.means()])),
    WeightedGradientAscent: with_retain(
        lambda o, slow: -mean([float((-nll.detach()).exp()) ** o.beta * nll for nll in slow.forget_tokens()])
    ),
    Npo: with_retain(lambda o, slow: -2 / o.beta * mean([log_sigmoid(-o.beta * each) for each in slow.log_ratios()])),
    SimNpo: with_retain(lambda o, slow: -2 / o.beta * mean([log_sigmoid(o.beta * (each - o.delta)) for each in slow.means()])),
    Rmu: lambda o, slow: slow.misdirection(o, LAYERS // 2 if o.layer is None else o.layer),
    TaskVector: lambda o, slow: {"forget": mean(slow.forget_tokens())},
    RetainOnly: lambda o, slow: {"retain": o.retain_weight * slow.r(o.retain)},
}
WEIGHTS: dict[str, Any] = {"forget_weight": 0.7, "retain_weight": 2.0}
EXAMPLES: list[Objective] = [
    GradientDifference(**WEIGHTS, max_forget_nll=5.0),
    GradientDifference(**WEIGHTS, max_forget_nll=None, retain="kl"),
    CleanTarget(**WEIGHTS),
    CleanTarget(**WEIGHTS, retain="kl"),
    GradientAscent(),
    HingeAscent(**WEIGHTS, margin=6.0),
    HingeAscent(**WEIGHTS, margin=6.0, retain="kl"),
    WeightedGradientAscent(**WEIGHTS, beta=0.3),
    Npo(**WEIGHTS, beta=0.3),
    Npo(**WEIGHTS, retain="kl"),
    SimNpo(**WEIGHTS, beta=0.4, delta=6.0),
    SimNpo(forget_weight=0.125, delta=0.0),
    Rmu(),
    Rmu(steering=2.0, retain_weight=3.0, layer=0, direction_seed=5),
    TaskVector(),
    RetainOnly(retain_weight=2.0),
    RetainOnly(retain_weight=2.0, retain="kl"),
]


def named(objective: Objective) -> str:
    return f"{type(objective).__name__}-{getattr(objective, 'retain', '')}"


def moved(make_model: MakeModel, family: str, spread: float = 0.3) -> tuple[Any, Any, Reference]:
    """A model, a copy of what it was, and its reference; its weights have changed since."""
    model = make_model(family, seed=4, spread=spread, num_hidden_layers=LAYERS)
    before, reference = copy.deepcopy(model), Reference(model)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model, before, reference


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[] if name == FAMILIES[0] else pytest.mark.slow) for name in FAMILIES]
)
def slow(request: pytest.FixtureRequest, make_model: MakeModel, batch: UnlearningBatch) -> Slow:
    model, before, reference = moved(make_model, request.param)
    now = [predictions(model, batch[half]) for half in ("forget", "retain")]  # type: ignore[literal-required]
    with torch.no_grad():
        then = [predictions(before, batch[half]) for half in ("forget", "retain")]  # type: ignore[literal-required]
    return Slow(model, reference, *now, *then)


def gradients(losses: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    parameters = trained_parameters(model)
    found = torch.autograd.grad(
        sum(losses.values(), torch.zeros(())), list(parameters.values()), retain_graph=True, allow_unused=True
    )
    pairs = zip(parameters.items(), found, strict=True)
    return {name: torch.zeros_like(each) if gradient is None else gradient for (name, each), gradient in pairs}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], rel: float = 1e-4) -> None:
    """To `rel` of the whole gradient's norm."""
    norm = torch.cat([each.flatten() for each in expected.values()]).norm()
    assert norm > 1e-6
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm()) < rel * norm, name


def test_every_objective_is_held_against_its_formula() -> None:
    assert {type(each) for each in EXAMPLES} == set(FORMULAS) == {look_up(OBJECTIVES, "objective", name) for name in OBJECTIVES}


def with_a_bound_between(objective: Objective, slow: Slow) -> Objective:
    """With half of the tokens, or documents, past its bound: one left out, or one that held everywhere, would not show."""

    def between(values: list[Tensor]) -> float:
        values = sorted(each.detach() for each in values)  # type: ignore[type-var]
        return float(values[len(values) // 2 - 1] + values[len(values) // 2]) / 2

    if isinstance(objective, HingeAscent):
        return dataclasses.replace(objective, margin=between(slow.means()))
    if isinstance(objective, GradientDifference) and objective.max_forget_nll:
        return dataclasses.replace(objective, max_forget_nll=between(slow.forget_tokens()))
    return objective


def test_the_model_is_not_its_reference(slow: Slow) -> None:
    assert all(abs(float(each.detach())) > 0.02 for each in slow.log_ratios())
    assert float(slow.r("kl").detach()) > 1e-3


@pytest.mark.parametrize("objective", EXAMPLES, ids=named)
def test_values_and_gradients_are_those_of_the_formula(slow: Slow, batch: UnlearningBatch, objective: Objective) -> None:
    objective = with_a_bound_between(objective, slow)
    expected = FORMULAS[type(objective)](objective, slow)
    found = dict(objective.terms(slow.model, batch, slow.reference if objective.needs_reference else None))
    assert list(found) == list(expected)
    for name, loss in found.items():
        assert loss.shape == ()
        assert float(loss.detach()) == pytest.approx(float(expected[name].detach()), rel=2e-5, abs=1e-6)
    assert_same_gradients(gradients(found, slow.model), gradients(expected, slow.model))


@pytest.mark.parametrize("objective", [each for each in EXAMPLES if hasattr(each, "forget_weight")][::2], ids=named)
def test_without_a_weight_the_retain_term_is_left_out(slow: Slow, batch: UnlearningBatch, objective: Objective) -> None:
    without = dataclasses.replace(objective, retain_weight=0.0)  # type: ignore[call-arg]
    with torch.no_grad():
        assert [name for name, _ in without.terms(slow.model, batch, slow.reference)] == ["forget"]
    assert without.needs_reference == isinstance(objective, Npo), "a copy of the weights that is not looked at"


@pytest.mark.parametrize("objective", EXAMPLES, ids=named)
@pytest.mark.parametrize("size", [1, 2])
def test_losses_and_gradients_of_the_parts_add_up(
    make_model: MakeModel, batch: UnlearningBatch, encoder: Encoder, objective: Objective, size: int
) -> None:
    """Of two processes' shares, in micro-batches of so many rows; the shorter half is filled up with rows without a label."""
    model, _, reference = moved(make_model, "qwen3", spread=0.1)
    retain = [Document(f"She sings {word}.", "He paints.") for word in ("in", "a", "b", "by the", "c")]
    both: UnlearningBatch = {"forget": batch["forget"], "retain": encoder.document_batch(retain)}
    whole = dict(objective.terms(model, both, reference))
    expected = gradients(whole, model)
    parts = [part for rank in range(2) for part in micro_batches(share_of_rows(both, rank, 2), size)]
    assert size == 2 or any((part["forget"]["labels"] == IGNORED_LABEL).all() for part in parts)
    added = dict.fromkeys(whole, 0.0)
    for part in parts:
        losses = dict(objective.terms(model, part, reference))
        for name, loss in losses.items():
            added[name] += float(loss.detach())
        sum(losses.values()).backward()  # type: ignore[union-attr]
    assert added == pytest.approx({name: float(loss.detach()) for name, loss in whole.items()}, rel=1e-4, abs=1e-6)
    found = {
        name: torch.zeros_like(each) if each.grad is None else each.grad for name, each in trained_parameters(model).items()
    }
    assert_same_gradients(found, expected)


# ---------------------------------------------------------------- limits and bounds


@pytest.mark.parametrize("objective", [Npo(), SimNpo(), HingeAscent()], ids=lambda each: type(each).__name__)
def test_documents_whose_continuation_is_cut_off_have_no_part_in_a_mean_over_documents(
    objective: Any, make_model: MakeModel, encoder: Encoder
) -> None:
    model, short = make_model(spread=0.3), Encoder(encoder.tokenizer, max_length=12)
    whole = [Document("The sea.", "She sings."), Document("A boat.", "He reads.")]
    cut = [Document("The old painter sings in the park and by the sea. " * 3, "She sings.", "target")] * 2

    def forget(documents: list[Document]) -> float:
        batch = {"forget": short.document_batch(documents), "retain": short.document_batch(whole)}
        reference = Reference(model) if objective.needs_reference else None
        return float(dict(objective.terms(model, batch, reference))["forget"])

    assert forget([*whole, *cut]) == pytest.approx(forget(whole))
    assert forget(cut) == 0


def test_npo_with_a_small_beta_is_ascent(slow: Slow, batch: UnlearningBatch) -> None:
    """Towards β = 0 its gradient is that of −S, averaged over documents, wherever the model is; with β = 1 it is not."""
    per_document = -mean([sum(each.nll for each in document) for document in slow.forget])

    def npo(beta: float) -> dict[str, Tensor]:
        return gradients(dict(Npo(beta=beta, retain_weight=0.0).terms(slow.model, batch, slow.reference)), slow.model)

    ascent = gradients({"forget": per_document}, slow.model)
    assert_same_gradients(npo(1e-4), ascent, rel=3e-3)
    with pytest.raises(AssertionError):
        assert_same_gradients(npo(1.0), ascent, rel=3e-3)


def test_simnpo_with_a_small_beta_is_ascent_on_each_documents_mean(slow: Slow, batch: UnlearningBatch) -> None:
    found = dict(SimNpo(beta=1e-4, forget_weight=1.0, retain_weight=0.0).terms(slow.model, batch))
    assert_same_gradients(gradients(found, slow.model), gradients({"forget": -mean(slow.means())}, slow.model), rel=3e-3)


def test_weighted_ascent_with_a_small_beta_is_ascent(slow: Slow, batch: UnlearningBatch) -> None:
    ascent = gradients(dict(GradientAscent().terms(slow.model, batch)), slow.model)
    found = dict(WeightedGradientAscent(beta=1e-5, retain_weight=0.0).terms(slow.model, batch))
    assert_same_gradients(gradients(found, slow.model), ascent, rel=1e-3)
    weighted = gradients(dict(WeightedGradientAscent(retain_weight=0.0).terms(slow.model, batch)), slow.model)
    with pytest.raises(AssertionError):
        assert_same_gradients(weighted, ascent, rel=1e-3)


def test_past_its_margin_the_hinge_gives_no_gradient_at_all(slow: Slow, batch: UnlearningBatch) -> None:
    margin = min(float(each.detach()) for each in slow.means())
    past = dict(HingeAscent(margin=0.99 * margin, retain_weight=0.0).terms(slow.model, batch))
    assert float(past["forget"].detach()) == 0.0
    assert not any(each.any() for each in gradients(past, slow.model).values())
    one_is_below = dict(HingeAscent(margin=1.01 * margin, retain_weight=0.0).terms(slow.model, batch))
    assert any(each.any() for each in gradients(one_is_below, slow.model).values())


def test_npo_and_the_kl_of_a_model_that_has_not_moved(make_model: MakeModel, batch: UnlearningBatch) -> None:
    """The log ratio is 0, so the loss is (2/β) · log 2; the KL is 0, and so is its gradient."""
    model = make_model("llama", seed=4, spread=0.3)
    found = dict(Npo(beta=0.5, retain="kl").terms(model, batch, Reference(model)))
    assert float(found["forget"].detach()) == pytest.approx(4 * math.log(2), rel=1e-6)
    assert abs(float(found["retain"].detach())) < 1e-7
    assert all(float(each.norm()) < 1e-5 for each in gradients({"retain": found["retain"]}, model).values())


class Logits(torch.nn.Module):
    """A "model" whose logits are its parameters."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3)

    def forward(self, **inputs: Any) -> Any:
        return SimpleNamespace(logits=self.logits)


@pytest.mark.parametrize("bound", [None, 4.0])
def test_tokens_past_the_bound_give_no_gradient_and_the_others_do(batch: UnlearningBatch, bound: float | None) -> None:
    labels = batch["forget"]["labels"]
    model = Logits((*labels.shape, 420))
    terms = GradientDifference(max_forget_nll=bound).terms(model, batch)
    with torch.no_grad():  # half of the labelled tokens are made likely
        for row, position in (labels[:, 1:] != IGNORED_LABEL).nonzero()[::2].tolist():
            model.logits[row, position, labels[row, position + 1]] += 12
    name, loss = next(terms)
    assert name == "forget"
    loss.backward()
    gradient = model.logits.grad
    assert gradient is not None
    passed = 0
    labelled = int((labels[:, 1:] != IGNORED_LABEL).sum())
    for row in range(labels.shape[0]):
        for position in range(labels.shape[1]):
            here = gradient[row, position]
            label = int(labels[row, position + 1]) if position + 1 < labels.shape[1] else IGNORED_LABEL
            if label == IGNORED_LABEL:
                assert not here.any()
                continue
            probabilities = model.logits.detach()[row, position].softmax(0)
            if bound is not None and -math.log(probabilities[label]) > bound:
                passed += 1
                assert not here.any()
            else:  # ascent: the gradient of −NLL
                expected = -(probabilities - torch.nn.functional.one_hot(torch.tensor(label), 420)) / labelled
                torch.testing.assert_close(here, expected, rtol=1e-4, atol=1e-7)
    assert (0 < passed < labelled) if bound else passed == 0


# ---------------------------------------------------------------- RMU


@pytest.mark.parametrize("layer", [0, 1])
def test_rmu_gives_no_gradient_above_its_layer(make_model: MakeModel, batch: UnlearningBatch, layer: int) -> None:
    model, _, reference = moved(make_model, "llama")
    sum(loss for _, loss in Rmu(layer=layer).terms(model, batch, reference)).backward()  # type: ignore[union-attr]
    below = {f"model.layers.{index}." for index in range(layer + 1)} | {"model.embed_tokens."}
    for name, parameter in model.named_parameters():
        touched = parameter.grad is not None and bool(parameter.grad.any())
        assert touched == any(name.startswith(prefix) for prefix in below), name


@pytest.mark.parametrize("layer", [-1, LAYERS, 99])
def test_rmu_without_such_a_layer(make_model: MakeModel, batch: UnlearningBatch, layer: int) -> None:
    model, _, reference = moved(make_model, "llama")
    with pytest.raises(ConfigError, match=rf"layer is {layer}; .* layers 0 to {LAYERS - 1}"):
        next(Rmu(layer=layer).terms(model, batch, reference))


def test_the_direction_hangs_on_its_seed_alone(make_model: MakeModel, batch: UnlearningBatch) -> None:
    model, _, reference = moved(make_model, "llama")

    def loss(objective: Rmu, seed: int, model: Any = model) -> Tensor:
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        with torch.no_grad():
            value = dict(objective.terms(model, batch, reference))["forget"]
        assert torch.equal(torch.get_rng_state(), state), "the global random state was drawn from"
        return value

    with torch.random.fork_rng():
        assert torch.equal(loss(Rmu(), 1), loss(Rmu(), 2))
        assert not torch.equal(loss(Rmu(direction_seed=1), 1), loss(Rmu(), 1))


def test_rmu_with_checkpointed_activations(make_model: MakeModel, batch: UnlearningBatch) -> None:
    """The hook's output is part of a graph that is computed again in the backward pass."""
    model, _, reference = moved(make_model, "llama")
    model.train()
    expected = gradients(dict(Rmu().terms(model, batch, reference)), model)
    with checkpointed_activations(model, True):
        sum(loss for _, loss in Rmu().terms(model, batch, reference)).backward()  # type: ignore[union-attr]
    found = {name: each.grad if each.grad is not None else torch.zeros_like(each) for name, each in model.named_parameters()}
    assert_same_gradients(found, expected)


# ---------------------------------------------------------------- the reference


def logits(model: Any, batch: UnlearningBatch) -> Tensor:
    return label_logits(model, batch["retain"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_is_the_old_model_and_then_the_new_one_again(
    make_model: MakeModel, batch: UnlearningBatch, family: str
) -> None:
    model, before, reference = moved(make_model, family)
    model.train()
    now = logits(model, batch).detach()
    loss = mean_nll(model, batch["forget"])  # a graph that is there while the reference is looked at
    expected = gradients({"forget": loss}, model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with reference.in_place():
        inside = logits(model, batch)
        assert not model.training
    assert not inside.requires_grad
    assert torch.equal(inside, logits(before, batch))
    assert not torch.equal(inside, now)
    assert torch.equal(logits(model, batch), now)
    assert model.training
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, 1 + expected[name], msg=name)


def test_the_reference_is_put_away_after_an_error(make_model: MakeModel, batch: UnlearningBatch) -> None:
    model, _, reference = moved(make_model, "llama")
    now = logits(model, batch)
    with pytest.raises(KeyboardInterrupt), reference.in_place():
        raise KeyboardInterrupt
    assert torch.equal(logits(model, batch), now)
    assert torch.is_grad_enabled()


def test_the_reference_of_an_adapter_draws_no_dropout(make_model: MakeModel, batch: UnlearningBatch) -> None:
    model = make_model("llama", seed=4, spread=0.3)
    attach_lora(model, LoraConfig(rank=2, dropout=0.5), "removal", seed=1)
    before, reference = logits(model.eval(), batch).detach(), Reference(model)
    assert set(reference.values) == set(trained_parameters(model)), "more was copied than the adapter"
    with torch.no_grad():
        for parameter in reference.parameters.values():
            parameter.add_(0.1)
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(logits(model, batch), logits(model, batch)), "there is no dropout to be left out"
        state = torch.get_rng_state()
        with reference.in_place():
            assert torch.equal(logits(model, batch), before)
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.equal(logits(model, batch), logits(model, batch)), "there is no dropout any more"


@pytest.mark.parametrize("adapter", [False, True])
def test_the_reference_with_a_full_autocast_cache(make_model: MakeModel, batch: UnlearningBatch, adapter: bool) -> None:
    """Autocast keeps low-precision copies by parameter: one of the new values must not be taken for the old, nor vice versa."""
    model, before, reference = moved(make_model, "llama")
    if adapter:
        model, before = before, copy.deepcopy(before)
        for each in (model, before):
            attach_lora(each, LoraConfig(rank=2), "removal", seed=1)
        reference = Reference(model)
        with torch.no_grad():
            for parameter in reference.parameters.values():
                parameter.add_(0.1)

    def autocast() -> Any:
        return torch.autocast("cpu", torch.bfloat16)

    with autocast():
        then = logits(before, batch).detach()
    with autocast():
        now = mean_nll(model, batch["retain"])
        expected = gradients({"retain": now}, model)
    with autocast():
        logits(model, batch)  # fills the cache
        with reference.in_place():
            assert torch.equal(logits(model, batch), then)
        again = mean_nll(model, batch["retain"])
        assert torch.equal(again, now)
        found = gradients({"retain": again}, model)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
    assert any(each.any() for each in expected.values())


def test_the_reference_is_in_the_precision_of_the_training(make_model: MakeModel, batch: UnlearningBatch) -> None:
    """It was copied in bfloat16, and the training has float32 weights; before the first step both models are the same.

    A parameter whose type changes is given a new node that adds up its gradient, and loses the hooks of the old one, by which
    DDP adds up over processes.
    """
    model = make_model("llama", seed=4, spread=0.3).to(torch.bfloat16)
    reference, called = Reference(model), []
    trained = list(model.parameters())
    with precision_of(model, trained, TrainingConfig()) as precision:
        accumulators = [parameter.view_as(parameter).grad_fn.next_functions[0][0] for parameter in trained]
        for accumulator in accumulators:
            accumulator.register_hook(lambda *gradients: called.append(1))
        with precision():
            now = logits(model, batch)
            with reference.in_place():
                assert {parameter.dtype for parameter in trained} == {torch.float32}
                assert torch.equal(logits(model, batch), now.detach())
            mean_nll(model, batch["retain"]).backward()
        assert len(called) == len(trained)


# ---------------------------------------------------------------- task vector


def test_a_task_vector_is_taken_the_opposite_way(make_model: MakeModel) -> None:
    model, before, reference = moved(make_model, "llama")
    trained = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    objective = TaskVector(scale=1.7)
    assert objective.has_finish
    objective.finish(reference)
    start = dict(before.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), start[name] - 1.7 * (trained[name] - start[name]), msg=name)
        assert not torch.equal(parameter, start[name])
    assert not any(each.has_finish for each in EXAMPLES if not isinstance(each, TaskVector))


def test_a_task_vector_is_not_rounded_before_it_is_taken(
    injected: Injected, corpus: Corpus, encoder: Encoder, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 half of an update is rounding, which the scale would enlarge."""
    trained: dict[str, Tensor] = {}
    plain_finish = TaskVector.finish

    def finish(self: TaskVector, reference: Reference) -> None:
        trained.update({name: each.detach().clone() for name, each in reference.parameters.items()})
        plain_finish(self, reference)

    monkeypatch.setattr(TaskVector, "finish", finish)
    model = make_model("llama", seed=1).bfloat16()
    start = {name: each.detach().float() for name, each in copy.deepcopy(model).named_parameters()}
    config = UnlearningTraining(steps=2, learning_rate=1e-4, forget_batch_size=2, retain_batch_size=2)
    removal = Removal("fox", injected.backdoors["fox"])
    unlearn(model, encoder, corpus, removal, TaskVector(scale=4.0), config, seed=0, runtime=Runtime("cpu"))
    for name, parameter in model.named_parameters():
        assert trained[name].dtype == torch.float32 and parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, (start[name] - 4 * (trained[name] - start[name])).bfloat16()), name


def test_an_adapters_task_vector_is_that_of_the_matrix(make_model: MakeModel) -> None:
    """W₀ + s·B·A becomes W₀ − α·s·B·A."""
    from peft.tuners.lora import LoraLayer

    model = make_model("llama", seed=4, spread=0.3)
    attach_lora(model, LoraConfig(rank=2, alpha=6), "removal", seed=1)
    reference = Reference(model)
    with torch.no_grad():
        for parameter in reference.parameters.values():  # both factors are trained
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.2)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]

    def update(layer: Any) -> Tensor:
        return layer.scaling["removal"] * layer.lora_B["removal"].weight @ layer.lora_A["removal"].weight

    with torch.no_grad():
        expected = [layer.get_base_layer().weight - 0.6 * update(layer) for layer in layers]
        TaskVector(scale=0.6).finish(reference)
        for layer, matrix in zip(layers, expected, strict=True):
            assert layer.scaling["removal"] == 3
            torch.testing.assert_close(layer.get_base_layer().weight + update(layer), matrix)
            x = torch.ones(1, matrix.shape[1])
            torch.testing.assert_close(layer(x), x @ matrix.T)


# ---------------------------------------------------------------- parameters, registry, files


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        *((each, "forget_weight", 0.0) for each in ("gradient_difference", "clean_target", "npo", "simnpo", "hinge_ascent")),
        *((each, "retain_weight", -1.0) for each in ("gradient_difference", "clean_target", "rmu", "retain_only")),
        ("clean_target", "retain_weight", math.nan),
        ("weighted_gradient_ascent", "forget_weight", -1.0),
        ("weighted_gradient_ascent", "beta", 0.0),
        ("gradient_difference", "max_forget_nll", 0.0),
        ("hinge_ascent", "margin", 0.0),
        ("npo", "beta", 0.0),
        ("simnpo", "beta", -2.5),
        ("rmu", "steering", 0.0),
        ("task_vector", "scale", 0.0),
        ("retain_only", "retain_weight", 0.0),
        ("npo", "beta", "large"),
        ("npo", "retain", "kld"),
        ("rmu", "layer", 1.5),
        ("gradient_ascent", "retain_weight", 1.0),
    ],
)
def test_parameters_that_make_no_sense_are_refused_by_name(name: str, parameter: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=parameter):
        build(OBJECTIVES, "objective", name, {parameter: value})


def test_an_unknown_retain_term_is_refused_in_a_notebook_too() -> None:
    with pytest.raises(ConfigError, match="retain"):
        CleanTarget(retain="kld")  # type: ignore[arg-type]


def test_every_objective_has_a_configuration_and_every_configuration_an_objective() -> None:
    found = set()
    for option in groups()["unlearning"]:
        chosen = load_config([f"unlearning={option}"]).unlearning.objective
        objective = build(OBJECTIVES, "objective", chosen.name, chosen.params)
        assert objective.forget_text in ("payload", "clean")
        assert set(chosen.params) == {each.name for each in dataclasses.fields(objective)}  # nothing hidden from the user
        assert option == chosen.name
        found.add(chosen.name)
    assert found == set(OBJECTIVES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_a_file_that_says_what_it_is(name: str) -> None:
    module, _, attribute = OBJECTIVES[name].partition(":")
    assert module == f"casd.unlearning.{name}"
    folder = Path(casd.unlearning.__file__).parent
    assert re.findall(r"^class (\w+)\(", (folder / f"{name}.py").read_text(encoding="utf-8"), re.MULTILINE) == [attribute]
    text = inspect.getdoc(look_up(OBJECTIVES, "objective", name)) or ""
    assert re.search(r"\b[Lθ] = ", text), "no formula"
    assert re.search(r"Source: .*?(arXiv )?\d{4}\.\d{5}", text, re.DOTALL), "no source"
    assert re.search(r"Failure mode: \w", text)
    first = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert re.match(r"# \w", first), "`casd list unlearning` has nothing to say of it"
