"""RMS normalisation in plain PyTorch, fused by ``torch.compile``."""

from __future__ import annotations

from kernelkit.kernels.compiled import HARDWARE, PROBE, CompileOptions, compiled
from kernelkit.kernels.rms_norm import eager
from kernelkit.spec import Kernel, KernelSpec


def standard(options: CompileOptions) -> Kernel:
    """The eager kernel of this variant, compiled."""
    return compiled(eager.standard, options)


def zero_centered(options: CompileOptions) -> Kernel:
    """The eager kernel of this variant, compiled."""
    return compiled(eager.zero_centered, options)


def fp32_weight(options: CompileOptions) -> Kernel:
    """The eager kernel of this variant, compiled."""
    return compiled(eager.fp32_weight, options)


SPECS = tuple(
    KernelSpec(
        op="rms_norm",
        variant=variant,
        name="compile",
        factory=f"{__name__}:{variant}",
        hardware=HARDWARE,
        probe=PROBE,
        options=CompileOptions,
        description="The eager kernel through torch.compile, rounding where eager mode does.",
    )
    for variant in ("standard", "zero_centered", "fp32_weight")
)
