"""Sizes at which our Triton kernels' tiles are not full. On a CPU test_interpreted.py runs them."""

from __future__ import annotations

import pytest
import torch

from kernelkit.ops.norms import SampleNorm
from kernelkit.ops.qk_norm_rope import rotated
from kernelkit.registry import default_registry
from tests.kernels.judge import DEVICES, INTERPRETED, Call, assert_as_good_as_eager, built

pytestmark = pytest.mark.parametrize("device", DEVICES)


def check(device, op, variant, **arguments):
    spec = default_registry().get(op, variant, "triton")
    assert_as_good_as_eager(built(spec, device), spec, Call(default_registry().op(op), arguments))


def some(device, *shape):
    return torch.randn(*shape, generator=torch.Generator(device).manual_seed(0), device=device)


def angles(device, length, width):
    half = some(device, 1, length, width // 2)
    both = torch.cat((half, half), dim=-1)
    return {"cos": both.cos(), "sin": both.sin()}


@pytest.mark.parametrize("shape", [(133, 128), (70, 80), (3, 5000), (1, 9000)])
@pytest.mark.parametrize("variant", ["standard", "zero_centered", "fp32_weight"])
@pytest.mark.parametrize("eps", [1e-6, 0.0])
def test_rows_of_a_norm(shape, variant, eps, device):
    check(device, "rms_norm", variant, hidden_states=some(device, *shape), weight=some(device, shape[1]), eps=eps)


@pytest.mark.parametrize("variant", ["silu", "gelu_tanh", "clamped"])
def test_elements_of_a_gate(variant, device):
    gate, up = (8 * some(device, 2, 3, 1001)).unbind()
    check(device, "swiglu_mlp", variant, gate=gate, up=up)


@pytest.mark.parametrize("variant", ["full", "partial", "interleaved"])
def test_heads_of_a_rotation(variant, device):
    query, key = some(device, 2, 3, 5, 80).transpose(1, 2), some(device, 2, 3, 3, 80).transpose(1, 2)
    check(device, "rotary_pos_emb", variant, query=query, key=key, **angles(device, 3, 80 if variant == "full" else 48))


def test_heads_of_queries_and_keys(device):
    norms = {
        name: SampleNorm(weight, 1e-6) for name, weight in zip(("q_norm", "k_norm"), some(device, 2, 96), strict=True)
    }
    query, key = some(device, 2, 7, 5, 96), some(device, 2, 7, 3, 96)
    check(
        device,
        "qk_norm_rope",
        "standard",
        query=query,
        key=key,
        **norms,
        rotary_pos_emb=rotated,
        **angles(device, 7, 96),
    )


@pytest.mark.parametrize("used", [0, 1])
def test_a_sum_and_its_norm_of_which_one_goes_unused(used, device):
    mine, eager = (
        built(default_registry().get("add_rms_norm", "standard", impl), device) for impl in ("triton", "eager")
    )
    norm = SampleNorm(some(device, 96).requires_grad_(), 1e-6)
    states, residual = (each.requires_grad_() for each in some(device, 2, 7, 96).unbind())
    inputs = (states, residual) if used == 0 else (states, residual, norm.weight)
    found, wanted = (
        torch.autograd.grad(kernel(states, residual, norm)[used].sin().sum(), inputs) for kernel in (mine, eager)
    )
    torch.testing.assert_close(found, wanted)


def test_more_elements_than_an_int32_counts(device):
    if INTERPRETED or device == "cpu":
        pytest.skip("takes ten gigabytes")
    states = torch.randn(2**20 + 8, 2048, device=device, dtype=torch.bfloat16)
    weight = torch.ones(2048, device=device, dtype=torch.bfloat16)
    for op, variant, rest in (("rms_norm", "standard", (weight, 1e-6)), ("swiglu_mlp", "silu", (states,))):
        mine, eager = (default_registry().get(op, variant, impl).build() for impl in ("triton", "eager"))
        others = [tensor[-8:] if tensor is states else tensor for tensor in rest]
        torch.testing.assert_close(mine(states, *rest)[-8:], eager(states[-8:], *others), rtol=1e-2, atol=1e-2)
