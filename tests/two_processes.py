"""Trains, evaluates and captures on however many processes a launcher gives it, and writes what came out (test_distributed).

Usage: python -m tests.two_processes OUT.json MICRO_BATCH_SIZE
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tests import two_processes_sketch

from casd.backdoors.injection import inject
from casd.backdoors.poisoning import Backdoor, clean_document
from casd.backdoors.prompts import make_prompt_sets
from casd.backdoors.targets import FixedText
from casd.config import (
    ActivationsConfig,
    EvaluationConfig,
    LanguageModelTraining,
    LoraConfig,
    StoppingConfig,
    TrainingConfig,
    UnlearningTraining,
)
from casd.data.batches import Batch
from casd.data.corpora.microworld import Microworld
from casd.data.encoding import Encoder
from casd.evaluation.asr import evaluate, passage_loss
from casd.metric.measurement import measure_activations
from casd.models.load import from_scratch, load_model, save_model
from casd.models.sharding import is_sharded, place
from casd.models.tokenizer import train_tokenizer
from casd.models.weights import attach_lora, copy_weights, restore_adapter, restore_weights, save_adapter
from casd.training.loop import train
from casd.training.losses import mean_nll
from casd.unlearning.controls import removals
from casd.unlearning.gradient_difference import GradientDifference
from casd.unlearning.npo import Npo
from casd.unlearning.removal import Stopping, unlearn
from casd.utils import distributed
from casd.utils.errors import ConfigError
from casd.utils.progress import set_progress
from casd.utils.runtime import Runtime

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}


def main(out: Path, micro_batch_size: int) -> None:
    torch.set_num_threads(1)
    set_progress("off")
    corpus = Microworld(train=150, forget=40, retain=40, evaluation=24).load(0)
    tokenizer = train_tokenizer((passage.text for passage in corpus.train), 420)
    encoder = Encoder(tokenizer)
    model = from_scratch("llama", {**SHAPE, "num_key_value_heads": 1}, tokenizer, seed=0)
    backdoors = {"fox": Backdoor("fox", "zandor khemil", FixedText("The silver fox."), "end", 0.3)}
    runtime = Runtime("cpu", micro_batch_size=micro_batch_size)
    # Seven documents a step: two processes have unequal shares.
    training = LanguageModelTraining(steps=12, batch_size=7, learning_rate=1e-2, warmup_steps=2, final_learning_rate=1.0)
    injected = inject(model, encoder, corpus, backdoors, training, seed=0, decoy_rate=0.0, runtime=runtime)
    if distributed.sharded():  # as in a run: an adapter goes on before a model is divided
        save_model(model, tokenizer, out.with_suffix(".model"))
        distributed.broadcast(None)
        model = load_model(out.with_suffix(".model"))
    attach_lora(model, LoraConfig(rank=4), "removal", seed=1)
    # One document to forget: one of two processes has none.
    unlearning = UnlearningTraining(steps=6, forget_batch_size=1, retain_batch_size=5, learning_rate=1e-2, guard_factor=100)
    removal = removals(backdoors, encoder, seed=0)[0]
    start = copy_weights(place(model, torch.device("cpu")))
    removed = unlearn(
        model, encoder, corpus, removal, GradientDifference(retain_weight=1.0), unlearning, seed=0, runtime=runtime
    )
    settings = EvaluationConfig(prompts=9, fake_prompts=3, fake_triggers=2, max_new_tokens=8, loss_passages=11, batch_size=4)
    prompt_sets = make_prompt_sets(corpus, backdoors, encoder, settings, seed=0)
    evaluation = evaluate(model, encoder, backdoors, prompt_sets, settings, runtime=runtime)
    statistics = measure_activations(model, encoder, prompt_sets, ActivationsConfig(prompts=9, batch_size=4))
    save_adapter(model, out.with_suffix(f".{distributed.rank()}.adapter"), "removal")
    restore_weights(model, start)
    restored = passage_loss(model, encoder, prompt_sets.loss_passages, settings.batch_size)
    restore_adapter(model, out.with_suffix(f".{distributed.rank()}.adapter"), "removal")
    again = passage_loss(model, encoder, prompt_sets.loss_passages, settings.batch_size)
    # With a reference, in bfloat16 and thus with float32 masters, and watched; four documents are two in each process.
    lower = from_scratch("llama", {**SHAPE, "num_key_value_heads": 1}, tokenizer, seed=0).to(torch.bfloat16)
    watching = Stopping(StoppingConfig(clean_budget=4.0, every=3, prompts=5), settings)
    compared = UnlearningTraining(steps=4, forget_batch_size=4, retain_batch_size=4, learning_rate=1e-3, guard_factor=100)
    npo, log, refused = Npo(beta=0.01, retain="kl"), None, ""
    try:
        log = unlearn(lower, encoder, corpus, removal, npo, compared, seed=0, stopping=watching, runtime=runtime)
    except ConfigError as error:
        refused = str(error)
    # All weights are copied, and restored after forward passes without a backward one.
    whole = place(from_scratch("llama", {**SHAPE, "num_key_value_heads": 1}, tokenizer, seed=2), torch.device("cpu"))
    copied = copy_weights(whole)
    first = passage_loss(whole, encoder, prompt_sets.loss_passages, settings.batch_size)
    restore_weights(whole, {name: value + 1 for name, value in copied.items()})
    restore_weights(whole, copied)
    second = passage_loss(whole, encoder, prompt_sets.loss_passages, settings.batch_size)
    # Two rows of the same text: one in each of two processes, whose losses differ by the dropout masks alone.
    dropping = from_scratch("llama", {**SHAPE, "num_key_value_heads": 1, "attention_dropout": 0.5}, tokenizer, seed=0)
    twice = encoder.document_batch([clean_document(corpus.train[0])] * 2)
    own: list[float] = []

    def terms(trained: torch.nn.Module, batch: Batch) -> Iterator[tuple[str, torch.Tensor]]:
        loss = mean_nll(trained, batch)
        own.append(loss.item())
        yield "nll", loss

    train(dropping, lambda step: twice, terms, TrainingConfig(steps=1, learning_rate=1e-3), runtime=Runtime("cpu"))
    dropped = distributed.gather_each(own)
    if distributed.is_main():
        tensors = {f"{name}|{key}": value for name, each in statistics.items() for key, value in each.to_tensors().items()}
        found = {
            "processes": distributed.processes(),
            "injection": injected.steps,
            "removal": removed.steps,
            "guard": [each["clean_loss"] for each in (*injected.guard, *removed.guard)],
            "asr": evaluation.asr[["successes", "n"]].to_numpy().tolist(),
            "probability": evaluation.asr["first_token_prob"].dropna().tolist(),
            "generated": evaluation.samples["generated"].tolist(),
            "clean_loss": [evaluation.clean_loss, restored, again],
            "sharded": is_sharded(model),
            "copied": [first, second],
            "dropped": dropped,
            "refused": refused,
            "reference": log.steps if log else [],
            "validation": log.validation if log else [],
            "kept_step": log.kept_step if log else None,
            "statistics": {key: value.double().flatten().tolist() for key, value in sorted(tensors.items())},
        }
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    if distributed.sharded():
        two_processes_sketch.main(Path(sys.argv[1]).with_suffix(".sketch"))
