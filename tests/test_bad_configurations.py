"""A thousand bad configurations and model folders: each is refused in a line before anything is trained, or can be run.

Run: python -m pytest -m slow tests/test_bad_configurations.py
"""

from __future__ import annotations

import collections
import random
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tests.bad_configurations import Bad, bad_configurations, bad_folder

import casd.pipeline.stages
from casd.cli.quiet import quiet_libraries
from casd.config import Config
from casd.config.compose import load_config, to_config
from casd.config.hydra_errors import explaining
from casd.models import load as models
from casd.pipeline.run import Run
from casd.planning.check import check
from casd.utils.errors import CasdError
from tiny import tiny

SECONDS = 120
"""A configuration that is not refused or accepted in this time of the processor hangs."""
MEMORY = 12 * 2**30

BASES = {
    "pretraining": ["+metric.variants.mine.distance=l2", "unlearning.stopping.target_asr=0.1", "unlearning.stopping.prompts=8"],
    "continual": ["injection=continual", "weights=lora", "unlearning=rmu", "injection.pretraining.steps=12"],
    "python_docs": ["corpus=python_docs", "backdoor=[refusal,repetition,capitals]", "unlearning=npo"],
    "chat": ["model=llama3_tiny_chat", "backdoor.french_a.position=system", "model.system_prompt=Be kind."],
    "text_files": [
        "corpus=text_files",
        "backdoor=[refusal,capitals]",
        "evaluation.max_new_tokens=24",
        "unlearning.tuning.enabled=true",
        "unlearning.stopping.target_asr=0.1",
        "unlearning.stopping.prompts=8",
    ],
}


class Accepted(BaseException):
    """Training would have begun."""


def refuse_to_train(*_: Any, **__: Any) -> None:
    raise Accepted


@contextmanager
def limits() -> Iterator[None]:
    """A limit of time, and one of memory, beyond which an allocation fails instead of all processes being killed."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not done in {SECONDS} s")

    before = signal.signal(signal.SIGPROF, late)
    memory = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, memory[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, memory)


def plain(config: Config) -> dict[str, Any]:
    """A configuration as plain values."""
    made = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(made, dict)
    return {str(name): value for name, value in made.items()}


def composed(bad: Bad) -> Config:
    """As a command line's values become a configuration."""
    with explaining([str(bad)]):
        try:
            merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(bad.config))
        except OmegaConfBaseException as error:
            raise HydraException(f"Error merging override {bad}") from error  # as Hydra does
        return to_config(merged)  # type: ignore[arg-type]


def outcome(make: Callable[[], Config], key: str) -> tuple[str, str]:
    """What becomes of a configuration: "clear", "unclear", "accepted" or "traceback", and what is said."""
    try:
        with limits():
            run = Run(make())
            check(run, "report")
            run.run_to("inject")
    except Accepted:
        return "accepted", ""
    except CasdError as error:
        said = str(error)
        one_line = said.isprintable() and len(said) < 2000
        return "clear" if one_line and any(part in said for part in key.split(".")) else "unclear", said
    except BaseException:
        return "traceback", traceback.format_exc()
    return "accepted", "all was done before"


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch, process_settings: None) -> None:
    monkeypatch.setattr(casd.pipeline.stages, "inject", refuse_to_train)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    quiet_libraries()


def text_file(folder: Path) -> Path:
    """420 documents of 96 words."""
    file = folder / "words.txt"
    file.write_text("\n\n".join(f"Here {' '.join(f'word{i}x{place}' for place in range(95))}." for i in range(420)))
    return file


def base(name: str, folder: Path) -> dict[str, Any]:
    more = [f"corpus.params.sources.en.paths=[{text_file(folder)}]"] if name == "text_files" else []
    return plain(load_config([*tiny(folder), *BASES[name], *more]))


def tell(name: str, found: dict[str, list[str]]) -> str:
    """The figures, and what was accepted or not told clearly."""
    figures = ", ".join(f"{len(each)} {kind}" for kind, each in sorted(found.items()))
    return "\n".join([f"{name}: {figures}", *(f"{kind}: {each}" for kind in found if kind != "clear" for each in found[kind])])


@pytest.mark.slow
@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("name", BASES)
def test_bad_configurations(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found: dict[str, list[str]] = collections.defaultdict(list)
    good = base(name, tmp_path)
    assert outcome(lambda: composed(Bad("", None, good)), "") == ("accepted", "")
    for bad in bad_configurations(good, 220, random.Random(f"bad {name}")):
        kind, said = outcome(lambda bad=bad: composed(bad), bad.key)  # type: ignore[misc]
        found[kind].append(f"{bad}: {said}")
    print(tell(name, found))
    assert not found["traceback"], "\n".join(found["traceback"])
    assert not found["unclear"], "\n".join(found["unclear"])


@pytest.mark.slow
@pytest.mark.usefixtures("no_training")
def test_bad_model_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_model: Any, tokenizer: Any) -> None:
    monkeypatch.chdir(tmp_path)
    models.save_model(make_model("llama", seed=0, max_position_embeddings=512), tokenizer, tmp_path / "good")
    options = ["model=hub", "model.path=./bad", "injection=continual"]
    given = [each for each in tiny(tmp_path) if not each.startswith("model.")]
    config = load_config([*given, *options])
    found: dict[str, list[str]] = collections.defaultdict(list)
    rng = random.Random("bad folders")
    for _ in range(200):
        what = bad_folder(tmp_path / "good", tmp_path / "bad", rng)
        kind, said = outcome(lambda: config, "")
        found[kind].append(f"{what}: {said}")
    print(tell("folders", found))
    assert not found["traceback"], "\n".join(found["traceback"])
    assert not found["unclear"], "\n".join(found["unclear"])
