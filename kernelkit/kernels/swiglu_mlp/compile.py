"""Gated activations in plain PyTorch, fused by ``torch.compile``."""

from __future__ import annotations

from kernelkit.kernels.compiled import HARDWARE, PROBE, CompileOptions, compiled
from kernelkit.kernels.swiglu_mlp import eager
from kernelkit.spec import Kernel, KernelSpec


def silu(options: CompileOptions) -> Kernel:
    """The eager kernel of this variant, compiled."""
    return compiled(eager.silu, options)


def gelu_tanh(options: CompileOptions) -> Kernel:
    """The eager kernel of this variant, compiled."""
    return compiled(eager.gelu_tanh, options)


def clamped(options: CompileOptions) -> Kernel:
    """The eager kernel of this variant, compiled."""
    return compiled(eager.clamped, options)


SPECS = tuple(
    KernelSpec(
        op="swiglu_mlp",
        variant=variant,
        name="compile",
        factory=f"{__name__}:{variant}",
        hardware=HARDWARE,
        probe=PROBE,
        options=CompileOptions,
        description="The eager kernel through torch.compile, rounding where eager mode does.",
    )
    for variant in ("silu", "gelu_tanh", "clamped")
)
