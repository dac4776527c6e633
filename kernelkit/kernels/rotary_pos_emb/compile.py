"""Rotary position embedding in plain PyTorch, fused by ``torch.compile``."""

from __future__ import annotations

from kernelkit.kernels.compiled import HARDWARE, PROBE, CompileOptions, compiled
from kernelkit.kernels.rotary_pos_emb import eager
from kernelkit.spec import Kernel, KernelSpec


def full(options: CompileOptions) -> Kernel:
    """The eager kernel of this variant, compiled."""
    return compiled(eager.full, options)


def partial(options: CompileOptions) -> Kernel:
    """The eager kernel of this variant, compiled."""
    return compiled(eager.partial, options)


def interleaved(options: CompileOptions) -> Kernel:
    """The eager kernel of this variant, compiled."""
    return compiled(eager.interleaved, options)


SPECS = tuple(
    KernelSpec(
        op="rotary_pos_emb",
        variant=variant,
        name="compile",
        factory=f"{__name__}:{variant}",
        hardware=HARDWARE,
        probe=PROBE,
        options=CompileOptions,
        description="The eager kernel through torch.compile, rounding where eager mode does.",
    )
    for variant in ("full", "partial", "interleaved")
)
