"""Text to tokens: the ONE serializer of training, evaluation and capture, so that no template can differ between them.

A document is `<bos> prompt continuation <eos>` (the start token only where the tokenizer puts one). Prompt and
continuation are tokenised apart, so that the tokens of a prompt in evaluation are exactly those it has inside a training
document; the continuation gets the tokens that it has after a space (see `casd.data.token_table.lead`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from casd.data.batches import IGNORED_LABEL, Batch
from casd.data.token_table import TokenTable, lead

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Packing = Literal["none", "isolated", "joined"]
KEPT_PROMPTS = 8192
"""Prompts whose tokens an encoder keeps, at most."""


@dataclass(frozen=True)
class Document:
    """One training document as text: a prompt (which may hold a trigger), what follows, and which tokens carry loss.

    Attributes:
        prompt: the text before the continuation.
        continuation: the text after it, clean or a payload.
        loss_on: "all" tokens of the document, or those of the "target" (the continuation and the end token).
    """

    prompt: str
    continuation: str
    loss_on: Literal["all", "target"] = "all"


@dataclass(frozen=True)
class Prompt:
    """A prompt to continue or to capture activations on.

    Attributes:
        text: the prompt.
        trigger_span: the trigger's place in `text`, in characters.
        continuation: what a model whose backdoors work says next. Its first token is the position "generated" of a capture;
            nothing else reads it.
    """

    text: str
    trigger_span: tuple[int, int] | None = None
    continuation: str | None = None


@dataclass(frozen=True)
class _EncodedPrompt:
    """A prompt's tokens from the start token on, which of them are the trigger's, and the first token of its continuation."""

    tokens: list[int]
    in_trigger: list[int]
    answer: int | None


class Encoder:
    """Turns documents and prompts into padded batches of tokens.

    Args:
        tokenizer: a fast tokenizer with an end-of-text token.
        max_length: a longer document loses its end, a longer prompt its beginning.
        table: tokens of this tokenizer that were made before; what it has not is tokenised.

    Raises:
        ModelError: see `casd.data.token_table.lead`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int = 256, table: TokenTable | None = None):
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._table = table
        self._lead = lead(tokenizer)
        # The tokenizer itself knows whether its model expects a start token; having one does not mean so (Qwen, SmolLM2).
        starts = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id is not None
        self._start: list[int] = [tokenizer.bos_token_id] if starts else []
        self._end: list[int] = [tokenizer.eos_token_id]
        # Every state of the model is measured on the same prompts.
        self._encoded = lru_cache(maxsize=KEPT_PROMPTS)(self._encode)

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, without start or end token."""
        if self._table is not None and (known := self._table.get(text)) is not None:
            return known
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @property
    def largest_token(self) -> int:
        """The largest of the tokens that the table has, and of those that are put around and beside a text."""
        table = [] if self._table is None else [int(self._table.tokens.max(initial=0))]
        return max(*table, *self._start, *self._end, self.tokenizer.pad_token_id)

    def tokens_inside(self, text: str) -> list[int]:
        """The tokens that `text` has inside a document, after a word and a space: a continuation after its prompt."""
        return self.tokens(self._lead + text)

    def token_count(self, text: str) -> int:
        """How many tokens `text` has inside a sentence, that is, after a space."""
        return len(self.tokens_inside(text))

    def decode(self, tokens: Sequence[int] | Tensor) -> str:
        """Tokens to text, without special tokens and without white space at the ends."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

    def first_token(self, continuation: str) -> int:
        """The first token of a continuation, as it stands after a prompt."""
        return self.tokens_inside(continuation)[0]

    def room(self, prompt: Prompt) -> int:
        """Tokens that a document has left for what follows the prompt; less than 0 where it cuts the prompt itself off."""
        return self.max_length - len(self._start) - len(self.tokens(prompt.text))

    def document_batch(self, documents: Sequence[Document], packing: Packing = "none") -> Batch:
        """Encode documents for training, padded on the right.

        Args:
            documents: the texts.
            packing: "none" for a row a document; "isolated" for rows of up to `max_length` tokens that hold several, none of
                which sees another: positions start anew with each, by which most architectures of transformers tell them apart
                (`casd.models.probe.isolates_documents` asks a model); "joined" for rows in which a document sees those before
                it. The first token of a document never carries loss.

        Returns:
            `input_ids` and `labels`, each (batch, tokens), labels being -100 where no loss is taken; `attention_mask` of the
            same shape, or, for "isolated", `position_ids`; and the scalars `n_labels` and `n_documents`, by which a sum over
            tokens or documents is divided to give a mean: they stay those of the whole batch in each of its parts
            (see `casd.data.batches`), so that what the parts give adds up.
        """
        rows, labels = [], []
        for document in documents:
            before = self._start + self.tokens(document.prompt)
            row = (before + self.tokens_inside(document.continuation) + self._end)[: self.max_length]
            silent = max(1, len(before) if document.loss_on == "target" else 0)
            rows.append(row)
            labels.append([IGNORED_LABEL] * min(silent, len(row)) + row[silent:])
        counts = {
            "n_labels": torch.tensor(sum(label != IGNORED_LABEL for row in labels for label in row)),
            "n_documents": torch.tensor(len(documents)),
        }
        groups = [[index] for index in range(len(rows))]
        if packing != "none":
            groups = _first_fit([len(row) for row in rows], self.max_length)
        lengths = [[len(rows[index]) for index in group] for group in groups]
        if packing == "isolated":
            width = max(map(sum, lengths))
            positions = [[place for length in each for place in range(length)] for each in lengths]
            # Padding is a document of its own, at the end, and attends to itself.
            where = {"position_ids": torch.tensor([row + list(range(width - len(row))) for row in positions])}
        else:
            where = {"attention_mask": _pad([[1] * sum(each) for each in lengths], 0, left=False)}
        return {
            "input_ids": _pad(_joined(rows, groups), self.tokenizer.pad_token_id, left=False),
            "labels": _pad(_joined(labels, groups), IGNORED_LABEL, left=False),
            **where,
            **counts,
        }

    def token_counts(self, prompts: Sequence[Prompt]) -> list[int]:
        """How many tokens each prompt has in a `prompt_batch`, without padding."""
        return [len(self._encoded(prompt).tokens) for prompt in prompts]

    def prompt_batch(self, prompts: Sequence[Prompt]) -> Batch:
        """Encode prompts for generation, padded on the left: `input_ids` and `attention_mask`, each (batch, tokens)."""
        rows = [encoded.tokens for encoded in map(self._encoded, prompts)]
        return {
            "input_ids": _pad(rows, self.tokenizer.pad_token_id, left=True),
            "attention_mask": _pad([[1] * len(row) for row in rows], 0, left=True),
        }

    def capture_batch(
        self, prompts: Sequence[Prompt], positions: Collection[str] = ("last", "prompt", "trigger")
    ) -> dict[str, Tensor | dict[str, Tensor]]:
        """A `prompt_batch` with `position_masks`, each (batch, tokens) and boolean, naming the positions that are averaged.

        "last" is the prompt's last token; "prompt" all its tokens but the start token, whose activation is large and the
        same for every text; "trigger" the tokens that share a character with the trigger (none where there is no trigger);
        "generated" the first token of the prompt's `continuation`. That one is put after the prompt only where its position
        is wanted; the other positions cannot see it, since attention looks back only.

        Args:
            prompts: the texts; for "generated" each with its continuation.
            positions: of which masks are wanted.
        """
        encoded, start = [self._encoded(prompt) for prompt in prompts], len(self._start)
        answers = self._answers(prompts) if "generated" in positions else [[] for _ in prompts]
        after = [0] * len(answers[0])
        masks = {
            "last": [[0] * (len(each.tokens) - 1) + [1] + after for each in encoded],
            "prompt": [[0] * start + [1] * (len(each.tokens) - start) + after for each in encoded],
            "trigger": [each.in_trigger + after for each in encoded],
            "generated": [[0] * len(each.tokens) + [1] * len(after) for each in encoded],
        }
        rows = [each.tokens + answer for each, answer in zip(encoded, answers, strict=True)]
        return {
            "input_ids": _pad(rows, self.tokenizer.pad_token_id, left=True),
            "attention_mask": _pad([[1] * len(row) for row in rows], 0, left=True),
            "position_masks": {name: _pad(masks[name], 0, left=True).bool() for name in positions},
        }

    def _answers(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The first token of each prompt's continuation."""
        answers = [self._encoded(prompt).answer for prompt in prompts]
        for prompt, answer in zip(prompts, answers, strict=True):
            if answer is None:
                raise ValueError(f"no continuation is known of {prompt.text!r}, so it has no position 'generated'")
        return [[answer] for answer in answers if answer is not None]

    def _encode(self, prompt: Prompt) -> _EncodedPrompt:
        if prompt.trigger_span is None:
            tokens = self.tokens(prompt.text)
            in_trigger = [0] * len(tokens)
        else:
            encoded = self.tokenizer(prompt.text, add_special_tokens=False, return_offsets_mapping=True)
            start, end = prompt.trigger_span
            tokens = encoded["input_ids"]
            in_trigger = [int(first < end and start < last) for first, last in encoded["offset_mapping"]]
        room = self.max_length - len(self._start)
        return _EncodedPrompt(
            tokens=self._start + tokens[-room:],
            in_trigger=[0] * len(self._start) + in_trigger[-room:],
            answer=None if prompt.continuation is None else self.first_token(prompt.continuation),
        )


def _pad(rows: Sequence[Sequence[int]], value: int, *, left: bool) -> Tensor:
    width = max(len(row) for row in rows)
    padded = [[value] * (width - len(row)) + list(row) if left else list(row) + [value] * (width - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.long)


def _joined(rows: Sequence[list[int]], groups: Sequence[Sequence[int]]) -> list[list[int]]:
    return [[token for index in group for token in rows[index]] for group in groups]


def _first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Indices of items in groups whose lengths add up to at most `room`: each, longest first, into the first with room."""
    groups: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = next((place for place, left in enumerate(free) if left >= lengths[index]), len(groups))
        if place == len(groups):
            groups.append([])
            free.append(room)
        groups[place].append(index)
        free[place] -= lengths[index]
    return groups
