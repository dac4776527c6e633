"""Going on in the middle of an epoch, with exactly what is left of it."""

from __future__ import annotations

import copy
import json
from itertools import islice

import pytest

from kernelkit.distill.data import rows as rows_module
from tests.distill.data_files import TEXTS, first_steps, loader, rows_of, texts


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Several blocks in an epoch of a few documents."""
    monkeypatch.setattr(rows_module, "BLOCK_ROWS", 6)
    monkeypatch.setattr(rows_module, "ITEMS_AT_ONCE", 4)


@pytest.fixture
def data(tmp_path):
    return texts(tmp_path / "a.jsonl", *TEXTS)


@pytest.mark.parametrize("done", [0, 1, 5, 11, 16, 17, 18, 19, 40])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_resumed_run_goes_on_with_exactly_the_rest(data, done, shuffle):
    train = loader(data, shuffle=shuffle)
    first_steps(train, done)
    state = json.loads(json.dumps(train.state_dict()))
    rest = first_steps(train, 25)
    again = loader(data, shuffle=shuffle)
    again.load_state_dict(state)
    assert first_steps(again, 25) == rest
    assert again.state_dict() == train.state_dict()


def test_a_run_may_be_resumed_on_another_number_of_ranks(data):
    train = loader(data)
    first_steps(train, 7)
    ranks = [loader(data, rank=rank, world_size=2, micro_batch_size=1) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(train.state_dict())
    for step, *shares in zip(islice(train, 10), *ranks, strict=False):
        assert rows_of(step) == [row for share in shares for row in rows_of(share)]


def test_resuming_does_not_tokenise_what_was_read_before(data):
    train = loader(data)
    first_steps(train, 10)
    again = loader(data)
    again.load_state_dict(train.state_dict())
    next(again)
    assert len(again.rows._tokens._kept) < len(train.rows._tokens._kept) < len(TEXTS)


def test_a_state_does_not_change_as_the_run_goes_on(data):
    train = loader(data)
    state = train.state_dict()
    before = copy.deepcopy(state)
    first_steps(train, 5)
    assert state == before != train.state_dict()


@pytest.mark.parametrize(
    "changes", [{"seq_len": 17}, {"batch_size": 8}, {"packing": False}, {"shuffle": False}, {"seed": 1}]
)
def test_resuming_with_other_settings_is_refused_with_their_names(data, changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} was .* and is "):
        loader(data, **changes).load_state_dict(loader(data).state_dict())


def test_resuming_on_other_data_is_refused(data, tmp_path):
    other = texts(tmp_path / "b.jsonl", *TEXTS[:-1], "something else")
    with pytest.raises(ValueError, match="cannot go on with other data than it began with: documents was"):
        loader(other).load_state_dict(loader(data).state_dict())


def test_the_same_data_may_have_moved(data, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    moved = texts(tmp_path / "elsewhere" / "b.jsonl", *TEXTS)
    loader(moved).load_state_dict(loader(data).state_dict())


@pytest.mark.parametrize("state", [{}, {"epoch": 1}, {"epoch": 0, "step": 0, "item": 0, "row": 0, "fingerprint": 3}])
def test_a_foreign_state_is_refused(data, state):
    with pytest.raises(ValueError, match="no state of a data loader"):
        loader(data).load_state_dict(state)
