from __future__ import annotations

import csv
import json

import pytest
from pydantic import ValidationError

from kernelkit.bench.records import Record, Run, compared, keep, rates, read, shape_text, slug_of, write
from kernelkit.spec import Cost


def test_a_record_in_json_is_read_back_as_it_was(tmp_path, made_up):
    records = [made_up("eager"), made_up("triton", "fwd+bwd", None, error="OutOfMemoryError: no")]
    write(tmp_path / "h200.json", records)
    assert read(tmp_path / "h200.json") == records


def test_a_record_in_json_has_the_fields_that_others_read(tmp_path, made_up):
    write(tmp_path / "h200.json", [made_up("eager")])
    (found,) = json.loads((tmp_path / "h200.json").read_text())
    wanted = ("op", "variant", "impl", "shape", "pass", "ms", "peak_mib", "floor_ms", "gpu", "versions", "run")
    assert [name for name in wanted if name not in found] == []
    assert (found["pass"], found["gpu"], found["versions"]["torch"]) == ("fwd", "NVIDIA H200", "2.11.0")


def test_the_csv_beside_it_says_the_same(tmp_path, made_up):
    write(tmp_path / "h200.json", [made_up("eager"), made_up("triton", "fwd+bwd", 3.0)])
    with (tmp_path / "h200.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["impl"], row["pass"], row["ms"]) for row in rows] == [
        ("eager", "fwd", "2.0"),
        ("triton", "fwd+bwd", "3.0"),
    ]
    assert rows[0]["versions"] == "kernelkit=0.1.0 torch=2.11.0"


def test_a_run_that_is_killed_leaves_what_it_had(tmp_path, made_up):
    def measure():
        yield made_up("eager")
        yield made_up("torch")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(keep(measure(), tmp_path / "new/h200.json"))
    assert [record.impl for record in read(tmp_path / "new/h200.json")] == ["eager", "torch"]


def test_what_was_measured_before_and_again_is_compared(made_up):
    old = [made_up("eager", ms=2.0), made_up("torch", ms=1.0), made_up("liger", ms=None, error="fails")]
    new = [made_up("eager", ms=3.0), made_up("eager", "fwd+bwd"), made_up("torch", ms=None), made_up("liger")]
    assert [(each.impl, ratio) for _, each, ratio in compared(old, new)] == [("eager", 1.5)]


def test_rates_follow_from_time_and_cost():
    found = rates(2.0, 1.0, Cost(bytes=8 * 10**9, flops=10**12))
    assert found == {"floor_ms": 1.0, "tb_per_s": 4.0, "tflop_per_s": 500.0, "of_floor": 0.5}


def test_a_shape_is_one_line_of_sizes():
    sizes = {"batch": 4, "length": 2048, "ignored_every": 2048, "divergence": "jsd"}
    assert shape_text(sizes) == "batch=4 length=2048 divergence=jsd"


def test_a_run_names_its_device_and_versions():
    run = Run("NVIDIA H200")
    assert slug_of(run.gpu) == "nvidia-h200"
    assert {"kernelkit", "torch", "transformers"} <= run.versions.keys()
    assert run.id != Run("NVIDIA H200").id


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "other.json").write_text('[{"op": "rms_norm"}]')
    with pytest.raises(ValidationError):
        read(tmp_path / "other.json")


def test_passes_may_be_written_by_either_name(made_up):
    facts = made_up("eager").model_dump()
    assert Record(**facts) == made_up("eager")
