"""RMS normalisation in Triton; the kernels are in ``triton_kernels``."""

from __future__ import annotations

from kernelkit.kernels.requirements import TRITON
from kernelkit.spec import KernelSpec

SPECS = tuple(
    KernelSpec(
        op="rms_norm",
        variant=variant,
        name="triton",
        factory=f"{__name__}_kernels:{variant}",
        description="One pass forward and one backward; several rows at a time where they are short.",
        **TRITON,
    )
    for variant in ("standard", "zero_centered", "fp32_weight")
)
