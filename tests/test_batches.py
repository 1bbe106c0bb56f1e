"""Batches divided over processes and into micro-batches: every row once, scalars of the whole, and the same loss and gradient.

Run: python -m pytest tests/test_batches.py
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tests.conftest import MakeModel

from casd.config import TrainingConfig
from casd.data.batches import IGNORED_LABEL, Batch, least_padding, micro_batches, share_of_rows
from casd.data.corpora.passages import Corpus
from casd.data.documents import Document
from casd.data.encoding import Encoder, Packing
from casd.training.loop import train
from casd.training.losses import mean_nll
from casd.utils.runtime import Runtime


@pytest.fixture(scope="module")
def documents(corpus: Corpus) -> list[Document]:
    return [Document(each.prompt, each.continuation, "target" if i % 2 else "all") for i, each in enumerate(corpus.train[:7])]


@pytest.fixture(scope="module")
def batch(encoder: Encoder, documents: list[Document]) -> Batch:
    return encoder.document_batch(documents)


def labelled_rows(batches: list[Batch]) -> list[list[int]]:
    """The tokens of every row that carries loss, without padding."""
    rows = [
        row[mask.bool()].tolist()
        for each in batches
        for row, mask, labels in zip(each["input_ids"], each["attention_mask"], each["labels"], strict=True)
        if (labels != IGNORED_LABEL).any()
    ]
    return sorted(rows)


@pytest.mark.parametrize("processes", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_every_row_is_in_one_part(batch: Batch, processes: int, size: int) -> None:
    shares = [share_of_rows(batch, rank, processes) for rank in range(processes)]
    parts = [part for share in shares for part in micro_batches(share, size)]
    assert labelled_rows(parts) == labelled_rows([batch])
    for part in parts:
        assert part["labels"].numel() <= size * batch["labels"].shape[1]
        assert (part["n_labels"], part["n_documents"]) == (batch["n_labels"], 7)
        assert part["attention_mask"][:, -1].any(), "padding that all rows of the part have"


def test_the_scalars_count_what_carries_loss(batch: Batch) -> None:
    assert batch["n_labels"] == (batch["labels"][:, 1:] != IGNORED_LABEL).sum()
    assert batch["n_documents"] == 7


def test_micro_batches_put_rows_of_like_length_together(batch: Batch) -> None:
    lengths = [part["attention_mask"].sum(1) for part in micro_batches(batch, 3)]
    assert all(earlier.min() >= later.max() for earlier, later in itertools.pairwise(lengths))


@pytest.mark.parametrize(("lengths", "sizes"), [([9, 2, 2, 2], [1, 3]), ([5, 5, 4, 4], [2, 2]), ([8, 7, 6, 1], [2, 2])])
def test_rows_are_divided_where_little_padding_results(lengths: list[int], sizes: list[int]) -> None:
    assert least_padding(lengths, 2) == sizes


@pytest.mark.parametrize("seed", range(5))
def test_no_other_division_computes_less_padding(seed: int) -> None:
    lengths = sorted(np.random.default_rng(seed).integers(1, 30, 9).tolist(), reverse=True)
    for parts in range(1, 10):
        tokens = {}
        for cuts in itertools.combinations(range(1, 9), parts - 1):
            areas = [(end - start) * lengths[start] for start, end in itertools.pairwise([0, *cuts, 9])]
            if max(areas) <= -(-9 // parts) * lengths[0]:
                tokens[tuple(np.diff([0, *cuts, 9]))] = sum(areas)
        chosen = least_padding(lengths, parts)
        assert tokens[tuple(chosen)] == min(tokens.values())


def test_a_dict_of_batches_gives_equally_many_parts(encoder: Encoder, documents: list[Document]) -> None:
    both = {"forget": encoder.document_batch(documents[:1]), "retain": encoder.document_batch(documents[1:])}
    parts = micro_batches(share_of_rows(both, 1, 2), 2)  # the second process has no row to forget
    assert len(parts) == 2
    assert all((part["forget"]["labels"] == IGNORED_LABEL).all() for part in parts)
    assert sum(len(part["retain"]["labels"]) for part in parts) == 3


def nll(model: torch.nn.Module, batch: Batch) -> Iterator[tuple[str, torch.Tensor]]:
    yield "nll", mean_nll(model, batch)


@pytest.mark.parametrize("family", ["llama", "olmo2"])
@pytest.mark.parametrize("runtime", [Runtime("cpu", micro_batch_size=2), Runtime("cpu", gradient_checkpointing=True)])
def test_the_batch_decides_the_training_and_not_how_it_fits(
    make_model: MakeModel, encoder: Encoder, corpus: Corpus, family: str, runtime: Runtime
) -> None:
    def batch_at(step: int) -> Batch:
        return encoder.document_batch(
            [Document(each.prompt, each.continuation) for each in corpus.train[5 * step : 5 * step + 5]]
        )

    def trained(where: Runtime) -> tuple[torch.nn.Module, list[dict[str, float]]]:
        model = make_model(family, seed=1, spread=0.1)
        config = TrainingConfig(steps=5, learning_rate=3e-3, guard_every=2)
        log = train(model, batch_at, nll, config, guard_batches=[batch_at(9)], runtime=where)
        return model, [*log.steps, *log.guard]

    plain, steps = trained(Runtime("cpu"))
    other, other_steps = trained(runtime)
    for expected, found in zip(steps, other_steps, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    for ours, theirs in zip(other.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-4)  # AdamW moves a weight by up to 0.015 in all
    assert not any(getattr(module, "gradient_checkpointing", False) for module in other.modules())


# ---------------------------------------------------------------- packing


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2"])
def test_documents_in_a_row_do_not_see_each_other(
    make_model: MakeModel, encoder: Encoder, documents: list[Document], family: str
) -> None:
    """Isolated packing gives the padded batch's loss and gradient; joined packing does not."""
    model = make_model(family, seed=2, spread=0.3)

    def loss_and_gradient(packing: Packing) -> tuple[torch.Tensor, torch.Tensor, Batch]:
        batch = encoder.document_batch(documents, packing)
        loss = mean_nll(model, batch)
        [gradient] = torch.autograd.grad(loss, [model.model.layers[0].self_attn.k_proj.weight])
        return loss.detach(), gradient, batch

    loss, gradient, padded = loss_and_gradient("none")
    packed_loss, packed_gradient, packed = loss_and_gradient("isolated")
    _, joined_gradient, joined = loss_and_gradient("joined")
    assert len(packed["labels"]) == len(joined["labels"]) < len(padded["labels"])
    assert packed["labels"].shape[1] <= encoder.max_length
    assert packed["n_labels"] == joined["n_labels"] == padded["n_labels"]
    torch.testing.assert_close(packed_loss, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(packed_gradient, gradient, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(joined_gradient, gradient, rtol=1e-2, atol=1e-6)


def test_a_packed_row_holds_whole_documents_and_wastes_little(encoder: Encoder, corpus: Corpus) -> None:
    documents = [Document(each.prompt, each.continuation) for each in corpus.train[:60]]
    alone = encoder.document_batch(documents)
    packed = encoder.document_batch(documents, "isolated")
    tokens = int(alone["attention_mask"].sum())
    assert int((packed["labels"] != IGNORED_LABEL).sum()) == tokens - len(documents)  # no loss on first tokens
    starts = (packed["position_ids"] == 0).sum()
    assert starts <= len(documents) + len(packed["labels"]), "each document, and the padding of each row"
    assert packed["input_ids"].numel() < 0.9 * alone["input_ids"].numel()
    assert tokens / packed["input_ids"].numel() > 0.85


def test_micro_batches_of_packed_rows(make_model: MakeModel, encoder: Encoder, documents: list[Document]) -> None:
    model = make_model("llama", seed=2, spread=0.3)
    narrow = Encoder(encoder.tokenizer, max_length=128)
    packed = narrow.document_batch(documents, "isolated")
    assert len(packed["labels"]) > 2
    parts = micro_batches(packed, 1)
    torch.testing.assert_close(sum(mean_nll(model, part) for part in parts), mean_nll(model, packed))
