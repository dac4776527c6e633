"""RMS normalisation from the package quack-kernels; the adapter is in ``quack_kernels``."""

from __future__ import annotations

from kernelkit.kernels.requirements import QUACK
from kernelkit.spec import KernelSpec

SPECS = tuple(
    KernelSpec(
        op="rms_norm",
        variant=variant,
        name="quack",
        factory=f"{__name__}_kernels:{variant}",
        description="Quack's CuTe kernel, in float32 until it rounds once; compiled at the first call.",
        **QUACK,
    )
    for variant in ("standard", "zero_centered", "fp32_weight")
)
