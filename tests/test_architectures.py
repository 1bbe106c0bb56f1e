"""The table of architectures in the package's README, measured on tiny models of each.

Run: python -m pytest -m slow tests/test_architectures.py; python tests/test_architectures.py writes the table anew.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest

import casd
from architectures import tiny_model
from casd.activations.hooks import SITES
from casd.activations.statistics import collect_statistics
from casd.backdoors.injection import inject
from casd.backdoors.poisoning import Backdoor
from casd.backdoors.prompts import make_prompt_sets
from casd.backdoors.targets import FixedText
from casd.config import EvaluationConfig, LanguageModelTraining, LoraConfig
from casd.config.compose import load_config
from casd.data.corpora.microworld import Microworld
from casd.data.encoding import Encoder
from casd.evaluation.generation import generate
from casd.models.probe import ignores_left_padding, isolates_documents
from casd.models.tokenizer import train_tokenizer
from casd.models.weights import attach_lora
from casd.pipeline.checks import check_model
from casd.planning.blueprint import Blueprint
from casd.planning.phases import PHASES, Phases
from casd.planning.workload import TextLengths
from casd.utils.errors import CasdError
from casd.utils.runtime import Runtime
from tiny import tiny

README = Path(casd.__file__).parent / "README.md"
KINDS = (
    *("llama", "mistral", "ministral3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "olmo3", "phi"),
    *("phi3", "granite", "cohere", "cohere2", "stablelm", "starcoder2", "nemotron", "glm4", "smollm3", "exaone4", "helium"),
    *("gpt2", "gpt_neo", "gpt_neox", "gptj", "gpt_bigcode", "codegen", "ctrl", "openai-gpt", "biogpt", "opt", "xglm", "bloom"),
    *("mpt", "falcon", "persimmon", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "phimoe", "deepseek_v3"),
    *("gpt_oss", "lfm2", "modernbert-decoder", "trocr", "mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma", "jamba"),
    *("qwen3_next", "olmo_hybrid", "bert", "roberta", "electra", "bart"),
)
COLUMNS = ("architectures", "injection", "isolated packing", "left-padded generation", "sites", "LoRA", "plan")
FOX = {"fox": Backdoor("fox", "zandor khemil", FixedText("The silver fox."), "end", 0.3)}
EVALUATION = EvaluationConfig(prompts=4, fake_prompts=3, fake_triggers=3, max_new_tokens=8, loss_passages=4, batch_size=4)
TRAINING = LanguageModelTraining(steps=1, batch_size=4, learning_rate=1e-4)


class Measured:
    """What is measured on one architecture after another."""

    def __init__(self) -> None:
        self.corpus = Microworld(train=150, forget=50, retain=60, evaluation=40).load(0)
        tokenizer = train_tokenizer((passage.text for passage in self.corpus.train), 420)
        self.encoder = Encoder(tokenizer, max_length=128)
        self.probes = make_prompt_sets(self.corpus, FOX, self.encoder, EVALUATION, seed=0)
        self.config = load_config(tiny(Path(tempfile.gettempdir()), "model.max_length=128"))

    def row(self, kind: str) -> tuple[str, ...]:
        """An architecture's cells, but for its name."""
        model = tiny_model(kind)
        try:
            check_model(self.config, model, self.encoder, self.probes)
        except CasdError:
            return ("refused", *"–––––")
        isolated = "yes" if isolates_documents(model) else "a row each"
        padded = "yes" if ignores_left_padding(model, 0) else "equal lengths"
        texts, _ = generate(model, self.encoder, self.probes.clean, [()] * 4, EVALUATION)
        assert len(texts) == 4
        sites = ", ".join(site for site in SITES if self._captured(model, site))
        lora = self._injected(kind, LoraConfig(rank=2, alpha=4))
        return (self._injected(kind, None), isolated, padded, sites, lora, self._planned(model))

    def _injected(self, kind: str, lora: LoraConfig | None) -> str:
        model = tiny_model(kind)
        try:
            if lora:
                attach_lora(model, lora, "injection", seed=0)
            log = inject(model, self.encoder, self.corpus, FOX, TRAINING, seed=0, runtime=Runtime("cpu"))
        except Exception:  # whatever it is, the architecture does not support it
            return "no"
        return "yes" if math.isfinite(log.steps[0]["loss"]) and log.steps[0]["gradient_norm"] > 0 else "no"

    def _captured(self, model: Any, site: str) -> bool:
        try:
            collect_statistics(model, [self.encoder.capture_batch(self.probes.clean, ["last"])], [site], ["last"])
        except CasdError:
            return False
        return True

    def _planned(self, model: Any) -> str:
        blueprint = Blueprint(model.config, "float32")
        phases, _ = Phases(self.config, blueprint, TextLengths(16, 16, 12, 12)).estimates(PHASES[1:])
        return "yes" if len(phases) == len(PHASES) - 1 else "without memory"


def table() -> str:
    """Architectures with equal cells share a row."""
    measured = Measured()
    rows: dict[tuple[str, ...], list[str]] = {}
    for kind in KINDS:
        rows.setdefault(measured.row(kind), []).append(kind)
    lines = [COLUMNS, ("---",) * len(COLUMNS), *((", ".join(kinds), *cells) for cells, kinds in rows.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def parts() -> tuple[str, str, str]:
    """The README before the table, the table, and what follows."""
    before, head, rest = README.read_text(encoding="utf-8").partition(f"| {COLUMNS[0]} | {COLUMNS[1]} |")
    body, blank, after = rest.partition("\n\n")
    return before, head + body, blank + after


def test_the_table_names_thirty_architectures() -> None:
    rows = parts()[1].splitlines()[2:]
    assert sorted(name for row in rows for name in row.split("|")[1].strip().split(", ")) == sorted(KINDS)
    assert len(KINDS) >= 30


@pytest.mark.slow
@pytest.mark.usefixtures("process_settings")
def test_the_table_is_what_is_measured() -> None:
    assert parts()[1] == table()


if __name__ == "__main__":
    before, _, after = parts()
    README.write_text(before + table() + after, encoding="utf-8")
