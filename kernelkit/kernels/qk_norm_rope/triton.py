"""Norms and rotation of queries and keys in Triton; the kernels are in ``triton_kernels``."""

from __future__ import annotations

from kernelkit.kernels.requirements import TRITON
from kernelkit.spec import KernelSpec

SPECS = (
    KernelSpec(
        op="qk_norm_rope",
        variant="standard",
        name="triton",
        factory=f"{__name__}_kernels:qk_norm_rope",
        description="Both norms and the rotation in one pass, forward and backward; the norms must have no hooks.",
        **TRITON,
    ),
)
