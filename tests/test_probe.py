"""Models that packing or padding changes, and models that cannot be used: found by probes, and what a run does then.

Run: python -m pytest tests/test_probe.py
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from architectures import tiny_folder, tiny_model
from casd.backdoors.injection import inject
from casd.backdoors.poisoning import Backdoor
from casd.backdoors.prompts import PromptSets, make_prompt_sets
from casd.backdoors.targets import FixedText
from casd.config import ActivationsConfig, Config, EvaluationConfig, LanguageModelTraining
from casd.config.compose import load_config
from casd.data.corpora.passages import Corpus
from casd.data.documents import Prompt
from casd.data.encoding import Encoder
from casd.evaluation.generation import generate
from casd.metric.baselines.shifts import last_token_activations
from casd.metric.measurement import measure_activations
from casd.models.probe import ignores_left_padding, isolates_documents, longest_row
from casd.models.structure import decoder_layers
from casd.pipeline.checks import check_model
from casd.pipeline.run import Run
from casd.utils.errors import ConfigError, ModelError
from casd.utils.runtime import Runtime
from tiny import OVERRIDES, tiny

pytestmark = pytest.mark.usefixtures("process_settings")

FOX = {"fox": Backdoor("fox", "zandor khemil", FixedText("The silver fox."), "end", 0.3)}
EVALUATION = EvaluationConfig(prompts=6, fake_prompts=3, fake_triggers=3, max_new_tokens=8, loss_passages=4, batch_size=6)


@pytest.fixture(scope="module")
def probes(corpus: Corpus, encoder: Encoder) -> PromptSets:
    return make_prompt_sets(corpus, FOX, encoder, EVALUATION, seed=0)


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config([*OVERRIDES, "model.max_length=128"])


# ---------------------------------------------------------------- several documents in a row


@pytest.mark.parametrize(
    ("kind", "isolates"),
    [("llama", True), ("gpt2", True), ("qwen3_moe", True), ("opt", False), ("bloom", False), ("mamba", False)],
)
def test_whether_documents_in_a_row_see_each_other(kind: str, isolates: bool) -> None:
    model = tiny_model(kind)
    first, other, second = torch.randint(3, 420, (3, 1, 20), generator=torch.Generator().manual_seed(1))
    where = torch.arange(20)[None]
    with torch.no_grad():
        alone = model(input_ids=second, position_ids=where, use_cache=False).logits
        after = [
            model(input_ids=torch.cat([each, second], 1), position_ids=where.repeat(1, 2), use_cache=False).logits[:, 20:]
            for each in (first, other)
        ]
    assert all(torch.allclose(alone, each, atol=1e-5) for each in after) == isolates
    assert isolates_documents(model) == isolates


@pytest.mark.parametrize("kind", ["opt", "bloom"])
def test_isolated_documents_have_rows_of_their_own_where_the_model_would_mix_them(
    kind: str, corpus: Corpus, encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    def losses(packing: str) -> list[float]:
        training = LanguageModelTraining(steps=2, batch_size=8, learning_rate=1e-3, packing=packing)
        log = inject(tiny_model(kind), encoder, corpus, FOX, training, seed=0, runtime=Runtime("cpu"))
        return [step["loss"] for step in log.steps]

    assert losses("isolated") == losses("none")
    assert capsys.readouterr().err.count("packing=isolated: each document is padded into a row of its own") == 1


# ---------------------------------------------------------------- padding on the left


def one_by_one(model: Any, encoder: Encoder, prompts: list[Prompt]) -> tuple[list[str], list[float], torch.Tensor]:
    """Greedy continuations, P(token 5) after the prompt and last-token residuals, without padding or a cache."""
    texts, probabilities, residuals = [], [], []
    for prompt in prompts:
        ids = torch.tensor([[encoder.tokenizer.bos_token_id, *encoder.tokens(prompt.text)]])
        length = ids.shape[1]
        seen: list[Any] = []
        with decoder_layers(model)[0].register_forward_hook(lambda block, args, output, seen=seen: seen.append(output)):
            output = model(input_ids=ids, use_cache=False)
        residuals.append((seen[0][0] if isinstance(seen[0], tuple) else seen[0])[0, -1])
        probabilities.append(float(output.logits[0, -1].softmax(-1)[5]))
        while ids.shape[1] < length + EVALUATION.max_new_tokens and ids[0, -1] != encoder.tokenizer.eos_token_id:
            following = model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, following], 1)
        texts.append(encoder.decode(ids[0, length:]))
    return texts, probabilities, torch.stack(residuals)


@pytest.mark.parametrize(("kind", "padded"), [("rwkv", False), ("trocr", False), ("gpt2", True), ("bloom", True)])
def test_generation_and_capture_are_those_without_padding(
    kind: str, padded: bool, encoder: Encoder, probes: PromptSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RWKV has a state and no mask; TrOCR counts positions from the row's beginning."""
    model = tiny_model(kind)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    prompts = [*probes.clean, *probes.triggered["fox"]]
    assert len({len(encoder.tokens(prompt.text)) for prompt in prompts}) > 3
    with torch.no_grad():
        texts, probabilities, residuals = one_by_one(model, encoder, prompts)
    made, first = generate(model, encoder, prompts, [(5,)] * len(prompts), EVALUATION)
    assert made == texts
    assert first == pytest.approx(probabilities, rel=1e-4)
    config = ActivationsConfig(prompts=6, batch_size=6, positions=["last"])
    captured = measure_activations(model, encoder, probes, config)["clean"].mean["resid_post", "last"][0]
    torch.testing.assert_close(captured.float(), residuals[:6].mean(0), rtol=1e-4, atol=1e-4)
    each = last_token_activations(model, encoder, {"all": prompts}, batch_size=6, prompts_per_set=len(prompts))[0]
    torch.testing.assert_close(each, residuals, rtol=1e-4, atol=1e-4)
    assert ignores_left_padding(model, 0) == padded


def test_a_model_is_probed_once_and_left_as_it_was() -> None:
    model = tiny_model("gpt2").train()
    model.transformer.drop.eval()
    calls: list[int] = []
    model.register_forward_pre_hook(lambda module, args: calls.append(1))
    random = torch.get_rng_state()
    assert isolates_documents(model) and ignores_left_padding(model, 0)
    count = len(calls)
    assert isolates_documents(model) and ignores_left_padding(model, 0)
    assert len(calls) == count > 0
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training and not model.transformer.drop.training


# ---------------------------------------------------------------- models that cannot be used


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bert", "depends on the tokens that follow, as in an encoder"),
        ("roberta", "depends on the tokens that follow, as in an encoder"),
        ("bart", "expected one list of 2 decoder blocks"),
        ("cpmant", "a forward pass or a generation of plain text fails with IndexError"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_in_a_line(
    kind: str, message: str, config: Config, encoder: Encoder, probes: PromptSets
) -> None:
    with pytest.raises(ModelError, match=message) as error:
        check_model(config, tiny_model(kind), encoder, probes)
    assert "\n" not in str(error.value)


def test_a_site_that_cannot_be_captured_is_told_before_training(config: Config, encoder: Encoder, probes: PromptSets) -> None:
    model = tiny_model("bloom")
    check_model(config, model, encoder, probes)
    config = replace(config, activations=replace(config.activations, sites=["resid_post", "attn_out"]))
    with pytest.raises(ModelError, match="Leave this site out"):
        check_model(config, model, encoder, probes)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gpt_neo", "gptj", "codegen", "ctrl", "mpt"])
def test_positions_are_counted_by_the_model_itself(kind: str) -> None:
    """Learned, with and without an offset; a causal mask as a table; tables of sines; ALiBi of a fixed length."""
    name = "max_seq_len" if kind == "mpt" else "max_position_embeddings"
    model = tiny_model(kind, **{name: 50})
    assert [longest_row(model, length) for length in (40, 50, 51, 300)] == [40, 50, 50, 50]
    with torch.no_grad():
        model(input_ids=torch.full((1, 50), 5))
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            model(input_ids=torch.full((1, 51), 5))


@pytest.mark.parametrize("kind", ["llama", "bloom", "mamba"])
def test_a_model_without_a_table_of_positions_takes_any_length(kind: str) -> None:
    assert longest_row(tiny_model(kind), 400) == 400


def test_prompt_and_answer_need_positions(config: Config, encoder: Encoder, probes: PromptSets) -> None:
    assert (config.model.max_length, config.evaluation.max_new_tokens) == (128, 16)
    check_model(config, tiny_model("gpt2", max_position_embeddings=144), encoder, probes)
    with pytest.raises(ConfigError, match=r"max_length \(128\) and .*max_new_tokens \(16\) are 144 positions .* has 143"):
        check_model(config, tiny_model("gpt2", max_position_embeddings=143), encoder, probes)


def test_every_token_needs_a_row(config: Config, encoder: Encoder, probes: PromptSets) -> None:
    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 420
    with pytest.raises(ModelError, match=r"needs the token 420 \('\[PAD\]'\), but the embedding has 420 rows"):
        check_model(config, tiny_model("llama"), Encoder(tokenizer, 128), probes)
    check_model(config, tiny_model("llama", rows=421), Encoder(tokenizer, 128), probes)

    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.add_tokens(["zandor"])  # a word of the trigger, which the corpus has not
    with pytest.raises(ModelError, match=r"needs the token 420 \('zandor'\)"):
        check_model(config, tiny_model("llama"), Encoder(tokenizer, 128), probes)


@pytest.mark.parametrize("mode", ["pretraining", "continual"])
def test_a_run_is_refused_before_it_trains(mode: str, tmp_path: Path) -> None:
    config = load_config(tiny(tmp_path, f"injection={mode}"))
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    run = Run(replace(config, model=replace(config.model, model_type="gpt2", architecture=shape, max_length=64)))
    with pytest.raises(ConfigError, match="80 positions together"):
        run.run_to("inject")
    trained = run.graph.inject if mode == "pretraining" else run.graph.base
    assert not run.store.is_done(trained)


def test_a_folder_of_an_encoder_is_refused_by_a_run(tmp_path: Path, tokenizer: Any) -> None:
    folder = tiny_folder(tmp_path / "bert", tokenizer, "bert")
    words = ["model=hub", f"model.path={folder}", "model.max_length=128", "injection=continual", "injection.pretraining=null"]
    run = Run(load_config([word for word in tiny(tmp_path) if not word.startswith("model.")] + words))
    with pytest.raises(ModelError, match="as in an encoder"):
        run.run_to("inject")
