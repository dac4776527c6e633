"""The load balancing loss in Triton; the kernels are in ``triton_kernels``."""

from __future__ import annotations

from kernelkit.kernels.requirements import TRITON
from kernelkit.spec import KernelSpec

SPECS = (
    KernelSpec(
        op="load_balancing_loss",
        variant="standard",
        name="triton",
        factory=f"{__name__}_kernels:load_balancing_loss",
        description="Softmax, choice and sums of a layer in one pass, in float32.",
        **TRITON,
    ),
)
