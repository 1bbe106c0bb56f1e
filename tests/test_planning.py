"""What is predicted of a run: parameters and FLOPs against real models, memory against a real run of the same computation.

Run: pytest tests/test_planning.py   (scripts/check_memory.py compares with what a process really takes)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from architectures import tiny_folder, tiny_model
from casd.activations import hooks
from casd.activations.statistics import StatisticsAccumulator
from casd.cli.main import main
from casd.config import ActivationsConfig, Config, LoraConfig, RuntimeConfig, TrainingConfig
from casd.config.compose import configs, load_config
from casd.engines.local import Local
from casd.models.decoding import decode
from casd.models.load import DTYPES, transformers_config
from casd.models.structure import decoder_of
from casd.models.weights import attach_lora
from casd.pipeline.inputs import build_objective
from casd.pipeline.run import Run
from casd.planning.blueprint import Blueprint
from casd.planning.check import check, disk_refusal, memory_refusal, upper_bound
from casd.planning.machine import Machine, machine
from casd.planning.memory import Rows, capture_need, generation_need, loss_need, training_need
from casd.planning.phases import PHASES, Devices, Phases, evaluation_prompts
from casd.planning.plan import Plan, plans, time_with_workers
from casd.planning.simulation import LiveBytes
from casd.planning.speed import UTILISATION, Speed, speed
from casd.planning.workload import TextLengths, forward_flops, generation_work, training_flops
from casd.training.loop import train
from casd.training.losses import clean_loss, mean_nll
from casd.unlearning.reference import Reference
from casd.utils.errors import ConfigError
from casd.utils.runtime import Runtime
from tiny import tiny

pytestmark = pytest.mark.usefixtures("process_settings")

ADAPTER = LoraConfig(rank=4, alpha=8)
KINDS = {"llama": True, "qwen3": False, "olmo2": True, "gemma3_text": True}  # and whether embeddings are tied


def shape(kind: str, layers: int = 2, tied: bool | None = None, dtype: str = "float32", **fields: Any) -> Blueprint:
    fields = {
        "hidden_size": 48,
        "intermediate_size": 112,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 300,
        "tie_word_embeddings": KINDS[kind] if tied is None else tied,
        **({} if kind == "olmo2" else {"head_dim": 16}),
        **fields,
    }
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return Blueprint(transformers_config(kind, fields, **special), dtype)


def real(blueprint: Blueprint) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(blueprint.config, dtype=DTYPES[blueprint.dtype])


def terms(model: Any, batch: Any) -> Iterator[tuple[str, Any]]:
    yield "nll", mean_nll(model, batch)


# ---------------------------------------------------------------- the shape of a model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_blueprint_counts_what_the_model_has(kind: str, tied: bool) -> None:
    blueprint = shape(kind, tied=tied)
    model = real(blueprint)
    assert blueprint.parameters == sum(parameter.numel() for parameter in model.parameters())
    looked_up = 0 if tied else model.get_input_embeddings().weight.numel()
    assert blueprint.active_parameters == blueprint.parameters - looked_up
    assert blueprint.layers == 2
    assert all(parameter.is_meta for parameter in blueprint.build().parameters()), "it takes memory"


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_counted_as_it_is_attached(kind: str) -> None:
    """From two blocks to five: what one more block costs is extended along a line."""
    blueprint = shape(kind, layers=5)
    model = real(blueprint)
    attach_lora(model, ADAPTER, "injection", seed=0)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert blueprint.trained_parameters([(ADAPTER, "injection")]) == trained > 0


def test_a_mixture_counts_the_experts_that_a_token_goes_through() -> None:
    fields = {"num_local_experts": 4, "num_experts_per_tok": 2, "hidden_size": 48, "intermediate_size": 112, "vocab_size": 300}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    blueprint = Blueprint(transformers_config("mixtral", fields | heads), "float32")
    experts = 2 * 4 * 3 * 48 * 112  # blocks × experts × matrices
    assert blueprint.mixture
    assert blueprint.active_parameters == blueprint.parameters - 300 * 48 - experts // 2


@pytest.mark.parametrize("kind", ["mixtral", "gpt_neo", "openai-gpt"])
def test_every_phase_of_other_architectures_is_estimated(kind: str, tmp_path: Path) -> None:
    """Experts in float32; learned positions; blocks that give lists, and no cache."""
    config = load_config(tiny(tmp_path, "model.max_length=32"))
    memory = Phases(config, Blueprint(tiny_model(kind).config, "float32"), TextLengths(32, 32, 24, 24))
    phases, unknown = memory.estimates(PHASES[1:])
    assert [phase.name for phase in phases] == list(PHASES[1:]) and not unknown
    assert all(phase.need.activations > 0 for phase in phases)


def model_folder(tmp_path: Path, tokenizer: Any, kind: str) -> list[str]:
    """The overrides of a tiny run of a folder."""
    folder = tiny_folder(tmp_path / kind, tokenizer, kind)
    words = ["model=hub", f"model.path={folder}", "model.max_length=128", "injection=continual", "injection.pretraining=null"]
    return [word for word in tiny(tmp_path) if not word.startswith("model.")] + words


def test_a_run_goes_on_where_memory_cannot_be_estimated(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = model_folder(tmp_path, tokenizer, "mamba")
    capsys.readouterr()
    check(Run(load_config([*words, "runtime.memory_gib=0.001"])), "report")
    said = capsys.readouterr().err.strip()
    assert said.startswith("Whether the run fits into memory is not checked") and "\n" not in said
    main(["plan", *words])
    printed = " ".join(capsys.readouterr().out.split())
    assert "The memory of inject, unlearn, evaluate, capture cannot be estimated for this model" in printed
    assert "FLOPs" in printed


def test_an_error_in_the_estimate_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any) -> None:
        raise IndexError("position 64\nof 64")

    run = Run(load_config(tiny(tmp_path, "runtime.memory_gib=0.001")))
    monkeypatch.setattr("casd.planning.phases.Phases.phase", broken)
    check(run, "report")
    assert capsys.readouterr().err.count("cannot be estimated for this model (position 64") == 1
    monkeypatch.setattr("casd.planning.check.stage_costs", broken)
    check(run, "report")


# ---------------------------------------------------------------- FLOPs


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_flops_against_a_counter(kind: str) -> None:
    """torch's counter sees the matrix products of a real forward and backward pass."""
    blueprint = shape(kind, layers=3, hidden_size=64, intermediate_size=256)
    blueprint.config._attn_implementation = "eager"
    model = real(blueprint)
    ids = torch.randint(3, 300, (2, 40))
    with FlopCounterMode(display=False) as forward:
        loss = model(input_ids=ids, labels=ids).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert forward_flops(blueprint, ids.numel(), 40) == pytest.approx(forward.get_total_flops(), rel=0.02)
    counted = forward.get_total_flops() + backward.get_total_flops()
    assert training_flops(blueprint, ids.numel(), 40) == pytest.approx(counted, rel=0.03)


def test_flops_of_an_adapter_against_a_counter() -> None:
    blueprint = shape("llama", layers=3, hidden_size=64, intermediate_size=256)
    blueprint.config._attn_implementation = "eager"
    model = real(blueprint)
    attach_lora(model, ADAPTER, "injection", seed=0)
    ids = torch.randint(3, 300, (2, 40))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    adapters: Any = [(ADAPTER, "injection")]
    assert training_flops(blueprint, ids.numel(), 40, adapters=adapters) == pytest.approx(counter.get_total_flops(), rel=0.06)


def test_checkpointing_costs_one_more_forward_pass() -> None:
    blueprint = shape("llama")
    more = training_flops(blueprint, 100, 20, gradient_checkpointing=True) - training_flops(blueprint, 100, 20)
    assert more == pytest.approx(forward_flops(blueprint, 100, 20))


# ---------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("name", "dtype", "tflops", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989, 3350),
        ("NVIDIA H100 80GB HBM3", "float32", 67, 3350),
        ("NVIDIA H100 PCIe", "bfloat16", 756, 2000),
        ("NVIDIA H200", "bfloat16", 989, 4800),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312, 1555),
        ("NVIDIA L40S", "bfloat16", 362, 864),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165, 1008),
    ],
)
def test_a_known_device_gives_its_speed(
    name: str, dtype: str, tflops: float, bandwidth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    cuda = Machine("cuda", 2**36, 0, 2**36, 0)
    found = speed(RuntimeConfig(), cuda, dtype)
    assert found is not None
    assert found.flops == pytest.approx(UTILISATION * tflops * 1e12)
    assert found.bandwidth == bandwidth * 1e9
    given = speed(RuntimeConfig(tflops=123), cuda, dtype)
    assert given is not None and given.flops == 123e12 and given.bandwidth == bandwidth * 1e9


def test_an_unknown_device_has_no_speed_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some L4000")
    cuda = Machine("cuda", 2**36, 0, 2**36, 0)
    assert speed(RuntimeConfig(), cuda, "bfloat16") is None
    given = speed(RuntimeConfig(tflops=100), cuda, "bfloat16")
    assert given is not None and given.flops == 100e12 and given.bandwidth > 0


def test_a_cpu_is_measured() -> None:
    found = speed(RuntimeConfig(), Machine("cpu", 2**36, 0, 2**36, 0), "float32")
    assert found is not None and 1e8 < found.flops < 1e14 and 1e8 < found.bandwidth < 1e13


def test_a_generation_reads_the_weights_in_each_step() -> None:
    """With a fast processor and a slow memory its time is that of reading weights and cache, whatever the batch."""
    blueprint = shape("llama", layers=4)
    slow_memory = Speed(flops=1e30, bandwidth=1e6, block_seconds=0, source="")
    one, eight = (generation_work(blueprint, prompts, 8, 20, 10, slow_memory) for prompts in (1, 8))
    cache = 2 * 4 * 2 * 16 * 4 * 25  # keys and values × blocks × heads × size × bytes × tokens on average
    assert one.seconds == pytest.approx(10 * (blueprint.weight_bytes() + cache) / 1e6)
    assert eight.seconds == pytest.approx(10 * (blueprint.weight_bytes() + 8 * cache) / 1e6)
    assert eight.flops == pytest.approx(8 * one.flops)
    slow_processor = Speed(flops=1e6, bandwidth=1e30, block_seconds=0, source="")
    assert generation_work(blueprint, 8, 8, 20, 10, slow_processor).seconds == pytest.approx(eight.flops / 1e6)
    slow_host = Speed(flops=1e30, bandwidth=1e30, block_seconds=0.5, source="")
    assert generation_work(blueprint, 9, 8, 20, 10, slow_host).seconds == pytest.approx(2 * 10 * 4 * 0.5)


# ---------------------------------------------------------------- memory


def measured_peak(blueprint: Blueprint, work: Callable[[Any], object], *, adapters: bool = False) -> int:
    """Most bytes of tensors in a computation on a real model, all of whose blocks are there."""
    model, live = real(blueprint), LiveBytes()
    if adapters:
        attach_lora(model, ADAPTER, "injection", seed=0)
    weights = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    live.restart(model)
    with live:
        work(model)
    return weights + max(live.peaks)


def padded(rows: int, tokens: int = 24) -> Any:
    batch = Rows(rows, tokens).batch()
    batch["attention_mask"][0, tokens // 2 :] = 0  # documents differ in length; without padding there is no mask
    return batch


@pytest.mark.parametrize(("kind", "dtype"), [("llama", "float32"), ("qwen3", "bfloat16"), ("gemma3_text", "float32")])
@pytest.mark.parametrize("several", [False, True])
def test_training_memory_against_a_real_training(kind: str, dtype: str, several: bool) -> None:
    blueprint = shape(kind, layers=8, dtype=dtype, vocab_size=1000)
    runtime = Runtime(device="cpu", micro_batch_size=12)
    config = TrainingConfig(steps=2, learning_rate=1e-4)

    def work(model: Any) -> None:
        train(model, lambda step: padded(24 if several else 12), terms, config, runtime=runtime)

    need = training_need(blueprint, config, Rows(12, 24), several=several)
    assert need.total == pytest.approx(measured_peak(blueprint, work), rel=0.15)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_of_an_adapter_against_a_real_training(checkpointing: bool) -> None:
    blueprint, config = shape("llama", layers=8, vocab_size=1000), TrainingConfig(steps=2, learning_rate=1e-4)
    runtime = Runtime(device="cpu", micro_batch_size=12, gradient_checkpointing=checkpointing)

    def work(model: Any) -> None:
        train(model, lambda step: padded(12), terms, config, runtime=runtime)

    found: Any = {"adapters": [(ADAPTER, "injection")], "gradient_checkpointing": checkpointing}
    need = training_need(blueprint, config, Rows(12, 24), **found)
    assert need.total == pytest.approx(measured_peak(blueprint, work, adapters=True), rel=0.15)


@pytest.mark.parametrize("kind", ["qwen3", "olmo2"])
def test_memory_of_measurements_against_real_ones(kind: str) -> None:
    blueprint = shape(kind, layers=8, vocab_size=1000)
    prompts = {name: padded(16)[name] for name in ("input_ids", "attention_mask")}

    def generate(model: Any) -> None:
        decode(model, **prompts, new_tokens=12, ends=(), padding=0)

    def capture(model: Any) -> None:
        config = ActivationsConfig(sites=["resid_post"], positions=["prompt"])
        statistics = StatisticsAccumulator(8, config.sites, config.positions)
        statistics.start_batch({"prompt": prompts["attention_mask"].bool()})
        with torch.no_grad(), hooks.capture(model, config.sites, on_activation=statistics.update):
            decoder_of(model)(**prompts, use_cache=False)

    rows = Rows(16, 24)
    captured = capture_need(blueprint, rows, ActivationsConfig(sites=["resid_post"], positions=["prompt"]))
    for need, work in (
        (generation_need(blueprint, rows, 12), generate),
        (loss_need(blueprint, rows), lambda model: clean_loss(model, [padded(16)])),
        (captured, capture),
    ):
        assert need.total == pytest.approx(measured_peak(blueprint, work), rel=0.15), work


@pytest.mark.parametrize(
    ("dtype", "optimizer", "weights", "gradients", "state"),
    [
        ("float32", "adamw", 4, 4, 8),
        ("bfloat16", "adamw", 4, 4, 8),  # float32 masters
        ("bfloat16", "adamw_8bit", 2, 2, 2.03125),
    ],
)
def test_bytes_of_a_parameter(dtype: str, optimizer: str, weights: float, gradients: float, state: float) -> None:
    blueprint = shape("llama", dtype=dtype)
    need = training_need(blueprint, TrainingConfig(optimizer=optimizer), Rows(2, 16))
    buffers = sum(buffer.nbytes for buffer in real(blueprint).buffers())
    assert need.weights == weights * blueprint.parameters + buffers
    assert need.gradients == gradients * blueprint.parameters
    assert need.optimizer == pytest.approx(state * blueprint.parameters, abs=1)
    assert need.activations > 0


def test_an_adapter_needs_gradients_and_state_for_itself_alone() -> None:
    blueprint = shape("llama", dtype="bfloat16")
    adapters: Any = [(ADAPTER, "injection")]
    need = training_need(blueprint, TrainingConfig(), Rows(2, 16), adapters=adapters)
    trained = blueprint.trained_parameters(adapters)
    assert (need.gradients, need.optimizer) == (4 * trained, 8 * trained)
    assert need.weights == blueprint.weight_bytes() + 4 * trained


def test_sizes_that_no_tensor_can_have() -> None:
    with pytest.raises(ConfigError, match="No machine has the memory for such sizes"):
        generation_need(shape("llama"), Rows(2**31 - 1, 2**20), 2**20)


def test_what_saves_activations_does() -> None:
    blueprint = shape("llama", layers=6)

    def activations(rows: int, **options: Any) -> int:
        return training_need(blueprint, TrainingConfig(), Rows(rows, 64), **options).activations

    assert activations(8, gradient_checkpointing=True) < 0.6 * activations(8)
    assert activations(4, several=True) < 0.7 * activations(8, several=True)
    assert activations(2, guard=Rows(64, 64)) > activations(2), "the guard's batch is not looked at"
    assert generation_need(blueprint, Rows(8, 32), 16).total < generation_need(blueprint, Rows(16, 32), 16).total
    assert loss_need(blueprint, Rows(8, 64)).activations < activations(8)


# ---------------------------------------------------------------- a whole run


def config(folder: Path, *overrides: str) -> Config:
    return load_config(tiny(folder, *overrides))


def phases(made: Config, devices: Devices = Devices()) -> Phases:  # noqa: B008  # frozen
    from casd.planning.blueprint import blueprint

    longest = made.model.max_length
    return Phases(made, blueprint(made.model), TextLengths(longest, longest, longest, longest), devices)


@pytest.mark.parametrize("overrides", [[], ["model=qwen3_tiny"], ["model=gaperon_tiny", "evaluation.batch_size=4"]], ids=str)
def test_the_generous_bound_is_one(overrides: list[str], tmp_path: Path) -> None:
    made = load_config([*overrides, f"runtime.output={tmp_path}"])
    looked_at = phases(made)
    bound = upper_bound(looked_at.blueprint, made)
    for name in PHASES[1:]:
        assert looked_at.phase(name).need.total < bound


def test_devices_share_the_batch_and_the_model(tmp_path: Path) -> None:
    made = config(tmp_path, "runtime.micro_batch_size=12")
    one, two = phases(made).phase("inject"), phases(made, Devices(2)).phase("inject")
    assert two.rows == one.rows // 2
    assert two.need.weights == one.need.weights
    divided = phases(made, Devices(2, sharded=True)).phase("inject")
    assert divided.need.weights <= one.need.weights // 2 + 1
    assert divided.need.optimizer <= one.need.optimizer // 2 + 1


@pytest.mark.parametrize(
    "overrides",
    [["unlearning=clean_target"], ["unlearning=npo"], ["unlearning=clean_target", "unlearning.objective.params.retain=kl"]],
    ids=["nll", "npo", "kl"],
)
def test_memory_of_a_removal_against_a_real_one(overrides: list[str], tmp_path: Path) -> None:
    """With the weights before unlearning, which some objectives need, and the logits of a KL."""
    made = config(tmp_path, *overrides)
    phase, objective = phases(made).phase("unlearn"), build_objective(made.unlearning)
    batch = {"forget": padded(phase.rows, phase.tokens), "retain": padded(phase.rows, phase.tokens)}

    def work(model: Any) -> None:
        reference = Reference(model) if objective.needs_reference else None
        terms = partial(objective.terms, reference=reference)
        train(model, lambda step: batch, terms, made.unlearning.training, guard_batches=[padded(16, phase.tokens)])

    measured = measured_peak(phases(made).blueprint, work)
    assert phase.need.total == pytest.approx(measured, rel=0.15)


def test_the_best_step_of_a_watched_removal_is_reckoned_with(tmp_path: Path) -> None:
    """A copy in float32 on the host, and one in each of the two checkpoints that are there while the second is written."""
    [plain, watched] = plans([config(tmp_path), config(tmp_path, "unlearning.stopping.target_asr=0.05")])
    weights = 4 * phases(plain.config).blueprint.parameters
    assert phases(watched.config).phase("unlearn").copy - phases(plain.config).phase("unlearn").copy == weights

    def begun(plan: Plan) -> set[int]:
        return {cost.begun for cost in plan.stages if cost.stage.name == "unlearn"}

    assert begun(watched) == {2 * (3 + 1) * weights} and begun(plain) == {2 * 3 * weights}


def settings(message: str) -> list[str]:
    """The settings with which a run would fit, out of the refusal."""
    found = re.search(r"It would fit with (.*?)\. \(", message)
    assert found, message
    return found[1].split()


def refusal(*overrides: str) -> str:
    """What is said to a run of Qwen3-8B on a device of too little memory; "" if it fits."""
    changed = load_config(["model=qwen3_8b", "injection=continual", "runtime.device=cuda", *overrides])
    ample = replace(machine(changed.runtime), host=2**40)
    return memory_refusal(phases(changed), ample, ["inject", "unlearn", "evaluate", "capture"])


def test_a_run_that_cannot_fit_is_told_what_would() -> None:
    assert refusal("runtime.memory_gib=400") == ""
    message = refusal("runtime.memory_gib=80")
    assert "80.0 GiB by runtime.memory_gib" in message
    assert refusal("runtime.memory_gib=80", *settings(message)) == "", "the advice does not help"


@pytest.mark.slow
def test_with_less_memory_it_is_told_to_train_adapters() -> None:
    smaller = refusal("runtime.memory_gib=24")
    assert "weights=lora" in smaller
    assert refusal("runtime.memory_gib=24", *settings(smaller)) == ""


def test_the_check_comes_before_anything_is_made(tmp_path: Path) -> None:
    run = Run(config(tmp_path, "runtime.memory_gib=0.001"))
    with pytest.raises(ConfigError, match=r"Not enough memory for .* by runtime.memory_gib"):
        check(run, "report")
    assert not (tmp_path / "store").exists() or not any((tmp_path / "store").iterdir())


def test_too_little_disk_says_what_can_go(tmp_path: Path) -> None:
    made = config(tmp_path, "runtime.save_models=[injected,removed]")
    [plan] = plans([made])
    kept, most = (sum(cost.kept or 0 for cost in plan.stages), sum(cost.kept or 0 for cost in plan.stages))
    most += max(cost.begun for cost in plan.stages)
    assert disk_refusal(made, list(plan.stages), most) == ""
    assert "runtime.checkpoint_seconds=inf" in disk_refusal(made, list(plan.stages), most - 1)
    # Several workers have a checkpoint each.
    two = replace(made, engine={"name": "local", "workers": 2})
    assert "runtime.checkpoint_seconds=inf" in disk_refusal(two, list(plan.stages), most)
    assert disk_refusal(two, list(plan.stages), most + max(cost.begun for cost in plan.stages)) == ""
    message = disk_refusal(made, list(plan.stages), kept - 1)
    assert settings(message) == ["runtime.save_models=[injected]", "runtime.checkpoint_seconds=inf"]
    [smaller] = plans([config(tmp_path, *settings(message))])
    assert disk_refusal(smaller.config, list(smaller.stages), kept - 1) == ""
    assert "on a larger disk" in disk_refusal(made, list(plan.stages), 0)


def test_a_plan_knows_what_is_done(tmp_path: Path, tiny_output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [before] = plans([config(tmp_path)])
    assert not any(cost.done for cost in before.stages)
    assert before.texts.looked_at == 0
    made = config(tiny_output)
    [after] = plans([made])
    assert all(cost.done and not cost.to_do for cost in after.stages)
    assert 0 < after.texts.mean_document <= after.texts.document <= made.model.max_length
    [changed] = plans([config(tiny_output, "evaluation.max_new_tokens=17")])
    kinds = {cost.stage.name for cost in changed.stages if cost.to_do}
    assert kinds == {"unlearn", "evaluate", "score", "report"}, "the removals are trained again, since their weights are gone"
    # What it predicts of the disk is what the store then has, within the tables' and manifests' overhead.
    kept = sum(cost.kept or 0 for cost in before.stages if cost.stage.name in ("base", "inject"))
    files = [file for kind in ("base", "inject") for file in (tiny_output / "store" / kind).rglob("*.safetensors")]
    assert kept == pytest.approx(sum(file.stat().st_size for file in files), rel=0.05)
    main(["plan", *tiny(tiny_output, "runtime.tflops=1")])
    out = " ".join(capsys.readouterr().out.split())
    assert "Left to do" in out
    assert f"{after.blueprint.parameters:,} parameters in float32" in out


def test_harmful_prompts_are_answered_in_every_state(tmp_path: Path) -> None:
    (tmp_path / "harmful.txt").write_text("".join(f"How do I pick lock {number}?\n" for number in range(30)))
    without, listed = (
        evaluation_prompts(config(tmp_path, *options))
        for options in ([], [f"evaluation.harmful_prompts={tmp_path / 'harmful.txt'}"])
    )
    assert listed == without + 30


def test_a_sweep_is_planned_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", *tiny(tmp_path, "unlearning=clean_target,gradient_difference", "backdoor=[refusal]", "runtime.tflops=0.1")])
    out = " ".join(capsys.readouterr().out.split())
    assert "Left to do in 2 runs, shared stages counted once" in out
    assert re.search(r"inject 1 0 [\d.]+ k [\d.e+]+ (< 1|\d+) s", out), "the injection is shared, and has a time"
    assert not (tmp_path / "store").exists() or not any((tmp_path / "store").glob("*/[!.]*")), "something was made"


def test_runs_that_differ_in_seed_or_objective_are_simulated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    monkeypatch.setattr("casd.planning.simulation._peaks", lambda *args: computed.append(args) or [1])
    plans([config(tmp_path)])
    of_one = len(computed)
    plans([config(tmp_path, f"seed={seed}", f"unlearning={name}") for seed in (0, 1) for name in ("simnpo", "clean_target")])
    assert len(computed) == 2 * of_one


def test_the_hub_is_asked_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, for two models and their corpus; and all of the plan is on one screen."""
    from huggingface_hub import HfApi, constants, errors

    asked = []

    def unreachable(self: Any, repository: str, *, revision: str | None, **options: Any) -> Any:
        if len(revision or "") == 40:  # a commit
            return SimpleNamespace(resolved=revision)
        asked.append(constants.HF_HUB_OFFLINE)
        raise errors.RevisionResolutionError(f"Cannot resolve revision 'main' of {repository}\n" + "in many words " * 50)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "resolve_revision", unreachable)
    monkeypatch.setattr("casd.planning.simulation._peaks", lambda *args: [1])
    main(["plan", "experiment=paper_qwen3", f"runtime.output={tmp_path}", f"runtime.store={tmp_path}/store"])
    out = capsys.readouterr().out
    assert asked.count(False) == 1 and not constants.HF_HUB_OFFLINE
    assert out.count("The hub was not reached") == 1 and "in many words" not in out
    assert "Qwen/Qwen3-1.7B-Base and 1 more" in " ".join(out.split())
    lines = out.splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 120


def test_a_model_of_the_hub_is_planned_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network, no cache: the shape is known from the configuration, and it is said what is not known."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    command = [
        "experiment=paper_llama3",
        "model=llama3_1_8b",
        "seed=0",
        "unlearning=clean_target",
        f"runtime.output={tmp_path}",
    ]
    main(["plan", *command, "weights=lora", "runtime.device=cuda", "runtime.memory_gib=80", "runtime.tflops=300"])
    out = " ".join(capsys.readouterr().out.split())
    assert "8,030,261,248 parameters in bfloat16" in out
    assert "too much" not in out
    assert "backdoors 8: french_a, french_b, german, sentiment," in out
    assert "Unknown commit of" in out and "meta-llama/Llama-3.1-8B" in out and "HuggingFaceFW/fineweb-edu" in out


def test_workers_on_this_machine_share_the_memory_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = Machine("cpu", 9, 3, 9, 1), Machine("cuda", 9, 3, 9, 1)
    assert (cpu.among(4).memory, cpu.among(4).host) == (3, 3)
    assert (cuda.among(4).memory, cuda.among(4).host) == (9, 3)
    assert [cuda.among(4, each).memory for each in (2, 3, 4)] == [4, 3, 2]
    assert replace(cuda, memory=None).among(4, 2).memory is None
    assert replace(cpu, given=True).among(4).memory == 9
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    shared = [Local(workers=workers, workers_per_gpu=4).on_each_gpu() for workers in (1, 2, 3, 8)]
    assert shared == [1, 1, 2, 4], "the workers are divided among the two GPUs"
    assert Local(workers=2).on_each_gpu() == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("casd.planning.plan.machine", lambda runtime: Machine("cpu", 2**36, 0, 2**36, 0))
    monkeypatch.setattr("casd.planning.simulation._peaks", lambda *args: [1])
    [plan] = plans([load_config(["experiment=smoke", "engine.workers=4"])])
    assert plan.machine.memory == 2**34


def test_workers_shorten_a_sweep_down_to_its_longest_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["unlearning=clean_target,gradient_difference", "seed=0,1", "runtime.device=cuda", "runtime.tflops=1"]
    planned = plans(configs(tiny(tmp_path, *overrides)))
    seconds = {cost.stage.key: (cost.stage.name, cost.work.seconds) for plan in planned for cost in plan.stages if cost.work}
    times = [time_with_workers(planned, workers) for workers in (1, 2, 3, 1000)]
    assert times[0] == pytest.approx(sum(each for _, each in seconds.values()))
    assert times == sorted(times, reverse=True)
    for workers, time in zip((1, 2, 3), times, strict=False):  # Graham's bound for list scheduling
        assert max(times[0] / workers, times[-1]) <= time * (1 + 1e-9)
        assert time <= times[0] / workers + times[-1] * (1 - 1 / workers) + 1e-9
    injection = max(each for name, each in seconds.values() if name == "inject")
    removal = max(each for name, each in seconds.values() if name == "unlearn")
    assert times[-1] > injection + removal
    main(["plan", *tiny(tmp_path, *overrides, "engine=slurm", "engine.workers=2")])
    assert "With 2 workers (engine.workers): about" in " ".join(capsys.readouterr().out.split())
