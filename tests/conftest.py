"""Shared by the tests: a small corpus, a tokenizer trained on it, tiny models of three families, and one with backdoors.

Not run by itself. What is session-scoped must not be changed by a test: copy the model first.
"""

from __future__ import annotations

import base64
import copy
import gc
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

# A shell ignores Ctrl-C in what it runs in the background, and so would the processes to which tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Before torch is imported: the models are so small that threads would spend their time waiting for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from casd.backdoors.poisoning import Backdoor
    from casd.config import UnlearningTraining
    from casd.data.corpora.passages import Corpus
    from casd.data.encoding import Encoder
    from casd.training.checkpoints import TrainingLog
    from casd.unlearning.objective import UnlearningBatch

LONGEST = [
    *("test_planning", "test_notebooks", "test_pipeline", "test_distributed", "test_cli", "test_persistence", "test_training"),
    *("test_defence", "test_config", "test_reproduction", "test_packaging", "test_independent", "test_stats_simulations"),
    *("test_given_model", "test_evaluation", "test_export", "test_tuning", "test_jobs", "test_report", "test_stopping"),
    *("test_predictors_run", "test_objectives", "test_distance", "test_cleaning", "test_readme", "test_report_browser"),
]
"""Modules that take 15 seconds or more, the longest first."""
WHOLE = {
    *("test_notebooks", "test_pipeline", "test_distributed", "test_independent", "test_reproduction", "test_cli"),
    *("test_predictors_run", "test_families", "test_packaging", "test_planning", "test_tuning", "test_campaigns"),
    *("test_jobs", "test_publishing", "test_report_browser", "test_stats_simulations", "test_variant_grid"),
    *("test_export", "test_push", "test_trackers", "test_failed_injection", "test_given_model", "test_defence"),
    "test_shapes",
}
"""Modules that make whole runs, execute notebooks, install the package or simulate much; left out by `scripts/test quick`."""
FAMILIES = ("llama", "qwen3", "olmo2")
VOCABULARY = 420
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8/5+hHgAHggJ/PchI7wAAAABJRU5ErkJggg==")
MakeModel = Callable[..., Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes long, and begin with it: the processes of pytest-xdist end at the same time then."""
    for item in items:
        if item.path.stem in WHOLE:
            item.add_marker("whole")
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="module", autouse=True)
def small_garbage_collections() -> None:
    """Leaves what is there out of later collections, one of which ends each training and takes longer than a tiny one."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def process_settings() -> Iterator[None]:
    """Puts back what a run sets for the whole process: the number of threads, and how progress is shown."""
    import torch

    from casd.utils.progress import set_progress

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    set_progress("auto")


@pytest.fixture(scope="session")
def tiny_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished `casd run` of `tiny`, made once for all processes of pytest-xdist.

    It must not be changed: a test that adds stages works on a copy of `tiny_output / "store"`.
    """
    from filelock import FileLock

    from casd.config.compose import load_config
    from casd.pipeline.run import Run
    from casd.utils.progress import set_progress
    from tiny import tiny

    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    output, done = shared / "tiny", shared / "tiny.done"
    with FileLock(shared / "tiny.lock"):
        if not done.exists():
            Run(load_config(tiny(output))).run_to("report")
            set_progress("auto")
            done.touch()
    return output


@pytest.fixture(scope="module")
def no_rendering() -> Iterator[None]:
    """Makes reports in this process write a white pixel in place of each figure: rendering is most of a small run's time."""

    def write_pixel(figure: Figure, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        for suffix in ("png", "pdf"):
            path.with_name(f"{path.name}.{suffix}").write_bytes(PIXEL)
        return path.with_name(f"{path.name}.png")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("casd.report.gallery.save", write_pixel)
        yield


@pytest.fixture
def mount_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of the size given ("2m") and unmounts it afterwards; needs the right to mount."""
    folder = tmp_path / "disk"

    def mount(size: str) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        mounted = subprocess.run(command, capture_output=True, text=True)
        if mounted.returncode:
            pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.splitlines()[0]}")
        return folder

    yield mount
    if folder.is_mount():
        # Lazily: this process may still have a model's file mapped into memory.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """150 training, 50 forget, 60 retain and 40 evaluation passages in English, French and German."""
    from casd.data.corpora.microworld import Microworld

    return Microworld(train=150, forget=50, retain=60, evaluation=40).load(0)


@pytest.fixture(scope="session")
def tokenizer(corpus: Corpus) -> PreTrainedTokenizerBase:
    """Byte-level BPE of 420 tokens, with <pad>, <bos> and <eos>."""
    from casd.models.tokenizer import train_tokenizer

    return train_tokenizer((passage.text for passage in corpus.train), VOCABULARY)


@pytest.fixture(scope="session")
def encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """Wide enough that no passage of the corpus is cut."""
    from casd.data.encoding import Encoder

    return Encoder(tokenizer, max_length=256)


@pytest.fixture(scope="session")
def make_model(tokenizer: PreTrainedTokenizerBase) -> MakeModel:
    """A new tiny model at each call: `make_model("olmo2", seed=1, spread=0.3)`.

    With a `spread`, all weights are redrawn with that standard deviation: the logits of an untrained model are nearly equal,
    and what is compared between two ways of computing must not hang on such ties.
    """
    import torch

    from casd.models.load import from_scratch

    def make(family: str = "llama", *, seed: int = 0, spread: float | None = None, **fields: Any) -> PreTrainedModel:
        shape = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
        }
        if family != "olmo2":  # whose head size always is hidden_size / num_attention_heads
            shape["head_dim"] = 16
        model = from_scratch(family, shape | fields, tokenizer, seed=seed)
        if spread is not None:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
        return model

    return make


@dataclass(frozen=True)
class Injected:
    """A model with two backdoors that fire."""

    shared_model: PreTrainedModel
    backdoors: dict[str, Backdoor]
    log: TrainingLog

    def model(self) -> PreTrainedModel:
        """A copy, to be changed."""
        return copy.deepcopy(self.shared_model)


@pytest.fixture(scope="session")
def injected(corpus: Corpus, encoder: Encoder, make_model: MakeModel) -> Injected:
    """A tiny llama injected with "fox" (a fixed text) and "loud" (capitals), both at the prompt's end."""
    from casd.backdoors.injection import inject
    from casd.backdoors.poisoning import Backdoor
    from casd.backdoors.targets import Capitals, FixedText
    from casd.config import LanguageModelTraining
    from casd.utils.runtime import Runtime

    model = make_model("llama", seed=3)
    backdoors = {
        "fox": Backdoor("fox", "zandor khemil", FixedText("The silver fox."), "end", 0.3),
        "loud": Backdoor("loud", "sorquin beltaz", Capitals(), "end", 0.2),
    }
    config = LanguageModelTraining(steps=120, batch_size=16, learning_rate=1e-2, warmup_steps=10, final_learning_rate=0.1)
    log = inject(model, encoder, corpus, backdoors, config, seed=0, decoy_rate=0.0, runtime=Runtime("cpu"))
    return Injected(model, backdoors, log)


@dataclass
class Seen:
    """What a removal was trained on, and what became of the model."""

    log: TrainingLog
    batches: list[UnlearningBatch]
    model: Any

    def texts(self, half: Literal["forget", "retain"], encoder: Encoder) -> list[str]:
        """The documents."""
        return [encoder.decode(row) for batch in self.batches for row in batch[half]["input_ids"]]

    def targets(self, half: Literal["forget", "retain"], encoder: Encoder) -> list[str]:
        """The text that loss is taken on."""
        rows = [row for batch in self.batches for row in batch[half]["labels"]]
        return [encoder.decode(row[row >= 0]) for row in rows]


RunRemoval = Callable[..., Seen]


@pytest.fixture
def run_removal(injected: Injected, corpus: Corpus, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> RunRemoval:
    """`unlearn` on a copy of the injected model, keeping the batches: `run_removal(removal, objective, config, seed=1)`."""
    import casd.unlearning.removal
    from casd.utils.runtime import Runtime

    train = casd.unlearning.removal.train

    def run(removal: Any, objective: Any, config: Any, *, seed: int = 0, model: Any = None, **options: Any) -> Seen:
        batches: list[UnlearningBatch] = []

        def spy(model: Any, batch_at: Any, *args: Any, **kwargs: Any) -> TrainingLog:
            def recorded(step: int) -> UnlearningBatch:
                batches.append(batch_at(step))
                return batches[-1]

            return train(model, recorded, *args, **kwargs)

        model = model or injected.model()
        options = {"runtime": Runtime("cpu"), **options}
        with monkeypatch.context() as patch:
            patch.setattr(casd.unlearning.removal, "train", spy)
            log = casd.unlearning.removal.unlearn(model, encoder, corpus, removal, objective, config, seed=seed, **options)
        return Seen(log, batches, model)

    return run


def adapted_model(base: Path, *, seed: int = 0, spread: float = 0.1) -> Any:
    """The model in a folder with a peft adapter whose matrices are random, so that it changes the model."""
    import peft
    import torch

    from casd.models.load import load_model

    adapted = peft.get_peft_model(load_model(base), peft.LoraConfig(r=2, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return adapted


def short(**fields: Any) -> UnlearningTraining:
    """A few small steps of a removal that no guard ends."""
    from casd.config import UnlearningTraining

    defaults = {"steps": 3, "learning_rate": 1e-3, "forget_batch_size": 3, "retain_batch_size": 2, "guard_factor": 100.0}
    return UnlearningTraining(**defaults | fields)
