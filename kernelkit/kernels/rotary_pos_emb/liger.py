"""Rotary position embedding from the package liger-kernel; the adapter is in ``liger_kernels``."""

from __future__ import annotations

from kernelkit.kernels.requirements import FLOATS, LIGER
from kernelkit.spec import KernelSpec

SPECS = tuple(
    KernelSpec(
        op="rotary_pos_emb",
        variant=variant,
        name="liger",
        # Liger reads the rotated width off cos, so that one kernel serves both.
        factory=f"{__name__}_kernels:rotary_pos_emb",
        dtypes=FLOATS,
        description="Liger's Triton kernel, on copies of query and key: it works in place.",
        **LIGER,
    )
    for variant in ("full", "partial")
)
