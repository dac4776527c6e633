"""Rotary position embedding from liger-kernel's kernels for Ascend; the adapter is in ``liger_npu_kernels``."""

from __future__ import annotations

from kernelkit.kernels.requirements import FLOATS, LIGER_NPU
from kernelkit.spec import KernelSpec

SPECS = (
    KernelSpec(
        op="rotary_pos_emb",
        variant="full",
        name="liger_npu",
        factory=f"{__name__}_kernels:rotary_pos_emb",
        dtypes=FLOATS,
        description="Liger's Triton kernel for Ascend, on copies of query and key.",
        **LIGER_NPU,
    ),
)
