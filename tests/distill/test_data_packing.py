"""Documents as rows: splitting, packing, and the tensors that models read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3Config

from kernelkit.distill.data.batch import BatchId, collate
from kernelkit.distill.data.encoding import Tokens
from kernelkit.distill.data.packing import pack, split
from kernelkit.models import build_model
from kernelkit.ops.masks import document_ids
from tests.distill.data_files import documents_of, lengths, opened, pieces_of, texts

PAD = 99
LENGTHS = st.lists(st.integers(1, 40), max_size=30)


def document(length, learnt=None):
    """The tokens 0, 1, 2, ..."""
    return Tokens(np.arange(length, dtype=np.uint16), None if learnt is None else np.array(learnt, np.bool_))


def batch_of(rows, seq_len, *, packed=True):
    return collate(rows, seq_len, PAD, packed=packed, batch_id=BatchId(0, 0))


# Splitting


@given(st.integers(1, 60), st.integers(2, 12))
def test_each_token_but_the_first_is_predicted_in_exactly_one_piece(length, seq_len):
    pieces = split(document(length), seq_len)
    predicted = [token for piece in pieces for token in piece.tokens.ids[piece.start + 1 : piece.stop].tolist()]
    assert predicted == list(range(1, length))
    assert all(2 <= piece.length <= seq_len for piece in pieces)
    assert [piece.num_targets for piece in pieces] == [piece.length - 1 for piece in pieces]


def test_a_document_that_fits_is_not_split():
    assert [(piece.start, piece.stop) for piece in split(document(8), 8)] == [(0, 8)]
    assert [(piece.start, piece.stop) for piece in split(document(9), 8)] == [(0, 8), (7, 9)]


def test_pieces_that_predict_nothing_are_left_out():
    learnt = [True] + [False] * 8 + [True] + [False] * 5
    assert [(piece.start, piece.stop, piece.num_targets) for piece in split(document(15, learnt), 5)] == [(8, 13, 1)]


# Packing


@given(LENGTHS, st.integers(4, 20))
def test_every_piece_is_in_one_row_that_it_fits_in(all_lengths, seq_len):
    pieces = [piece for length in all_lengths for piece in split(document(length), seq_len)]
    rows = pack(pieces, seq_len)
    assert sorted(map(id, pieces_of(rows))) == sorted(map(id, pieces))
    assert all(sum(row) <= seq_len for row in lengths(rows))
    assert rows == sorted(rows, key=lambda row: pieces.index(row[0]))


@given(LENGTHS, st.integers(4, 20))
def test_no_two_rows_could_be_one(all_lengths, seq_len):
    rows = pack([piece for length in all_lengths for piece in split(document(length), seq_len)], seq_len)
    filled = sorted(sum(row) for row in lengths(rows))
    assert len(filled) < 2 or filled[0] + filled[1] > seq_len


def test_the_fullest_row_with_room_is_taken():
    pieces = [split(document(length), 10)[0] for length in (6, 7, 3, 4)]
    assert lengths(pack(pieces, 10)) == [[6, 4], [7, 3]]


# Tensors


def packed_batch():
    pieces = [split(document(length), 8)[0] for length in (3, 4, 5)]
    return batch_of([tuple(pieces[:2]), (pieces[2],), ()], 8)


def test_positions_start_again_at_each_document_and_at_the_padding():
    assert packed_batch().position_ids.tolist() == [
        [0, 1, 2, 0, 1, 2, 3, 0],
        [0, 1, 2, 3, 4, 0, 1, 2],
        [0, 1, 2, 3, 4, 5, 6, 7],
    ]
    assert packed_batch().attention_mask is None


def test_no_document_predicts_the_first_token_of_the_next():
    batch = packed_batch()
    assert batch.labels.tolist() == [
        [-100, 1, 2, -100, 1, 2, 3, -100],
        [-100, 1, 2, 3, 4, -100, -100, -100],
        [-100] * 8,
    ]
    assert (batch.labels[batch.position_ids == 0] == -100).all()
    assert batch.num_targets == 2 + 3 + 4


def test_padding_is_the_pad_token_and_never_a_label():
    batch = packed_batch()
    assert batch.input_ids[0].tolist() == [0, 1, 2, 0, 1, 2, 3, PAD]
    assert PAD not in batch.labels


def test_rows_that_are_not_packed_are_padded_on_the_right_under_a_mask():
    batch = batch_of([tuple(split(document(3), 6)), tuple(split(document(6), 6))], 6, packed=False)
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert batch.position_ids.tolist() == [list(range(6))] * 2
    assert batch.labels.tolist() == [[-100, 1, 2, -100, -100, -100], [-100, 1, 2, 3, 4, 5]]


def test_what_is_not_learnt_is_no_label():
    (piece,) = split(document(5, [True, False, True, False, True]), 5)
    batch = batch_of([(piece,)], 5)
    assert batch.labels.tolist() == [[-100, -100, 2, -100, 4]]
    assert batch.num_targets == piece.num_targets == 2


def test_ids_beyond_sixteen_bits_keep_their_value():
    (piece,) = split(Tokens(np.array([5, 150_000, 7], np.int32)), 4)
    assert batch_of([(piece,)], 4).labels.tolist() == [[-100, 150_000, 7, -100]]


def test_a_batch_moves_with_all_that_it_has():
    moved = packed_batch().to("meta")
    assert moved.input_ids.is_meta and moved.labels.is_meta and moved.position_ids.is_meta
    assert moved.attention_mask is None and str(moved.id) == "batch 0 of epoch 0"


# What a model makes of it


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=272,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return build_model(config, kernels={"preset": "eager"}).double().eval()


def summed_loss(model, data):
    """The summed loss of one epoch, and the number of its targets."""
    total, count = 0.0, 0
    for step in data.train.epoch():
        count += step.num_targets
        total += sum(model(**batch.inputs(), num_items_in_batch=1).loss.item() for batch in step.micro_batches)
    return total, count


def test_packed_documents_do_not_see_each_other(model, tmp_path):
    name = texts(tmp_path / "a.jsonl", "a fox", "says", "hello to you", "my name is fox", "x")
    packed, apart = (opened(name, seq_len=32, packing=packing) for packing in (True, False))
    (loss, count), (loss_apart, count_apart) = summed_loss(model, packed), summed_loss(model, apart)
    assert count == count_apart
    assert loss == pytest.approx(loss_apart, rel=1e-6)
    assert len(list(packed.train.epoch())) < len(list(apart.train.epoch()))


def test_the_models_see_as_many_documents_as_were_packed(tmp_path):
    data = opened(texts(tmp_path / "a.jsonl", "one", "two", "three"), seq_len=32, batch_size=1)
    (batch,) = next(data.train).micro_batches
    ids = document_ids(batch.position_ids)
    assert ids is not None and int(ids.max()) + 1 == len(documents_of(batch)) == 4  # padding is one
