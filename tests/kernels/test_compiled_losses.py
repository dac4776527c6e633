"""What the Triton losses and the router launch compiles for two GPUs that need not be there."""

from __future__ import annotations

import pytest
import torch

from kernelkit.registry import default_registry
from tests.kernels.judge import INTERPRETED
from tests.kernels.test_compiled_experts import SHARED, Recorded, assembled, compiled

pytestmark = [pytest.mark.slow, pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")]


def launched(monkeypatch, op, *names):
    """The op's Triton kernel, and what it will launch."""
    pytest.importorskip("triton")
    from kernelkit.kernels.cross_entropy_loss import triton_kernels as cross_entropy
    from kernelkit.kernels.load_balancing_loss import triton_kernels as load_balancing
    from kernelkit.kernels.moe_router import triton_kernels as router

    modules = {"cross_entropy_loss": cross_entropy, "load_balancing_loss": load_balancing, "moe_router": router}
    module, launches = modules[op], []
    for name in names:
        monkeypatch.setattr(module, name, Recorded(getattr(module, name), launches))
    if op == "cross_entropy_loss":  # as on a GPU, where all is one launch
        monkeypatch.setattr(module, "stages", lambda tensor, number, last: [(0, last)])
    return default_registry().get(op, "standard", "triton").build(), launches


def assert_compiles(launches, capability):
    for kernel, args, options in launches:
        assert compiled(kernel, args, options, capability).metadata.shared <= SHARED[capability]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("z_loss_coef", [0.0, 1e-4])
def test_cross_entropy(z_loss_coef, capability, monkeypatch):
    kernel, launches = launched(monkeypatch, "cross_entropy_loss", "_piece")
    states, weight = torch.zeros(8, 64, requires_grad=True), torch.zeros(10_000, 64)
    labels = torch.zeros(8, dtype=torch.long)
    kernel(states, weight, labels, bias=weight[:, 0], softcap=30.0, z_loss_coef=z_loss_coef)
    kernel(states.detach(), weight, labels, z_loss_coef=z_loss_coef)
    assert len(launches) == 2
    assert_compiles(launches, capability)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("experts", [8, 128, 512])
@pytest.mark.parametrize("padded", [False, True])
def test_load_balancing(padded, experts, capability, monkeypatch):
    kernel, launches = launched(monkeypatch, "load_balancing_loss", "_forward", "_backward")
    logits = torch.zeros(70, experts, dtype=torch.bfloat16, requires_grad=True)
    kernel((logits,), experts, 8, torch.ones(1, 70) if padded else None).backward()
    assert [launch[0].fn.__name__ for launch in launches] == ["_forward", "_backward"]
    assert_compiles(launches, capability)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (128, 8), (512, 10)])
def test_router(experts, top_k, capability, monkeypatch):
    kernel, launches = launched(monkeypatch, "moe_router", "_forward", "_backward")
    logits = torch.zeros(70, experts, dtype=torch.bfloat16, requires_grad=True)
    kernel(logits, top_k, True)[0].sum().backward()
    assert [launch[0].fn.__name__ for launch in launches] == ["_forward", "_backward"]
    assert_compiles(launches, capability)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_the_product_with_exponentials_on_hopper(biased, stored, monkeypatch, tmp_path):
    pytest.importorskip("triton")
    from kernelkit.kernels.cross_entropy_loss import hopper_exponential_kernels as hopper
    from kernelkit.kernels.head import Head

    launches = []
    monkeypatch.setattr(hopper, "_tiles", Recorded(hopper._tiles, launches))
    rows, weight, exponentials = (
        torch.zeros(size, dtype=torch.bfloat16) for size in ((200, 64), (1000, 64), (200, 1000))
    )
    head = Head(weight, weight[:, 0] if biased else None, None, 1.5)
    numbers, labelled = torch.zeros(200), torch.zeros(2, 8, dtype=torch.int8)
    labels = torch.zeros(200, dtype=torch.long)
    hopper.multiply(head, rows, exponentials if stored else None, labels, numbers, labelled, torch.zeros(4, 200))
    ((kernel, args, options),) = launches
    found = compiled(kernel, args, options, 90)
    assert found.metadata.shared <= SHARED[90]
    assert found.asm["ptx"].count("wgmma.mma_async") == 2 * 4, "two groups, and four products of depth 16 in a block"
    assert "serialized" not in assembled(found.asm["ptx"], 90, tmp_path)
