"""The presets that go by measurements. All that is measured here is made up."""

from __future__ import annotations

import pytest

from kernelkit.containers import KernelContainer, Need
from kernelkit.hardware import Hardware
from kernelkit.kernels import measurements
from kernelkit.kernels.measurements import MeasuredGpu, Ranking, read, text_of
from tests.containers.fakes import ATTENTION, CPU, NORM, bound, mistakes

TRAINING, INFERENCE = {"preset": "fastest-training"}, {"preset": "fastest-inference"}
H200 = Hardware(device_type="cuda", name="NVIDIA H200", capability=(9, 0), packages={"liger-kernel": "0.8.5"})


def ranking(*impls, op="rms_norm", variant="standard", passes="fwd+bwd"):
    return Ranking(op=op, variant=variant, passes=passes, date="2026-11-25", impls=impls)


def gpu(*rankings, name="NVIDIA H200", capability=(9, 0)):
    return MeasuredGpu(gpu=name, capability=capability, rankings=rankings)


@pytest.fixture
def norm(make):
    """The norm that is bound where these implementations were measured, the fastest first."""

    def bind(*rankings, ops=TRAINING, hardware=H200, **settings):
        container = make(ops, hardware=hardware, measurements=[gpu(*rankings)], **settings)
        return bound(container)["rms_norm", "standard"]

    return bind


WHY = "preset fastest-training: fastest in the benchmark of NVIDIA H200, 2026-11-25"


def test_the_fastest_of_the_pass_is_taken_and_the_report_says_by_which_benchmark(norm):
    both = ranking("liger", "eager"), ranking("torch", "liger", passes="fwd")
    assert (norm(*both).impl, norm(*both).why) == ("liger", WHY)
    assert norm(*both, ops=INFERENCE).impl == "torch"
    assert norm(*both).named


def test_what_cannot_run_is_passed_over_with_the_reason(norm):
    order = ranking("quack", "missing_package", "inference", "half", "needy", "picky", "liger")
    binding = norm(order, dtype="float32")
    assert binding.impl == "liger"
    for said in (
        "quack does not exist in this registry",
        "missing_package needs ",
        "inference is for inference only",
        "half takes float16 or bfloat16, and the model is float32",
        "needy needs to be told width",
        "picky refuses rows of an odd length",
    ):
        assert said in binding.why
    assert norm(order, ops=INFERENCE, training=False).why == "default"
    assert norm(ranking("untraceable", "liger"), compiled=True).impl == "liger"


def test_where_nothing_that_was_measured_runs_it_is_an_error_and_no_other_is_taken(norm):
    message = mistakes(lambda: norm(ranking("liger_npu", "missing_package")))[("preset", "rms_norm")][1]
    assert message.startswith(
        f"rms_norm: {WHY} finds no implementation of 'standard' that runs here: liger_npu runs on"
    )


def test_an_op_that_was_not_measured_keeps_its_default_and_the_named_ones_come_first(make):
    container = make({**TRAINING, "rms_norm": "torch"}, hardware=H200, measurements=[gpu(ranking("liger"))])
    bindings = bound(container, NORM, ATTENTION, Need("moe_experts"))
    found = [(each.impl, each.why) for each in bindings.values()]
    assert found == [("torch", "named"), ("sdpa", "default"), ("torch", "default")]


def test_a_variant_that_was_not_measured_keeps_its_default(make):
    container = make(TRAINING, hardware=H200, measurements=[gpu(ranking("liger"))])
    found = bound(container, NORM, Need("rms_norm", "zero_centered")).values()
    assert [(each.impl, each.why) for each in found] == [("liger", WHY), ("eager", "default")]


def test_in_a_stock_model_what_was_not_measured_stays_stock(make):
    container = make(TRAINING, hardware=H200, measurements=[gpu(ranking("liger"))])
    assert set(container.bind([NORM, ATTENTION], model="M", named_only=True)) == {("rms_norm", "standard")}


@pytest.mark.parametrize("preset", [TRAINING, INFERENCE])
def test_hardware_without_measurements_is_refused_and_told_what_was_measured(preset, make):
    known = [gpu(), gpu(name="NVIDIA A100-SXM4-80GB", capability=(8, 0))]
    kind, message = mistakes(lambda: make(preset, measurements=known))[("preset",)]
    assert kind == "unmeasured_hardware"
    assert "there are none of cpu. Measured so far: NVIDIA H200, NVIDIA A100-SXM4-80GB." in message
    assert "Measured so far: nothing." in mistakes(lambda: make(preset, measurements=()))[("preset",)][1]


def test_a_model_that_is_built_on_another_device_is_refused_too(make):
    container = make(TRAINING, hardware=H200, measurements=[gpu(ranking("torch"))])
    message = mistakes(lambda: container.bind([NORM, ATTENTION], model="M", device="cpu"))[("preset", "rms_norm")][1]
    assert "there are none of cpu" in message


@pytest.mark.parametrize(
    ("name", "capability", "same"),
    [
        ("NVIDIA H200", (9, 0), True),
        ("h200", (9, 0), True),
        ("H200", (9, 0), True),
        ("NVIDIA H200 NVL", (9, 0), False),
        ("h100", (9, 0), False),
        ("NVIDIA H200", (10, 0), False),
        ("nvidia", None, False),
    ],
)
def test_hardware_is_measured_by_its_full_name_or_the_common_one(name, capability, same):
    assert gpu().is_of(Hardware(device_type="cuda", name=name, capability=capability)) is same


def test_a_file_of_measurements_reads_back(tmp_path):
    path = tmp_path / "measurements.json"
    path.write_text(text_of([gpu(ranking("liger", "torch"))]))
    assert read(path) == (gpu(ranking("liger", "torch")),)


def test_without_any_given_those_that_are_installed_count(registry, monkeypatch):
    monkeypatch.setattr("kernelkit.containers.kernel_container.shipped", lambda: (gpu(ranking("torch")),))
    container = KernelContainer.from_config(TRAINING, registry=registry, hardware=H200)
    assert bound(container)["rms_norm", "standard"].impl == "torch"
    assert measurements.read(measurements.SHIPPED) == measurements.shipped()
    assert CPU.name not in {each.gpu for each in measurements.shipped()}
