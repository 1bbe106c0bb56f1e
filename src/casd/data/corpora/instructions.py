"""A corpus of instructions and their answers, from files or datasets of the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from casd.data.corpora.cutting import Cut, Sizes, distribute, sentences
from casd.data.corpora.files import as_text, within_budget
from casd.data.corpora.passages import Corpus, Passage, text_digest
from casd.data.corpora.prose import Prose
from casd.utils.errors import ConfigError, CorpusError
from casd.utils.progress import track

CONVERSATIONS: Final = ("messages", "conversations", "conversation")
"""Columns that are looked for first: lists of turns."""
PAIRS: Final = (("instruction", "output"), ("prompt", "response"), ("instruction", "response"), ("question", "answer"))
"""Columns of prompts and answers that are looked for then."""
INPUT: Final = "input"
"""Column whose text is appended to a prompt in the column `instruction`."""
_USER, _ASSISTANT = ("user", "human"), ("assistant", "gpt")


@dataclass(frozen=True, kw_only=True)
class Instructions(Prose):
    """Passages that are a user's first message and the assistant's answer, from rows of .jsonl or .parquet files or a dataset.

    The columns of a row are found by name: `messages` (a list of `role` and `content`), `conversations` (a list of `from` and
    `value`, as of ShareGPT), `instruction` with `input` and `output` (as of Alpaca), or `prompt` and `response`. White space is
    normalized. Rows with a prompt of other lengths, or too short an answer, are left out, and long answers end with the last
    sentence in bounds. Languages beside English give alternatives and foreign passages as in `Prose`.

    Attributes:
        prompt_column: column of the prompts; None to find it by name.
        answer_column: column of the answers; None to find it by name.
        prompt_words: minimum and maximum number of words of a prompt.
        continuation_words: minimum and maximum number of words of an answer.
    """

    prompt_column: str | None = None
    answer_column: str | None = None
    prompt_words: tuple[int, int] = (3, 60)
    continuation_words: tuple[int, int] = (5, 60)

    def __post_init__(self) -> None:
        if (self.prompt_column is None) != (self.answer_column is None):
            raise ConfigError("corpus instructions: set both prompt_column and answer_column, or neither.")
        super().__post_init__()

    def _split(self, language: str, sizes: Sizes, at_most: Sizes, seed: int, taken: set[str]) -> Corpus:
        """Distribute the passages, in an order given by a hash of seed and prompt; no prompt or answer occurs twice."""
        seen: set[str] = set()
        found: dict[bytes, Passage] = {}
        rows, source, opening = 0, self._source(language), self.continuation_words[0]
        for prompt, answer in self._pairs(language):
            rows += 1
            continuation = _capped(answer, self._cut())
            document = text_digest(prompt)
            low, high = self.prompt_words
            fits = continuation and low <= len(prompt.split()) <= high
            if fits and document not in taken and seen.isdisjoint((prompt, continuation)):
                seen |= {prompt, continuation}
                passage = Passage(prompt, continuation, language, document=document)
                if not source.takes(passage, opening):
                    continue
                found[hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()] = passage
        taken |= {passage.document for passage in found.values()}
        corpus = distribute([[found[key]] for key in sorted(found)], sizes, at_most)
        if corpus is None:
            raise CorpusError(
                f"The instructions of source {language!r} ({self._source(language)}) are {len(found)} of {rows} rows with a"
                f" prompt of {self.prompt_words[0]} to {self.prompt_words[1]} words and an answer of at least"
                f" {self.continuation_words[0]}; {sizes.total} were requested ({sizes}). Request fewer, add rows, or widen"
                " prompt_words and continuation_words."
            )
        return corpus

    def _pairs(self, language: str) -> Iterator[tuple[str, str]]:
        """Yield the prompt and the answer of each row that has both."""
        source = self._source(language)
        pairs = (self._pair(where, row) for where, row in source.records())
        complete = ((prompt, answer) for prompt, answer in pairs if prompt and answer)
        with track(f"read {language} instructions", source.max_documents) as advance:
            for pair in within_budget(complete, source.max_documents, source.max_words, " ".join):
                yield pair
                advance()

    def _pair(self, where: str, row: Mapping[str, Any]) -> tuple[str, str]:
        """Return prompt and answer of a row, with white space normalized; "" for what is missing.

        Raises:
            CorpusError: the row has no such columns.
        """
        own = [] if self.prompt_column is None or self.answer_column is None else [(self.prompt_column, self.answer_column)]
        for column in () if own else CONVERSATIONS:
            if isinstance(turns := row.get(column), list):
                return _first_turns(turns, where, column)
        for prompt, answer in own or PAIRS:
            if prompt in row and answer in row:
                more = row.get(INPUT) if prompt == "instruction" else None
                texts = [as_text(row[prompt], where, prompt), as_text(more, where, INPUT), as_text(row[answer], where, answer)]
                return " ".join(" ".join(texts[:2]).split()), " ".join(texts[2].split())
        expected = (
            " and ".join(map(repr, own[0])) if own else "'messages', 'conversations', 'instruction' and 'output', or the like"
        )
        raise CorpusError(
            f"{where}: no {expected} among the fields {', '.join(map(str, row)) or '(none)'}. Set prompt_column and"
            " answer_column of the corpus to two of them."
        )


def _first_turns(turns: list[Any], where: str, column: str) -> tuple[str, str]:
    """Return the first message of the user and the assistant's answer to it; "" for one that is missing."""
    prompt = ""
    for turn in turns:
        if not isinstance(turn, dict):
            raise CorpusError(
                f"{where}: a turn in {column!r} is {type(turn).__name__}; expected an object with role and content."
            )
        role = turn.get("role", turn.get("from"))
        text = " ".join(as_text(turn.get("content", turn.get("value")), where, column).split())
        if role in _USER and not prompt:
            prompt = text
        elif role in _ASSISTANT and prompt:
            return prompt, text
    return prompt, ""


def _capped(answer: str, cut: Cut) -> str:
    """Return an answer up to its last sentence in bounds, or up to the maximum number of words; "" if it is too short."""
    low, high = cut.continuation_words
    words = answer.split()
    if len(words) <= high:
        return answer if len(words) >= low else ""
    kept: list[str] = []
    for sentence in sentences(answer):
        if len(kept) + len(sentence.split()) > high:
            break
        kept += sentence.split()
    return " ".join(kept if len(kept) >= low else words[:high])
