"""Every kernel that is registered keeps its op's contract, on every device that it runs on here.

A new kernel is judged without a change of this file. What needs Triton is judged on a CPU by test_interpreted.py.
"""

from __future__ import annotations

import pytest
import torch

from tests.kernels.judge import (
    DEVICES,
    DTYPES,
    HALF,
    assert_as_good_as_eager,
    built,
    calls,
    eager,
    judged_kernels,
    poisoned_memory,
    run,
    strided,
    tensors,
    with_gradient,
)

pytestmark = pytest.mark.parametrize("device", DEVICES)

each_kernel = pytest.mark.parametrize("spec", judged_kernels())
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("spec", [kernel for kernel in judged_kernels() if kernel.values[0].name != "eager"])
@each_dtype
def test_outputs_and_gradients_are_as_good_as_eagers(spec, dtype, device):
    kernel = built(spec, device, dtype)
    for call in calls(spec.op, spec.variant, dtype, device):
        assert_as_good_as_eager(kernel, spec, call)


@each_kernel
def test_neither_strides_nor_unwritten_memory_change_that(spec, device):
    kernel = built(spec, device)
    for call in calls(spec.op, spec.variant, _dtype(spec), device):
        with poisoned_memory():
            assert_as_good_as_eager(kernel, spec, call, change=strided)


@each_kernel
def test_inputs_outputs_and_incoming_gradients_stay_as_they_are(spec, device):
    kernel = built(spec, device)
    for call in calls(spec.op, spec.variant, _dtype(spec), device):
        given = with_gradient(call)
        inputs = tensors(given.arguments)
        before = [(tensor.detach().clone(), tensor._version) for tensor in inputs]
        outputs = tensors(given(kernel))
        incoming = given.cotangents_of(outputs)
        watched = [*inputs, *outputs, *incoming]
        before += [(tensor.detach().clone(), tensor._version) for tensor in [*outputs, *incoming]]

        torch.autograd.grad(outputs, given.leaves(), incoming, allow_unused=True)

        for tensor, (value, version) in zip(watched, before, strict=True):
            assert torch.equal(tensor, value)
            assert tensor._version == version


@each_kernel
def test_a_second_backward_gives_the_same_or_raises(spec, device):
    kernel = built(spec, device)
    call = with_gradient(calls(spec.op, spec.variant, _dtype(spec), device)[0])
    outputs = tensors(call(kernel))
    incoming = call.cotangents_of(outputs)
    try:
        first, second = (
            torch.autograd.grad(outputs, call.leaves(), incoming, retain_graph=True, materialize_grads=True)
            for _ in range(2)
        )
    except RuntimeError:
        return
    tolerance = {"rtol": 0, "atol": 0} if spec.deterministic else {}
    torch.testing.assert_close(second, first, **tolerance)


@each_kernel
def test_a_kernel_that_says_it_is_deterministic_gives_the_same_bits_again(spec, device):
    kernel = built(spec, device)
    if not spec.deterministic:
        pytest.skip("does not say so")
    for call in calls(spec.op, spec.variant, _dtype(spec), device):
        first, second = run(kernel, call), run(kernel, call)
        assert all(map(torch.equal, first.gradients, second.gradients))
        assert all(map(torch.equal, tensors(first.outputs), tensors(second.outputs)))


@each_kernel
@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
def test_a_kernel_that_says_it_is_traceable_is_traced_whole(spec, grad, device):
    kernel = built(spec, device)
    if not spec.traceable:
        pytest.skip("does not say so")
    torch.compiler.reset()
    traced = torch.compile(lambda *args, **kwargs: kernel(*args, **kwargs), backend="aot_eager", fullgraph=True)
    call = calls(spec.op, spec.variant, _dtype(spec), device)[0]
    with torch.set_grad_enabled(grad):
        if grad:
            found, expected = run(traced, call), run(kernel, call)
            # Traced, a compiled kernel is its eager form, and the two may round the last bit differently.
            bound = {"rtol": 2e-2, "atol": 2e-2} if spec.name == "compile" else {}
            torch.testing.assert_close(found.gradients, expected.gradients, **bound)
            torch.testing.assert_close(found.outputs, expected.outputs, **bound)
        else:
            torch.testing.assert_close(call(traced), call(kernel))


@pytest.mark.parametrize("spec", [*judged_kernels("moe_experts"), *judged_kernels("cross_entropy_loss")])
def test_autocast_changes_a_product_as_it_changes_eagers(spec, device):
    kernel = built(spec, device, HALF)
    call = calls(spec.op, spec.variant, torch.float32, device)[0]
    with torch.autocast(device, HALF):
        found = run(kernel, call)
        only = [output is not None for output in found.outputs]
        expected = run(eager(spec.op, spec.variant), call, only=only)
    torch.testing.assert_close(found.outputs, expected.outputs, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(found.gradients, expected.gradients, rtol=2e-2, atol=2e-2)


def _dtype(spec):
    """The lowest precision of the tests that the kernel takes."""
    name = str(HALF).removeprefix("torch.")
    return HALF if spec.dtypes is None or name in spec.dtypes else torch.float32
