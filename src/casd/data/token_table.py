"""Tokenize a corpus once, into files that every stage and process maps into memory.

Also finds how to tokenize a text as it appears inside a document (`lead`).
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
"""Number of texts per call of the tokenizer."""
_PROBES = ("a", "The", "He", "7", "x.")
"""Texts that a tokenizer is tested with; several, because it may merge tokens across the space in one of them."""


def lead(tokenizer: PreTrainedTokenizerBase) -> str:
    """Find the prefix that gives a text the tokens it has after a word and a space: a space, or nothing.

    It is empty for a tokenizer that itself prepends a space to every text, like those of Llama 2 and Mistral: with another
    space, it would produce a token of two spaces, which occurs nowhere in a document.

    Raises:
        ModelError: if neither prefix gives these tokens.
    """
    for before in (" ", ""):
        texts = [text for probe in _PROBES for text in (probe, before + probe, f"{probe} {probe}")]
        rows = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        if any(alone + after == both for alone, after, both in zip(*[iter(rows)] * 3, strict=True)):
            return before
    raise ModelError(
        "The tokenizer cannot be used: neither with nor without a leading space does it give the tokens of a text after a space"
        " in a document. Use a model whose tokenizer keeps spaces (see normalizer and pre_tokenizer in its tokenizer.json)."
    )


class TokenTable:
    """Memory-mapped table from texts to their tokens.

    Texts are identified by 64 bits of their BLAKE2b hash: a text that is not in a table of n texts is mistaken for one of them
    with probability n / 2**64.

    Attributes:
        hashes: sorted hashes of the texts, uint64, (texts,).
        spans: start and end of each text's tokens in `tokens`, int64, (texts, 2).
        tokens: token ids, uint16 or, for a larger vocabulary, uint32, (tokens,).
    """

    def __init__(self, hashes: np.ndarray, spans: np.ndarray, tokens: np.ndarray):
        self.hashes, self.spans, self.tokens = hashes, spans, tokens
        # Views as plain arrays, without the overhead of np.memmap at each access.
        self._hashes, self._spans, self._tokens = map(np.asarray, (hashes, spans, tokens))

    @classmethod
    def open(cls, folder: Path) -> TokenTable:
        """Open a table written by `write_token_table`."""
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("hashes", "spans", "tokens")))

    def __len__(self) -> int:
        return len(self.hashes)

    def get(self, text: str) -> list[int] | None:
        """Return the tokens of a text, without start or end token; None if it is not in the table."""
        value = np.uint64(_hash(text))
        index = int(self._hashes.searchsorted(value))
        if index == len(self._hashes) or self._hashes[index] != value:
            return None
        start, end = self._spans[index]
        return self._tokens[start:end].tolist()


def write_token_table(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Tokenize the texts of a corpus, each once, and write the table.

    The texts are every prompt, and every continuation and alternative as it appears after a prompt (see `lead`).

    Args:
        corpus: corpus whose splits are all tokenized.
        tokenizer: the model's fast tokenizer.
        folder: folder to write `hashes.npy`, `spans.npy` and `tokens.npy` to.
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


def _batches(corpus: Corpus, hashes: array[int], prefix: str) -> Iterator[list[str]]:
    """Yield the texts of the corpus in batches, each text once, and append their hashes to `hashes` in the same order."""
    seen: set[int] = set()
    batch: list[str] = []
    splits = [getattr(corpus, split.name) for split in fields(Corpus)]
    with track("tokenize", sum(map(len, splits))) as advance:
        for passage in (passage for split in splits for passage in split):
            for text in _texts(passage, prefix):
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


def _texts(passage: Passage, prefix: str) -> Iterator[str]:
    """Yield the texts of a passage that `Encoder` tokenizes."""
    yield passage.prompt
    yield prefix + passage.continuation
    for text in passage.alternatives.values():
        yield prefix + text


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
