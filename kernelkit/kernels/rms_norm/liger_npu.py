"""RMS normalisation from liger-kernel's kernels for Ascend; the adapters are in ``liger_npu_kernels``."""

from __future__ import annotations

from kernelkit.kernels.requirements import FLOATS, LIGER_NPU
from kernelkit.spec import KernelSpec

SPECS = tuple(
    KernelSpec(
        op="rms_norm",
        variant=variant,
        name="liger_npu",
        factory=f"{__name__}_kernels:{variant}",
        dtypes=FLOATS,
        description="Liger's Triton kernel for Ascend, never in place.",
        **LIGER_NPU,
    )
    for variant in ("standard", "zero_centered", "fp32_weight")
)
