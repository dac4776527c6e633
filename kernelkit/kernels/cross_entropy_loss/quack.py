"""Linear cross-entropy from the package quack-kernels; the adapter is in ``quack_kernels``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from kernelkit.hardware import HardwareRequirement
from kernelkit.kernels.requirements import QUACK_EPILOGUES
from kernelkit.spec import KernelSpec

HOPPER = HardwareRequirement(device_type="cuda", min_capability=(9, 0), max_capability=(9, 0))


class QuackCrossEntropyOptions(BaseModel):
    """What a config may set.

    Attributes:
        chunk_size: tokens whose softmax numerators exist at a time, in bfloat16; a multiple of 128. Fewer are taken
            where a chunk would have as many tokens as the hidden size, which quack refuses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    chunk_size: int = Field(default=4096, gt=0, multiple_of=128)


SPECS = (
    KernelSpec(
        op="cross_entropy_loss",
        variant="standard",
        name="quack",
        factory=f"{__name__}_kernels:cross_entropy_loss",
        options=QuackCrossEntropyOptions,
        description="Quack's products with the softmax in their epilogue: the loss from float32 logits, none kept, and "
        "gradients in the forward.",
        refuses="a bias, softcap, scale or z-loss, and a vocabulary of no multiple of 128",
        **{**QUACK_EPILOGUES, "hardware": HOPPER, "dtypes": ("bfloat16",)},
    ),
)
