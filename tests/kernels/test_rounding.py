"""Every kernel of a variant rounds where that variant rounds: in bfloat16 that is what tells the variants apart."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.judge import DEVICES, HALF, built, eager, judged_kernels

# Where sums are taken in another order, a value between two roundings may go the other way.
TOLERATED = 0.01

pytestmark = pytest.mark.parametrize("device", DEVICES)


def share_that_differs(first, second):
    return (first != second).float().mean().item()


def norm_arguments(device):
    generator = torch.Generator(device).manual_seed(0)
    states = torch.randn(64, 512, generator=generator, device=device)
    weight = torch.randn(512, generator=generator, device=device)
    return states.to(HALF), weight.to(HALF), 1e-6


def gate_and_up(device):
    generator = torch.Generator(device).manual_seed(0)
    return (3 * torch.randn(2, 64, 512, generator=generator, device=device)).to(HALF).unbind()


@pytest.mark.parametrize("spec", judged_kernels("rms_norm"))
def test_a_norm_rounds_where_its_variant_does(spec, device):
    kernel, arguments = built(spec, device, HALF), norm_arguments(device)
    # Quack keeps more precision: it rounds once in all variants.
    variant = "fp32_weight" if (spec.variant, spec.name) == ("standard", "quack") else spec.variant
    assert share_that_differs(kernel(*arguments), eager("rms_norm", variant)(*arguments)) < TOLERATED


def test_the_variants_of_a_norm_can_be_told_apart_by_that(device):
    arguments = norm_arguments(device)
    standard, fp32_weight = (eager("rms_norm", name)(*arguments) for name in ("standard", "fp32_weight"))
    assert share_that_differs(standard, fp32_weight) > 10 * TOLERATED


@pytest.mark.parametrize("spec", judged_kernels("swiglu_mlp"))
def test_a_gate_rounds_each_step(spec, device):
    kernel, (gate, up) = built(spec, device, HALF), gate_and_up(device)
    assert share_that_differs(kernel(gate, up), eager("swiglu_mlp", spec.variant)(gate, up)) < TOLERATED


def test_a_gate_that_rounded_once_would_be_noticed(device):
    gate, up = gate_and_up(device)
    once = eager("swiglu_mlp", "silu")(gate.float(), up.float()).to(HALF)
    assert share_that_differs(once, eager("swiglu_mlp", "silu")(gate, up)) > 10 * TOLERATED


@pytest.mark.parametrize("spec", judged_kernels("rms_norm"))
def test_a_norm_with_a_wider_weight_returns_what_eager_returns(spec, device):
    kernel, (states, weight, eps) = built(spec, device, HALF), norm_arguments(device)
    found = kernel(states, weight.float(), eps)
    expected = eager("rms_norm", spec.variant)(states, weight.float(), eps)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
