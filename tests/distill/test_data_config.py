"""The ``data:`` section of a config."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from kernelkit.distill.data.config import DataConfig
from tests.distill.data_files import config, problems_of


def test_one_path_and_a_list_of_paths_are_both_sources(tmp_path):
    assert config("a.txt").train == ("a.txt",)
    assert config(["a.txt", tmp_path / "b.txt"]).train == ("a.txt", str(tmp_path / "b.txt"))


def test_a_config_is_a_value_that_survives_json():
    one = config("a.txt", validation=["b.txt", "c.txt"])
    assert DataConfig.model_validate_json(one.model_dump_json()) == one
    assert hash(one) == hash(config("a.txt", validation=["b.txt", "c.txt"]))


def test_every_field_is_described_in_the_schema():
    fields = DataConfig.model_json_schema()["properties"]
    assert set(fields) == set(DataConfig.model_fields)
    assert all(field["description"] for field in fields.values())


def test_all_mistakes_of_form_are_reported_at_once():
    with pytest.raises(ValidationError) as caught:
        DataConfig(train=[], seq_len=1, batch_size="four", packing="yes", sequence_length=8)
    assert {line["loc"][0] for line in caught.value.errors()} == {
        "train",
        "seq_len",
        "batch_size",
        "packing",
        "sequence_length",
    }


def test_held_out_is_validation_data_alone():
    with pytest.raises(ValidationError, match="stands alone") as caught:
        config(["held-out"], validation=["held-out", "b.txt"])
    assert [line["loc"] for line in caught.value.errors()] == [("train",), ("validation",)]


def test_the_standard_library_holds_no_conversations():
    with pytest.raises(ValidationError, match="no conversations"):
        config("python-stdlib", chat=True)


@pytest.mark.parametrize(
    ("batch_size", "micro_batch_size", "world_size", "fits"),
    [(8, None, 4, True), (8, 2, 4, True), (8, 4, 4, False), (6, None, 4, False), (1, None, 1, True), (2, 4, 1, False)],
)
def test_a_step_must_divide_evenly_over_ranks_and_micro_batches(batch_size, micro_batch_size, world_size, fits):
    found = config("a.txt", batch_size=batch_size, micro_batch_size=micro_batch_size).problems(world_size)
    assert [problem.loc for problem in found] == ([] if fits else [("batch_size",)])


def test_an_uneven_step_names_a_size_that_fits():
    (problem,) = config("a.txt", batch_size=30, micro_batch_size=4).problems(2)
    assert "2 ranks in micro-batches of 4" in problem.message and "such as 24" in problem.message
    assert config("a.txt", batch_size=24, micro_batch_size=4).problems(2) == []


def test_what_is_wrong_in_different_sections_is_reported_together(tmp_path):
    found = problems_of(
        str(tmp_path / "none.txt"),
        validation=[str(tmp_path / "*.txt"), "python-stdlib"],
        tokenizer=str(tmp_path / "tokenizer"),
        chat_template=str(tmp_path / "chat.jinja"),
        batch_size=3,
        world_size=2,
    )
    assert set(found) == {("batch_size",), ("tokenizer",), ("chat_template",), ("train",), ("validation", 0)}
