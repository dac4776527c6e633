"""The experts in Triton; the kernels are in ``triton_kernels``."""

from __future__ import annotations

from kernelkit.kernels.requirements import TRITON
from kernelkit.spec import KernelSpec

SPECS = tuple(
    KernelSpec(
        op="moe_experts",
        variant=variant,
        name="triton",
        factory=f"{__name__}_kernels:{function}",
        **{**TRITON, "dtypes": ("bfloat16", "float16")},
        description="Grouped products, with the activation inside of the first.",
    )
    for variant, function in (("standard", "moe_experts"), ("gpt_oss", "gpt_oss"))
)
