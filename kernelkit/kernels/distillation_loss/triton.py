"""Both heads and their divergence in Triton; the kernel is in ``triton_kernels``."""

from __future__ import annotations

from kernelkit.kernels.chunked_head import ChunkOptions
from kernelkit.kernels.requirements import TRITON
from kernelkit.spec import KernelSpec

SPECS = (
    KernelSpec(
        op="distillation_loss",
        variant="standard",
        name="triton",
        factory=f"{__name__}_kernels:distillation_loss",
        options=ChunkOptions,
        description="As chunked, but both models' logits are read once, and written as the gradient.",
        **TRITON,
    ),
)
