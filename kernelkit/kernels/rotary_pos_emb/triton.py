"""Rotary position embedding in Triton; the kernels are in ``triton_kernels``."""

from __future__ import annotations

from kernelkit.kernels.requirements import TRITON
from kernelkit.spec import KernelSpec

SPECS = tuple(
    KernelSpec(
        op="rotary_pos_emb",
        variant=variant,
        name="triton",
        factory=f"{__name__}_kernels:{variant}",
        description="Query and key in one pass, from any strides into new tensors; rounds once.",
        **TRITON,
    )
    for variant in ("full", "partial", "interleaved")
)
