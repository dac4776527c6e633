"""Linear cross-entropy from the package quack-kernels; the adapter is in ``quack_kernels``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from kernelkit.hardware import Hardware, HardwareRequirement
from kernelkit.kernels.requirements import QUACK
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


def obstacle(hardware: Hardware) -> str | None:
    """Why quack's products with epilogues cannot be imported here.

    Quack fingerprints what an epilogue calls, and takes only what is installed as it is: elsewhere it reads on into the
    CUTLASS DSL, and refuses its loggers and context variables.
    """
    found = find_spec("cutlass")
    if found is None or found.origin is None:
        return "finds no module cutlass, which nvidia-cutlass-dsl brings and adds to sys.path by a .pth file"
    if {"site-packages", "dist-packages"} & set(Path(found.origin).parts):
        return None
    return (
        f"does not load with the CUTLASS DSL in {Path(found.origin).parent}: quack takes it only from below a folder "
        "named site-packages or dist-packages"
    )


SPECS = (
    KernelSpec(
        op="cross_entropy_loss",
        variant="standard",
        name="quack",
        factory=f"{__name__}_kernels:cross_entropy_loss",
        probe=f"{__name__}:obstacle",
        options=QuackCrossEntropyOptions,
        description="Quack's products with the softmax in their epilogue: the loss from float32 logits, none kept, and "
        "gradients in the forward.",
        refuses="a bias, softcap, scale or z-loss, and a vocabulary of no multiple of 128",
        **{**QUACK, "hardware": HOPPER, "dtypes": ("bfloat16",)},
    ),
)
