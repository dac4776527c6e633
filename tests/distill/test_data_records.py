"""Records of jsonl files: what is read, and what is refused with the number of its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelkit.distill.data.documents import DataError
from kernelkit.distill.data.json_lines import scan_json_lines
from kernelkit.distill.data.records import RecordReader
from tests.distill.data_files import jsonl, problems_of, said, text_file


def read(documents):
    return [documents[item].text for item in range(len(documents))]


def lines(tmp_path, *records, field="text", chat=False):
    return scan_json_lines(Path(jsonl(tmp_path / "some.jsonl", *records)), RecordReader(field, chat))


def test_blank_lines_and_empty_texts_are_passed_over(tmp_path):
    found, faults = lines(tmp_path, {"text": "one"}, "", {"text": ""}, {"text": "two"})
    assert read(found) == ["one", "two"] and not faults
    assert found[1].place.endswith("some.jsonl:4")


def test_every_faulty_line_is_reported_with_its_number(tmp_path):
    _, faults = lines(tmp_path, {"text": "one"}, "{", [1], {"txet": "x", "id": 1}, {"text": 3}, '{"text": "\\ud800"}')
    name = tmp_path / "some.jsonl"
    assert faults == [
        f"{name}:2: is not JSON: Expecting property name enclosed in double quotes at column 2",
        f"{name}:3: holds [1], not an object with fields",
        f"{name}:4: has no field 'text'. Did you mean 'txet'? Its fields: txet, id.",
        f"{name}:5: field 'text' is not text: 3",
        f"{name}:6: field 'text' has a lone surrogate, which is no character",
    ]


def test_a_file_full_of_faults_is_reported_in_a_few_sentences(tmp_path):
    _, faults = lines(tmp_path, *[{"id": 1}] * 1000)
    assert len(faults) == 6 and faults[-1].endswith("995 more such lines")


def test_a_byte_order_mark_and_other_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}')
    found, faults = scan_json_lines(path, RecordReader("text", chat=False))
    assert read(found) == ["one", "two"] and not faults


def test_a_line_that_is_no_utf_8_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "\xff"}\n')
    _, faults = scan_json_lines(path, RecordReader("text", chat=False))
    assert faults == [f"{path}:2: is not UTF-8 text: invalid start byte at byte 10 of the line"]


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ("hello", "is not a list of messages: 'hello'"),
        ([], "is not a list of messages: []"),
        ([{"content": "hi"}], "has no 'role' in message 1"),
        ([{"role": "user", "content": "hi"}], "has no message of the assistant"),
        ([{"role": "assistant", "content": "\ud800"}], "has a lone surrogate"),
    ],
)
def test_what_is_no_conversation_is_refused(tmp_path, messages, fault):
    _, faults = lines(tmp_path, said("u:hi", "a:yes"), {"messages": messages}, field="messages", chat=True)
    assert len(faults) == 1 and f":2: field 'messages' {fault}" in faults[0]


def test_text_files_hold_no_conversations(tmp_path):
    assert (
        "is text, and chat reads conversations"
        in problems_of(text_file(tmp_path / "a.txt", "x"), chat=True)["train",][0]
    )


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path):
    found, _ = lines(tmp_path, {"text": "one"})
    jsonl(tmp_path / "some.jsonl", {"tex": "one"})
    with pytest.raises(DataError, match=r"some.jsonl:1: the file has changed"):
        found[0]
