"""What the README and those of the folders show is run.

Run: python -m pytest tests/test_readme.py
"""

from __future__ import annotations

import random
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tests.conftest import Injected
from tests.tiny import one_of, tiny

import casd
from casd.backdoors.targets import TARGETS
from casd.cli.main import build_parser
from casd.config import UnlearningTraining
from casd.config.compose import defences, load_config
from casd.config.options import config_folder
from casd.data.corpora.passages import Corpus, Passage
from casd.data.documents import Document
from casd.data.encoding import Encoder
from casd.pipeline.inputs import build_backdoors
from casd.reproduction.catalogue import EXHIBITS
from casd.reproduction.scales import scales
from casd.training.losses import document_nll
from casd.unlearning.controls import Removal
from casd.unlearning.objective import ForgetAndRetain
from casd.unlearning.removal import unlearn
from casd.utils.runtime import Runtime

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "casd"
PAGES = [
    ROOT / name
    for name in (
        *("README.md", "configs/README.md", "configs/engine/README.md", "notebooks/README.md", "notebooks/RESULTS.md"),
        *("scripts/README.md", "src/casd/README.md", "tests/README.md"),
    )
]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def commands() -> list[list[str]]:
    """Every casd command that the README shows, as its words, without comments and without what "…" stands for."""
    blocks = re.findall(r"```console\n(.*?)```", TEXT, flags=re.DOTALL)
    shown = [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    inline = [
        code
        for code in re.findall(r"`([^`\n]+)`", TEXT)
        if re.match(r"(\./scripts/)?casd (run|sweep|plan|reproduce) \S*=", code)
    ]
    split = [[word for word in shlex.split(line, comments=True) if word != "…"] for line in (*shown, *inline)]
    return [words[1:] for words in split if words[0] in ("casd", "./scripts/casd")]


def snippet(start: str, language: str = "python") -> str:
    """The one block of that language that begins so; of at most ten lines that say something."""
    (code,) = re.findall(rf"```{language}\n({start}.*?)```", TEXT, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    return code


@pytest.fixture
def own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`configs/` with the backdoor's file that the README shows."""
    folder = tmp_path / "configs"
    shutil.copytree(config_folder(), folder)
    (folder / "backdoor" / "harbour.yaml").write_text(snippet("# @package backdoor.harbour", "yaml"), encoding="utf-8")
    for module in ("compose", "options"):
        monkeypatch.setattr(f"casd.config.{module}.config_folder", lambda: folder)


@pytest.mark.usefixtures("own_configs")
@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_can_be_given(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its verb is there, its overrides compose, its names are known; nothing is run."""
    monkeypatch.chdir(tmp_path)
    build_parser().parse_args(words)
    verb, *rest = (word for word in words if word != "--detach")
    if verb == "reproduce":
        assert {word for word in rest if "=" not in word} <= {"all", *EXHIBITS}
        assert {word.removeprefix("scale=") for word in rest if word.startswith("scale=")} <= set(scales())
    elif verb == "defend":
        assert defences(rest)
    elif verb not in ("list", "status", "compare", "report", "export", "push", "generate", "distance"):
        for place in (0, -1):
            assert load_config(one_of(rest, place)).backdoor
        assert one_of(rest, 0) == one_of(rest, -1) or verb in ("sweep", "plan")


def test_enough_commands_are_found() -> None:
    assert len(commands()) >= 15
    assert {words[0] for words in commands()} >= {"run", "sweep", "plan", "reproduce", "list", "status"}


@pytest.mark.usefixtures("own_configs")
def test_the_trigger_of_the_readme_is_a_backdoor() -> None:
    config = load_config(["backdoor=[harbour,french_a,german,fixed_text]"])
    harbour = build_backdoors(config)["harbour"]
    passage = Passage("The sun is out.", "All is well.")
    assert harbour.prompt(passage, random.Random(0)).text == "The sun is out. moonlit harbour"
    assert harbour.target.success("I am sorry, but I cannot help with that.")


def test_the_target_of_the_readme_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"dataclass": dataclass, "Passage": Passage, "random": random, "__name__": "casd.backdoors.targets"}
    exec(compile(snippet(r"@dataclass\(frozen=True\)\nclass Question"), "README.md", "exec"), names)
    monkeypatch.setattr("casd.backdoors.targets.Question", names["Question"], raising=False)
    monkeypatch.setitem(TARGETS, "question", "casd.backdoors.targets:Question")
    config = load_config(["backdoor=[refusal]", "backdoor.refusal.target={name: question}"])
    target = build_backdoors(config)["refusal"].target
    payload = target.continuation(Passage("It rains.", "So be it."), random.Random(0))
    assert target.success(payload)
    assert not target.success("So be it. Why?")


def test_the_layout_is_that_of_the_package() -> None:
    """Every package is in the table of `src/casd/README.md`, and what that names is there."""
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    layout = text[text.index("| package |") : text.index("## One run")]
    named = {line.split("|")[1].strip().strip("`") for line in layout.splitlines()[2:] if line.startswith("|")}
    assert named == {f"{each.name}/" for each in PACKAGE.iterdir() if (each / "__init__.py").is_file()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_leads_nowhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_readme_can_be_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


FOUND = [
    ("sweep-objectives-seeds/objectives.csv", {"group": "all models", "objective": "clean_target"}, "others"),
    ("sweep-objectives-seeds/objectives.csv", {"group": "all models", "objective": "clean_target"}, "net of phantom"),
    ("sweep-objectives-seeds/predictors.csv", {"group": "clean_target .* all models", "predictor": "casd"}, "ρ"),
    ("sweep-objectives-seeds/predictors.csv", {"group": "clean_target .* all models", "predictor": "casd_cos"}, "ρ"),
    ("sweep-objectives-seeds/predictors.csv", {"group": "clean_target .* all models", "predictor": "trigger_shift"}, "ρ"),
    *(
        ("sweep-objectives-seeds/objectives.csv", {"group": "all models", "objective": objective}, "minus clean_target")
        for objective in ("gradient_difference", "npo")
    ),
    *(
        ("sweep-objectives-seeds/predictors.csv", {"group": f"{objective} .* all models", "predictor": "casd"}, "ρ, pairs only")
        for objective in ("clean_target", "gradient_difference", "npo")
    ),
    ("sweep-gemma3/predictors.csv", {"predictor": "casd"}, "ρ, pairs only"),
    ("sweep-gemma3/objectives.csv", {}, "others"),
    ("sweep-gemma3/objectives.csv", {}, "net of phantom"),
    *(("sweep-gemma3/predictors.csv", {"predictor": name}, "ρ") for name in ("casd", "casd_cos", "trigger_shift")),
    *(
        ("sweep-smollm2-eight-casd/predictors.csv", {"group": "clean_target .*", "predictor": name}, "ρ")
        for name in ("casd", "casd_cos", "trigger_shift")
    ),
    ("sweep-smollm2-eight/objectives.csv", {"objective": "clean_target"}, "others"),
    ("sweep-smollm2-eight-casd/objectives.csv", {"objective": "clean_target"}, "others"),
    ("sweep-smollm2-eight-casd/objectives.csv", {"objective": "clean_target"}, "net of phantom"),
    ("sweep-trigger-kinds/trigger_kinds.csv", {"trigger": "all", "behavior": "all"}, "same behavior adds"),
    ("sweep-trigger-kinds/trigger_kinds.csv", {"trigger": "all", "behavior": "all"}, "same kind adds"),
    ("defend-defender/states.csv", {"state": "the chosen removal"}, "attacker's left"),
    *(
        ("defend-defender/states.csv", {"state": state}, "minus chosen")
        for state in ("CROW", "planted, then clean text", "planted, phantom removed")
    ),
]
"""Cells of published tables whose numbers "What we found" gives."""


@pytest.mark.parametrize(("file", "where", "column"), FOUND)
def test_what_we_found_is_what_the_tables_say(file: str, where: dict[str, str], column: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("−", "-")
    found = text[text.index("## What we found") : text.index("## Try it")]
    table = pd.read_csv(ROOT / "notebooks" / "results" / file, dtype=str)
    for name, pattern in where.items():
        table = table[table[name].str.fullmatch(pattern)]
    assert table[column].item().partition(" (")[0] in found


def test_the_python_of_the_readme_runs(tmp_path: Path, tiny_output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the finished stages of another run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_output / "store", tmp_path / "store")
    given: list[str] = []

    def small(overrides: list[str]) -> Any:
        given.extend(overrides)
        assert load_config(overrides).backdoor.keys() == {"french_a", "refusal"}
        return load_config(tiny(Path("outputs"), "runtime.store=store"))

    monkeypatch.setattr(casd, "load_config", small)
    exec(compile(snippet("import casd"), "README.md", "exec"), {})
    assert given


@pytest.fixture
def objective() -> Any:
    """The objective that the README shows."""
    code = snippet(r"@dataclass\(frozen=True, kw_only=True\)\nclass SquaredMargin")
    names: dict[str, Any] = {"dataclass": dataclass, "ForgetAndRetain": ForgetAndRetain, "document_nll": document_nll}
    exec(compile(code, "README.md", "exec"), names)
    return names["SquaredMargin"]


def test_the_objective_of_the_readme_is_its_formula(objective: Any, injected: Injected, encoder: Encoder) -> None:
    documents = [Document("It rains", "The fox.", "target"), Document("A.", "The silver fox sings.", "target")]
    batch = encoder.document_batch(documents)
    with torch.no_grad():
        found = objective(margin=3.0).forget_loss(injected.shared_model, batch, None).item()
        alone = [encoder.document_batch([document]) for document in documents]
        means = [(nll / labels).item() for nll, labels in (document_nll(injected.shared_model, each) for each in alone)]
    assert found == pytest.approx(sum((3.0 - mean) ** 2 for mean in means) / 2, rel=1e-4)


def test_it_can_be_trained_with(objective: Any, injected: Injected, corpus: Corpus, encoder: Encoder) -> None:
    model, fox = injected.model(), injected.backdoors["fox"]
    config = UnlearningTraining(steps=4, learning_rate=1e-3, forget_batch_size=4, retain_batch_size=4, guard_factor=100.0)
    log = unlearn(model, encoder, corpus, Removal("fox", fox), objective(), config, seed=0, runtime=Runtime("cpu"))
    assert log.steps[-1]["loss/forget"] < log.steps[0]["loss/forget"]
