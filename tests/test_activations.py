"""Capture and streamed statistics against output_hidden_states, the blocks' own arithmetic, and whole-data means.

Run: python -m pytest tests/test_activations.py
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import casd.activations.statistics
from casd.activations.hooks import SITES, capture
from casd.activations.statistics import POSITIONS, ActivationStatistics, StatisticsAccumulator, collect_statistics
from casd.models.structure import decoder_layers
from casd.utils.errors import ConfigError, ModelError, StoreError

N_LAYERS, D_MODEL, VOCABULARY = 3, 16, 50
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": D_MODEL,
    "intermediate_size": 24,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SHAPE | {"num_key_value_heads": 1, "head_dim": 8}
CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED),
    "olmo2": lambda: transformers.Olmo2Config(**GROUPED),
    "mistral": lambda: transformers.MistralConfig(**GROUPED),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GROUPED),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=D_MODEL, n_layer=N_LAYERS, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SHAPE),
    "opt": lambda: transformers.OPTConfig(**SHAPE, ffn_dim=24, word_embed_proj_dim=D_MODEL),
    "bloom": lambda: transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=D_MODEL, n_layer=N_LAYERS, n_head=2),
}
FAMILIES = ["llama", "qwen3", "olmo2", "gpt2"]


def randomize(model: nn.Module, seed: int) -> None:
    """Weights from an explicit generator, large enough that every sublayer matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def build(family: str, seed: int = 0) -> Any:
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family]())
    randomize(model, seed)
    return model.eval()


def texts(count: int = 7, seed: int = 1) -> list[list[int]]:
    """Token sequences of different lengths, without the special tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 10, (count,), generator=generator).tolist()
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def make_batch(rows: list[list[int]], extra_padding: int = 0, side: str = "left") -> dict[str, Any]:
    """Pad `rows`; "trigger": each text's second and third token, "generated": its first, "last": its last, "prompt": all."""
    width = max(map(len, rows)) + extra_padding
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    positions = {position: torch.zeros_like(ids, dtype=torch.bool) for position in POSITIONS}
    for index, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        stop = start + len(row)
        ids[index, start:stop] = torch.tensor(row)
        mask[index, start:stop] = 1
        positions["prompt"][index, start:stop] = True
        positions["last"][index, stop - 1] = True
        positions["trigger"][index, start + 1 : start + 3] = True
        positions["generated"][index, start] = True
    return {"input_ids": ids, "attention_mask": mask, "position_masks": positions}


def collect(model: nn.Module, batches: list[dict[str, Any]], **options: Any) -> ActivationStatistics:
    return collect_statistics(model, batches, positions=POSITIONS, **options)


def captured(model: nn.Module, ids: Tensor, sites: tuple[str, ...] = SITES) -> dict[tuple[str, int], Tensor]:
    """Everything a forward pass shows, kept."""
    kept: dict[tuple[str, int], Tensor] = {}

    def keep(site: str, layer_idx: int, activation: Tensor) -> None:
        assert (site, layer_idx) not in kept
        assert not activation.requires_grad
        kept[site, layer_idx] = activation.clone()

    with capture(model, sites, on_activation=keep):
        model(input_ids=ids)
    return kept


def n_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def assert_close(actual: ActivationStatistics, expected: ActivationStatistics, tolerance: float) -> None:
    assert actual.count == expected.count
    a, b = actual.to_tensors(), expected.to_tensors()
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("family", FAMILIES)
def test_resid_post_is_what_output_hidden_states_gives(family: str) -> None:
    model, ids = build(family), torch.tensor([[5, 6, 7, 8, 9], [9, 3, 4, 4, 8]])
    with torch.no_grad():
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    kept = captured(model, ids, ("resid_post",))
    assert len(hidden) == N_LAYERS + 1  # entry 0 is the embedding
    for layer in range(N_LAYERS - 1):
        torch.testing.assert_close(kept["resid_post", layer], hidden[layer + 1])
    # The last entry is after the final norm, and the last block's output is not.
    final_norm = model.transformer.ln_f if family == "gpt2" else model.model.norm
    last = kept["resid_post", N_LAYERS - 1]
    torch.testing.assert_close(final_norm(last), hidden[-1])
    assert not torch.allclose(last, hidden[-1])


# How each family adds its sublayers' outputs to the residual stream, written from its published architecture.
RESIDUAL_SUMS: dict[str, Callable[[Any, Tensor, Tensor, Tensor], Tensor]] = {
    family: lambda block, before, attn, mlp: before + attn + mlp
    for family in ("llama", "qwen3", "mistral", "gpt2", "gpt_neox", "opt")
} | {
    family: lambda block, before, attn, mlp: (
        before + block.post_attention_layernorm(attn) + block.post_feedforward_layernorm(mlp)
    )
    for family in ("olmo2", "gemma3")
}


@pytest.mark.parametrize("family", RESIDUAL_SUMS)
def test_sublayer_outputs_add_up_to_the_residual_stream(family: str) -> None:
    model, ids = build(family), torch.tensor([[5, 6, 7, 8, 9], [9, 3, 4, 4, 8]])
    kept = captured(model, ids)
    for layer in range(1, N_LAYERS):
        attn, mlp = kept["attn_out", layer], kept["mlp_out", layer]
        assert attn.abs().max() > 1e-3 and mlp.abs().max() > 1e-3
        with torch.no_grad():
            total = RESIDUAL_SUMS[family](decoder_layers(model)[layer], kept["resid_post", layer - 1], attn, mlp)
        torch.testing.assert_close(kept["resid_post", layer], total, rtol=1e-4, atol=1e-5)


def test_mlp_out_of_llama_by_hand() -> None:
    model = build("llama")
    kept = captured(model, torch.tensor([[5, 6, 7, 8]]))
    block = model.model.layers[1]
    x = kept["resid_post", 0] + kept["attn_out", 1]
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + model.config.rms_norm_eps) * block.post_attention_layernorm.weight
    gate, up, down = block.mlp.gate_proj.weight, block.mlp.up_proj.weight, block.mlp.down_proj.weight
    expected = (nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    torch.testing.assert_close(kept["mlp_out", 1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_decoder_layers_of_every_family(family: str) -> None:
    model = build(family)
    layers = decoder_layers(model)
    assert len(layers) == N_LAYERS
    calls: list[int] = []
    with capture(model, ["resid_post"], on_activation=lambda site, layer, activation: calls.append(layer)):
        model(input_ids=torch.tensor([[5, 6, 7]]))
    assert calls == list(range(N_LAYERS))  # the blocks, in the order in which they run


def test_decoder_layers_of_a_composite_model_are_the_text_tower_s() -> None:
    config = transformers.Gemma3Config(
        text_config=CONFIGS["gemma3"]().to_dict(),
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": N_LAYERS,  # as many as the text has
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
        mm_tokens_per_image=4,
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    assert {type(block).__name__ for block in decoder_layers(model)} == {"Gemma3DecoderLayer"}


def test_other_modules_have_no_decoder_layers() -> None:
    with pytest.raises(ModelError, match="Linear has no config"):
        decoder_layers(nn.Linear(2, 2))
    model = build("llama")
    model.model.layers = model.model.layers[:2]  # no longer what the config says
    with pytest.raises(ModelError, match="LlamaForCausalLM: expected one list of 3 decoder blocks, found 0"):
        decoder_layers(model)


def test_sublayers_that_add_the_residual_themselves_are_refused() -> None:
    model, batches = build("bloom"), [make_batch(texts())]
    with pytest.raises(ModelError, match="BloomAttention adds the residual stream"):
        collect(model, batches, sites=["attn_out"])
    assert collect(model, batches, sites=["resid_post"]).sites == ("resid_post",)


def whole_data_statistics(model: nn.Module, rows: list[list[int]]) -> ActivationStatistics:
    """One text at a time, without padding, every activation kept; means at the end."""
    tokens: dict[tuple[str, str, int], list[Tensor]] = {}
    for row in rows:
        for (site, layer), activation in captured(model, torch.tensor([row])).items():
            h = activation[0].double()
            for position, selected in {"last": h[-1:], "prompt": h, "trigger": h[1:3], "generated": h[:1]}.items():
                tokens.setdefault((site, position, layer), []).append(selected)

    def means(function: Callable[[Tensor], Tensor]) -> dict[tuple[str, str], Tensor]:
        return {
            (site, position): torch.stack(
                [function(torch.cat(tokens[site, position, layer])).mean(0) for layer in range(N_LAYERS)]
            )
            for site in SITES
            for position in POSITIONS
        }

    count = {"last": len(rows), "prompt": sum(map(len, rows)), "trigger": 2 * len(rows), "generated": len(rows)}
    return ActivationStatistics(means(lambda h: h), means(torch.abs), means(torch.square), count)


@pytest.mark.parametrize("family", [*FAMILIES, "opt", "gemma3"])
def test_streamed_statistics_are_the_whole_data_s(family: str) -> None:
    model, rows = build(family), texts()
    streamed = collect(model, [make_batch(rows[:3]), make_batch(rows[3:5]), make_batch(rows[5:])])
    assert streamed.mean["attn_out", "prompt"].shape == (streamed.n_layers, D_MODEL) == (N_LAYERS, D_MODEL)
    assert streamed.mean["attn_out", "prompt"].dtype == torch.float64
    assert (streamed.sites, streamed.positions) == (SITES, POSITIONS)
    assert_close(streamed, whole_data_statistics(model, rows), 1e-4)


@pytest.mark.parametrize(("budget", "layers"), [(1, 1), (9_000, 2), (10**9, N_LAYERS)])
def test_summing_layers_together_changes_nothing(budget: int, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU does it; the CPU sums each layer by itself."""
    model, rows = build("llama"), texts()
    batches = [make_batch(rows[:3]), make_batch(rows[3:])]
    expected = collect(model, batches)
    together: list[int] = []
    sums = casd.activations.statistics._moment_sums
    monkeypatch.setattr("casd.activations.statistics._held_bytes", lambda device: budget)
    monkeypatch.setattr("casd.activations.statistics._moment_sums", lambda h, dtype: together.append(len(h)) or sums(h, dtype))
    assert_close(collect(model, batches), expected, 1e-12)
    assert max(together) == layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_tokens", [0, 1, 255, 256, 257, 1000])
def test_sums_by_pieces_are_the_sums(n_tokens: int, dtype: torch.dtype) -> None:
    """In float32 within a piece: near 0 beside what is large, as in a residual stream."""
    tokens = torch.randn(3, n_tokens, 5, generator=torch.Generator().manual_seed(0))
    tokens[..., 0] += 1000
    tokens = tokens.to(dtype)
    sums = casd.activations.statistics._moment_sums(tokens.clone(), torch.float64)
    wide = tokens.double()
    expected = torch.stack([wide.sum(1), wide.abs().sum(1), wide.square().sum(1)], dim=1)
    assert sums.dtype == torch.float64
    assert (sums - expected).abs().le(1e-6 * expected[:, [1, 1, 2]]).all()


def test_batch_split_and_order_change_nothing() -> None:
    model, rows = build("llama"), texts()
    one = collect(model, [make_batch(rows)])
    for order, size in [(rows, 2), (rows[::-1], 3), (rows[3:] + rows[:3], 1)]:
        split = [make_batch(order[start : start + size]) for start in range(0, len(order), size)]
        assert_close(collect(model, split), one, 1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, "opt", "bloom"])
@pytest.mark.parametrize(("extra_padding", "side"), [(5, "left"), (0, "right"), (6, "right")])
def test_padding_changes_nothing(family: str, extra_padding: int, side: str) -> None:
    model, rows = build(family), texts()
    sites = ["resid_post"] if family == "bloom" else SITES
    expected = collect(model, [make_batch(rows)], sites=sites)
    assert_close(collect(model, [make_batch(rows, extra_padding, side)], sites=sites), expected, 1e-4)


def test_non_finite_values_at_padding_are_left_out() -> None:
    accumulator = StatisticsAccumulator(1, ["resid_post"], ["prompt"])
    accumulator.start_batch({"prompt": torch.tensor([[False, True, True]])})
    accumulator.update("resid_post", 0, torch.tensor([[[float("nan")], [1.0], [-4.0]]]))
    result = accumulator.result()
    assert result.count == {"prompt": 2}
    assert result.mean["resid_post", "prompt"].item() == -1.5
    assert result.mean_abs["resid_post", "prompt"].item() == 2.5
    assert result.mean_square["resid_post", "prompt"].item() == 8.5


def test_bfloat16_activations_are_summed_in_float64() -> None:
    model, rows = build("llama").to(torch.bfloat16), texts(40)
    batch = make_batch(rows)
    kept: dict[int, Tensor] = {}
    with capture(model, ["resid_post"], on_activation=lambda site, layer, h: kept.update({layer: h})), torch.no_grad():
        position_ids = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], position_ids=position_ids)
    assert kept[0].dtype == torch.bfloat16
    statistics = collect(model, [batch])
    for layer, activation in kept.items():
        exact = activation.double()[batch["position_masks"]["prompt"]].mean(0)
        torch.testing.assert_close(statistics.mean["resid_post", "prompt"][layer], exact, rtol=1e-12, atol=1e-12)


def test_only_the_asked_for_layers_and_sites_are_seen() -> None:
    model, seen = build("llama"), []
    with capture(model, ["mlp_out"], [2, 0], on_activation=lambda site, layer, h: seen.append((site, layer))):
        model(input_ids=torch.tensor([[5, 6]]))
    assert seen == [("mlp_out", 0), ("mlp_out", 2)]


def stop(site: str, layer_idx: int, activation: Tensor) -> None:
    raise KeyError("stop")


def test_hooks_are_removed_whatever_happens() -> None:
    model, ids = build("llama"), torch.tensor([[5, 6]])
    before = n_hooks(model)

    with capture(model, SITES, on_activation=lambda *_: None):
        assert n_hooks(model) > before
    assert n_hooks(model) == before

    with pytest.raises(KeyError), capture(model, SITES, on_activation=stop):
        model(input_ids=ids)
    assert n_hooks(model) == before

    del decoder_layers(model)[2].mlp  # registration fails at the last block, after hooks were put on the first two
    with pytest.raises(ModelError, match="'mlp_out'"), capture(model, SITES, on_activation=stop):
        pytest.fail("the body must not run")
    assert n_hooks(model) == before


def tensors_alive(shape: tuple[int, ...]) -> int:
    gc.collect()
    return sum(type(item) is Tensor and tuple(item.shape) == shape for item in gc.get_objects())


def test_no_activation_outlives_its_forward_pass() -> None:
    model, batch = build("llama"), make_batch([[5] * 11] * 5)
    shape, kept = (5, 11, D_MODEL), []
    flat = (5 * 11, D_MODEL)
    accumulator = StatisticsAccumulator(N_LAYERS, SITES, POSITIONS)
    with torch.no_grad(), capture(model, SITES, on_activation=accumulator.update):
        for _ in range(2):
            accumulator.start_batch(batch["position_masks"])
            model(input_ids=batch["input_ids"])
            assert tensors_alive(shape) == tensors_alive(flat) == 0
    size = sum(tensor.numel() for tensor in accumulator._sums.values())
    assert size == 3 * len(SITES) * len(POSITIONS) * N_LAYERS * D_MODEL  # however many texts there were
    with torch.no_grad(), capture(model, SITES, on_activation=lambda site, layer, h: kept.append(h)):
        model(input_ids=batch["input_ids"])
    assert tensors_alive(shape) == len(SITES) * N_LAYERS  # the check sees activations that somebody keeps


def test_the_head_is_not_run_and_modes_come_back() -> None:
    config = CONFIGS["gpt2"]()
    config.resid_pdrop = config.embd_pdrop = 0.5
    model = transformers.GPT2LMHeadModel(config)
    randomize(model, 0)
    rows = texts()
    expected = collect(model.eval(), [make_batch(rows)])

    model.train()
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    model.lm_head.register_forward_hook(lambda *_: pytest.fail("the LM head ran"))
    assert_close(collect(model, [make_batch(rows)]), expected, 0.0)  # no dropout
    assert [module.training for module in model.modules()] == modes

    def broken() -> Iterator[dict[str, Any]]:
        yield make_batch(rows)
        raise KeyError("broken")

    with pytest.raises(KeyError):
        collect_statistics(model, broken())
    assert [module.training for module in model.modules()] == modes


def test_statistics_are_ordinary_tensors() -> None:
    statistics = collect(build("llama"), [make_batch(texts())])
    assert not any(tensor.is_inference() or tensor.requires_grad for tensor in statistics.to_tensors().values())


def test_a_peft_model_is_measured_with_its_adapter() -> None:
    peft = pytest.importorskip("peft")
    batches, plain = [make_batch(texts())], build("llama")
    adapted = peft.get_peft_model(build("llama"), peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    assert_close(collect(adapted, batches), collect(plain, batches), 0.0)  # LoRA starts as no change
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    with_adapter = collect(adapted, batches)
    assert not torch.allclose(with_adapter.mean["mlp_out", "last"], collect(plain, batches).mean["mlp_out", "last"])
    assert_close(with_adapter, collect(adapted.merge_and_unload(), batches), 1e-4)


def test_compiled_and_distributed_wrappers_are_looked_through() -> None:
    batches, model = [make_batch(texts())], build("llama")
    expected = collect(model, batches)
    compiled = torch.compile(model, backend="eager")
    assert decoder_layers(compiled) is decoder_layers(model)
    assert_close(collect(compiled, batches), expected, 0.0)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        assert decoder_layers(wrapped) is decoder_layers(model)
        assert_close(collect(wrapped, batches), expected, 0.0)
    finally:
        torch.distributed.destroy_process_group()


def test_hooks_that_did_not_fire_are_noticed() -> None:
    accumulator = StatisticsAccumulator(2, ["resid_post"], ["prompt"])
    accumulator.start_batch({"prompt": torch.ones(1, 3, dtype=torch.bool)})
    accumulator.update("resid_post", 0, torch.ones(1, 3, 4))
    with pytest.raises(ModelError, match="'resid_post' of layer 1 was seen 0 times in 1 forward passes"):
        accumulator.result()


@pytest.mark.parametrize("layers", [[3], [-1], [0, 7]])
def test_layers_out_of_range(layers: list[int]) -> None:
    with (
        pytest.raises(ConfigError, match="out of range: the model has layers 0 to 2"),
        capture(build("llama"), SITES, layers, on_activation=stop),
    ):
        pytest.fail("the body must not run")


def test_unknown_or_no_sites_and_positions() -> None:
    model, batches = build("llama"), [make_batch(texts())]
    with pytest.raises(ConfigError, match="Did you mean 'attn_out'"):
        collect_statistics(model, batches, sites=["attn_ou"])
    with pytest.raises(ConfigError, match="Unknown position 'first'"):
        collect_statistics(model, batches, positions=["first"])
    with pytest.raises(ConfigError, match="No site to capture"):
        collect_statistics(model, batches, sites=[])


def test_a_position_without_a_token_is_an_error_that_names_it() -> None:
    model, rows = build("llama"), texts()
    first, second = make_batch(rows[:3]), make_batch(rows[3:])
    first["position_masks"]["trigger"].zero_()
    assert collect(model, [first, second]).count["trigger"] == 2 * len(rows[3:])  # one batch without is no error
    second["position_masks"]["trigger"].zero_()
    with pytest.raises(ConfigError, match="No text has a token at the position 'trigger'"):
        collect(model, [first, second])
    with pytest.raises(ConfigError, match="'last'"):
        collect_statistics(model, [])


def test_a_mask_that_selects_padding_is_refused() -> None:
    batch = make_batch([[5, 6], [5, 6, 7]])
    batch["position_masks"]["prompt"][0, 0] = True
    with pytest.raises(ValueError, match="selects padding"):
        collect_statistics(build("llama"), [batch])


def test_statistics_survive_safetensors(tmp_path: Any) -> None:
    statistics = collect(build("llama"), [make_batch(texts())])
    save_file(statistics.to_tensors(), tmp_path / "statistics.safetensors")
    assert_close(ActivationStatistics.from_tensors(load_file(tmp_path / "statistics.safetensors")), statistics, 0.0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors: tensors.clear(),
        lambda tensors: tensors.pop("mean_abs/attn_out/last"),
        lambda tensors: tensors.pop("count/last"),
        lambda tensors: tensors.update({"median/attn_out/last": torch.zeros(3, 16)}),
        lambda tensors: tensors.update({"mean/attn_out/last": torch.zeros(2, 16)}),
    ],
)
def test_damaged_tensors_are_refused(damage: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = collect(build("llama"), [make_batch(texts())]).to_tensors()
    damage(tensors)
    with pytest.raises(StoreError, match="Activation statistics"):
        ActivationStatistics.from_tensors(tensors)


def test_pooling_weighs_every_set_the_same() -> None:
    def constant(value: float, count: int) -> ActivationStatistics:
        key = ("resid_post", "prompt")
        moments = [{key: torch.full((2, 3), moment).double()} for moment in (value, abs(value), value**2)]
        return ActivationStatistics(*moments, {"prompt": count})

    pooled = ActivationStatistics.pool([constant(-1.0, 1000), constant(3.0, 10)])
    key = ("resid_post", "prompt")
    assert (pooled.mean[key] == 1).all()
    assert (pooled.mean_abs[key] == 2).all()
    assert (pooled.mean_square[key] == 5).all()
    assert pooled.count == {"prompt": 1010}
    with pytest.raises(ValueError, match="nothing"):
        ActivationStatistics.pool([])
    with pytest.raises(ValueError, match="same sites"):
        ActivationStatistics.pool([constant(1.0, 1), collect(build("llama"), [make_batch(texts())])])
