"""Reading files: what is found, what is refused, and what is held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelkit.distill.data.documents import DataError, Joined, Selected, hold_out
from kernelkit.distill.data.paths import TEXT_SUFFIXES, find, stdlib_files
from kernelkit.distill.data.sources import open_corpora
from kernelkit.distill.data.text_files import scan_text_files
from tests.distill.data_files import config, jsonl, problems_of, text_file, texts


def read(documents):
    return [documents[item].text for item in range(len(documents))]


# Which files


def test_a_glob_finds_files_in_a_fixed_order_and_goes_into_folders(tmp_path):
    (tmp_path / "b").mkdir()
    made = [text_file(tmp_path / name, "x") for name in ("b/2.md", "a.txt", "c.py")]
    found, faults = find(str(tmp_path / "**"), "auto")
    assert [str(file.path) for file in found] == sorted(made) and not faults
    assert {file.kind for file in found} == {"text"}


def test_a_path_that_is_not_there_is_named(tmp_path):
    missing = str(tmp_path / "no.txt")
    assert problems_of(missing) == {("train",): [f"{missing} does not exist"]}
    assert "no file matches" in problems_of(str(tmp_path / "*.txt"))["train",][0]


def test_a_name_with_brackets_is_a_path_if_it_exists(tmp_path):
    name = text_file(tmp_path / "a[1].txt", "x")
    assert [str(file.path) for file in find(name, "auto")[0]] == [name]


def test_an_unknown_type_is_refused_with_the_known_ones_and_can_be_forced(tmp_path):
    name = text_file(tmp_path / "data.parquet", "plain text after all")
    (message,) = problems_of(name)["train",]
    assert "unknown type '.parquet'" in message and ".jsonl" in message and "format: text" in message
    assert all(suffix in message for suffix in TEXT_SUFFIXES)
    assert problems_of(name, format="text") == {}


def test_a_folder_is_no_file(tmp_path):
    assert "name a glob" in problems_of(str(tmp_path))["train",][0]
    assert "save_to_disk" in problems_of(text_file(tmp_path / "a.txt", "x"), format="dataset")["train",][0]


def test_a_file_named_twice_is_a_mistake(tmp_path):
    name = text_file(tmp_path / "a.txt", "some text")
    assert problems_of([name, str(tmp_path / "*.txt")]) == {("train", 1): [f"{name} is named twice"]}


def test_validation_data_must_not_be_training_data(tmp_path):
    name, other = text_file(tmp_path / "a.txt", "some text"), text_file(tmp_path / "b.txt", "some more")
    assert "is training data too" in problems_of([name, other], validation=name)["validation",][0]
    assert problems_of(name, validation=other) == {}


def test_empty_data_are_refused(tmp_path):
    empty = text_file(tmp_path / "a.txt", "")
    assert "every file is empty" in problems_of(empty)["train",][0]
    assert "every file is empty" in problems_of(jsonl(tmp_path / "a.jsonl", "", "  "))["train",][0]
    assert problems_of([empty, text_file(tmp_path / "b.txt", "text")]) == {}


# Text


@given(st.text(max_size=80), st.integers(8, 30))
def test_the_passages_of_a_file_are_the_file(tmp_path_factory, text, passage_bytes):
    path = tmp_path_factory.mktemp("texts") / "a.txt"
    path.write_bytes(text.encode("utf-8", "ignore"))
    files, faults = scan_text_files([path], passage_bytes)
    assert not faults
    passages = [files[item] for item in range(len(files))]
    assert "".join(passage.text for passage in passages).encode() == path.read_bytes()
    assert all(len(passage.text.encode()) <= passage_bytes for passage in passages)
    assert [passage.begins for passage in passages] == [item == 0 for item in range(len(passages))]
    assert [passage.ends for passage in passages] == [item == len(passages) - 1 for item in range(len(passages))]


def test_a_long_file_is_cut_after_a_line_break(tmp_path):
    path = Path(text_file(tmp_path / "a.txt", "one\ntwo three\nfour five six"))
    assert read(scan_text_files([path], 16)[0]) == ["one\ntwo three\n", "four five six"]


def test_a_passage_is_many_rows_long(tmp_path):
    name = text_file(tmp_path / "a.txt", "x" * 200_000)
    assert [len(open_corpora(config(name, seq_len=seq_len)).train) for seq_len in (16, 16_384)] == [4, 1]


def test_a_file_that_is_no_text_is_refused_with_the_place_of_the_byte(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\xff")
    assert problems_of(str(tmp_path / "a.txt"))["train",] == [
        f"{tmp_path / 'a.txt'} is not UTF-8 text: invalid start byte at byte 4"
    ]


def test_a_file_that_shrinks_meanwhile_is_noticed(tmp_path):
    path = Path(text_file(tmp_path / "a.txt", "some text"))
    files, _ = scan_text_files([path], 100)
    text_file(path, "some")
    with pytest.raises(DataError, match="shorter"):
        files[0]


# Collections, and what is held out


def corpus(tmp_path, *names):
    return open_corpora(config(list(names), seq_len=2))


def test_several_files_follow_one_another_in_the_order_of_the_config(tmp_path):
    made = [texts(tmp_path / "b.jsonl", "1", "2"), text_file(tmp_path / "c.txt", "3"), texts(tmp_path / "a.jsonl", "4")]
    documents = corpus(tmp_path, *made).train
    assert read(documents) == ["1", "2", "3", "4"]
    assert documents.wholes().tolist() == [0, 1, 2, 3]


def test_held_out_documents_are_a_share_of_all_and_disjoint_from_the_rest(tmp_path):
    made = texts(tmp_path / "a.jsonl", *map(str, range(40)))
    train, validation, _ = open_corpora(config(made, validation="held-out", validation_fraction=0.1))
    assert validation is not None and len(validation) == 4
    assert sorted(read(train) + read(validation), key=int) == [str(number) for number in range(40)]


def test_a_document_in_several_passages_is_held_out_whole(tmp_path):
    files = [Path(text_file(tmp_path / f"{name}.txt", name * 40)) for name in "abcdefgh"]
    train, validation = hold_out(scan_text_files(files, 10)[0], 0.25)
    assert len(validation) == 8
    assert not set("".join(read(train))) & set("".join(read(validation)))


def test_a_single_long_file_is_held_out_in_passages(tmp_path):
    path = Path(text_file(tmp_path / "a.txt", "".join(f"{number:04}" for number in range(100))))
    train, validation = hold_out(scan_text_files([path], 40)[0], 0.2)
    assert (len(train), len(validation)) == (8, 2)
    assert sorted(read(train) + read(validation)) == sorted(read(train.documents))


def test_a_single_short_document_cannot_be_divided(tmp_path):
    found = problems_of(text_file(tmp_path / "a.txt", "short"), validation="held-out")
    assert "cannot be divided" in found["validation",][0]


def test_the_digest_follows_the_content_and_not_the_name(tmp_path):
    made = [texts(tmp_path / f"{number}.jsonl", text) for number, text in enumerate(["one", "one", "two"])]
    one, same, other = (corpus(tmp_path, name).train.digest for name in made)
    assert one == same != other


def test_the_digest_of_a_part_follows_what_the_part_is(tmp_path):
    whole = corpus(tmp_path, texts(tmp_path / "a.jsonl", "1", "2")).train
    parts = [Selected(whole, np.array(items)) for items in ([0], [1], [0, 1])]
    assert len({part.digest for part in parts}) == 3


def test_nothing_joined_is_nothing():
    assert len(Joined([])) == 0 and Joined([]).wholes().tolist() == []


# The standard library


def test_the_standard_library_is_read_without_its_tests_and_without_installed_packages():
    files = stdlib_files()
    names = {file.name for file in files}
    assert {"argparse.py", "decoder.py", "typing.py"} <= names
    assert not {"test_argparse.py", "test_typing.py"} & names
    assert not any("site-packages" in file.parts for file in files)
    assert files == sorted(files)


def test_the_held_out_files_of_the_standard_library_are_never_trained_on():
    train, validation, problems = open_corpora(config("python-stdlib", validation="held-out", seq_len=512))
    assert not problems and validation is not None
    trained, held = ({part[item].place for item in range(len(part))} for part in (train, validation))
    assert not trained & held
    assert trained | held == {str(file) for file in stdlib_files() if file.stat().st_size}
    assert len(held) == round(0.05 * len(trained | held))


def test_a_python_without_source_files_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert "sources" in problems_of("python-stdlib")["train",][0]
