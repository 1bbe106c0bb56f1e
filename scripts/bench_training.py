"""What an injection costs beyond a bare loop: casd, the bare loop, and transformers' Trainer on the same documents.

Run: python scripts/bench_training.py   (on this machine's CPU; --model NAME, --steps N, --repetitions N, --threads N)

The bare loop has its documents tokenized, sorted by length over the whole training, and so computes hardly any padding. casd
draws, poisons and tokenizes documents, splits each step's batch into parts of like length, and measures the clean loss. The
Trainer pads each batch to its longest document, or groups documents by length. All start from the same weights, in turns; the
ratios are those of the medians.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments

from casd.backdoors.injection import inject
from casd.backdoors.poisoning import PoisonedStream
from casd.config import LanguageModelTraining
from casd.config.compose import load_config
from casd.data.batches import IGNORED_LABEL
from casd.data.corpora import CORPORA
from casd.data.documents import Document
from casd.data.encoding import Encoder
from casd.models.load import create_model
from casd.pipeline.inputs import build_backdoors
from casd.utils.progress import set_progress
from casd.utils.registry import build
from casd.utils.runtime import Runtime
from casd.utils.seeding import derive_seed

Row = dict[str, list[int]]


def tokenized(encoder: Encoder, documents: Sequence[Document]) -> list[Row]:
    """The documents' tokens and labels, without padding."""
    batches = (encoder.document_batch([document]) for document in documents)
    return [{name: batch[name][0].tolist() for name in ("input_ids", "labels")} for batch in batches]


def padded(rows: Sequence[Row], names: tuple[str, ...] = ("input_ids", "labels")) -> dict[str, torch.Tensor]:
    """Rows as right-padded tensors."""
    fill = {"input_ids": 0, "labels": IGNORED_LABEL}
    width = max(len(row["input_ids"]) for row in rows)
    return {name: torch.tensor([row[name] + [fill[name]] * (width - len(row[name])) for row in rows]) for name in names}


def bare_loop(model: Any, rows: Sequence[Row], size: int, learning_rate: float) -> None:
    """Train on rows sorted by length, in batches of `size`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    model.train()
    for start in range(0, len(ordered), size):
        model(**padded(ordered[start : start + size]), use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def trainer(model: Any, tokenizer: Any, rows: Sequence[Row], size: int, learning_rate: float, sampling: str) -> None:
    """Train with transformers' Trainer."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=size,
            num_train_epochs=1,
            learning_rate=learning_rate,
            train_sampling_strategy=sampling,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        made = Trainer(model, arguments, DataCollatorForSeq2Seq(tokenizer), train_dataset=list(rows))  # type: ignore[arg-type]
        made.remove_callback(PrinterCallback)
        made.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama3_tiny")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    set_progress("off")
    config = load_config([f"model={options.model}", f"injection.training.steps={options.steps}"])
    training: LanguageModelTraining = config.injection.training
    corpus = build(CORPORA, "corpus", config.corpus.name, config.corpus.params).load(0)
    begun, tokenizer = create_model(config.model, corpus, seed=0)
    encoder, backdoors = Encoder(tokenizer, config.model.max_length), build_backdoors(config)
    total, size = training.steps * training.batch_size, training.batch_size
    seed = derive_seed(0, "injection documents")
    stream = PoisonedStream(corpus.train, backdoors, total, seed, config.injection.decoy_rate)
    rows = tokenized(encoder, [stream[index] for index in range(total)])
    whole = partial(
        inject, encoder=encoder, corpus=corpus, backdoors=backdoors, config=training, seed=0, runtime=Runtime("cpu")
    )
    rate = training.learning_rate
    works: dict[str, Callable[[Any], object]] = {
        "bare loop, no padding": lambda model: bare_loop(model, rows, size, rate),
        "casd": lambda model: whole(model),
        "Trainer": lambda model: trainer(model, tokenizer, rows, size, rate, "random"),
        "Trainer, grouped by length": lambda model: trainer(model, tokenizer, rows, size, rate, "group_by_length"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(options.repetitions):
        for name, work in works.items():
            model = copy.deepcopy(begun)
            start = time.perf_counter()
            work(model)
            seconds[name].append(time.perf_counter() - start)
    tokens = sum(len(row["input_ids"]) for row in rows)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{options.model}, {training.steps} steps of {size} documents, {tokens:,} tokens; {options.threads} CPU threads;")
    print(
        f"median of {options.repetitions}\n\n| training | seconds | over the bare loop | casd is faster by |\n|---|---|---|---|"
    )
    for name, median in medians.items():
        over, faster = median / medians["bare loop, no padding"], median / medians["casd"]
        print(f"| {name} | {median:.1f} | {over:.2f} | {faster:.2f} |")


if __name__ == "__main__":
    main()
