"""RMS normalisation from the package liger-kernel; the adapters are in ``liger_kernels``."""

from __future__ import annotations

from kernelkit.kernels.requirements import FLOATS, LIGER
from kernelkit.spec import KernelSpec

SPECS = tuple(
    KernelSpec(
        op="rms_norm",
        variant=variant,
        name="liger",
        factory=f"{__name__}_kernels:{variant}",
        dtypes=FLOATS,
        description="Liger's Triton kernel, never in place.",
        **LIGER,
    )
    for variant in ("standard", "zero_centered", "fp32_weight")
)
