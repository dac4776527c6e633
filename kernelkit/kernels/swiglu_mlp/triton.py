"""Gated activations in Triton; the kernels are in ``triton_kernels``."""

from __future__ import annotations

from kernelkit.kernels.requirements import TRITON
from kernelkit.spec import KernelSpec

SPECS = tuple(
    KernelSpec(
        op="swiglu_mlp",
        variant=variant,
        name="triton",
        factory=f"{__name__}_kernels:{variant}",
        description="One pass forward and one backward, which computes the activation again from gate and up.",
        **TRITON,
    )
    for variant in ("silu", "gelu_tanh", "clamped")
)
