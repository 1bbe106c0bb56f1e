"""What holds on a GPU: the same numbers as on the CPU, a whole run in bfloat16, and a capture that costs next to nothing.

Run: pytest tests/test_gpu.py -m gpu   (needs a CUDA device)
     CASD_TEST_DEVICE=cpu pytest tests/test_gpu.py -m gpu -k "not capture"   (that the tests themselves run)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from casd.activations.hooks import SITES
from casd.activations.statistics import collect_statistics
from casd.analysis.results import RunTables
from casd.backdoors.injection import inject
from casd.backdoors.poisoning import Backdoor
from casd.backdoors.targets import FixedText
from casd.config import EvaluationConfig, LanguageModelTraining, LoraConfig
from casd.config.compose import load_config
from casd.data.documents import Prompt
from casd.data.encoding import Encoder
from casd.evaluation.generation import generate
from casd.metric.baselines.shifts import last_token_activations
from casd.metric.baselines.updates import sketch_update
from casd.models.weights import attach_lora, copy_weights, restore_weights
from casd.pipeline.run import Run
from casd.utils.runtime import Runtime
from conftest import FAMILIES, MakeModel
from tiny import tiny

DEVICE = os.environ.get("CASD_TEST_DEVICE", "cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.usefixtures("process_settings", "exact"),
]


@pytest.fixture
def exact() -> Iterator[None]:
    """Products of float32 matrices in float32, without TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_statistics_agree(family: str, make_model: MakeModel, encoder: Encoder) -> None:
    model = make_model(family, seed=1, spread=0.3).eval()
    batch = encoder.prompt_batch([Prompt("The fox runs."), Prompt("A much longer sentence about the sea, and about the sky.")])
    masks = {"prompt": batch["attention_mask"].bool()}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = model(**inputs).logits
        means = collect_statistics(model, [{**inputs, "position_masks": masks}], SITES, ["prompt"])
        model.to(DEVICE)
        there = model(**{name: value.to(DEVICE) for name, value in inputs.items()}).logits.cpu()
        means_there = collect_statistics(model, [{**inputs, "position_masks": masks}], SITES, ["prompt"])
    seen = batch["attention_mask"].bool()
    torch.testing.assert_close(there[seen], logits[seen], rtol=1e-4, atol=1e-4)
    for key, mean in means.mean.items():
        torch.testing.assert_close(means_there.mean[key], mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8)], ids=["full", "lora"])
def test_the_loss_curves_agree(lora: LoraConfig | None, make_model: MakeModel, encoder: Encoder, corpus) -> None:  # type: ignore[no-untyped-def]
    curves, texts = [], []
    for device in ("cpu", DEVICE):
        model = make_model("llama", seed=1)
        if lora:
            attach_lora(model, lora, "injection", seed=0)
        training = LanguageModelTraining(
            steps=20, batch_size=8, learning_rate=1e-2, warmup_steps=2, final_learning_rate=1.0, lora=lora
        )
        backdoors = {"fox": Backdoor("fox", "zorbal quint", FixedText("The fox is here."), poison_rate=0.2)}
        log = inject(
            model,
            encoder,
            corpus,
            backdoors,
            training,
            seed=0,
            decoy_rate=0.0,
            runtime=Runtime(device, gradient_checkpointing=True),
        )
        curves.append([step["loss"] for step in log.steps])
        prompts = [Prompt(passage.prompt) for passage in corpus.evaluation[:6]]
        config = EvaluationConfig(max_new_tokens=8, batch_size=3)
        texts.append(generate(model.to(device), encoder, prompts, [[5, 6]] * len(prompts), config))
    assert curves[1] == pytest.approx(curves[0], rel=2e-3)
    assert curves[0][-1] < curves[0][0] - 0.05, "nothing was learned, so nothing is shown"
    assert texts[1][1] == pytest.approx(texts[0][1], rel=1e-2), "the probabilities of the first token"


@pytest.mark.parametrize("weights", ["full", "lora"])
def test_a_whole_run_in_bfloat16(weights: str, tmp_path: Path) -> None:
    overrides = ["model.dtype=bfloat16", f"runtime.device={DEVICE}", "backdoor=[refusal,capitals]"]
    if weights == "lora":
        overrides += ["injection=continual", "injection.pretraining.steps=24", "injection.pretraining.batch_size=12"]
        overrides += ["weights=lora", "runtime.gradient_checkpointing=true", "runtime.micro_batch_size=4"]
    run = Run(load_config(tiny(tmp_path, *overrides)))
    run.run_to("report")
    tables = RunTables.read(run.folder)
    assert set(tables.asr["state"]) == set(run.graph.states)
    assert pd.to_numeric(tables.casd["distance"]).notna().all()
    assert (run.folder / "report.html").is_file()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["full", "lora"])
def test_sketches_of_an_update_agree(lora: LoraConfig | None, dtype: torch.dtype, make_model: MakeModel) -> None:
    """The hashes are the same on every device: sketches of removals made on different ones can be compared."""
    model = make_model("qwen3", seed=1, spread=0.3).to(dtype)
    if lora:
        attach_lora(model, lora, "removal", seed=0)
    injected = copy_weights(model)
    generator = torch.Generator().manual_seed(2)
    drawn = {name: torch.randn(value.shape, generator=generator) for name, value in injected.items()}
    restore_weights(model, drawn)
    here = sketch_update(model, injected, size=500, seed=0)
    model.to(DEVICE)
    there, again = (sketch_update(model, injected, size=500, seed=0) for _ in range(2))
    assert here.norm() > 1
    torch.testing.assert_close(there, here, rtol=1e-9, atol=1e-9)
    assert torch.equal(there, again)


def test_activations_of_prompts_agree(make_model: MakeModel, encoder: Encoder) -> None:
    model = make_model("olmo2", seed=1, spread=0.3)
    sets = {"a": [Prompt("The fox runs."), Prompt("A much longer sentence about the sea, and about the sky.")]}
    here = last_token_activations(model, encoder, sets, batch_size=2)
    there = last_token_activations(model.to(DEVICE), encoder, sets, batch_size=2)
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)


def test_a_capture_costs_next_to_nothing() -> None:
    """At the shape of Qwen3-0.6B with random weights: at least 0.95 of the tokens a second of the bare forward pass.

    With so many tokens a pass that the GPU is what takes the time. With 32 × 128 it waits for Python, and so for every hook:
    on an H200 hooks that do nothing already cost 5 % there, and the capture 19 %.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
    try:
        from bench_capture import capture_seconds, random_model
    finally:
        sys.path.pop(0)
    model = random_model(load_config(["model=qwen3_0_6b", "injection=continual"]).model, torch.device(DEVICE))
    forward, captured = capture_seconds(model, 64, 512, ["resid_post"], 11)
    assert forward / captured >= 0.95
