"""Fused experts from the package liger-kernel; the adapter is in ``liger_kernels``."""

from __future__ import annotations

from kernelkit.kernels.requirements import LIGER
from kernelkit.spec import KernelSpec

SPECS = (
    KernelSpec(
        op="moe_experts",
        variant="standard",
        name="liger",
        factory=f"{__name__}_kernels:moe_experts",
        # Its products of float32 are TF32, and a thousand times less exact than eager's.
        dtypes=("bfloat16", "float16"),
        # The gradient of the weights of the choices is added up atomically.
        deterministic=False,
        description="Liger's fused experts. They measure variants at the first call, which can take minutes; with "
        "LIGER_FUSED_MOE_AUTOTUNE=0 in the environment they take the first.",
        **LIGER,
    ),
)
