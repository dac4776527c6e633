"""Kernels that get tensors of a device that they do not run on."""

from __future__ import annotations

import pytest
import torch

from kernelkit.containers import KernelContainer
from kernelkit.errors import KernelDeviceError
from kernelkit.hardware import Hardware, HardwareRequirement
from tests.containers import fakes
from tests.containers.fakes import ONES, bound, spec


def guarded(registry, device_type, kernel="norm"):
    """A kernel for some devices, resolved for an h100."""
    hardware = HardwareRequirement(device_type=device_type)
    registry.register(spec("here", hardware=hardware, factory=f"tests.containers.fakes:{kernel}"))
    container = KernelContainer.from_config({"rms_norm": "here"}, registry=registry, hardware=Hardware.named("h100"))
    return bound(container)["rms_norm", "standard"].kernel


@pytest.mark.parametrize(
    "call",
    [
        lambda kernel: kernel(ONES, ONES, 0.0),
        lambda kernel: kernel(hidden_states=ONES, weight=ONES, eps=0.0),
        lambda kernel: kernel((ONES,), ONES, 0.0),
    ],
)
def test_a_kernel_that_gets_tensors_of_another_device_says_which_op_and_implementation(registry, call):
    kernel = guarded(registry, "cuda")
    with pytest.raises(KernelDeviceError, match=r"rms_norm: here runs on cuda and was given tensors on cpu\. Build"):
        call(kernel)


def test_a_kernel_that_gets_tensors_of_its_device_runs(registry):
    kernel = guarded(registry, ("cpu", "cuda"))
    assert kernel(2 * ONES, ONES, 0.0).tolist() == [2.0] * 4
    assert kernel.__wrapped__ is fakes.norm


def test_a_meta_tensor_passes_everywhere(registry):
    kernel = guarded(registry, "cuda", "unchanged")
    assert kernel(torch.empty(4, device="meta"), None, 0.0).device.type == "meta"


def test_a_kernel_that_runs_anywhere_is_bound_as_it_is(make):
    assert bound(make({"rms_norm": "torch"}))["rms_norm", "standard"].kernel is fakes.other_norm


def test_the_check_of_the_device_can_be_traced(registry):
    kernel = guarded(registry, ("cpu", "cuda"))
    traced = torch.compile(lambda x: kernel(x, ONES, 0.0) + 1, fullgraph=True, backend="eager")
    assert traced(ONES).tolist() == [2.0] * 4
