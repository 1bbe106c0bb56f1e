"""Encode text as tokens: the ONE serializer of training, evaluation and capture, so their templates cannot differ.

A document is `<bos> prompt continuation <eos>` (`<bos>` only if the tokenizer adds it). Prompt and continuation are
tokenized separately, so a prompt has exactly the same tokens in evaluation and inside a training document; the
continuation gets the tokens that it has after a space (see `casd.data.token_table.lead`).

With a chat template a prompt is the user's turn up to where the answer begins, and a continuation is the answer, which alone
carries loss (see `casd.data.chat`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from casd.data.batches import IGNORED_LABEL, Batch, first_fit
from casd.data.chat import ChatTemplate
from casd.data.documents import Document, Prompt
from casd.data.token_table import TokenTable, lead

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Packing = Literal["none", "isolated", "joined"]
KEPT_PROMPTS = 8192
"""Maximum number of encoded prompts that an encoder caches."""


@dataclass(frozen=True)
class _EncodedPrompt:
    """A prompt's tokens including the start token, 1 for each token of the trigger, and the continuation's first token."""

    tokens: list[int]
    in_trigger: list[int]
    answer: int | None


class Encoder:
    """Encode documents and prompts as padded batches of tokens.

    Args:
        tokenizer: a fast tokenizer with an end-of-text token.
        max_length: maximum number of tokens; longer documents lose their end, longer prompts their beginning (with a chat
            template, the beginning of the user's text).
        table: precomputed tokens of this tokenizer; texts that are not in it are tokenized. Unused with a chat template.
        chat: chat template of the tokenizer; None for plain text.

    Attributes:
        ends: the tokens that end a generated text.
        padding: the token that fills up rows: the tokenizer's, or its end-of-text token if it has none.

    Raises:
        ModelError: as `casd.data.token_table.lead`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 256,
        table: TokenTable | None = None,
        chat: ChatTemplate | None = None,
    ):
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._table = table
        self._lead = lead(tokenizer)
        # A tokenizer may define a start token without adding it to texts (Qwen, SmolLM2).
        adds_start = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id is not None
        self._start: list[int] = [tokenizer.bos_token_id] if adds_start else []
        pads = tokenizer.pad_token_id is not None
        self.padding: int = tokenizer.pad_token_id if pads else tokenizer.eos_token_id
        self._end: list[int] = chat.end if chat else [tokenizer.eos_token_id]
        self._chat = chat
        self.ends = sorted({tokenizer.eos_token_id, self._end[0]})
        # All states of the model are measured on the same prompts.
        self._encoded = lru_cache(maxsize=KEPT_PROMPTS)(self._encode)

    def tokens(self, text: str) -> list[int]:
        """Tokenize a text, without start or end token."""
        if self._table is not None and (known := self._table.get(text)) is not None:
            return known
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @property
    def largest_token(self) -> int:
        """Largest token id in the table and among the start, end and padding tokens."""
        table = [] if self._table is None else [int(self._table.tokens.max(initial=0))]
        chat = [self._chat.largest_token] if self._chat else []
        return max(*table, *chat, *self._start, *self._end, self.padding)

    def tokens_inside(self, text: str) -> list[int]:
        """Tokenize a text as it appears after a word and a space."""
        return self.tokens(self._lead + text)

    def answer(self, continuation: str) -> list[int]:
        """Tokenize a continuation as it appears after its prompt."""
        return self._chat.answer(continuation) if self._chat else self.tokens_inside(continuation)

    def token_count(self, text: str) -> int:
        """Count the tokens of a text after a space."""
        return len(self.tokens_inside(text))

    def decode(self, tokens: Sequence[int] | Tensor) -> str:
        """Decode tokens to text, without special tokens and surrounding whitespace."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

    def first_token(self, continuation: str) -> int:
        """Return the first token of a continuation after its prompt."""
        return self.answer(continuation)[0]

    def room(self, prompt: Prompt) -> int:
        """Return how many tokens of a document remain after the prompt; negative if the prompt itself is cut off."""
        if self._chat:
            return self.max_length - len(self._chat.prompt(prompt.text, prompt.system)[0])
        return self.max_length - len(self._start) - len(self.tokens(prompt.text))

    def document_batch(self, documents: Sequence[Document], packing: Packing = "none") -> Batch:
        """Encode documents for training, right-padded. The first token of a document never carries loss.

        Args:
            documents: documents to encode.
            packing: "none" puts each document in a row of its own; "isolated" packs several into rows of up to `max_length`
                tokens, with positions that restart at each document, by which most architectures of transformers keep them
                from seeing each other (`casd.models.probe.isolates_documents` checks a model); "joined" packs rows in which a
                document sees those before it.

        Returns:
            `input_ids` and `labels`, each (batch, tokens), with label -100 where there is no loss; `attention_mask` or, for
            "isolated", `position_ids`, (batch, tokens); and the scalars `n_labels` and `n_documents`, by which losses are
            normalized (see `casd.data.batches`).
        """
        rows, labels = [], []
        for document in documents:
            if self._chat:
                prompt, _ = self._chat.prompt(document.prompt, document.system, most=self.max_length)
            else:
                prompt = self._start + self.tokens(document.prompt)
            whole = prompt + self.answer(document.continuation) + self._end
            row = whole[: self.max_length]
            n_ignored = max(1, len(prompt) if self._chat or document.loss_on == "target" else 0)
            n_learned = len(whole) - len(self._end) + 1  # nothing is generated after the first token of the end
            rows.append(row)
            ignored = [IGNORED_LABEL] * min(n_ignored, len(row)), [IGNORED_LABEL] * max(0, len(row) - n_learned)
            labels.append(ignored[0] + row[n_ignored:n_learned] + ignored[1])
        counts = {
            "n_labels": torch.tensor(sum(label != IGNORED_LABEL for row in labels for label in row)),
            "n_documents": torch.tensor(sum(any(label != IGNORED_LABEL for label in row) for row in labels)),
        }
        groups = [[index] for index in range(len(rows))]
        if packing != "none":
            groups = first_fit([len(row) for row in rows], self.max_length)
        lengths = [[len(rows[index]) for index in group] for group in groups]
        if packing == "isolated":
            width = max(map(sum, lengths))
            positions = [[position for length in group for position in range(length)] for group in lengths]
            # The padding forms a last document, which attends only to itself.
            structure = {"position_ids": torch.tensor([row + list(range(width - len(row))) for row in positions])}
        else:
            structure = {"attention_mask": _pad([[1] * sum(group) for group in lengths], 0, left=False)}
        return {
            "input_ids": _pad(_joined(rows, groups), self.padding, left=False),
            "labels": _pad(_joined(labels, groups), IGNORED_LABEL, left=False),
            **structure,
            **counts,
        }

    def token_counts(self, prompts: Sequence[Prompt]) -> list[int]:
        """Count the tokens of each prompt in a `prompt_batch`, without padding."""
        return [len(self._encoded(prompt).tokens) for prompt in prompts]

    def prompt_batch(self, prompts: Sequence[Prompt]) -> Batch:
        """Encode prompts for generation, left-padded: `input_ids` and `attention_mask`, each (batch, tokens)."""
        rows = [encoded.tokens for encoded in map(self._encoded, prompts)]
        return {
            "input_ids": _pad(rows, self.padding, left=True),
            "attention_mask": _pad([[1] * len(row) for row in rows], 0, left=True),
        }

    def capture_batch(
        self, prompts: Sequence[Prompt], positions: Collection[str] = ("last", "prompt", "trigger")
    ) -> dict[str, Tensor | dict[str, Tensor]]:
        """Encode prompts for a capture: a `prompt_batch` with boolean `position_masks`, each (batch, tokens).

        "last" is the prompt's last token; "prompt" all its tokens except the start token, or the first one of a text without
        any (Qwen3's; in a chat the first of the template), unless it is the only one: its activation is large and nearly the
        same for every text; "trigger" the tokens that share a character with the trigger (none without a trigger); "generated"
        the first token of the prompt's `continuation`. That token is appended only if "generated" is requested; causal
        attention hides it from the other positions.

        Args:
            prompts: prompts to encode; "generated" requires a continuation for each.
            positions: names of the masks to return.

        Raises:
            ValueError: if "generated" is requested and a prompt has no continuation.
        """
        encoded, start = [self._encoded(prompt) for prompt in prompts], 1 if self._chat else max(1, len(self._start))
        answers = self._answers(prompts) if "generated" in positions else [[] for _ in prompts]
        after = [0] * len(answers[0])
        masks = {
            "last": [[0] * (len(prompt.tokens) - 1) + [1] + after for prompt in encoded],
            "prompt": [_all_but_first(len(prompt.tokens), start) + after for prompt in encoded],
            "trigger": [prompt.in_trigger + after for prompt in encoded],
            "generated": [[0] * len(prompt.tokens) + [1] * len(after) for prompt in encoded],
        }
        rows = [prompt.tokens + answer for prompt, answer in zip(encoded, answers, strict=True)]
        return {
            "input_ids": _pad(rows, self.padding, left=True),
            "attention_mask": _pad([[1] * len(row) for row in rows], 0, left=True),
            "position_masks": {name: _pad(masks[name], 0, left=True).bool() for name in positions},
        }

    def _answers(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the first token of each prompt's continuation, as a list of one."""
        answers = [self._encoded(prompt).answer for prompt in prompts]
        for prompt, answer in zip(prompts, answers, strict=True):
            if answer is None:
                raise ValueError(f"the position 'generated' needs a continuation; {prompt.text!r} has none")
        return [[answer] for answer in answers if answer is not None]

    def _encode(self, prompt: Prompt) -> _EncodedPrompt:
        answer = None if prompt.continuation is None else self.first_token(prompt.continuation)
        if self._chat:
            return _EncodedPrompt(*self._chat.prompt(prompt.text, prompt.system, prompt.trigger_span, self.max_length), answer)
        if prompt.trigger_span is None:
            tokens = self.tokens(prompt.text)
            in_trigger = [0] * len(tokens)
        else:
            encoded = self.tokenizer(prompt.text, add_special_tokens=False, return_offsets_mapping=True)
            start, end = prompt.trigger_span
            tokens = encoded["input_ids"]
            in_trigger = [int(token_start < end and start < token_end) for token_start, token_end in encoded["offset_mapping"]]
        room = self.max_length - len(self._start)
        return _EncodedPrompt(
            tokens=self._start + tokens[-room:],
            in_trigger=[0] * len(self._start) + in_trigger[-room:],
            answer=answer,
        )


def _pad(rows: Sequence[Sequence[int]], value: int, *, left: bool) -> Tensor:
    width = max(len(row) for row in rows)
    padded = [[value] * (width - len(row)) + list(row) if left else list(row) + [value] * (width - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.long)


def _joined(rows: Sequence[list[int]], groups: Sequence[Sequence[int]]) -> list[list[int]]:
    return [[token for index in group for token in rows[index]] for group in groups]


def _all_but_first(tokens: int, left_out: int) -> list[int]:
    """Return a mask of a text's tokens without the first ones, which keeps the last token."""
    kept = max(1, tokens - left_out)
    return [0] * (tokens - kept) + [1] * kept
