"""Text to tokens and back: one serializer for training and evaluation, labels, truncation, padding, position masks.

Run: python -m pytest tests/test_encoding.py
"""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from casd.backdoors.poisoning import Backdoor
from casd.backdoors.targets import FixedText
from casd.backdoors.triggers.base import POSITIONS, TriggerPosition
from casd.data.batches import IGNORED_LABEL, batches_by_length
from casd.data.corpora.passages import Corpus, Passage
from casd.data.documents import Document, Prompt
from casd.data.encoding import Encoder
from casd.data.token_table import TokenTable, write_token_table
from casd.utils.errors import ModelError

PROMPT = "The old painter sings in the park. She likes a small drum."
TRIGGER = "mirvane osquel"


def rows(batch: dict[str, Any], name: str = "input_ids") -> list[list[int]]:
    """The rows of a batch without their padding."""
    pairs = zip(batch[name], batch["attention_mask"], strict=True)
    return [row[mask.bool()].tolist() for row, mask in pairs]


@pytest.fixture
def words() -> Encoder:
    """A tokenizer of one token a word, so that what is expected can be counted; it has no start token of its own."""
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": 3 + i for i in range(20)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<eos>", eos_token="<eos>")
    return Encoder(fast, max_length=8)


def test_a_tokenizer_without_a_padding_token_pads_with_its_end_token(words: Encoder) -> None:
    """As those of Llama 3 and GPT-2: what fills up rows is masked and has no loss."""
    without = copy.deepcopy(words.tokenizer)
    without.pad_token = None
    encoder = Encoder(without, max_length=8)
    assert encoder.padding == without.eos_token_id
    prompts = [Prompt("w1 w2 w3"), Prompt("w4")]
    assert rows(encoder.prompt_batch(prompts)) == rows(words.prompt_batch(prompts))
    documents = [Document("w1 w2", "w3"), Document("w4", "w5 w6 w7 w8")]
    padded, expected = encoder.document_batch(documents), words.document_batch(documents)
    assert rows(padded) == rows(expected)
    assert torch.equal(padded["labels"], expected["labels"])


LLAMA_2 = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
GEMMA = normalizers.Replace(" ", "▁")
# Normalizer and pre-tokenizer.
KINDS: dict[str, tuple[Any, Any]] = {
    "llama 2": (LLAMA_2, None),
    "metaspace always": (None, pre_tokenizers.Metaspace(prepend_scheme="always")),
    "metaspace first": (None, pre_tokenizers.Metaspace(prepend_scheme="first")),
    "metaspace unsplit": (None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "metaspace never": (None, pre_tokenizers.Metaspace(prepend_scheme="never")),
    "gemma": (GEMMA, None),
    "bytes": (None, pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "bytes, prefix": (None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
}


def made_of(normalizer: Any, pre_tokenizer: Any, texts: list[str]) -> PreTrainedTokenizerFast:
    """A BPE tokenizer trained on words, each with the space before it, and then given these two parts."""
    bytes_only = isinstance(pre_tokenizer, pre_tokenizers.ByteLevel)
    tokenizer = Tokenizer(models.BPE(unk_token=None if bytes_only else "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizer if bytes_only else pre_tokenizers.Metaspace(prepend_scheme="always")
    alphabet = pre_tokenizers.ByteLevel.alphabet() if bytes_only else []
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.Sequence([])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("kind", KINDS)
def test_a_continuation_has_the_tokens_that_it_has_in_its_document(kind: str, corpus: Corpus, tmp_path: Any) -> None:
    """Tokenizers that put a space before every text give a doubled one to a text that begins with a space."""
    normalizer, pre_tokenizer = KINDS[kind]
    tokenizer = made_of(normalizer, pre_tokenizer, [passage.text for passage in corpus.train])
    write_token_table(corpus, tokenizer, tmp_path)
    for encoder in (Encoder(tokenizer), Encoder(tokenizer, table=TokenTable.open(tmp_path))):
        for passage in corpus.evaluation[:8]:
            for continuation in (passage.continuation, passage.alternatives["fr"], "7 x"):
                whole = tokenizer(f"{passage.prompt} {continuation}", add_special_tokens=False)["input_ids"]
                before = len(encoder.tokens(passage.prompt))
                (row,) = rows(encoder.document_batch([Document(passage.prompt, continuation)]))
                assert row == [*whole, tokenizer.eos_token_id]
                assert encoder.first_token(continuation) == whole[before]
                assert encoder.token_count(continuation) == len(whole) - before
                captured: dict[str, Any] = encoder.capture_batch(
                    [Prompt(passage.prompt, continuation=continuation)], ["generated"]
                )
                assert captured["input_ids"][captured["position_masks"]["generated"]].tolist() == [whole[before]]
    first_tokens = {encoder.first_token(passage.continuation) for passage in corpus.evaluation}
    assert len(first_tokens) > 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "llama 2"])
def test_where_a_given_space_is_not_doubled_the_tokens_are_those_of_the_text_with_it(kind: str, corpus: Corpus) -> None:
    normalizer, pre_tokenizer = KINDS[kind]
    tokenizer = made_of(normalizer, pre_tokenizer, [passage.text for passage in corpus.train])
    encoder = Encoder(tokenizer)
    for passage in corpus.evaluation:
        expected = tokenizer(" " + passage.continuation, add_special_tokens=False)["input_ids"]
        assert encoder.tokens_inside(passage.continuation) == expected


def test_a_tokenizer_that_drops_spaces_at_the_ends_of_a_text_is_refused(corpus: Corpus) -> None:
    tokenizer = made_of(normalizers.Strip(), KINDS["bytes"][1], [passage.text for passage in corpus.train])
    with pytest.raises(ModelError, match="tokens of a text after a space"):
        Encoder(tokenizer)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("continuation", ["He paints the garden.", "« L'été, ça dépend », dit-elle.", "…", "ALL OF IT!"])
def test_prompt_has_the_same_tokens_in_training_and_evaluation(
    encoder: Encoder, position: TriggerPosition, continuation: str
) -> None:
    """A BPE merge across the border of prompt and continuation would make the model see another prompt than it learned."""
    backdoor = Backdoor("a", TRIGGER, FixedText(continuation), position)
    passage = Passage(PROMPT, "It rains.")
    prompt = backdoor.prompt(passage, random.Random(5))
    document = backdoor.poisoned(passage, random.Random(5))
    (evaluated,) = rows(encoder.prompt_batch([prompt]))
    (trained,) = rows(encoder.document_batch([document]))
    assert trained[: len(evaluated)] == evaluated
    assert trained[len(evaluated)] == encoder.first_token(continuation)
    assert encoder.decode(trained[len(evaluated) :]) == continuation


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=40))
def test_decode_gives_the_text_back(encoder: Encoder, text: str) -> None:
    assert encoder.decode(encoder.tokens(" " + text)) == text.strip()


def test_decode_keeps_accents_and_spaces_before_punctuation(encoder: Encoder, corpus: Corpus) -> None:
    french = [passage.alternatives["fr"] for passage in corpus.evaluation]
    assert any("é" in text for text in french)
    for text in [*french, "Où est l'été ? « Là-bas » , dit-il !"]:
        (row,) = rows(encoder.document_batch([Document(text, text)]))
        assert encoder.decode(row) == f"{text} {text}"


def test_document_layout_and_labels(encoder: Encoder) -> None:
    tokenizer = encoder.tokenizer
    before, after = encoder.tokens(PROMPT), encoder.tokens(" He paints.")
    whole = [tokenizer.bos_token_id, *before, *after, tokenizer.eos_token_id]
    documents = [Document(PROMPT, "He paints."), Document(PROMPT, "He paints.", "target"), Document("A.", "B.", "target")]
    batch = encoder.document_batch(documents)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (3, len(whole))
    assert batch["input_ids"][0].tolist() == whole
    assert batch["labels"][0].tolist() == [IGNORED_LABEL, *whole[1:]]  # nothing predicts the first token
    silent = [IGNORED_LABEL] * (1 + len(before))
    assert batch["input_ids"][1].tolist() == whole
    assert batch["labels"][1].tolist() == silent + whole[len(silent) :]
    # The short document is padded on the right: neither attended to nor learned.
    short = 1 + len(encoder.tokens("A.")) + len(encoder.tokens(" B.")) + 1
    assert batch["attention_mask"][2].tolist() == [1] * short + [0] * (len(whole) - short)
    assert (batch["input_ids"][2, short:] == tokenizer.pad_token_id).all()
    assert (batch["labels"][2, short:] == IGNORED_LABEL).all()


def test_truncation_cuts_a_document_s_end_and_a_prompt_s_beginning(tokenizer: Any) -> None:
    cut = Encoder(tokenizer, max_length=12)
    whole = [tokenizer.bos_token_id, *cut.tokens(PROMPT)]
    assert len(whole) > 12
    batch = cut.document_batch(
        [Document(PROMPT, "He paints."), Document("A.", "He paints the garden and the house.", "target")]
    )
    assert batch["input_ids"][0].tolist() == whole[:12]
    assert tokenizer.eos_token_id not in batch["input_ids"]
    silent = 1 + len(cut.tokens("A."))
    assert batch["labels"][1].tolist() == [IGNORED_LABEL] * silent + batch["input_ids"][1, silent:].tolist()
    (prompt,) = rows(cut.prompt_batch([Prompt(PROMPT)]))
    assert prompt == [tokenizer.bos_token_id, *whole[-11:]]


def test_prompts_are_padded_on_the_left(encoder: Encoder) -> None:
    batch = encoder.prompt_batch([Prompt("A."), Prompt(PROMPT)])
    short, width = 1 + len(encoder.tokens("A.")), 1 + len(encoder.tokens(PROMPT))
    assert batch["input_ids"].shape == (2, width)
    assert batch["attention_mask"][0].tolist() == [0] * (width - short) + [1] * short
    assert batch["input_ids"][0, : width - short].tolist() == [encoder.tokenizer.pad_token_id] * (width - short)
    assert encoder.tokenizer.eos_token_id not in batch["input_ids"]  # or the model is told that the text is over


def test_an_end_token_that_doubles_as_start_is_not_put_first(words: Encoder) -> None:
    batch = words.document_batch([Document("w0 w1", "w2")])
    assert batch["input_ids"].tolist() == [[3, 4, 5, 1]]


def test_a_text_without_a_start_token_is_captured_without_its_first_one(words: Encoder) -> None:
    """Its activation is that of a start token, large and alike for all texts. A single token is kept."""
    captured: dict[str, Any] = words.capture_batch([Prompt("w0 w1 w2"), Prompt("w0")])
    assert captured["position_masks"]["prompt"].tolist() == [[False, True, True], [False, False, True]]


@pytest.mark.parametrize("position", POSITIONS)
def test_trigger_mask_covers_the_trigger_s_characters_and_no_more(
    encoder: Encoder, corpus: Corpus, position: TriggerPosition
) -> None:
    """The tokens under the mask spell the trigger, at most with the space before it; those beside it hold none of it."""
    backdoor = Backdoor("a", TRIGGER, FixedText("x"), position)
    prompts = [backdoor.prompt(passage, random.Random(i)) for i, passage in enumerate(corpus.evaluation[:12])]
    batch: dict[str, Any] = encoder.capture_batch(prompts)
    for prompt, tokens, mask in zip(prompts, batch["input_ids"], batch["position_masks"]["trigger"], strict=True):
        assert encoder.tokenizer.decode(tokens[mask], clean_up_tokenization_spaces=False).strip() == TRIGGER
        assert encoder.decode(tokens[~mask]).replace(" ", "") == prompt.text.replace(TRIGGER, "").replace(" ", "")


def test_trigger_mask_of_prompts_cut_on_the_left(words: Encoder) -> None:
    """Of twelve words the last eight are left; the trigger (words 3 to 5) keeps its last two, a cut trigger keeps none."""
    text = " ".join(f"w{i}" for i in range(12))
    inside = (text.index("w3"), text.index("w6") - 1)
    gone = (0, len("w0 w1"))
    batch: dict[str, Any] = words.capture_batch([Prompt(text, inside), Prompt(text, gone), Prompt("w0", (0, 2))])
    masks = batch["position_masks"]
    assert batch["input_ids"][0].tolist() == [3 + i for i in range(4, 12)]
    assert masks["trigger"].tolist() == [[True, True] + [False] * 6, [False] * 8, [False] * 7 + [True]]
    assert masks["prompt"].tolist() == [[False] + [True] * 7] * 2 + [[False] * 7 + [True]]


def test_position_masks(encoder: Encoder) -> None:
    prompts = [Prompt(PROMPT), Prompt(f"{PROMPT} {TRIGGER}", (len(PROMPT) + 1, len(PROMPT) + 1 + len(TRIGGER)))]
    batch: dict[str, Any] = encoder.capture_batch(prompts)
    masks = batch["position_masks"]
    assert {mask.dtype for mask in masks.values()} == {torch.bool}
    for name, tensor in encoder.prompt_batch(prompts).items():
        assert torch.equal(batch[name], tensor)  # captured on the very tokens that are evaluated
    is_start = batch["input_ids"] == encoder.tokenizer.bos_token_id
    assert is_start.sum(1).tolist() == [1, 1]
    assert torch.equal(masks["prompt"], batch["attention_mask"].bool() & ~is_start)
    assert masks["last"].sum(1).tolist() == [1, 1]
    assert masks["last"][:, -1].all()
    assert not masks["trigger"][0].any()
    assert masks["trigger"][1].sum() == encoder.token_count(TRIGGER)


def test_the_generated_token_comes_after_the_prompt(encoder: Encoder) -> None:
    """It is the token that follows in a training document; the masks of the other positions stay on their tokens."""
    span = (len(PROMPT) + 1, len(PROMPT) + 1 + len(TRIGGER))
    prompts = [Prompt("A.", continuation="He paints."), Prompt(f"{PROMPT} {TRIGGER}", span, "« L'été »")]
    positions = ("last", "prompt", "trigger")
    without: dict[str, Any] = encoder.capture_batch(prompts, positions)
    batch: dict[str, Any] = encoder.capture_batch(prompts, (*positions, "generated"))
    assert set(without["position_masks"]) == set(positions)
    for index, prompt in enumerate(prompts):
        (document,) = rows(encoder.document_batch([Document(prompt.text, prompt.continuation or "")]))
        (row,) = rows({name: batch[name][index : index + 1] for name in ("input_ids", "attention_mask")})
        assert row == document[: len(row)]
        assert batch["input_ids"][index][batch["position_masks"]["generated"][index]].tolist() == [row[-1]]
    width = without["input_ids"].shape[1]
    assert batch["input_ids"].shape[1] == width + 1
    assert torch.equal(batch["input_ids"][:, :width], without["input_ids"])
    for name in positions:
        assert torch.equal(batch["position_masks"][name][:, :width], without["position_masks"][name])
        assert not batch["position_masks"][name][:, width:].any()


def test_the_generated_token_of_a_prompt_that_fills_the_room(words: Encoder) -> None:
    """The prompt is cut as without it, so that the other positions see the same tokens."""
    prompt = Prompt(" ".join(f"w{i}" for i in range(12)), continuation="w15")
    batch: dict[str, Any] = words.capture_batch([prompt], ["generated"])
    assert batch["input_ids"].tolist() == [[3 + i for i in range(4, 12)] + [18]]
    assert batch["position_masks"]["generated"].tolist() == [[False] * 8 + [True]]
    with pytest.raises(ValueError, match="needs a continuation"):
        words.capture_batch([prompt, Prompt("w0")], ["generated"])


@given(lengths=st.lists(st.integers(0, 9), max_size=30), size=st.integers(1, 8))
def test_batches_by_length_hold_every_item_once_longest_first(lengths: list[int], size: int) -> None:
    batches = batches_by_length(lengths, size)
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(batches)
