"""The experts on the grouped products of the package quack-kernels; the adapter is in ``quack_kernels``."""

from __future__ import annotations

from kernelkit.kernels.requirements import QUACK_EPILOGUES, TRITON
from kernelkit.spec import KernelSpec

ASKED = QUACK_EPILOGUES | {
    "packages": (*QUACK_EPILOGUES["packages"], *TRITON["packages"]),
    "dtypes": ("bfloat16", "float16"),
}

SPECS = tuple(
    KernelSpec(
        op="moe_experts",
        variant=variant,
        name="quack",
        factory=f"{__name__}_kernels:{function}",
        **ASKED,
        description="Grouped products of quack, with the activation and its backward inside of them; compiled at the "
        "first call.",
        refuses="sizes that are no multiples of 8",
    )
    for variant, function in (("standard", "moe_experts"), ("gpt_oss", "gpt_oss"))
)
