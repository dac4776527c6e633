"""Records that were made up: no test measures."""

from __future__ import annotations

import pytest

from kernelkit.bench.records import Run

H200 = Run("NVIDIA H200", {"kernelkit": "0.1.0", "torch": "2.11.0"}, "made-up")


@pytest.fixture
def made_up():
    """`made_up("triton", "fwd", 2.0)`: a record of an op of one shape, on a GPU."""

    def make(impl, passes="fwd", ms=2.0, op="rms_norm", run=H200, **fields):
        facts = {"op": op, "variant": "standard", "impl": impl, "shape": "batch=4 hidden_size=64", "pass": passes}
        if ms is not None:
            facts |= {"ms": ms, "how": "graph", "peak_mib": 12.0, "floor_ms": 1.0, "of_floor": 1.0 / ms}
            facts |= {"tb_per_s": 3.5, "tflop_per_s": 0.0}
        return run.record(**facts | fields)

    return make
