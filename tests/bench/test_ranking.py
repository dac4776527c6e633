from __future__ import annotations

from pathlib import Path

import pytest

from kernelkit.bench.ranking import ranked
from kernelkit.bench.records import Run
from kernelkit.bench.results import measured_gpus, publish
from kernelkit.kernels.measurements import SHIPPED, read, shipped

ROOT = Path(__file__).parents[2]


@pytest.fixture
def order(made_up):
    """The implementations in the order in which made-up times put them, from (impl, shape, ms)."""

    def of(*times, passes="fwd+bwd", **fields):
        records = [made_up(impl, passes, ms, shape=shape, **fields) for impl, shape, ms in times]
        found = ranked(records).ranking("rms_norm", "standard", passes)
        return found and found.impls

    return of


def test_the_fastest_comes_first(order):
    assert order(("eager", "wide", 3.0), ("liger", "wide", 2.0), ("triton", "wide", 1.0)) == (
        "triton",
        "liger",
        "eager",
    )


def test_each_shape_counts_alike_however_long_it_takes(order):
    slow_in_the_large = ("liger", "large", 12.0), ("liger", "small", 1.0)
    assert order(("eager", "large", 10.0), ("eager", "small", 2.0), *slow_in_the_large) == ("liger", "eager")


def test_what_failed_in_one_shape_is_left_out(order):
    assert order(("eager", "large", 10.0), ("eager", "small", 2.0), ("liger", "small", 1.0)) == ("eager",)
    assert order(("liger", "large", None), ("eager", "large", 2.0)) == ("eager",)
    assert order(("liger", "large", None)) is None


def test_passes_are_ranked_apart_and_whole_steps_not_at_all(made_up):
    records = [
        made_up("eager", "fwd", 1.0),
        made_up("liger", "fwd", 2.0),
        made_up("liger", "fwd+bwd", 3.0),
        made_up("stock", "fwd+bwd", 9.0, op="step"),
    ]
    found = [(each.passes, each.impls) for each in ranked(records).rankings]
    assert found == [
        ("fwd", ("eager", "liger")),
        ("fwd+bwd", ("liger",)),
    ]


def test_publishing_in_a_checkout_tells_the_package_beside_it(tmp_path, made_up):
    package = tmp_path / "kernelkit" / "kernels" / SHIPPED.name
    package.parent.mkdir(parents=True)
    package.write_text("[]")
    run = Run("NVIDIA H200", {}, "made-up", (9, 0), "2026-11-25")
    publish(tmp_path / "benchmarks", [made_up("eager", run=run), made_up("eager", op="swiglu_mlp", run=run)])
    publish(tmp_path / "benchmarks", [made_up("triton", run=Run("NVIDIA H200", {}, "later", (9, 0), "2026-11-26"))])
    (gpu,) = read(package)
    assert (gpu.gpu, gpu.capability) == ("NVIDIA H200", (9, 0))
    assert {(each.op, each.date, each.impls) for each in gpu.rankings} == {
        ("swiglu_mlp", "2026-11-25", ("eager",)),
        ("rms_norm", "2026-11-26", ("triton",)),
    }


def test_elsewhere_no_package_is_touched(tmp_path, made_up):
    before = SHIPPED.read_bytes()
    publish(tmp_path, [made_up("eager")])
    assert SHIPPED.read_bytes() == before


def test_what_the_package_says_is_what_the_committed_benchmark_says():
    assert shipped() == tuple(measured_gpus(ROOT / "benchmarks"))
