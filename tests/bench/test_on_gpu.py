"""How a GPU is measured."""

from __future__ import annotations

import pytest
import torch

from kernelkit.bench.floor import Floor
from kernelkit.bench.ops import cases, measure_all
from kernelkit.bench.records import Run
from kernelkit.bench.timing import num_sets, peak_bytes, timed
from kernelkit.hardware import Hardware
from kernelkit.registry import default_registry

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")


def test_what_can_be_captured_is_timed_by_replays_and_what_waits_for_the_host_is_not():
    numbers = torch.ones(2**20, device=GPU)
    assert timed([lambda: numbers * 2], GPU).how == "graph"
    assert timed([lambda: (numbers * 2).sum().item()], GPU).how == "events"
    assert timed([lambda: numbers * 2], GPU).how == "graph", "a call that cannot be captured spoils none after it"


def test_small_inputs_are_many_and_large_ones_one():
    assert num_sets(2**10, GPU) == 16
    assert num_sets(2**31, GPU) == 1


def test_the_peak_is_what_a_call_holds_beyond_its_inputs_and_its_result():
    numbers = torch.ones(2**20, device=GPU)
    assert peak_bytes(lambda: (numbers + 1) + 1, GPU, lambda _: 0) == 2 * 4 * 2**20
    assert peak_bytes(lambda: (numbers + 1) + 1, GPU, lambda made: made.nbytes) == 4 * 2**20


@pytest.mark.parametrize("op", ["rms_norm", "qk_norm_rope", "swiglu_mlp"])
def test_every_kernel_of_an_op_is_measured_or_says_why_not(op):
    hardware, dtype = Hardware.detect(), torch.bfloat16
    floor, run = Floor.measure(GPU, dtype), Run(hardware.name)
    records = list(measure_all(cases(default_registry(), hardware, dtype, ops=[op]), run, floor, GPU, dtype))
    assert [record.error for record in records if record.error] == []
    assert {record.how for record in records} <= {"graph", "events"}
    assert all(record.peak_mib is not None and record.floor_ms > 0 for record in records)
