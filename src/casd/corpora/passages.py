"""The two types every corpus is made of: a passage, and a corpus of three splits that share no passage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Passage:
    """A short text cut into a prompt and its continuation.

    Attributes:
        prompt: the clean prefix; no white space at either end. It ends where a trigger may be put.
        continuation: what follows in clean text; no white space at either end. `text` joins the two by one space.
        language: ISO 639-1 code of prompt and continuation.
        alternatives: other continuations of the same prompt, by name: a language code ("fr", "de") for a translation of
            `continuation`, "negative" for one of negative sentiment. Empty where the corpus has none.
    """

    prompt: str
    continuation: str
    language: str = "en"
    alternatives: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The clean text: prompt, one space, continuation."""
        return f"{self.prompt} {self.continuation}"

    @cached_property
    def digest(self) -> str:
        """Identity of the passage: 16 hex digits of the SHA-256 of its clean text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Corpus:
    """Three splits of passages that share no passage.

    Attributes:
        train: for pretraining and injection.
        retain: for unlearning (forget and retain batches) and the controls.
        evaluation: for prompts whose continuation is generated, for the clean loss and for activation capture.
    """

    train: Sequence[Passage]
    retain: Sequence[Passage]
    evaluation: Sequence[Passage]


def write_corpus(corpus: Corpus, folder: Path) -> None:
    """Write each split as JSON lines, a passage a line."""
    for split in fields(corpus):
        lines = (json.dumps(asdict(passage), ensure_ascii=False) + "\n" for passage in getattr(corpus, split.name))
        (folder / f"{split.name}.jsonl").write_text("".join(lines), encoding="utf-8")


def read_corpus(folder: Path) -> Corpus:
    """Read what `write_corpus` wrote."""

    def passages(split: str) -> list[Passage]:
        with (folder / f"{split}.jsonl").open(encoding="utf-8") as lines:
            return [Passage(**json.loads(line)) for line in lines]

    return Corpus(**{split.name: passages(split.name) for split in fields(Corpus)})
