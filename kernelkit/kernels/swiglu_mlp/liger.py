"""Gated activations from the package liger-kernel; the adapters are in ``liger_kernels``.

``clamped`` is missing: Liger has no kernel with gpt-oss's limits.
"""

from __future__ import annotations

from kernelkit.kernels.requirements import FLOATS, LIGER
from kernelkit.spec import KernelSpec

SPECS = tuple(
    KernelSpec(
        op="swiglu_mlp",
        variant=variant,
        name="liger",
        factory=f"{__name__}_kernels:{variant}",
        dtypes=FLOATS,
        description="Liger's Triton kernel; its backward works on copies of gate and up, which it overwrites.",
        **LIGER,
    )
    for variant in ("silu", "gelu_tanh")
)
