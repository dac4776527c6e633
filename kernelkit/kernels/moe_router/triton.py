"""The choice of experts in Triton; the kernels are in ``triton_kernels``."""

from __future__ import annotations

from kernelkit.kernels.requirements import TRITON
from kernelkit.spec import KernelSpec

SPECS = (
    KernelSpec(
        op="moe_router",
        variant="standard",
        name="triton",
        factory=f"{__name__}_kernels:moe_router",
        description="Softmax, choice and normalisation in one pass, in float32; of equal logits the first.",
        **TRITON,
    ),
)
