"""What the evaluation of one state costs beyond a forward pass over the same tokens.

Run: python scripts/bench_generation.py MODEL   (MODEL: folder of a model from a run, as outputs/store/inject/KEY/model)

casd's evaluation, its generation alone, transformers' `generate` in the same batches, and one forward pass over every prompt
with as many tokens more as are generated, in turns on this machine's CPU. The ratios are those of the medians. A model that
was injected ends its texts as in a run; a new one hardly ever does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from casd.backdoors.prompts import make_prompt_sets
from casd.config.compose import load_config
from casd.data.batches import batches_by_length
from casd.data.corpora import CORPORA
from casd.data.documents import Prompt
from casd.data.encoding import Encoder
from casd.evaluation import generation
from casd.evaluation.asr import evaluate
from casd.models import load as models
from casd.models.one_model import load_on_device
from casd.pipeline.inputs import build_backdoors
from casd.utils.progress import set_progress
from casd.utils.registry import build


@torch.no_grad()
def forward_pass(model: Any, encoder: Encoder, prompts: Sequence[Prompt], new_tokens: int, size: int) -> None:
    """One forward pass over all prompts, each with `new_tokens` tokens more, whose logits are computed."""
    for indices in batches_by_length([len(prompt.text) for prompt in prompts], size):
        batch = encoder.prompt_batch([prompts[index] for index in indices])
        more = torch.ones(len(indices), new_tokens, dtype=torch.long)
        ids, mask = (torch.cat([batch[name], more], 1) for name in ("input_ids", "attention_mask"))
        model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=new_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--overrides", nargs="*", default=[], help="of the configuration, as for casd run")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    set_progress("off")
    config = load_config(options.overrides)
    corpus = build(CORPORA, "corpus", config.corpus.name, config.corpus.params).load(0)
    model = load_on_device(options.model, config.model.dtype, torch.device("cpu"))
    encoder, backdoors = Encoder(models.load_tokenizer(options.model), config.model.max_length), build_backdoors(config)
    sets, settings = make_prompt_sets(corpus, backdoors, encoder, config.evaluation, seed=0), config.evaluation
    prompts = [*sets.clean, *(prompt for name in backdoors for prompt in [*sets.triggered[name], *sets.fake[name]])]
    nothing: list[tuple[int, ...]] = [()] * len(prompts)

    def transformers_generate() -> None:
        with patch.object(generation, "can_decode", lambda *_: False):
            generation.generate(model, encoder, prompts, nothing, settings)

    works: dict[str, Callable[[], object]] = {
        "one forward pass": lambda: forward_pass(model, encoder, prompts, settings.max_new_tokens, settings.batch_size),
        "casd, generation": lambda: generation.generate(model, encoder, prompts, nothing, settings),
        "transformers, generation": transformers_generate,
        "casd, evaluation": lambda: evaluate(model, encoder, backdoors, sets, settings),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repetition in range(options.repetitions + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if repetition:  # the first one loads what is loaded once
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{len(prompts)} prompts, {settings.max_new_tokens} new tokens, batches of {settings.batch_size};")
    print(f"{options.threads} CPU threads; median of {options.repetitions}\n")
    print("| work | seconds | over one forward pass |\n|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} | {median / medians['one forward pass']:.2f} |")


if __name__ == "__main__":
    main()
