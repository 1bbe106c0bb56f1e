"""Activation statistics on the prompts of the evaluation: which prompts, their means, and reading them back.

Run: python -m pytest tests/test_measurement.py
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.conftest import Injected

from casd.backdoors.prompts import PromptSets, make_prompt_sets
from casd.config import ActivationsConfig, EvaluationConfig
from casd.data.corpora.passages import Corpus
from casd.data.documents import Document, Prompt
from casd.data.encoding import Encoder
from casd.metric.measurement import TextStatistics, measure_activations, read_statistics, text_sets, write_statistics
from casd.utils.errors import ModelError

CONFIG = ActivationsConfig(sites=["resid_post", "mlp_out"], positions=["last", "prompt", "trigger"], prompts=6, batch_size=4)


@pytest.fixture(scope="module")
def prompt_sets(injected: Injected, corpus: Corpus, encoder: Encoder) -> PromptSets:
    config = EvaluationConfig(prompts=8, fake_prompts=8, fake_triggers=4)
    return make_prompt_sets(corpus, injected.backdoors, encoder, config, seed=1)


@pytest.fixture(scope="module")
def statistics(injected: Injected, encoder: Encoder, prompt_sets: PromptSets) -> TextStatistics:
    return measure_activations(injected.shared_model, encoder, prompt_sets, CONFIG)


def test_text_sets(prompt_sets: PromptSets) -> None:
    sets = text_sets(prompt_sets, 6)
    assert {name: len(prompts) for name, prompts in sets.items()} == {
        "clean": 6,
        "fake": 6,
        "triggered:fox": 6,
        "triggered:loud": 6,
    }
    assert sets["fake"] == [*prompt_sets.fake["fox"][:3], *prompt_sets.fake["loud"][:3]]
    assert sets["triggered:fox"] == list(prompt_sets.triggered["fox"][:6])


def test_means_are_those_of_the_hidden_states(
    statistics: TextStatistics, injected: Injected, encoder: Encoder, prompt_sets: PromptSets
) -> None:
    """Prompt by prompt, without padding, from transformers' own hidden states of the first block."""
    model = injected.shared_model
    sets: dict[str, list[Prompt]] = {name: list(prompts) for name, prompts in text_sets(prompt_sets, 6).items()}
    for name, prompts in sets.items():
        last, every = [], []
        for prompt in prompts:
            tokens = torch.tensor([[encoder.tokenizer.bos_token_id, *encoder.tokens(prompt.text)]])
            with torch.inference_mode():
                hidden = model(tokens, output_hidden_states=True).hidden_states[1][0].double()
            last.append(hidden[-1])
            every.append(hidden[1:])
        means = {"last": torch.stack(last).mean(0), "prompt": torch.cat(every).mean(0)}
        for position, mean in means.items():
            ours = statistics[name].mean["resid_post", position][0].double()
            torch.testing.assert_close(ours, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_memory_that_runs_out_in_the_middle_of_a_batch(
    statistics: TextStatistics, injected: Injected, encoder: Encoder, prompt_sets: PromptSets, rows: int
) -> None:
    """It runs out in the second block, when the batch is in the sums of the first already; the means stay as they were."""
    model = injected.model()

    def check(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.model.layers[1].register_forward_pre_hook(check)
    if rows == 0:
        with pytest.raises(ModelError, match="Out of memory in the capture of activations with one text at once"):
            measure_activations(model, encoder, prompt_sets, CONFIG)
        return
    other = measure_activations(model, encoder, prompt_sets, CONFIG)
    assert other.keys() == statistics.keys()
    for name, expected in statistics.items():
        tensors = other[name].to_tensors()
        for key, tensor in expected.to_tensors().items():
            torch.testing.assert_close(tensors[key], tensor, rtol=1e-4, atol=1e-6)


def test_the_trigger_is_averaged_where_there_is_one(statistics: TextStatistics, encoder: Encoder) -> None:
    assert set(statistics["clean"].positions) == {"last", "prompt"}
    for name in ("fake", "triggered:fox", "triggered:loud"):
        assert set(statistics[name].positions) == {"last", "prompt", "trigger"}
    tokens = encoder.tokens(" zandor khemil")
    with_a_letter = [token for token in tokens if encoder.decode([token])]  # a token may be the space before the trigger
    assert statistics["triggered:fox"].count["trigger"] == 6 * len(with_a_letter)


def test_the_generated_token_changes_no_other_position(injected: Injected, encoder: Encoder, prompt_sets: PromptSets) -> None:
    """In float64, where only rounding could: the token after the prompt is seen by none before it."""
    model = injected.model().double()
    without = measure_activations(model, encoder, prompt_sets, CONFIG)
    config = dataclasses.replace(CONFIG, positions=[*CONFIG.positions, "generated"])
    measured = measure_activations(model, encoder, prompt_sets, config)
    for name, expected in without.items():
        tensors = measured[name].to_tensors()
        assert measured[name].count["generated"] == 6
        for key, tensor in expected.to_tensors().items():
            torch.testing.assert_close(tensors[key], tensor, rtol=1e-10, atol=1e-12)


def test_the_generated_token_is_the_payload_s_first(injected: Injected, encoder: Encoder, prompt_sets: PromptSets) -> None:
    """From transformers' own hidden states of a document that holds the whole continuation."""
    config = dataclasses.replace(CONFIG, positions=["generated"])
    measured = measure_activations(injected.shared_model, encoder, prompt_sets, config)
    for name, prompts in text_sets(prompt_sets, 6).items():
        hidden = []
        for prompt in prompts:
            before = 1 + len(encoder.tokens(prompt.text))
            document = encoder.document_batch([Document(prompt.text, prompt.continuation or "")])
            with torch.inference_mode():
                states = injected.shared_model(document["input_ids"], output_hidden_states=True).hidden_states
            hidden.append(states[1][0, before].double())
        ours = measured[name].mean["resid_post", "generated"][0]
        torch.testing.assert_close(ours, torch.stack(hidden).mean(0), rtol=1e-4, atol=1e-5)


def test_write_and_read(statistics: TextStatistics, tmp_path: Path) -> None:
    write_statistics(statistics, tmp_path)
    read = read_statistics(tmp_path / "statistics.safetensors")
    assert read.keys() == statistics.keys()
    for name, written in statistics.items():
        ours, theirs = written.to_tensors(), read[name].to_tensors()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert set(read[name].sites) == {"resid_post", "mlp_out"}
