"""What the Triton norms launch compiles for two GPUs that need not be there, and fits into their shared memory."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.judge import INTERPRETED
from tests.kernels.test_compiled_experts import SHARED, Recorded, compiled

pytestmark = [pytest.mark.slow, pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")]


def assert_compiles(launches, capability, *, ahead):
    """Each launch fits; the backward, which comes last, loads what it reads next into shared memory."""
    found = [compiled(*launch, capability) for launch in launches]
    assert all(each.metadata.shared <= SHARED[capability] for each in found)
    assert ("cp.async" in found[-1].asm["ptx"]) == ahead


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [128, 1024, 8192, 16384, 32768])
def test_rms_norm(width, dtype, added, capability, monkeypatch):
    pytest.importorskip("triton")
    from kernelkit.kernels.rms_norm import triton_kernels as norms

    launches = []
    for name in ("_forward", "_backward"):
        monkeypatch.setattr(norms, name, Recorded(getattr(norms, name), launches))
    monkeypatch.setattr(norms, "_add_shares", Recorded(norms._add_shares, []))
    monkeypatch.setattr(norms, "shared_memory", lambda _: SHARED[capability])
    states, weight = torch.zeros(8, width, dtype=dtype), torch.zeros(width, dtype=dtype)
    norms.launch_forward(states, states if added else None, weight, 1e-6, 0.0, True)
    norms.launch_backward(states, states if added else None, states, weight, 1e-6, 0.0, True)
    bytes_of_row = width * states.element_size() * (3 if added else 2)
    assert_compiles(launches, capability, ahead=bytes_of_row <= SHARED[capability])


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_qk_norm_rope(dim, dtype, capability, monkeypatch):
    pytest.importorskip("triton")
    from kernelkit.kernels.qk_norm_rope import triton_kernels as prologue
    from kernelkit.kernels.rms_norm import triton_kernels as norms

    launches = []
    for name in ("_forward", "_backward"):
        monkeypatch.setattr(prologue, name, Recorded(getattr(prologue, name), launches))
    monkeypatch.setattr(norms, "_add_shares", Recorded(norms._add_shares, []))
    query, key = (torch.zeros(1, 16, heads, dim, dtype=dtype, requires_grad=True) for heads in (4, 2))
    weight, angles = torch.zeros(dim, dtype=dtype), torch.zeros(1, 16, dim, dtype=dtype)
    rotated = prologue._normalise_and_rotate(query, key, weight, weight, angles, angles, 1e-6, 1e-6)
    torch.autograd.backward(rotated, [torch.zeros_like(each) for each in rotated])
    assert_compiles(launches, capability, ahead=True)
