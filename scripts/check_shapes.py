"""Whole runs of models with the true shapes of real ones and random weights: time and memory beside `casd plan`, as Markdown.

Run: python scripts/check_shapes.py               (downloads nothing; all blocks on CUDA, two of them on a CPU)
     python scripts/check_shapes.py evaluation.prompts=16 --models qwen3_0_6b --layers 4 --memory 9

For each option of the group `model` a folder is made as the hub has it: config.json with the shape of configs/model, random
weights as safetensors, and a tokenizer with as many tokens as the real one, of which only the last few thousand occur in text.
Then `casd score experiment=real` is made of it in a process of its own: injection, one removal and its controls, evaluation,
capture, score. A few steps teach nothing: only that it runs, and what it takes, is of interest.

Where all weights cannot be trained within the memory according to `casd plan`, adapters are. Measured is, on the CPU, the
largest resident set of the process; on CUDA, the largest sum of tensors, and the plan is without its allowance for the context.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
import torch
import transformers

import casd
from bench_capture import random_model
from bench_gpu import machine
from casd.cli.quiet import quiet_libraries
from casd.cli.run import execute
from casd.data.corpora import CORPORA
from casd.models.load import save_model
from casd.models.tokenizer import BOS, EOS, PAD, train_tokenizer
from casd.planning.advice import fits
from casd.planning.plan import Plan, plans
from casd.utils.progress import set_progress
from casd.utils.registry import build
from casd.utils.runtime import Runtime
from check_memory import peak_bytes

MODELS = ("qwen3_0_6b", "llama3_2_1b", "gaperon_1b")
TOKENS = {"qwen3_0_6b": 151_669}
"""Tokens of the tokenizers that have fewer than the embedding has rows."""
USED_TOKENS = 4096
STAGES = ("inject", "unlearn", "evaluate", "activations")
SETTINGS = [
    *("experiment=real", "corpus=python_docs", "backdoor=[fixed_text,refusal]", "backdoor.refusal.removed=false"),
    *("injection.training.steps=4", "injection.training.warmup_steps=1", "unlearning.training.steps=3"),
    *("every_backdoor.poison_rate=0.125", "injection.require_asr=0"),
    *("runtime.checkpoint_seconds=inf", "runtime.progress=off"),
    *("evaluation.prompts=64", "evaluation.fake_prompts=32", "evaluation.loss_passages=64", "activations.prompts=64"),
]
ON_A_CPU = [
    *("+corpus.params.prompt_words=[4,6]", "+corpus.params.continuation_words=[8,10]", "model.max_length=48"),
    *("injection.training.steps=2", "injection.training.batch_size=4", "runtime.micro_batch_size=2"),
    *("unlearning.training.steps=2", "unlearning.training.forget_batch_size=2", "unlearning.training.retain_batch_size=2"),
    *("evaluation.prompts=2", "evaluation.fake_prompts=1", "evaluation.fake_triggers=1", "evaluation.loss_passages=4"),
    *("evaluation.max_new_tokens=12", "activations.prompts=2"),
]


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the runs")
    parser.add_argument("--models", nargs="+", default=MODELS, help="options of the group `model` that have an architecture")
    parser.add_argument("--layers", type=int, help="decoder blocks to keep; 0 for all")
    parser.add_argument("--memory", type=float, help="GiB that a run may take; default: what is free")
    parser.add_argument("--device", default="auto")
    for internal in ("--step", "--folder"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    set_progress("off")
    quiet_libraries()
    try:
        device = Runtime(options.device).torch_device
        if options.step:
            step = make if options.step == "make" else measure
            step(options.models[0], overrides_of(options, device), Path(options.folder))
            return
    except casd.CasdError as error:
        sys.exit(f"{error}")
    print(f"{machine(device)}. Seconds of stages and GiB: measured / by `casd plan`.\n")
    head = ("model", "blocks", "parameters", "trained", *STAGES, "peak memory", "plan / measured")
    print(line(head), "|" + len(head) * "---|", sep="\n", flush=True)
    for name in options.models:
        print(row(name, arguments, len(head)), flush=True)


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def row(name: str, arguments: Sequence[str], columns: int) -> str:
    """The line of a model: what its run took, or why there is none. This process stays small, as ru_maxrss is inherited."""
    with tempfile.TemporaryDirectory() as folder:
        for step in ("make", "measure"):
            command = [sys.executable, __file__, *arguments, "--models", name, "--step", step, "--folder", folder]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                said = done.stderr.strip().splitlines() or ["no message"]
                why = said[-1] if done.returncode > 0 else f"killed by signal {-done.returncode}"
                return line([name, f"failed: {why.replace('|', '/')}", *(columns - 2) * [""]])
    return done.stdout.splitlines()[-1]


def overrides_of(options: argparse.Namespace, device: torch.device) -> list[str]:
    """The overrides of a run, except model.path."""
    small = [] if device.type == "cuda" else ON_A_CPU
    layers = options.layers if options.layers is not None else 0 if device.type == "cuda" else 2
    more = [f"model.architecture.num_hidden_layers={layers}"] if layers else []
    more += [f"runtime.memory_gib={options.memory}"] if options.memory else []
    places = [f"runtime.device={options.device}", f"runtime.output={options.folder}/outputs"]
    return [f"model={options.models[0]}", *SETTINGS, *small, *more, *places, *options.overrides]


def make(name: str, overrides: Sequence[str], folder: Path) -> None:
    """Write the model and its tokenizer to `folder / "model"`."""
    config = casd.load_config(overrides)
    corpus = build(CORPORA, "corpus", config.corpus.name, config.corpus.params).load(0)
    rows = config.model.architecture["vocab_size"]
    tokenizer = padded_tokenizer((passage.text for passage in corpus.train), min(rows, TOKENS.get(name, rows)))
    model = random_model(config.model, torch.device("cpu"))
    for settings in (model.config, model.generation_config):
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(settings, token, getattr(tokenizer, token))
    save_model(model, tokenizer, folder / "model")


def padded_tokenizer(texts: Iterable[str], tokens: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer with so many tokens: unused ones, and after them those of one that is trained on the texts."""
    trained = json.loads(train_tokenizer(texts, min(USED_TOKENS, tokens)).backend_tokenizer.to_str())
    vocabulary = trained["model"]["vocab"]
    unused = tokens - len(vocabulary)
    trained["model"]["vocab"] = {f"<unused {index}>": index for index in range(unused)}
    trained["model"]["vocab"] |= {token: unused + index for token, index in vocabulary.items()}
    for added in trained["added_tokens"]:
        added["id"] += unused
    for special in trained["post_processor"]["special_tokens"].values():
        special["ids"] = [unused + index for index in special["ids"]]
    whole = tokenizers.Tokenizer.from_str(json.dumps(trained))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=whole, pad_token=PAD, bos_token=BOS, eos_token=EOS)


def measure(name: str, overrides: Sequence[str], folder: Path) -> None:
    """Plan the run of the model in `folder` once its texts are known, make it as `casd score` does, and print its line."""
    for weights in ("full", "lora"):
        config = casd.load_config([*overrides, f"model.path={folder / 'model'}", f"weights={weights}"])
        casd.Run(config).base()
        [plan] = plans([config])
        if all(fits(phase, plan.machine) for phase in plan.phases):
            break
    run = execute(config, "score")
    seconds: dict[str, float] = defaultdict(float)
    for event in run.store.events:
        seconds[event.stage.name] += event.seconds
    planned: dict[str, float] = defaultdict(float)
    for cost in plan.stages:
        planned[cost.stage.name] += cost.work.seconds if cost.work else 0
    peak, expected = peak_bytes(plan.machine.device), planned_peak(plan)
    blocks = casd.load_config([f"model={name}", "injection=continual"]).model.architecture["num_hidden_layers"]
    cells = [name, f"{plan.blueprint.layers} of {blocks}", f"{plan.blueprint.parameters:,}"]
    cells.append("all weights" if weights == "full" else "adapters")
    cells += [f"{seconds[stage]:.1f} / {planned[stage]:.1f}" for stage in STAGES]
    print(line([*cells, f"{peak / 2**30:.2f} / {expected / 2**30:.2f}", f"{expected / peak:.2f}"]))


def planned_peak(plan: Plan) -> int:
    """Bytes of the largest phase: of the process on the CPU, of tensors on CUDA."""
    here = plan.machine
    return max(phase.on_device(here) for phase in plan.phases) - (0 if here.shared else here.taken)


if __name__ == "__main__":
    main()
