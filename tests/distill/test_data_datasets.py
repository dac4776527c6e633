"""Folders of HF ``datasets``."""

from __future__ import annotations

import sys

import pytest

from tests.distill.data_files import opened, problems_of, rows_of, said, texts

RECORDS = [{"id": number, "text": f"text {number}"} for number in range(5)]


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets")


@pytest.fixture
def folder(datasets, tmp_path):
    """Saves records as a data set, and gives its folder."""

    def save(records):
        datasets.Dataset.from_list(records).save_to_disk(tmp_path / "saved")
        return str(tmp_path / "saved")

    return save


def test_a_folder_is_read_like_the_same_records_in_a_file(folder, tmp_path):
    from_folder = opened(folder(RECORDS)).train
    from_file = opened(texts(tmp_path / "a.jsonl", *(record["text"] for record in RECORDS))).train
    assert [rows_of(next(from_folder)) for _ in range(4)] == [rows_of(next(from_file)) for _ in range(4)]


def test_conversations_are_read_from_a_column(folder, tmp_path):
    records = [said("u:hi", "a:hello"), {"messages": [{"role": "assistant", "content": "yes", "name": "x"}]}]
    step = next(opened(folder(records), chat=True).train)
    assert step.num_targets == len("hello") + len("yes") + 2


def test_a_missing_column_is_named_with_the_columns_there_are(folder):
    (message,) = problems_of(folder(RECORDS), text_field="txt")["train",]
    assert "has no field 'txt'. Did you mean 'text'? Its fields: id, text." in message


def test_a_row_without_text_is_named_and_one_with_an_empty_text_passed_over(folder):
    path = folder([*RECORDS[:3], {"id": 3, "text": None}, {"id": 4, "text": ""}])
    assert problems_of(path)["train",] == [f"{path} row 3: field 'text' is not text: None"]


def test_rows_after_an_empty_one_keep_their_text(folder):
    data = opened(folder([{"text": "one"}, {"text": ""}, {"text": "two"}]), packing=False, batch_size=2, shuffle=False)
    assert [bytes(row[1:4]) for row in rows_of(next(data.train))] == [b"one", b"two"]


def test_a_folder_of_several_data_sets_asks_for_one(datasets, tmp_path):
    both = datasets.DatasetDict({name: datasets.Dataset.from_list(RECORDS) for name in ("train", "test")})
    both.save_to_disk(tmp_path / "both")
    (message,) = problems_of(str(tmp_path / "both"))["train",]
    assert f"name one: {tmp_path / 'both' / 'train'} or {tmp_path / 'both' / 'test'}" in message
    assert problems_of(str(tmp_path / "both" / "train"), validation=str(tmp_path / "both" / "test")) == {}


def test_other_data_have_another_digest(folder, tmp_path):
    first = opened(folder(RECORDS)).train.fingerprint["documents"]
    again = opened(str(tmp_path / "saved")).train.fingerprint["documents"]
    assert first == again != opened(folder(RECORDS[:4])).train.fingerprint["documents"]


def test_without_the_package_one_is_told_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'kernelkit[distill]'" in problems_of(str(tmp_path))["train",][0]


def test_a_broken_folder_is_refused(datasets, tmp_path):
    (tmp_path / "state.json").write_text("{")
    assert "cannot be read by datasets" in problems_of(str(tmp_path))["train",][0]
