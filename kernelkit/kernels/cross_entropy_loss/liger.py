"""Fused linear cross-entropy from the package liger-kernel; the adapter is in ``liger_kernels``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from kernelkit.kernels.requirements import LIGER
from kernelkit.spec import KernelSpec


class LigerCrossEntropyOptions(BaseModel):
    """What a config may set.

    Attributes:
        accumulate_in_float32: add up the chunks' gradients of weight and bias in float32. False saves four bytes for
            each weight of the head while the loss is computed, and rounds each chunk's sum to the dtype of the weight.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    accumulate_in_float32: bool = True


SPECS = (
    KernelSpec(
        op="cross_entropy_loss",
        variant="standard",
        name="liger",
        factory=f"{__name__}_kernels:cross_entropy_loss",
        # The gradients are those of the sum until the backward divides, which overflows float16.
        dtypes=("float32", "bfloat16"),
        options=LigerCrossEntropyOptions,
        description="Liger's fused linear cross-entropy: logits by chunks, none kept, and gradients in the forward.",
        **LIGER,
    ),
)
