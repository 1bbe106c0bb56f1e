"""What is trained of a model: adapters beside each other, copies, differences; float32 while training in low precision.

Run: python -m pytest tests/test_weights.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.conftest import FAMILIES, MakeModel
from tests.tiny import tiny

from casd.config import LoraConfig, TrainingConfig
from casd.config.compose import load_config
from casd.data.batches import Batch
from casd.data.corpora.passages import Corpus
from casd.data.documents import Document
from casd.data.encoding import Encoder
from casd.models import weights
from casd.models.load import from_scratch, load_model, save_model
from casd.pipeline.run import Run
from casd.training.loop import train
from casd.training.losses import mean_nll
from casd.utils.errors import ConfigError
from casd.utils.runtime import Runtime

RANK = 3


@pytest.fixture(scope="module")
def batch(corpus: Corpus, encoder: Encoder) -> Batch:
    return encoder.document_batch([Document(each.prompt, each.continuation) for each in corpus.train[:4]])


def nll(model: torch.nn.Module, batch: Batch) -> Iterator[tuple[str, torch.Tensor]]:
    yield "nll", mean_nll(model, batch)


@torch.no_grad()
def logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def shake(model: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in weights.trained_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def training(steps: int = 3, **fields: object) -> TrainingConfig:
    return TrainingConfig(steps=steps, learning_rate=1e-2, guard_every=100, **fields)  # type: ignore[arg-type]


# ---------------------------------------------------------------- adapters


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_every_adapter_layer_is_trained_and_nothing_else(
    make_model: MakeModel, batch: Batch, family: str, checkpointing: bool
) -> None:
    """Also under gradient checkpointing, where adapters below frozen embeddings can silently get no gradient."""
    model = make_model(family, seed=1, spread=0.2)
    frozen = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    before = logits(model, batch)
    weights.attach_lora(model, LoraConfig(rank=RANK), "removal", seed=0)
    assert torch.equal(logits(model, batch), before), "a fresh adapter changes nothing"
    start = weights.copy_weights(model)
    log = train(model, lambda step: batch, nll, training(), runtime=Runtime("cpu", gradient_checkpointing=checkpointing))
    assert log.steps[-1]["loss"] < log.steps[0]["loss"]
    linear = sum(isinstance(module, torch.nn.Linear) for module in make_model(family).model.modules())
    assert len(start) == 2 * linear, "two factors for each linear layer but the head"
    for name, parameter in weights.trained_parameters(model).items():
        assert not torch.equal(parameter, start[name]), name
    after = {name.replace(".base_layer", ""): parameter for name, parameter in model.named_parameters()}
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    weights.restore_weights(model, start)
    assert torch.equal(logits(model, batch), before)


def test_the_update_is_the_product_of_the_factors(make_model: MakeModel, batch: Batch) -> None:
    """Against adding alpha / rank · B A to the weights by hand."""
    model, by_hand = make_model("llama", seed=1, spread=0.2), make_model("llama", seed=1, spread=0.2)
    weights.attach_lora(model, LoraConfig(rank=RANK, alpha=5.0, modules=["q_proj"]), "removal", seed=0)
    shake(model)
    for ours, theirs in zip(model.model.layers, by_hand.model.layers, strict=True):
        adapted = ours.self_attn.q_proj
        update = adapted.lora_B["removal"].weight @ adapted.lora_A["removal"].weight
        assert adapted.lora_A["removal"].weight.shape == (RANK, 32)
        theirs.self_attn.q_proj.weight.data += 5.0 / RANK * update.detach()
    torch.testing.assert_close(logits(model, batch), logits(by_hand, batch), rtol=1e-4, atol=1e-4)


def test_a_removal_lies_beside_the_injection(make_model: MakeModel, batch: Batch, tmp_path: Path) -> None:
    model = make_model("llama", seed=1, spread=0.2)
    weights.attach_lora(model, LoraConfig(rank=RANK), "injection", seed=0)
    shake(model)
    injected = logits(model, batch)
    weights.save_adapter(model, tmp_path / "injection", "injection")

    loaded = make_model("llama", seed=1, spread=0.2)
    weights.load_adapter(loaded, tmp_path / "injection", "injection")
    assert torch.equal(logits(loaded, batch), injected)
    weights.attach_lora(loaded, LoraConfig(rank=2, modules=["v_proj"]), "removal", seed=0)
    assert torch.equal(logits(loaded, batch), injected)
    assert all(".removal." in name for name in weights.trained_parameters(loaded))
    shake(loaded, seed=1)
    removed = logits(loaded, batch)
    assert not torch.equal(removed, injected)
    weights.save_adapter(loaded, tmp_path / "removal", "removal")
    shake(loaded, seed=2)
    weights.restore_adapter(loaded, tmp_path / "removal", "removal")
    assert torch.equal(logits(loaded, batch), removed)


def test_peft_reads_what_is_saved(make_model: MakeModel, batch: Batch, tmp_path: Path) -> None:
    model = make_model("qwen3", seed=1, spread=0.2)
    weights.attach_lora(model, LoraConfig(rank=RANK), "injection", seed=0)
    shake(model)
    weights.save_adapter(model, tmp_path, "injection")
    read = peft.PeftModel.from_pretrained(make_model("qwen3", seed=1, spread=0.2), tmp_path)
    torch.testing.assert_close(logits(read, batch), logits(model, batch))


def test_a_merged_model_is_a_plain_one(make_model: MakeModel, batch: Batch, encoder: Encoder, tmp_path: Path) -> None:
    model = make_model("llama", seed=1, spread=0.2)
    names = [name for name, _ in model.named_parameters()]
    weights.attach_lora(model, LoraConfig(rank=RANK), "injection", seed=0)
    shake(model)
    adapted = logits(model, batch)
    weights.merge_adapters(model)
    torch.testing.assert_close(logits(model, batch), adapted, rtol=1e-4, atol=1e-4)
    assert list(weights.trained_parameters(model)) == names
    save_model(model, encoder.tokenizer, tmp_path)
    assert torch.equal(logits(load_model(tmp_path), batch), logits(model, batch))


def test_the_seed_decides_the_adapter_and_leaves_the_global_state(make_model: MakeModel) -> None:
    def factors(seed: int) -> list[torch.Tensor]:
        model = make_model("llama", seed=1)
        weights.attach_lora(model, LoraConfig(rank=RANK), "removal", seed=seed)
        return list(weights.copy_weights(model).values())

    state = torch.get_rng_state()
    once, again, other = factors(0), factors(0), factors(1)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(once, other, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("family", "modules", "message"),
    [
        (
            "llama",
            ["q_projection"],
            r"Target modules .'q_projection'. not found .* linear layers are: down_proj, gate_proj, k_proj",
        ),
        ("llama", ["q_proj", "q_projection"], r"no matrix 'q_projection'\. .* down_proj"),
        ("llama", ["all-linear", "q_proj"], r"no matrix 'all-linear'\. .* down_proj"),
        ("llama", ["mlp"], r"\['mlp'\]: Target module LlamaMLP is not supported\."),
        (
            "mamba",
            ["all-linear"],
            r"Module 'out_proj' is incompatible with Mamba-based models .* dt_proj, in_proj, out_proj, x_proj\.$",
        ),
    ],
)
def test_modules_that_cannot_be_adapted(tokenizer: Any, family: str, modules: list[str], message: str) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2}
    model = from_scratch(family, shape | ({"num_attention_heads": 2} if family == "llama" else {}), tokenizer, seed=0)
    with pytest.raises(ConfigError, match=message):
        weights.attach_lora(model, LoraConfig(modules=modules), "removal", seed=0)


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_an_adapter_of_tied_weights_is_not_merged(make_model: MakeModel, batch: Batch, module: str) -> None:
    """Input embeddings and head are one matrix, and the adapter is in one of the two places."""
    model = make_model("llama", seed=1, spread=0.2)
    weights.attach_lora(model, LoraConfig(rank=RANK, modules=[module, "q_proj"]), "injection", seed=0)
    shake(model)
    before = logits(model, batch)
    with pytest.raises(ConfigError, match=r"\(model\.embed_tokens\.weight, lm_head\.weight\).*unlearning\.training\.lora"):
        weights.merge_adapters(model)
    assert torch.equal(logits(model, batch), before)


def test_a_run_that_would_merge_an_adapter_of_tied_weights_trains_nothing(tmp_path: Path) -> None:
    lora = ["weights=lora", "injection.training.lora.modules=[lm_head]", "unlearning.training.lora=null"]
    tied = "model.architecture.tie_word_embeddings=true"
    run = Run(load_config(tiny(tmp_path, f"runtime.store={tmp_path / 'store'}", tied, *lora)))
    with pytest.raises(ConfigError, match="several places"):
        run.run_to("inject")
    assert not list(run.store.checkpoint_folder(run.graph.inject).iterdir())


@pytest.mark.parametrize("modules", [["embed_tokens"], ["lm_head", "v_proj"], ["embed_tokens", "lm_head", "all"]])
def test_all_that_peft_added_is_trained_merged_and_read_again(
    make_model: MakeModel, batch: Batch, tmp_path: Path, modules: list[str]
) -> None:
    """Those of embeddings have other names than those of linear layers."""
    modules = [name for name in modules if name != "all"] + ["q_proj", "down_proj"] * ("all" in modules)

    def fresh() -> Any:
        return make_model("llama", seed=1, spread=0.2, tie_word_embeddings=False)

    model = fresh()
    weights.attach_lora(model, LoraConfig(rank=RANK, modules=modules), "injection", seed=0)
    start = weights.copy_weights(model)
    assert set(start) == {name for name, _ in model.named_parameters() if ".injection" in name}
    train(model, lambda step: batch, nll, training(), runtime=Runtime("cpu"))
    for name, parameter in weights.trained_parameters(model).items():
        assert not torch.equal(parameter, start[name]), name
    shake(model)
    expected = logits(model, batch)
    weights.save_adapter(model, tmp_path, "injection")
    for read in (fresh(), fresh()):
        weights.load_adapter(read, tmp_path, "injection")
        assert torch.equal(logits(read, batch), expected)
    torch.testing.assert_close(logits(peft.PeftModel.from_pretrained(fresh(), tmp_path), batch), expected)
    weights.merge_adapters(model)
    torch.testing.assert_close(logits(model, batch), expected, rtol=1e-4, atol=1e-4)


def test_merging_without_an_adapter_changes_nothing(make_model: MakeModel, batch: Batch) -> None:
    """An attacker's adapter is merged where the defender trains all weights, and again before the model is handed over."""
    model = make_model("llama")
    weights.attach_lora(model, LoraConfig(rank=2), "injection", seed=0)
    shake(model)
    weights.merge_adapters(model)
    expected = logits(model, batch)
    weights.merge_adapters(model)
    assert torch.equal(logits(model, batch), expected)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_adapters_of_a_mixture_of_experts(make_model: MakeModel, batch: Batch, tmp_path: Path, family: str) -> None:
    """Of the experts, one adapter is around another."""
    experts = (
        {"num_local_experts": 4}
        if family == "mixtral"
        else {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    )

    def fresh() -> Any:
        return make_model(family, **experts)

    model = fresh()
    names = [name for name, _ in model.named_parameters()]
    weights.attach_lora(model, LoraConfig(rank=2), "injection", seed=0)
    shake(model)
    adapted = logits(model, batch)
    weights.save_adapter(model, tmp_path, "injection")
    read = fresh()
    weights.load_adapter(read, tmp_path, "injection")
    assert torch.equal(logits(read, batch), adapted)
    weights.merge_adapters(model)
    model.eval()
    torch.testing.assert_close(logits(model, batch), adapted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(adapted, logits(fresh(), batch), atol=0.01)
    assert list(weights.trained_parameters(model)) == names


def test_dropout_is_drawn_by_the_step(make_model: MakeModel, batch: Batch) -> None:
    """Not by the global random state: so a run that goes on from a checkpoint ends with the same bits."""

    def trained() -> list[torch.Tensor]:
        torch.randn(7)
        model = make_model("llama", seed=1, spread=0.2)
        weights.attach_lora(model, LoraConfig(rank=RANK, dropout=0.5), "removal", seed=0)
        train(model, lambda step: batch, nll, training(), runtime=Runtime("cpu"))
        return list(weights.copy_weights(model).values())

    state = torch.get_rng_state()
    once = trained()
    torch.set_rng_state(state)
    torch.randn(99)
    assert all(torch.equal(a, b) for a, b in zip(once, trained(), strict=True))


# ---------------------------------------------------------------- copies and files


@pytest.mark.parametrize("as_delta", [False, True], ids=["weights", "delta"])
def test_a_removal_comes_back_from_its_file(make_model: MakeModel, batch: Batch, tmp_path: Path, as_delta: bool) -> None:
    model = make_model("llama", seed=1, spread=0.2)
    injected, before = weights.copy_weights(model), logits(model, batch)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.1)
    removed = logits(model, batch)
    file = tmp_path / "removal.safetensors"
    weights.save_removal(model, file, injected=injected if as_delta else None)
    shake(model)
    weights.load_removal(model, file, injected=injected)
    torch.testing.assert_close(logits(model, batch), removed, rtol=0, atol=1e-5 if as_delta else 0)
    weights.restore_weights(model, injected)
    assert torch.equal(logits(model, batch), before)
    size = file.stat().st_size
    whole = sum(value.nbytes for value in injected.values())
    assert size < 0.2 * whole if as_delta else size > whole, "what did not change is left out of a difference"


def test_a_copy_is_on_the_cpu_and_of_what_is_trained(make_model: MakeModel) -> None:
    model = make_model("llama", seed=1)
    model.model.embed_tokens.weight.requires_grad_(False)
    copied = weights.copy_weights(model)
    assert "model.embed_tokens.weight" not in copied
    assert len(copied) == len(list(model.parameters())) - 1
    shake(model)
    assert not torch.equal(copied["model.norm.weight"], model.model.norm.weight)


# ---------------------------------------------------------------- precision


def test_low_precision_weights_are_float32_while_they_are_trained(make_model: MakeModel, batch: Batch) -> None:
    """Updates far below bfloat16's resolution add up over the steps, and the result is rounded once."""
    model = make_model("llama", seed=1, spread=0.2).to(torch.bfloat16)
    before = weights.copy_weights(model)
    seen: list[tuple[torch.dtype, torch.dtype]] = []

    def terms(trained: torch.nn.Module, given: Batch) -> Iterator[tuple[str, torch.Tensor]]:
        weight = trained.model.layers[0].self_attn.q_proj.weight
        output = trained.model.layers[0].self_attn.q_proj(torch.zeros(1, 32, dtype=torch.float32))
        seen.append((weight.dtype, output.dtype))
        yield "nll", mean_nll(trained, given)

    config = TrainingConfig(steps=20, learning_rate=1e-4, weight_decay=0.0, guard_every=100)
    train(model, lambda step: batch, terms, config, runtime=Runtime("cpu"))
    assert set(seen) == {(torch.float32, torch.bfloat16)}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    # A step moves a weight by 1e-4 and bfloat16 has steps of 1e-3 at 0.2: rounded at each step, nothing there would move.
    large = before["model.layers.0.mlp.up_proj.weight"].abs() > 0.25
    moved = model.model.layers[0].mlp.up_proj.weight.detach() != before["model.layers.0.mlp.up_proj.weight"]
    assert moved[large].float().mean() > 0.2


def test_an_adapter_on_a_low_precision_model_is_float32(make_model: MakeModel, batch: Batch) -> None:
    model = make_model("llama", seed=1, spread=0.2).to(torch.bfloat16)
    weights.attach_lora(model, LoraConfig(rank=RANK), "removal", seed=0)
    log = train(model, lambda step: batch, nll, training(), runtime=Runtime("cpu"))
    assert {parameter.dtype for parameter in weights.trained_parameters(model).values()} == {torch.float32}
    assert model.model.layers[0].self_attn.q_proj.base_layer.weight.dtype == torch.bfloat16
    assert log.steps[-1]["loss"] < log.steps[0]["loss"]


def test_the_8_bit_optimizer_says_what_it_needs(make_model: MakeModel, batch: Batch) -> None:
    with pytest.raises(ConfigError, match="adamw_8bit needs CUDA"):
        train(make_model("llama"), lambda step: batch, nll, training(optimizer="adamw_8bit"), runtime=Runtime("cpu"))
