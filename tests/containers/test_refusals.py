"""What a container refuses: for the machine, and for the model."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch

from kernelkit.containers import KernelContainer, Need, OpsConfig
from kernelkit.errors import UnusedOpWarning
from kernelkit.hardware import Hardware
from kernelkit.registry import default_registry
from tests.containers import fakes
from tests.containers.fakes import ATTENTION, CPU, NORM, bound, mistakes, spec


@pytest.mark.parametrize(
    ("impl", "settings", "message"),
    [
        (
            "liger",
            {"hardware": Hardware.named("npu")},
            "rms_norm: liger (named) runs on cuda, not on npu. Available on npu "
            "for rms_norm (standard): eager, torch, liger_npu,",
        ),
        (
            "liger_npu",
            {"hardware": Hardware.named("h100")},
            "rms_norm: liger_npu (named) runs on npu, not on h100 (cuda, "
            "compute capability 9.0). Available on h100 for rms_norm (standard): eager, torch, liger, hopper,",
        ),
        (
            "hopper",
            {"hardware": Hardware.named("a100")},
            "rms_norm: hopper (named) needs compute capability 9.0 or higher, "
            "not a100 (cuda, compute capability 8.0). Available on a100 for rms_norm (standard): eager,",
        ),
        (
            "hopper",
            {"hardware": Hardware.named("b200")},
            "rms_norm: hopper (named) needs compute capability 9.9 or lower",
        ),
        (
            "missing_package",
            {},
            "rms_norm: missing_package (named) needs the package quack-kernels, which is not installed: "
            "pip install 'quack-kernels[cu13]>=0.5'. Available on cpu",
        ),
        (
            "old_package",
            {},
            "rms_norm: old_package (named) needs old>=1.0, and old 0.9 is installed: pip install 'old>=1.0'.",
        ),
        (
            "inference",
            {},
            "rms_norm: inference (named) is for inference only: it has no backward, and the container is built "
            "with training=True.",
        ),
        (
            "untraceable",
            {"compiled": True},
            "rms_norm: untraceable (named) cannot be traced by torch.compile, and the "
            "container is built with compiled=True.",
        ),
        (
            "half",
            {"dtype": torch.float32},
            "rms_norm: half (named) takes float16 or bfloat16, and the model is float32.",
        ),
    ],
)
def test_a_named_kernel_that_cannot_run_is_refused_with_the_reason_and_what_can(make, impl, settings, message):
    ((loc, (kind, found)),) = mistakes(lambda: make({"rms_norm": impl}, **settings)).items()
    assert (loc, kind) == (("rms_norm",), "unavailable_kernel")
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("impl", "settings"),
    [
        ("inference", {"training": False}),
        ("untraceable", {}),
        ("half", {"dtype": "bfloat16"}),
        ("half", {}),
        ("missing_package", {"hardware": Hardware.named("cpu")}),
    ],
)
def test_the_same_kernel_is_accepted_where_it_can_run(make, impl, settings):
    assert bound(make({"rms_norm": impl}, **settings))["rms_norm", "standard"].impl == impl


def test_a_kernel_for_this_machine_whose_packages_are_missing_is_named_as_such():
    bare_npu = Hardware(device_type="npu", name="npu", packages={})
    message = mistakes(lambda: KernelContainer.from_config({"rms_norm": "liger"}, hardware=bare_npu))[("rms_norm",)][1]
    assert message.endswith("(standard): eager, torch; once their packages are installed, also: liger_npu.")


def test_all_that_the_machine_refuses_is_reported_at_once(make):
    found = mistakes(lambda: make({"rms_norm": "liger", "attention": "flash_attention_3", "moe_experts": "torch"}))
    assert set(found) == {("rms_norm",), ("attention",)}


def test_on_an_npu_the_real_liger_names_liger_npu_and_the_other_way_round():
    for impl, other, machine in (("liger", "liger_npu", "npu"), ("liger_npu", "liger", "h100")):
        ops, hardware = dict.fromkeys(("rms_norm", "rotary_pos_emb"), impl), Hardware.named(machine)
        found = mistakes(lambda ops=ops, hardware=hardware: KernelContainer.from_config(ops, hardware=hardware))
        assert set(found) == {("rms_norm",), ("rotary_pos_emb",)}
        for _, message in found.values():
            available = message.partition("Available on")[2].partition("): ")[2]
            assert other in available.removesuffix(".").split(", ")


@pytest.mark.parametrize("machine", ["cpu", "a100", "h100", "b200", "mi300x", "npu", "xpu"])
def test_every_real_kernel_is_accepted_by_a_machine_or_refused_naming_what_runs_there(machine):
    registry, hardware = default_registry(), Hardware.named(machine)
    for op in registry.ops:
        for impl in registry.impls(op):
            try:
                KernelContainer.from_config({op: impl}, hardware=hardware)
            except ValueError as error:
                (line,) = error.errors()
                assert line["loc"] == (op,) and "eager" in line["msg"].partition(f"Available on {machine}")[2]


def test_a_config_read_with_other_names_is_checked_against_those_of_the_container(registry, make):
    config = OpsConfig.load({"rms_norm": "hopper"}, registry=registry)
    assert mistakes(lambda: KernelContainer.from_config(config, hardware=CPU))[("rms_norm",)][0] == "unknown_impl"


def test_a_dtype_that_torch_does_not_have_is_refused(make):
    with pytest.raises(ValueError, match="'bf16' is not a torch dtype, such as 'bfloat16'"):
        make(dtype="bf16")


def test_by_default_the_kernels_are_for_the_device_that_is_given():
    assert KernelContainer.from_config(device="cpu").hardware == Hardware.detect("cpu")


def test_all_that_the_model_refuses_is_reported_at_once(make):
    container = make({"rms_norm": "torch", "moe_experts": "torch"})
    needs = [Need("rms_norm", "zero_centered"), Need("attention", "diagonal"), Need("swiglu_mlp")]
    assert mistakes(lambda: bound(container, *needs)) == {
        ("rms_norm",): (
            "missing_variant",
            "rms_norm: torch (named) has no variant 'zero_centered', which the model needs, only standard. Available "
            "on cpu for rms_norm (zero_centered): eager.",
        ),
        ("attention",): (
            "unknown_variant",
            "the model needs an unknown variant 'diagonal' of attention. Valid: causal, sliding_window, softcap.",
        ),
        ("swiglu_mlp",): (
            "unknown_op",
            "the model needs an unknown op 'swiglu_mlp'. Valid: rms_norm, attention, moe_experts.",
        ),
        ("moe_experts",): (
            "unused_op",
            "M has no use for 'moe_experts'; it has: rms_norm, attention, swiglu_mlp. Set allow_unused: true to share "
            "one config between models.",
        ),
    }


def test_a_size_beyond_a_kernels_limit_is_refused(make):
    container = make({"attention": "narrow"})
    wide = Need("attention", "causal", {"head_dim": 256})
    assert mistakes(lambda: bound(container, wide))[("attention",)][1].startswith(
        "attention: narrow (named) takes a head_dim up to 128, not 256. Available on cpu for attention (causal): eager"
    )
    assert bound(container, Need("attention", "causal", {"head_dim": 128}))


def test_a_kernel_must_serve_the_largest_of_a_models_sizes(make):
    needs = [Need("attention", "causal", {"head_dim": size}) for size in (64, 256, 128)]
    assert "not 256" in mistakes(lambda: bound(make({"attention": "narrow"}), *needs))[("attention",)][1]


def test_a_member_of_a_preset_that_cannot_run_is_refused_where_the_model_has_its_op(make):
    container = make({"preset": "liger"})
    assert bound(container, ATTENTION)["attention", "causal"].why == "preset liger"
    message = mistakes(lambda: bound(container, NORM))[("preset", "rms_norm")][1]
    assert message.startswith("rms_norm: liger (preset liger) runs on cuda, not on cpu.")
    message = mistakes(lambda: bound(container, Need("moe_experts")))[("preset", "moe_experts")][1]
    assert message.startswith("moe_experts: liger (preset liger) does not exist in this registry.")


def test_a_kernel_that_cannot_be_loaded_is_refused_with_the_reason(make):
    assert mistakes(lambda: bound(make({"rms_norm": "unbuildable"}))) == {
        ("rms_norm",): (
            "unloadable_kernel",
            "rms_norm: unbuildable (named) cannot be loaded: OSError: the shared library is missing",
        )
    }


def test_an_op_that_the_model_lacks_is_only_warned_about_where_the_config_allows_it(make, write):
    path = write("allow_unused: true\nmoe_experts: torch\n")
    container = make(path)
    line = inspect.currentframe().f_lineno + 2
    with pytest.warns(UnusedOpWarning) as caught:
        bindings = container.bind([NORM], model="M")
    assert list(bindings) == [("rms_norm", "standard")]
    assert [str(each.message) for each in caught] == [f"{path}:2:1: M has no use for 'moe_experts'; it has: rms_norm"]
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


def test_a_preset_names_ops_that_the_model_lacks_without_a_word(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bound(make({"preset": "eager"}))


def test_a_second_model_gets_the_same_kernels_if_they_can_serve_it(make):
    container = make({"attention": "narrow"})
    first, second = bound(container, ATTENTION), bound(container, Need("attention", "causal", {"head_dim": 64}))
    assert first["attention", "causal"] is second["attention", "causal"]
    wide = mistakes(lambda: bound(container, Need("attention", "causal", {"head_dim": 256})))
    assert wide[("attention",)][1] == (
        "attention: narrow (named) takes a head_dim up to 128, not 256. Give this model a container of its own."
    )


def test_the_dtype_of_the_model_counts_if_it_is_known_when_binding(make):
    container = make({"rms_norm": "half"})
    found = mistakes(lambda: container.bind([NORM], model="M", dtype=torch.float32))
    assert "the model is float32" in found[("rms_norm",)][1]
    assert container.bind([NORM], model="M", dtype=torch.bfloat16)


def test_the_device_of_the_model_counts_if_it_is_known_when_binding(make):
    container = make({"rms_norm": "hopper"}, hardware=Hardware.named("h100"))
    assert container.bind([NORM], model="M", device="cuda:1") and container.bind([NORM], model="M", device="meta")
    found = mistakes(lambda: container.bind([NORM], model="M", device="cpu"))
    assert "runs on cuda, not on cpu. Give this model a container of its own." in found[("rms_norm",)][1]


def test_a_refusal_does_not_spoil_the_container(make):
    container = make({"attention": "narrow"})
    mistakes(lambda: bound(container, Need("attention", "causal", {"head_dim": 256})))
    assert bound(container, ATTENTION)["attention", "causal"].impl == "narrow"


def test_registering_after_the_container_was_made_does_not_change_it(make, registry):
    container = make({"rms_norm": "torch"})
    registry.register(spec("torch", factory="operator:mul"), replace=True)
    registry.register(spec("late"))
    assert bound(container)["rms_norm", "standard"].kernel is fakes.other_norm
    assert "late" not in container.registry().impls("rms_norm")
