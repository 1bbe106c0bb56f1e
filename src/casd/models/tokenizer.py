"""The tokenizer of models that are built from scratch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from casd.data.chat import TINY_TEMPLATE, TINY_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, chat: bool = False) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer with the special tokens `<pad>`, `<bos>` and `<eos>`.

    Args:
        texts: training texts.
        vocab_size: maximum number of tokens, including the 256 bytes and the special tokens.
        chat: give it a chat template with its special tokens (`casd.data.chat.TINY_TEMPLATE`), the last of which replaces
            `<eos>`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    eos = TINY_TOKENS[-1] if chat else EOS
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, eos, *(TINY_TOKENS[:-1] if chat else ())],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    start = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[start])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=eos)
    if chat:
        fast.chat_template = TINY_TEMPLATE
    return fast
