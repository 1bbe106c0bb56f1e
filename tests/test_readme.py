"""What the README shows to be written is run.

Run: python -m pytest tests/test_readme.py
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import Injected

from casd.config import UnlearningTraining
from casd.corpora.passages import Corpus
from casd.encoding import Document, Encoder
from casd.runtime import Runtime
from casd.training.losses import document_nll
from casd.unlearning.controls import Removal
from casd.unlearning.objective import ForgetAndRetain
from casd.unlearning.removal import unlearn

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def objective() -> Any:
    """The objective that the README shows."""
    (code,) = re.findall(r"```python\n(@dataclass.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    names: dict[str, Any] = {"dataclass": dataclass, "ForgetAndRetain": ForgetAndRetain, "document_nll": document_nll}
    exec(compile(code, str(README), "exec"), names)
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
