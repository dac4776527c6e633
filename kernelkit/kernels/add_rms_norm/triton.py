"""A residual added and normalised in Triton; the kernels are in ``triton_kernels``."""

from __future__ import annotations

from kernelkit.kernels.requirements import TRITON
from kernelkit.spec import KernelSpec

SPECS = tuple(
    KernelSpec(
        op="add_rms_norm",
        variant=variant,
        name="triton",
        factory=f"{__name__}_kernels:{variant}",
        description="Addition and norm in one pass, forward and backward; the norm must have no hooks.",
        **TRITON,
    )
    for variant in ("standard", "zero_centered", "fp32_weight")
)
