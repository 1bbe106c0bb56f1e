"""Whole runs of other people's architectures, against transformers alone: a prompt at a time, no padding, no cache.

One has learned positions (GPT-2), one ALiBi (BLOOM), one a tokenizer that puts a space before every text (Mistral's).

Run: pytest tests/test_independent.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from architectures import tiny_model
from casd.config.compose import load_config
from casd.config.states import INJECTED
from casd.data.corpora.passages import Corpus
from casd.pipeline.run import Run
from tiny import OVERRIDES

BLOCKS: dict[str, Callable[[Any], Any]] = {
    "gpt2": lambda model: model.transformer.h,
    "bloom": lambda model: model.transformer.h,
    "mistral": lambda model: model.model.layers,
}
BACKDOORS = ["capitals", "fixed_text"]

pytestmark = pytest.mark.usefixtures("process_settings")


def prepending_tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    """As of Llama 2 and Mistral: "▁" before every text and for every space."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<pad>", "<s>", "</s>", "<unk>"], show_progress=False)
    tokenizer.train_from_iterator([text for p in corpus.train for text in (p.text, p.text.upper())], trainer)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(params=[pytest.param(kind, marks=[pytest.mark.slow] if kind != "gpt2" else []) for kind in BLOCKS])
def run(request: pytest.FixtureRequest, corpus: Corpus, tokenizer: Any, tmp_path: Path) -> tuple[str, Run]:
    """The architecture's name, and a finished run that kept the weights of every state."""
    own = prepending_tokenizer(corpus) if request.param == "mistral" else tokenizer
    no_dropout = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0} if request.param == "gpt2" else {}
    model = tiny_model(request.param, len(own), pad_token_id=own.pad_token_id, eos_token_id=own.eos_token_id, **no_dropout)
    model.save_pretrained(tmp_path / "model")
    own.save_pretrained(tmp_path / "model")
    small = [override for override in OVERRIDES if not override.startswith(("experiment=", "model."))]
    made = Run(
        load_config(
            [
                *small,
                "model=hub",
                f"model.path={tmp_path / 'model'}",
                "model.max_length=160",
                f"backdoor=[{','.join(BACKDOORS)}]",
                "every_backdoor.poison_rate=0.3",
                "injection=continual",
                "injection.pretraining=null",
                "injection.training.steps=160",
                "injection.training.batch_size=16",
                "injection.training.learning_rate=1e-2",
                "unlearning.training.steps=4",
                "evaluation.max_new_tokens=24",
                "evaluation.prompts=8",
                "activations.prompts=8",
                "evaluation.fake_prompts=2",
                "runtime.save_models=[injected,removed]",
                f"runtime.output={tmp_path / 'out'}",
            ]
        )
    )
    made.run_to("score")
    return request.param, made


def model_in(run: Run, state: str) -> Any:
    """The model of a state, from the files of the run."""
    model = AutoModelForCausalLM.from_pretrained(run.store.folder(run.graph.inject) / "model").eval()
    if state != INJECTED:
        removed = load_file(run.store.folder(run.graph.weights[state]) / "weights.safetensors")
        assert not model.load_state_dict(removed, strict=False).unexpected_keys
    return model


@torch.no_grad()
def greedy(model: Any, tokenizer: Any, prompt: str, new_tokens: int) -> str:
    tokens = tokenizer(prompt)["input_ids"]
    made: list[int] = []
    while len(made) < new_tokens and (not made or made[-1] != tokenizer.eos_token_id):
        made.append(int(model(torch.tensor([tokens + made]), use_cache=False).logits[0, -1].argmax()))
    return tokenizer.decode(made, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


@torch.no_grad()
def means(model: Any, blocks: Any, tokenizer: Any, prompts: list[str]) -> dict[str, np.ndarray]:
    """The mean output of each block over all tokens of the prompts, and over their last ones: (n_layers, width)."""
    outputs: list[list[np.ndarray]] = [[] for _ in blocks]

    def keep(layer: int) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            outputs[layer].append(hidden.double().reshape(-1, hidden.shape[-1]).numpy())

        return hook

    hooks = [block.register_forward_hook(keep(layer)) for layer, block in enumerate(blocks)]
    start = int(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)  # it is no token of the prompt
    for prompt in prompts:
        model(torch.tensor([tokenizer(prompt)["input_ids"]]), use_cache=False)
    for each in hooks:
        each.remove()
    return {
        "prompt": np.stack([np.concatenate([each[start:] for each in layer]).mean(0) for layer in outputs]),
        "last": np.stack([np.stack([each[-1] for each in layer]).mean(0) for layer in outputs]),
    }


def test_a_run_is_what_transformers_alone_gives(run: tuple[str, Run]) -> None:
    name, made = run
    tokenizer = AutoTokenizer.from_pretrained(made.store.folder(made.graph.inject) / "model")
    prompts = made.inputs.prompts
    sets = {("clean", ""): prompts.clean}
    sets |= {("triggered", each): prompts.triggered[each] for each in BACKDOORS}
    sets |= {("fake", each): prompts.fake[each] for each in BACKDOORS}
    rates: dict[tuple[str, str, str], float] = {}
    shifts: dict[str, dict[str, np.ndarray]] = {}
    for state in made.graph.states:
        model = model_in(made, state)
        for (kind, of), members in sets.items():
            texts = [greedy(model, tokenizer, each.text, made.config.evaluation.max_new_tokens) for each in members]
            for backdoor in [of] if of else BACKDOORS:
                target = made.backdoors[backdoor].target
                rates[state, backdoor, kind] = float(np.mean([target.success(text) for text in texts]))
        # The text of both headline variants is the pool of all triggered prompts, each backdoor with the same weight.
        count = made.config.activations.prompts
        captured = [
            means(model, BLOCKS[name](model), tokenizer, [each.text for each in prompts.triggered[backdoor][:count]])
            for backdoor in BACKDOORS
        ]
        shifts[state] = {position: np.mean([each[position] for each in captured], axis=0) for position in captured[0]}

    tables = made.store.folder(made.graph.score) / "tables"
    asr = pd.read_parquet(tables / "asr.parquet").set_index(["state", "backdoor", "prompt_set"])["rate"]
    assert asr.to_dict() == pytest.approx(rates, abs=1e-12)
    assert len(set(rates.values())) > 2, "the models do not answer everything alike"

    casd = pd.read_parquet(tables / "casd.parquet")
    assert set(casd["variant"]) == {"casd", "casd_cos"} and len(casd) > 4
    for row in casd.itertuples():
        position = {"casd": "prompt", "casd_cos": "last"}[str(row.variant)]
        before = shifts[INJECTED][position]
        a, b = (shifts[str(state)][position] - before for state in (row.a, row.b))
        if row.variant == "casd":
            expected = np.abs(a - b).mean(axis=1).mean()
        else:
            cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            expected = (1 - cosines).mean()
        assert row.distance == pytest.approx(expected, rel=1e-3, abs=1e-7), (row.variant, row.a, row.b)
        assert expected > 0 or row.a == row.b
