"""Language-model head and cross-entropy in Triton; the kernel is in ``triton_kernels``."""

from __future__ import annotations

from kernelkit.kernels.chunked_head import ChunkOptions
from kernelkit.kernels.requirements import TRITON
from kernelkit.spec import KernelSpec

SPECS = (
    KernelSpec(
        op="cross_entropy_loss",
        variant="standard",
        name="triton",
        factory=f"{__name__}_kernels:cross_entropy_loss",
        options=ChunkOptions,
        description="Logits in float32 by chunks of tokens, never stored in bfloat16 on Hopper; gradients with it.",
        **TRITON,
    ),
)
