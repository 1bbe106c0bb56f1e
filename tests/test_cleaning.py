"""Cleaning methods that need no trigger, each against a plain computation of its docstring's formula.

Run: python -m pytest tests/test_cleaning.py
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.architectures import tiny_model
from tests.conftest import FAMILIES, MakeModel

from casd.backdoors.poisoning import ShuffledStream, clean_document
from casd.config import LanguageModelTraining, LoraConfig
from casd.data.batches import IGNORED_LABEL, Batch, micro_batches
from casd.data.corpora.passages import Corpus
from casd.data.documents import Document
from casd.data.encoding import Encoder
from casd.models.weights import attach_lora, trained_parameters
from casd.training.checkpoints import TrainingLog
from casd.training.loop import checkpointed_activations, train
from casd.training.losses import clean_loss, mean_nll
from casd.unlearning.cleaning import CLEANINGS
from casd.unlearning.cleaning.averaging import Averaging
from casd.unlearning.cleaning.crow import Crow
from casd.unlearning.cleaning.fine_pruning import FinePruning, down_projections
from casd.unlearning.cleaning.fine_tuning import FineTuning
from casd.unlearning.cleaning.method import Cleaning, clean
from casd.utils import distributed
from casd.utils.errors import ConfigError, ModelError
from casd.utils.registry import build
from casd.utils.runtime import Runtime
from casd.utils.seeding import derive_seed

CPU = Runtime("cpu")
LAYERS = 3


@pytest.fixture(autouse=True)
def _no_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes longer than these trainings."""
    monkeypatch.setattr("casd.training.loop.free_memory", lambda: None)


def short(**fields: Any) -> LanguageModelTraining:
    """A few steps that no guard ends."""
    return LanguageModelTraining(
        **{"steps": 3, "batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 0, "guard_factor": 100.0, **fields}
    )


def retain_batch(corpus: Corpus, encoder: Encoder, step: int, size: int, seed: int = 0) -> Batch:
    """The documents of a step: those that the removals with this seed retain."""
    stream = ShuffledStream(corpus.retain, derive_seed(seed, "retain"))
    return encoder.document_batch([clean_document(stream[index]) for index in range(step * size, (step + 1) * size)])


@pytest.fixture(scope="module")
def batch(encoder: Encoder) -> Batch:
    """Documents of different lengths."""
    made = encoder.document_batch(
        [Document("She sings in.", "He paints."), Document("B.", "C."), Document("It rains", "again")]
    )
    assert (made["attention_mask"] == 0).any()
    return made


# ---------------------------------------------------------------- fine-tuning


def test_fine_tuning_is_a_bare_loop_over_the_clean_documents(corpus: Corpus, encoder: Encoder, make_model: MakeModel) -> None:
    config = short(final_learning_rate=1.0)
    model, expected = make_model(seed=1), make_model(seed=1)
    optimizer = torch.optim.AdamW(expected.parameters(), lr=1e-3, betas=(0.9, config.beta2), weight_decay=config.weight_decay)
    for step in range(3):
        batch = retain_batch(corpus, encoder, step, 4, seed=7)
        logits = expected(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(expected.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    log = clean(model, encoder, corpus, FineTuning(), config, seed=7, runtime=CPU)
    assert [each["step"] for each in log.steps] == [0, 1, 2]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, expected.get_parameter(name), atol=1e-5, rtol=1e-4)


def test_an_adapter_is_fine_tuned_alone(corpus: Corpus, encoder: Encoder, make_model: MakeModel) -> None:
    model = make_model()
    attach_lora(model, LoraConfig(rank=2), "removal", seed=0)
    before = copy.deepcopy(model.state_dict())
    clean(model, encoder, corpus, FineTuning(), short(), seed=0, runtime=CPU)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in model.named_parameters() if ".lora_" in name}


def test_the_packing_of_the_configuration_is_used(corpus: Corpus, encoder: Encoder, make_model: MakeModel) -> None:
    """Documents that do not see each other have the losses that they have alone; joined ones have others."""
    losses = []
    for packing in ("none", "isolated", "joined"):
        log = clean(make_model(spread=0.1), encoder, corpus, Crow(), short(steps=1, packing=packing), seed=0, runtime=CPU)
        losses.append([log.steps[0]["loss/nll"], log.steps[0]["loss/consistency"]])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] != pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("name", CLEANINGS)
def test_every_method_lowers_the_clean_loss(
    corpus: Corpus, encoder: Encoder, make_model: MakeModel, tmp_path: Path, name: str
) -> None:
    model = make_model(seed=1)
    if name == "averaging":
        clean(model, encoder, corpus, FineTuning(), short(), seed=1, runtime=CPU)
        model.save_pretrained(tmp_path)
    method = build(CLEANINGS, "cleaning", name, {"base": str(tmp_path)} if name == "averaging" else {})
    held_out = encoder.document_batch([clean_document(passage) for passage in corpus.evaluation])
    before = clean_loss(model, [held_out])
    log = clean(model, encoder, corpus, method, short(steps=8, learning_rate=1e-2), seed=0, runtime=CPU)
    assert not log.stopped
    assert len(log.steps) == 8
    assert log.guard[-1]["clean_loss"] < log.guard[0]["clean_loss"]
    assert clean_loss(model, [held_out]) < 0.98 * before
    assert not model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_the_guard_ends_a_cleaning(corpus: Corpus, encoder: Encoder, make_model: MakeModel) -> None:
    config = short(learning_rate=1.0, guard_factor=1.2, guard_every=1)
    log = clean(make_model(seed=1), encoder, corpus, FineTuning(), config, seed=0, runtime=CPU)
    assert "the clean loss" in log.stopped
    assert len(log.steps) == 1


@pytest.mark.parametrize("method", [FineTuning(), FinePruning(share=0.3), Crow()], ids=lambda each: type(each).__name__)
def test_micro_batches_change_nothing(corpus: Corpus, encoder: Encoder, make_model: MakeModel, method: Cleaning) -> None:
    models, logs = [make_model(seed=1, spread=0.1) for _ in range(2)], []
    for model, size in zip(models, (4, 1), strict=True):
        runtime = Runtime("cpu", micro_batch_size=size)
        logs.append(clean(model, encoder, corpus, method, short(steps=2), seed=0, runtime=runtime))
    for one, other in zip(logs[0].steps, logs[1].steps, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    for name, parameter in models[0].named_parameters():
        torch.testing.assert_close(parameter, models[1].get_parameter(name), atol=2e-4, rtol=1e-3)


# ---------------------------------------------------------------- fine-pruning


def mlp_inputs(model: Any, names: str, batch: Batch) -> list[torch.Tensor]:
    """The hidden units of each block, (documents, tokens, units), recorded by hooks on the modules named."""
    inputs: list[torch.Tensor] = []
    matches = [module for name, module in model.named_modules() if name.endswith(names)]
    hooks = [module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach())) for module in matches]
    model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for hook in hooks:
        hook.remove()
    return inputs


PROJECTIONS = {
    "llama": "mlp.down_proj",
    "gpt2": "mlp.c_proj",
    "opt": "fc2",
    "gpt_neox": "mlp.dense_4h_to_h",
    "bloom": "4h_to_h",
}


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_the_least_active_units_are_pruned_and_stay_so(corpus: Corpus, encoder: Encoder, kind: str) -> None:
    """The activity by hand, over the tokens of the first two of three batches; the others of the block are trained."""
    model = tiny_model(kind)
    original, names = copy.deepcopy(model), PROJECTIONS[kind]
    totals = [0.0, 0.0]
    for step in range(2):
        batch = retain_batch(corpus, encoder, step, 4)
        is_text = batch["attention_mask"].bool() & (batch["input_ids"] != encoder.tokenizer.eos_token_id)
        for index, hidden in enumerate(mlp_inputs(original, names, batch)):
            totals[index] = totals[index] + hidden.flatten(0, -2)[is_text.flatten()].abs().sum(0)
    log = clean(model, encoder, corpus, FinePruning(share=0.25, batches=2), short(weight_decay=0.1), seed=0, runtime=CPU)
    assert len(log.steps) == 3
    projections = [module for name, module in model.named_modules() if name.endswith(names)]
    assert projections == down_projections(model)
    for total, projection in zip(totals, projections, strict=True):
        by_unit = projection.weight if kind == "gpt2" else projection.weight.T
        pruned = set((by_unit == 0).all(1).nonzero().flatten().tolist())
        assert pruned == set(total.argsort(stable=True)[: round(0.25 * len(total))].tolist())
        assert bool((by_unit != 0).all(1).any())


def test_pruned_units_stay_zero_in_low_precision(corpus: Corpus, encoder: Encoder, make_model: MakeModel) -> None:
    """Whose weights are replaced by float32 ones for the training."""
    model = make_model(seed=1).to(torch.bfloat16)
    clean(model, encoder, corpus, FinePruning(share=0.5), short(learning_rate=1e-2), seed=0, runtime=CPU)
    for projection in down_projections(model):
        assert projection.weight.dtype == torch.bfloat16
        assert int((projection.weight == 0).all(0).sum()) == 24


@pytest.mark.parametrize("kind", ["mixtral", "mamba"])
def test_what_cannot_be_pruned_is_said_before_training(corpus: Corpus, encoder: Encoder, kind: str) -> None:
    with pytest.raises(ModelError, match=r"block 0 of the model \(M\w+\) has no MLP that ends in one matrix"):
        clean(tiny_model(kind), encoder, corpus, FinePruning(), short(), seed=0, runtime=CPU)


# ---------------------------------------------------------------- CROW


def by_hand(model: Any, batch: Batch, method: Crow) -> torch.Tensor:
    """α · C at the perturbed embeddings, document by document, from transformers' hidden states alone.

    The final norm, which transformers applies to the last of them, must have been taken out of the model.
    """
    lengths = batch["attention_mask"].sum(1).tolist()
    embedded = [model.model.embed_tokens(row[:length]) for row, length in zip(batch["input_ids"], lengths, strict=True)]

    def inconsistency(embeddings: list[torch.Tensor]) -> torch.Tensor:
        total = torch.zeros(())
        for each in embeddings:
            states = model(inputs_embeds=each[None], output_hidden_states=True).hidden_states[1:]
            for before, after in itertools.pairwise(states):
                cosines = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
                total = total + (1 - cosines[0, :-1]).sum() / (LAYERS - 1)  # the last token predicts nothing
        return total / (sum(lengths) - len(lengths))

    leaves = [each.detach().requires_grad_() for each in embedded]
    signs = [each.sign() for each in torch.autograd.grad(inconsistency(leaves), leaves)]
    return method.alpha * inconsistency([each + method.epsilon * sign for each, sign in zip(embedded, signs, strict=True)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recomputed", [False, True])
def test_the_consistency_loss_is_its_formula(
    make_model: MakeModel, encoder: Encoder, batch: Batch, family: str, recomputed: bool
) -> None:
    """Also with activation checkpointing; with two micro-batches its parts add up."""
    model, method = make_model(family, seed=4, spread=0.3, num_hidden_layers=LAYERS), Crow(alpha=2.0, epsilon=0.05)
    plain = copy.deepcopy(model)
    plain.model.norm = torch.nn.Identity()
    expected = by_hand(plain, batch, method)
    expected.backward()
    model.train()
    total = 0.0
    with checkpointed_activations(model, recomputed):
        for part in micro_batches(batch, 2):
            (nll_name, nll), (name, loss) = method.terms(model, part)
            assert (nll_name, name) == ("nll", "consistency")
            assert float(nll.detach()) == pytest.approx(float(mean_nll(model, part).detach()))
            loss.backward()
            total += float(loss.detach())
    assert total == pytest.approx(float(expected.detach()), rel=1e-4)
    without = by_hand(plain, batch, Crow(alpha=2.0, epsilon=1e-6))
    assert abs(total - float(without.detach())) > 1e-2 * total, "the perturbation does not show"
    for key, parameter in trained_parameters(plain).items():
        gradient = model.get_parameter(key).grad
        if parameter.grad is not None:
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-4 * float(parameter.grad.norm()), msg=key)


def test_padding_and_rows_without_labels_do_not_count(make_model: MakeModel, batch: Batch) -> None:
    model = make_model(seed=4, spread=0.3)
    padded = {
        **batch,
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 5), value=7),
        "labels": torch.nn.functional.pad(batch["labels"], (0, 5), value=IGNORED_LABEL),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 5)),
    }
    for (_, expected), (_, found) in zip(Crow().terms(model, batch), Crow().terms(model, padded), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    empty = {**batch, "labels": torch.full_like(batch["labels"], IGNORED_LABEL)}
    for _, loss in Crow().terms(model, empty):
        assert float(loss.detach()) == 0.0
        loss.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_crow_trains_an_adapter_alone(corpus: Corpus, encoder: Encoder, make_model: MakeModel) -> None:
    model = make_model(seed=4)
    attach_lora(model, LoraConfig(rank=2), "removal", seed=0)
    before = copy.deepcopy(model.state_dict())
    log = clean(model, encoder, corpus, Crow(), short(), seed=0, runtime=CPU)
    assert log.steps[-1]["loss/consistency"] > 0
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(trained_parameters(model))


def test_crow_smooths_what_it_measures(corpus: Corpus, encoder: Encoder, make_model: MakeModel) -> None:
    model = make_model(seed=4, spread=0.1)
    log = clean(model, encoder, corpus, Crow(), short(steps=8, learning_rate=3e-3), seed=0, runtime=CPU)
    assert log.steps[-1]["loss/consistency"] < 0.8 * log.steps[0]["loss/consistency"]


def test_a_model_of_one_block_has_no_consecutive_ones(corpus: Corpus, encoder: Encoder, make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match="only one"):
        clean(make_model(num_hidden_layers=1), encoder, corpus, Crow(), short(), seed=0, runtime=CPU)


# ---------------------------------------------------------------- averaging


@pytest.mark.parametrize(("kind", "shards"), [("llama", "1GB"), ("llama", "20KB"), ("gpt2", "1GB")])
def test_the_average_is_exact(corpus: Corpus, encoder: Encoder, tmp_path: Path, kind: str, shards: str) -> None:
    """With the weights after fine-tuning: base and model tied or not, in one file or several."""
    suspect = tiny_model(kind)
    fine_tuned, base = copy.deepcopy(suspect), tiny_model(kind)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    base.save_pretrained(tmp_path, max_shard_size=shards)
    clean(fine_tuned, encoder, corpus, FineTuning(), short(), seed=0, runtime=CPU)
    log = clean(suspect, encoder, corpus, Averaging(base=str(tmp_path), weight=0.3), short(), seed=0, runtime=CPU)
    assert len(log.steps) == 3
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shards == "20KB")
    for name, parameter in suspect.named_parameters():
        expected = 0.7 * fine_tuned.get_parameter(name) + 0.3 * base.get_parameter(name)
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-6)


def test_names_without_the_prefix_of_the_decoder_are_found(corpus: Corpus, encoder: Encoder, tmp_path: Path) -> None:
    """As in the files of GPT-2 on the hub."""
    suspect, base = tiny_model("gpt2"), tiny_model("gpt2")
    with torch.no_grad():
        base.transformer.wte.weight.fill_(5.0)
    base.save_pretrained(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    renamed = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    safetensors.torch.save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    clean(suspect, encoder, corpus, Averaging(base=str(tmp_path), weight=1.0), short(), seed=0, runtime=CPU)
    assert torch.equal(suspect.transformer.wte.weight, base.transformer.wte.weight)
    assert torch.equal(suspect.lm_head.weight, base.transformer.wte.weight), "the tied head"


def test_only_one_model_is_in_memory(corpus: Corpus, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is read tensor by tensor."""
    suspect = tiny_model("llama")
    suspect.save_pretrained(tmp_path)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a whole model was read")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    monkeypatch.setattr("safetensors.torch.load_file", refuse)
    clean(suspect, encoder, corpus, Averaging(base=str(tmp_path)), short(steps=1), seed=0, runtime=CPU)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("qwen3", {}, r"qwen3, 2 layers, width 32\) has another shape than the model \(llama, 2 layers, width 32"),
        ("llama", {"num_hidden_layers": 3}, "3 layers, width 32"),
        ("llama", {"intermediate_size": 40}, r"no tensor model.layers.0.mlp.\w+.weight of shape \((48, 32|32, 48)\)"),
        ("llama", {"vocab_size": 421}, r"no tensor model.embed_tokens.weight of shape \(420, 32\)"),
    ],
)
def test_a_base_of_another_architecture_is_refused_before_training(
    corpus: Corpus, encoder: Encoder, tmp_path: Path, kind: str, fields: dict[str, int], message: str
) -> None:
    tiny_model(kind, **fields).save_pretrained(tmp_path)
    model = tiny_model("llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match=message) as error:
        clean(model, encoder, corpus, Averaging(base=str(tmp_path)), short(), seed=0, runtime=CPU)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_base_that_is_not_there_is_said(corpus: Corpus, encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No model in"):
        clean(tiny_model("llama"), encoder, corpus, Averaging(base=str(tmp_path / "x")), short(), seed=0, runtime=CPU)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("fine_tuning", {"alpha": 1.0}),
        *[("fine_pruning", {"share": value}) for value in (0.0, 1.0, -0.1, float("nan"), "0.1")],
        ("fine_pruning", {"batches": 0}),
        *[("crow", {"alpha": value}) for value in (0.0, -1.0, float("inf"))],
        ("crow", {"epsilon": 0.0}),
        ("averaging", {}),
        ("averaging", {"base": ""}),
        *[("averaging", {"base": "x", "weight": value}) for value in (0.0, 1.1, -0.5)],
        ("fine_tunning", {}),
    ],
)
def test_wrong_parameters_are_refused(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        build(CLEANINGS, "cleaning", name, parameters)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.01, 0.999])
def test_a_share_that_prunes_no_unit_or_all_is_refused(
    corpus: Corpus, encoder: Encoder, make_model: MakeModel, share: float
) -> None:
    with pytest.raises(ConfigError, match="of the 48 units"):
        clean(make_model(), encoder, corpus, FinePruning(share=share), short(), seed=0, runtime=CPU)


@pytest.mark.parametrize("method", [FinePruning(), Averaging(base="x")])
def test_methods_that_change_all_weights_refuse_an_adapter(
    corpus: Corpus, encoder: Encoder, make_model: MakeModel, method: Cleaning
) -> None:
    model = make_model()
    attach_lora(model, LoraConfig(rank=2), "removal", seed=0)
    with pytest.raises(ConfigError, match="Train all weights"):
        clean(model, encoder, corpus, method, short(), seed=0, runtime=CPU)


@pytest.mark.parametrize("method", [FinePruning(), Crow(), Averaging(base="x")])
def test_methods_for_one_process_say_so(
    corpus: Corpus, encoder: Encoder, make_model: MakeModel, method: Cleaning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    with pytest.raises(ConfigError, match="one process only; this launch has 2"):
        clean(make_model(), encoder, corpus, method, short(), seed=0, runtime=CPU)


def test_a_killed_fine_pruning_goes_on_to_the_same_bits(
    corpus: Corpus, encoder: Encoder, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that it goes on with is the suspect one, in which the same units are found."""
    method = FinePruning(share=0.3)
    whole, model = make_model(seed=1), make_model(seed=1)
    clean(whole, encoder, corpus, method, short(), seed=0, runtime=CPU)
    runtime = Runtime("cpu", checkpoint_seconds=1e-9)

    def killed(model: Any, batch_at: Any, *args: Any, **options: Any) -> TrainingLog:
        def until_the_last(step: int) -> Batch:
            if step == 2:
                raise KeyboardInterrupt
            return batch_at(step)

        return train(model, until_the_last, *args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("casd.unlearning.cleaning.method.train", killed)
        clean(model, encoder, corpus, method, short(), seed=0, runtime=runtime, checkpoint=tmp_path)
    assert list(tmp_path.iterdir())
    again = make_model(seed=1)
    log = clean(again, encoder, corpus, method, short(), seed=0, runtime=runtime, checkpoint=tmp_path)
    assert len(log.steps) == 3
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
