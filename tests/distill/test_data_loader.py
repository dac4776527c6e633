"""The order of rows: the same for every split of a step, and new in each epoch."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch

from kernelkit.distill.data import rows as rows_module
from kernelkit.distill.data.batch import BatchId
from kernelkit.distill.data.documents import DataError
from kernelkit.distill.data.loader import Loader
from kernelkit.distill.data.rows import TokenCache, shuffled
from tests.distill.data_files import (
    TEXTS,
    bpe_tokenizer,
    config,
    documents_of,
    first_steps,
    loader,
    opened,
    rows_of,
    text_file,
    texts,
)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Several blocks in an epoch of a few documents."""
    monkeypatch.setattr(rows_module, "BLOCK_ROWS", 6)
    monkeypatch.setattr(rows_module, "ITEMS_AT_ONCE", 4)


@pytest.fixture
def data(tmp_path):
    return texts(tmp_path / "a.jsonl", *TEXTS)


def texts_of(steps):
    """The texts in steps of documents that fit into a row, each without its special tokens."""
    return [
        bytes(token for token in ids if token < 256).decode()
        for step in steps
        for batch in step.micro_batches
        for ids, labels in documents_of(batch)
        if max(labels) >= 0
    ]


# Splitting a step


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 1), (1, 2), (2, None), (2, 1), (4, 1)])
def test_a_step_has_the_same_rows_however_it_is_divided(data, world_size, micro_batch_size, packing):
    whole = list(islice(loader(data, packing=packing), 12))
    ranks = [
        loader(data, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size, packing=packing)
        for rank in range(world_size)
    ]
    for step, *shares in zip(whole, *ranks, strict=False):
        assert rows_of(step) == [row for share in shares for row in rows_of(share)]
        assert {(share.id, share.num_targets, share.num_tokens) for share in shares} == {
            (step.id, step.num_targets, step.num_tokens)
        }
        sizes = {len(batch.input_ids) for share in shares for batch in share.micro_batches}
        assert sizes == {micro_batch_size or 4 // world_size}


def test_the_targets_of_a_step_are_counted_over_all_ranks_and_micro_batches(data):
    ranks = [loader(data, rank=rank, world_size=2, micro_batch_size=1) for rank in range(2)]
    for shares in islice(zip(*ranks, strict=True), 10):
        counted = sum(batch.num_targets for share in shares for batch in share.micro_batches)
        assert {share.num_targets for share in shares} == {counted}


def test_a_split_that_is_uneven_is_refused(data):
    opened_data = opened(data).train
    with pytest.raises(ValueError, match="cannot be divided over 3 ranks"):
        Loader(opened_data.rows, config(data), pad_id=0, world_size=3)
    with pytest.raises(ValueError, match="no rank 2 among 2"):
        Loader(opened_data.rows, config(data), pad_id=0, rank=2, world_size=2)


# Order


@pytest.mark.parametrize("packing", [True, False])
def test_each_epoch_has_every_document_once(data, packing):
    train = loader(data, seq_len=32, packing=packing)
    for epoch in range(3):
        assert Counter(texts_of(train.epoch(epoch))) == Counter(TEXTS)


def test_the_order_follows_from_seed_and_epoch(data):
    def order(seed, epoch):
        return texts_of(loader(data, seq_len=32, seed=seed).epoch(epoch))

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2, 2**40 + 1) for epoch in (0, 1)}) == 6


def test_without_shuffling_documents_come_in_their_order(data):
    found = texts_of(loader(data, seq_len=32, packing=False, shuffle=False).epoch(3))
    assert found == TEXTS


def test_validation_data_come_in_the_same_order_for_every_seed(data, tmp_path):
    other = texts(tmp_path / "b.jsonl", *TEXTS[:9])
    found = [texts_of(opened(data, seed=seed, validation=other, seq_len=32).validation.epoch()) for seed in (0, 1)]
    assert found[0] == found[1] and Counter(found[0]) == Counter(TEXTS[:9])


def test_the_draw_of_an_order_never_changes():
    # A run that is resumed with another version of numpy must go on with the same order.
    assert shuffled(8, 17, 3, 0).tolist() == [7, 3, 4, 1, 5, 2, 6, 0]


def test_the_last_step_of_an_epoch_is_filled_up_with_rows_without_targets(data):
    steps = list(loader(data, packing=False, seq_len=32, batch_size=16).epoch())
    assert len(steps) == 4
    (batch,) = steps[-1].micro_batches
    assert batch.input_ids.shape == (16, 32)
    assert (batch.labels[12:] == -100).all() and (batch.labels[:12] != -100).any(1).all()
    assert batch.attention_mask[12:].sum(1).tolist() == [1] * 4
    assert sum(step.num_tokens for step in steps) == sum(len(text) + 2 for text in TEXTS)


def test_epochs_follow_one_another(data):
    train = loader(data)
    expected = [BatchId(epoch, step) for epoch in range(2) for step in range(len(list(train.epoch(epoch))))]
    assert [step.id for step in islice(train, len(expected) + 1)] == [*expected, BatchId(2, 0)]


def test_looking_through_an_epoch_does_not_move_the_iteration(data):
    train, other = loader(data), loader(data)
    next(train), next(other)
    assert sum(1 for _ in train.epoch(0)) > 3
    assert rows_of(next(train)) == rows_of(next(other))


def test_data_without_a_token_to_predict_are_refused(tmp_path):
    tokenizer = bpe_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    train = loader(text_file(tmp_path / "a.txt", "x"), tokenizer=str(tmp_path / "tokenizer"))
    for _ in range(2):
        with pytest.raises(DataError, match="no token to predict"):
            next(train)


# Tokens


def test_documents_are_tokenised_once(data):
    train = loader(data)
    calls = Counter()
    encode = train.rows._tokens.encoder

    def counted(documents):
        calls.update(document.place for document in documents)
        return encode(documents)

    train.rows._tokens.encoder = counted
    for epoch in range(3):
        list(train.epoch(epoch))
    assert len(calls) == len(TEXTS) and set(calls.values()) == {1}


def test_what_the_cache_has_no_room_for_is_made_again(data):
    train, roomy = loader(data), loader(data)
    train.rows._tokens.most_cached = 50
    assert first_steps(train, 40) == first_steps(roomy, 40)
    assert 0 < sum(len(tokens.ids) for tokens in train.rows._tokens._kept.values()) <= 50
    assert isinstance(train.rows._tokens, TokenCache)


def test_only_as_much_is_tokenised_as_is_read(data):
    train = loader(data)
    next(train)
    assert 0 < len(train.rows._tokens._kept) < len(TEXTS)


def test_batches_are_int64_tensors_of_one_shape(data):
    for step in loader(data).epoch():
        for batch in step.micro_batches:
            assert batch.input_ids.shape == batch.labels.shape == batch.position_ids.shape == (4, 16)
            assert {batch.input_ids.dtype, batch.labels.dtype, batch.position_ids.dtype} == {torch.int64}
