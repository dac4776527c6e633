"""What the Triton experts launch compiles for two GPUs that need not be there."""

from __future__ import annotations

import inspect
import re
import subprocess

import pytest
import torch

from tests.kernels.judge import INTERPRETED

pytestmark = [pytest.mark.slow, pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")]

TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
}
SHARED = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes that a program may take, by compute capability."""
PRODUCTS = {"up", "down", "of_weight"}
LAUNCHED = PRODUCTS | {"_schedule", "_spread", "_of_activation", "_combine", "_of_routing", "_of_bias"}


class Recorded:
    """Stands in for a kernel, and keeps what it is launched with."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *args, **options: self.launches.append((self.kernel, args, options))


def compiled(kernel, args, options, capability):
    """As Triton specialises a launch: ones are constants, and multiples of sixteen are known to be."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    settings = {name: options.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in options}
    values = inspect.signature(kernel.fn).bind(*args, **options).arguments
    signature, constants, attributes = {}, {}, {}
    for position, (name, value) in enumerate(values.items()):
        constant = kernel.params[position].is_constexpr or value is None or (isinstance(value, int) and value == 1)
        if constant:
            signature[name], constants[(position,)] = "constexpr", value
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif hasattr(value, "block_shape"):
            layout = f",{value.layout!r}" if kernel.is_gluon() else ""
            signature[name] = f"tensordesc<{TYPES[value.base.dtype][1:]}{list(value.block_shape)}{layout}>"
        else:
            signature[name] = TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
            if isinstance(value, torch.Tensor) or value % 16 == 0:
                attributes[(position,)] = [["tt.divisibility", 16]]
    source = (GluonASTSource if kernel.is_gluon() else ASTSource)(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=settings)


def launches_of(monkeypatch, variant, tokens, capability, **sizes):
    """What a forward and a backward on a GPU of that capability launch."""
    from kernelkit.kernels.moe_experts import triton_activation_kernels as activation
    from kernelkit.kernels.moe_experts import triton_blocks_kernels as blocks
    from kernelkit.kernels.moe_experts import triton_grouped_kernels as grouped
    from kernelkit.kernels.moe_experts import triton_kernels
    from kernelkit.kernels.moe_experts import triton_passes_kernels as passes
    from kernelkit.kernels.moe_experts import triton_products_kernels as products

    launches = []
    for module in activation, passes, products:
        for name in vars(module).keys() & LAUNCHED:
            monkeypatch.setattr(module, name, Recorded(getattr(module, name), launches))
    monkeypatch.setattr(blocks, "shared_memory", lambda _: SHARED[capability])
    monkeypatch.setattr(grouped, "takes_tma", lambda _: capability >= 90)
    train(triton_kernels, variant, tokens, **sizes)
    return launches


def assembled(ptx, capability, folder):
    """What the assembler says: that it waits for each product of a loop, for instance, which Triton passes over."""
    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"\.target (\w+)", ptx).group(1)
    (folder / "kernel.ptx").write_text(ptx)
    command = [get_ptxas(capability).path, f"-arch={target}", "kernel.ptx", "-o", "kernel.cubin"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("tokens", [512, 16])
@pytest.mark.parametrize("variant", ["standard", "gpt_oss"])
def test_every_launch_compiles_and_fits_into_shared_memory(variant, tokens, capability, monkeypatch, tmp_path):
    pytest.importorskip("triton")
    launches = launches_of(monkeypatch, variant, tokens, capability)
    assert {kernel.fn.__name__ for kernel, *_ in launches} == LAUNCHED - (
        {"_of_bias"} if variant == "standard" else set()
    )
    for kernel, args, options in launches:
        found = compiled(kernel, args, options, capability)
        assert found.metadata.shared <= SHARED[capability]
        if kernel.fn.__name__ in PRODUCTS:
            large = capability == 90 and tokens == 512
            assert "wgmma" in found.asm["ptx"] or (not large and "mma.sync" in found.asm["ptx"])
            assert ("cp.async.bulk.tensor" in found.asm["ptx"]) == (capability == 90)
            if large:  # a copy before the loop too: the loop's own is for later
                assert found.asm["ttgir"].count("async_tma_copy_global_to_local") > 1
            assert "serialized" not in assembled(found.asm["ptx"], capability, tmp_path)


@pytest.mark.parametrize("variant", ["standard", "gpt_oss"])
def test_sizes_that_are_no_multiples_of_sixteen_fit_too(variant, monkeypatch):
    pytest.importorskip("triton")
    for kernel, args, options in launches_of(monkeypatch, variant, tokens=512, capability=90, hidden=136, width=152):
        assert compiled(kernel, args, options, 90).metadata.shared <= SHARED[90]


def train(module, variant, tokens, hidden=2048, width=768, experts=4, top_k=4, dtype=torch.bfloat16):
    states = torch.zeros(tokens, hidden, dtype=dtype, requires_grad=True)
    weights, index = torch.rand(tokens, experts).topk(top_k)
    up, down = (experts, 2 * width, hidden), (experts, hidden, width)
    turned = variant == "gpt_oss"
    shapes = [(experts, hidden, 2 * width), (experts, width, hidden), up[:2], down[:2]] if turned else [up, down]
    rest = [torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    kernel = module.gpt_oss if turned else module.moe_experts
    kernel(states, index, weights.to(dtype), *rest).sum().backward()
