"""Qwen3-MoE trains with every implementation of its experts."""

from __future__ import annotations

import functools

import pytest
import torch

from kernelkit import build_model, default_registry
from kernelkit.hardware import Hardware
from tests.models.families import small_config, tokens

OTHERS = [spec.name for spec in default_registry().list("moe_experts", "standard") if spec.name != "eager"]


@functools.cache
def losses(impl: str, device: str, dtype: torch.dtype) -> torch.Tensor:
    """Of some steps on one batch, from the same weights."""
    torch.manual_seed(0)
    config = small_config("qwen3_moe", num_experts=8, hidden_size=64, moe_intermediate_size=32, head_dim=16)
    kernels = {"preset": "eager", "moe_experts": impl}
    model = build_model(config, kernels=kernels, dtype=dtype, device=device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows, found = tokens(2, 16).to(device), []
    for _ in range(16):
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        found.append(loss.detach().float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.stack(found)


def assert_follows_eager(impl: str, device: str, dtype: torch.dtype, tolerance: float) -> None:
    expected = losses("eager", device, dtype)
    assert expected[-1] < 0.5 * expected[0]
    torch.testing.assert_close(losses(impl, device, dtype), expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("impl", ["torch", pytest.param("compile", marks=pytest.mark.slow)])
def test_the_loss_with_torchs_experts_follows_eagers(impl: str) -> None:
    assert_follows_eager(impl, "cpu", torch.float32, 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("impl", OTHERS)
def test_the_loss_follows_eagers_in_bfloat16(impl: str) -> None:
    spec = default_registry().get("moe_experts", "standard", impl)
    if reason := spec.problem(Hardware.detect("cuda"), dtype="bfloat16"):
        pytest.skip(reason)
    assert_follows_eager(impl, "cuda", torch.bfloat16, 2e-2)
