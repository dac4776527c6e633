"""The experts on the grouped products of the package quack-kernels; the adapter is in ``quack_kernels``."""

from __future__ import annotations

from kernelkit.kernels.requirements import QUACK
from kernelkit.spec import KernelSpec

SPECS = tuple(
    KernelSpec(
        op="moe_experts",
        variant=variant,
        name="quack",
        factory=f"{__name__}_kernels:{function}",
        **{**QUACK, "dtypes": ("bfloat16", "float16")},
        description="As torch, in quack's products, which gather the tokens themselves; for sizes that are multiples "
        "of 8, and compiled at the first call.",
    )
    for variant, function in (("standard", "moe_experts"), ("gpt_oss", "gpt_oss"))
)
