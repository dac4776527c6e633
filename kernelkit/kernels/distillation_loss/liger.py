"""Fused linear JSD from the package liger-kernel; the adapter is in ``liger_kernels``."""

from __future__ import annotations

from kernelkit.hardware import HardwareRequirement
from kernelkit.kernels.requirements import LIGER
from kernelkit.spec import KernelSpec

SPECS = (
    KernelSpec(
        op="distillation_loss",
        variant="standard",
        name="liger",
        factory=f"{__name__}_kernels:distillation_loss",
        # Elsewhere Liger rounds the logits to the dtype of the hidden states before it takes them to float32.
        hardware=HardwareRequirement(device_type="cuda", min_capability=(8, 0)),
        packages=LIGER["packages"],
        dtypes=("float32", "bfloat16"),
        description=(
            "Liger's fused linear JSD (Triton). "
            "The cross-entropy and the agreement cost a second projection of both models."
        ),
        refuses="a bias, softcap, logit scale or alpha",
    ),
)
