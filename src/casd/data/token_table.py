"""The tokens of a corpus, made once and shared: every stage and process that reads them maps the same files into memory.

Also what a text has to be given to the tokenizer with, to get the tokens that it has inside a document.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import fields
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from casd.data.corpora.passages import Corpus, Passage
from casd.utils.errors import ModelError
from casd.utils.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 2048
"""Texts a call of the tokenizer."""
_PROBES = ("a", "The", "He", "7", "x.")
"""Texts that a tokenizer is asked about; several, since in one of them it may merge what stands before and after the space."""


def lead(tokenizer: PreTrainedTokenizerBase) -> str:
    """What to put before a text so that its tokens are those that it has after a word and a space: a space, or nothing.

    Nothing for a tokenizer that puts a space before every text itself, as those of Llama 2 and Mistral do: given one more, it
    makes a token of the doubled space, which stands nowhere in a document.

    Raises:
        ModelError: neither gives those tokens.
    """
    for before in (" ", ""):
        texts = [text for probe in _PROBES for text in (probe, before + probe, f"{probe} {probe}")]
        rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        if any(alone + after == both for alone, after, both in zip(*[iter(rows)] * 3, strict=True)):
            return before
    raise ModelError(
        "The tokenizer cannot be used: the tokens of a text after a space cannot be had from the text alone, with or without"
        " the space. Use a model whose tokenizer keeps spaces (normalizer and pre-tokenizer are in its tokenizer.json)."
    )


class TokenTable:
    """Tokens by text, memory-mapped: text hashes in order, and for each where its tokens start and end in one flat array.

    A text is known by 64 bits of its BLAKE2b: among n texts, one that is not in the table is taken for one that is with a
    probability of n / 2**64.

    Attributes:
        hashes: uint64, sorted, shape (texts,).
        spans: int64, shape (texts, 2).
        tokens: uint16 or, for a larger vocabulary, uint32, shape (tokens,).
    """

    def __init__(self, hashes: np.ndarray, spans: np.ndarray, tokens: np.ndarray):
        self.hashes, self.spans, self.tokens = hashes, spans, tokens
        # The same memory without what np.memmap does at each access.
        self._hashes, self._spans, self._tokens = (np.asarray(each) for each in (hashes, spans, tokens))

    @classmethod
    def open(cls, folder: Path) -> TokenTable:
        """Open what `write_token_table` wrote."""
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("hashes", "spans", "tokens")))

    def __len__(self) -> int:
        return len(self.hashes)

    def get(self, text: str) -> list[int] | None:
        """The tokens of a text, without start or end token; None if it is not in the table."""
        value = np.uint64(_hash(text))
        place = int(self._hashes.searchsorted(value))
        if place == len(self._hashes) or self._hashes[place] != value:
            return None
        start, end = self._spans[place]
        return self._tokens[start:end].tolist()


def write_token_table(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Tokenise what clean documents and payloads of a corpus are made of, each text once, and write the table.

    These are every prompt, and every continuation and alternative as it stands after a prompt (see `lead`).

    Args:
        corpus: all its splits are read.
        tokenizer: the model's, a fast one.
        folder: gets `hashes.npy`, `spans.npy` and `tokens.npy`.
    """
    largest = max(tokenizer.get_vocab().values())
    hashes, lengths, tokens = array("Q"), array("Q"), array("H" if largest < 2**16 else "I")
    for texts in _batches(corpus, hashes, lead(tokenizer)):
        for row in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
            tokens.extend(row)
            lengths.append(len(row))
    ends = np.cumsum(lengths, dtype=np.int64)
    order = np.argsort(hashes)
    np.save(folder / "hashes.npy", np.asarray(hashes)[order])
    np.save(folder / "spans.npy", np.stack([ends - np.asarray(lengths, np.int64), ends], axis=1)[order])
    np.save(folder / "tokens.npy", np.asarray(tokens))


def _batches(corpus: Corpus, hashes: array[int], before: str) -> Iterator[list[str]]:
    """The texts of the corpus in batches, each text once; appends their hashes to `hashes`, in the same order."""
    seen: set[int] = set()
    batch: list[str] = []
    splits = [getattr(corpus, split.name) for split in fields(Corpus)]
    with track("tokenize", sum(map(len, splits))) as advance:
        for passage in (passage for split in splits for passage in split):
            for text in _texts(passage, before):
                if (value := _hash(text)) not in seen:
                    seen.add(value)
                    hashes.append(value)
                    batch.append(text)
            if len(batch) >= _BATCH:
                yield batch
                batch = []
            advance()
    if batch:
        yield batch


def _texts(passage: Passage, before: str) -> Iterator[str]:
    """What `Encoder` asks the tokens of, passage by passage."""
    yield passage.prompt
    yield before + passage.continuation
    for text in passage.alternatives.values():
        yield before + text


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
